"""The outer loop that all optimized targeted attacks share, so that they differ in objective alone.

delta <- P(delta - rate_m rule(sum_k d objective_k / d delta)), P the ball and then the image box.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.attacks.update_rules import REFERENCE_BATCH, RULES, check_channels, update_rule
from jaxpoison.data.augment import Augmentation
from jaxpoison.ensemble import over_ensemble, over_networks, per_network
from jaxpoison.hypergrad import Moving, at_surrogate, moving_surrogate
from jaxpoison.hypergrad.moving_surrogate import RETRAIN_ON
from jaxpoison.perturb import Budget, at_clean, per_sample
from jaxpoison.types import (
    Attack,
    Hypergrad,
    InputError,
    Objective,
    Perturbation,
    TrainState,
    Victim,
)
from jaxpoison.victims import Recipe
from jaxpoison.victims.checks import check_variables

__all__ = [
    "POLYTOPE_BENCHMARK",
    "WITCHES_BREW",
    "Crafting",
    "Networks",
    "as_networks",
    "check_aux",
    "craft",
]

Networks = Victim | Sequence[Victim]
"""One surrogate network, or several."""

INITIAL = ("normal", "uniform", "zero", "unit_normal")
SCORES = ("last", "averaged")
SCORE_SEED = 0  # of the draws of augmentation that all restarts are scored on


@dataclasses.dataclass(frozen=True)
class Crafting:
    """Settings of the outer loop; build a variant with `dataclasses.replace`.

    Attributes:
      steps: M, the num_steps of the run (`report.arm` takes it from here): the rate falls with it.
      optimizer: "sign_adam", "adam", "mom_pgd", "mom_sgd", "pgd" or "gd"; see `update_rule`.
      tau: rate of the first steps; its unit depends on the optimizer and on `std`.
      decay: whether the rate falls by 10 after floor(M / 2.667), floor(M / 1.6) and
        floor(M / 1.142) steps (93, 156, 218 of 250); "pgd" and "gd" have no schedule.
      std: per channel, pixel units: the unit in which the paper's code takes its steps, the data
        set's standard deviation; one number for all channels. 1 is for steps in pixel units, in
        which the paper's tau of 0.1 is about four times too long.
      batch_size: of the poisons, see `hypergrad.at_surrogate`; tau is scaled by batch_size / 512.
      ensemble: K surrogates; above 1 `scenario.aux` is stacked over them. The same augmented
        poisons go through every one.
      mesh: devices to spread the surrogates over, `device_mesh(axis="member")`; changes no bit.
      init: of the perturbation: "normal", eps N(0, I) (the paper's randn); "uniform" in the ball
        (rand); "zero"; "unit_normal", std N(0, I) (its normal); or a function as in
        `perturb.per_sample`. What is drawn is projected, onto the image box too (the paper's code
        does so after the first step only).
      augment: of the poisons at every step, (key, image) -> image; None for none.
      full_data: as in `hypergrad.at_surrogate`.
      retrain: recipe of one epoch that every surrogate trains between two steps, see
        `hypergrad.moving_surrogate`; None for surrogates that stand still.
      retrain_on: "poisoned", the training set with the poisons of that step, or "clean".
      score: what `best_of` chooses among restarts by: "last", the outer loss of the last step, on
        its one draw of augmentation and before the update, as the paper's code does; or "averaged",
        the mean loss of the final delta over `score_draws` draws, the same for all restarts. It is
        computed in the network's own dtype: of a bfloat16 network it is good to about 1e-4.
      score_draws: of "averaged"; each costs about one step.

    Errors:
      InputError: a value that cannot be used; the message says what is allowed.

    Source: Geiping et al. 2021, released code.
    """

    steps: int = 250
    optimizer: str = "sign_adam"
    tau: float | Float[Array, ""] = 0.1
    decay: bool = True
    std: tuple[float, ...] = (1.0,)
    batch_size: int = REFERENCE_BATCH
    ensemble: int = 1
    mesh: Mesh | None = None
    init: Any = "normal"
    augment: Augmentation | None = None
    full_data: bool = False
    retrain: Recipe | None = None
    retrain_on: str = "poisoned"
    score: str = "last"
    score_draws: int = 16

    def __post_init__(self):
        check.at_least(1, steps=self.steps, batch_size=self.batch_size, ensemble=self.ensemble)
        check.one_of(RULES, optimizer=self.optimizer)
        check.positive(tau=self.tau)
        if not self.std:
            raise InputError("std is empty; it must have one number, or one per channel")
        for std in self.std:
            check.positive(std=std)
        check.one_of(RETRAIN_ON, retrain_on=self.retrain_on)
        check.one_of(SCORES, score=self.score)
        check.at_least(1, score_draws=self.score_draws)
        if not callable(self.init):
            check.one_of(INITIAL, init=self.init)
        if self.augment is not None and not _takes(self.augment, 2):
            raise InputError(
                f"augment = {getattr(self.augment, '__name__', self.augment)!r}; it must be a "
                "function (key, image) -> image, as augment.shift_flip() returns"
            )

    def update_rule(self, eps: float | Float[Array, ""]) -> optax.GradientTransformation:
        """Gradients of delta, pixel units, to updates; see `attacks.update_rules`."""
        return update_rule(
            self.optimizer,
            steps=self.steps,
            tau=self.tau,
            decay=self.decay,
            std=self.std,
            batch_size=self.batch_size,
            ensemble=self.ensemble,
            eps=eps,
        )


WITCHES_BREW = Crafting(std=(0.25,))
"""The paper's main settings but for `std` and `augment`, which depend on the data: 0.25 is about
that of natural images (CIFAR-10's channels have 0.247, 0.243, 0.262), and nothing is augmented."""

POLYTOPE_BENCHMARK = Crafting(
    steps=1200, optimizer="adam", tau=0.04, decay=False, std=(0.2023, 0.1994, 0.2010), init="zero"
)
"""Of the polytope attacks in the public benchmark (Schwarzschild et al. 2021, released code), with
CIFAR-10's std as it has it and eps 8/255. With K networks its rate stays 0.04: set tau to 0.04 K.
"""


def craft(
    victim: Networks,
    objective: Callable[[Victim], Objective],
    *,
    eps: float,
    crafting: Crafting,
    clean_gradient: bool = False,
) -> Attack:
    """The attack that minimizes an objective of its poisons at trained surrogates.

    Args:
      victim: the surrogate network, or n of them: surrogate k of `crafting.ensemble` is of network
        k mod n. `scenario.aux` holds trained `Variables`: of one surrogate as they are; of K of one
        network stacked on a leading axis; of n networks a tuple with one entry per network, each
        stacked over its surrogates. With `crafting.retrain` TrainStates will do too.
      objective: of a network.
      eps: L-infinity radius, pixel units (8/255).
      crafting: settings of the loop.
      clean_gradient: gradients are taken at the clean images, see `perturb.at_clean`.

    Returns: an Attack whose `num_steps` are `crafting.steps`.
    Raises: InputError for more networks than surrogates; at init for an `aux` of another form.
    """
    networks = as_networks(victim, crafting.ensemble)
    space = per_sample(Budget("linf", eps), init=_initial(crafting))
    of = at_clean(space) if clean_gradient else space
    hypergrad = _estimator(networks, objective, of, crafting)
    standing = dataclasses.replace(crafting, retrain=None)
    still = _estimator(networks, objective, space, standing)
    attack = bilevel(space, hypergrad, crafting.update_rule(eps))

    def init(key, scenario):
        check_aux(networks, crafting, scenario.aux)
        return attack.init(key, scenario)

    def score(state, scenario):
        phi = _standing(state.phi)

        def loss(number):
            key = jax.random.fold_in(jax.random.key(SCORE_SEED), number)
            return still.estimate(key, state.theta, phi, scenario)[2]

        return jnp.mean(lax.map(loss, jnp.arange(crafting.score_draws)))

    chosen = score if crafting.score == "averaged" else None
    return attack._replace(init=init, num_steps=crafting.steps, score=chosen)


def _estimator(
    networks: Sequence[Victim],
    objective: Callable[[Victim], Objective],
    space: Perturbation,
    crafting: Crafting,
) -> Hypergrad:
    """The gradient of one surrogate, or the mean over several."""
    singles = [_single(network, objective(network), space, crafting) for network in networks]
    num, mesh = crafting.ensemble, crafting.mesh
    if len(networks) > 1:
        return over_networks(singles, num, shared=True, mesh=mesh)
    if num > 1:
        return over_ensemble(singles[0], num, aux_axis=0, shared=True, mesh=mesh)
    return singles[0]


def _single(
    network: Victim, objective: Objective, space: Perturbation, crafting: Crafting
) -> Hypergrad:
    how: dict[str, Any] = {
        "batch_size": crafting.batch_size,
        "augment": crafting.augment,
        "full_data": crafting.full_data,
    }
    if crafting.retrain is None:
        return at_surrogate(objective, space, **how)
    on = crafting.retrain_on
    return moving_surrogate(objective, space, network, crafting.retrain, on=on, **how)


def _standing(phi: Any) -> Any:
    """What `at_surrogate` has in the place of surrogates in training."""
    moving = jax.tree.leaves(phi, is_leaf=_is_moving)
    if not any(map(_is_moving, moving)):
        return phi
    return jax.tree.map(lambda one: one.standing, phi, is_leaf=_is_moving)


def _is_moving(x: Any) -> bool:
    return isinstance(x, Moving)


def as_networks(victim: Networks, ensemble: int) -> tuple[Victim, ...]:
    """The surrogate networks as a tuple; an `InputError` for none, or for more than surrogates."""
    networks = (victim,) if isinstance(victim, Victim) else tuple(victim)
    if not networks:
        raise InputError("there is no surrogate network; at least one is needed")
    if ensemble < len(networks):
        raise InputError(
            f"ensemble = {ensemble} surrogates of {len(networks)} networks; each network "
            "needs at least one"
        )
    return networks


def check_aux(networks: Sequence[Victim], crafting: Crafting, aux: Any) -> None:
    """An `InputError` unless aux is as `craft` says; `at_surrogate` has a line for an empty one."""
    num = crafting.ensemble

    def variables(one):
        begun = crafting.retrain is not None and isinstance(one, TrainState)
        return one.variables if begun else one

    if not jax.tree.leaves(aux):
        return
    if len(networks) == 1:
        members = num if num > 1 else None
        check_variables(networks[0], variables(aux), "scenario.aux", members=members)
        return
    for i, (network, one) in enumerate(zip(networks, per_network(aux, len(networks)), strict=True)):
        members = len(range(i, num, len(networks)))
        check_variables(network, variables(one), f"scenario.aux[{i}]", members=members)


def _takes(function: Any, num: int) -> bool:
    """Whether it can be called with `num` positional arguments, as far as can be seen."""
    try:
        inspect.signature(function).bind(*range(num))
    except TypeError:  # too many, too few, or no function at all
        return False
    except ValueError:  # a built-in that does not say
        pass
    return True


def _initial(crafting: Crafting) -> Any:
    """What `per_sample` takes: the draw in normalized units is none of its names."""
    if crafting.init != "unit_normal":
        return crafting.init

    def unit_normal(key, shape, dtype, budget):
        del budget
        check_channels(crafting.std, shape)
        std = jnp.asarray(crafting.std, dtype).reshape(1, 1, 1, -1)
        return std * jax.random.normal(key, shape, dtype)

    return unit_normal
