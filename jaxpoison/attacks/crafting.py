"""The outer loop that all optimized targeted attacks share, so that they differ in objective alone.

delta <- P(delta - rate_m rule(sum_k d objective_k / d delta)), P the ball and then the image box.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxpoison import check, over
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.data.augment import Augmentation
from jaxpoison.hypergrad import at_surrogate
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, Objective, Victim

__all__ = ["Crafting", "craft"]


@dataclasses.dataclass(frozen=True)
class Crafting:
    """Settings of the outer loop; build a variant with `dataclasses.replace`.

    Attributes:
      steps: M, which must also be the num_steps of the run: the rate falls with it.
      tau: rate of the first steps, in units of `std`.
      std: per channel, pixel units: the unit in which the paper's code takes its steps, the data
        set's standard deviation; one number for all channels.
      batch_size: of the poisons, see `hypergrad.at_surrogate`; tau is scaled by batch_size / 512.
      ensemble: K surrogates; above 1 `scenario.aux` is stacked over them.
      init: of the perturbation, as in `perturb.per_sample`.
      augment: of the poisons at every step, (key, image) -> image; None for none.

    Source: Geiping et al. 2021, released code.
    """

    steps: int = 250
    tau: float = 0.1
    std: tuple[float, ...] = (1.0,)
    batch_size: int = 512
    ensemble: int = 1
    init: str = "normal"
    augment: Augmentation | None = None

    def __post_init__(self):
        check.at_least(1, steps=self.steps, batch_size=self.batch_size, ensemble=self.ensemble)
        check.positive(tau=self.tau)


def craft(
    victim: Victim, objective: Callable[[Victim], Objective], *, eps: float, crafting: Crafting
) -> Attack:
    """The attack that minimizes an objective of its poisons at trained surrogates.

    Args:
      victim: the surrogate network; its trained `Variables` are `scenario.aux`.
      objective: of a network.
      eps: L-infinity radius, pixel units (8/255).
      crafting: settings of the loop.

    Returns: an Attack; run it for `crafting.steps`.
    """
    space = per_sample(Budget("linf", eps), init=crafting.init)
    hypergrad = at_surrogate(
        objective(victim), space, batch_size=crafting.batch_size, augment=crafting.augment
    )
    if crafting.ensemble > 1:
        hypergrad = over.over_ensemble(hypergrad, crafting.ensemble, aux_axis=0)
    return bilevel(space, hypergrad, _sign_adam(crafting))


def _sign_adam(crafting: Crafting) -> optax.GradientTransformation:
    steps = crafting.steps
    milestones = {int(steps // share): 0.1 for share in (2.667, 1.6, 1.142)}
    rate = crafting.tau * crafting.batch_size / 512 / crafting.ensemble
    schedule = optax.piecewise_constant_schedule(rate, milestones)
    unit = jnp.asarray(crafting.std)
    return optax.chain(
        optax.stateless(lambda updates, params: jax.tree.map(jnp.sign, updates)),
        optax.adam(schedule),
        optax.stateless(lambda updates, params: jax.tree.map(lambda u: unit * u, updates)),
    )
