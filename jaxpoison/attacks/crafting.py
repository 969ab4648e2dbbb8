"""The outer loop that all optimized targeted attacks share, so that they differ in objective alone.

delta <- P(delta - rate_m rule(sum_k d objective_k / d delta)), P the ball and then the image box.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.data.augment import Augmentation
from jaxpoison.ensemble import over_ensemble
from jaxpoison.hypergrad import at_surrogate
from jaxpoison.perturb import Budget, at_clean, per_sample
from jaxpoison.types import Attack, InputError, Objective, Victim

__all__ = ["WITCHES_BREW", "Crafting", "craft", "update_rule"]

DROPS = (2.667, 1.6, 1.142)  # the rate falls after M // 2.667 steps, M // 1.6, M // 1.142
INITIAL = ("normal", "uniform", "zero", "unit_normal")
REFERENCE_BATCH = 512  # of the poisons: the rate is stated for it


class _Rule(NamedTuple):
    """How a rule is made of its rate, and how the rate is stated.

    `relative`: to the radius in normalized units, their mean over channels unless `per_channel`.
    """

    make: Callable[[Any], optax.GradientTransformation]
    sign: bool
    relative: bool = False
    per_channel: bool = False
    scheduled: bool = True


def _momentum(rate):
    return optax.sgd(rate, momentum=0.9)


_RULES = {
    "sign_adam": _Rule(optax.adam, sign=True),
    "adam": _Rule(optax.adam, sign=False),
    "mom_pgd": _Rule(_momentum, sign=True, relative=True),
    "mom_sgd": _Rule(_momentum, sign=False, relative=True),
    "pgd": _Rule(optax.sgd, sign=True, relative=True, per_channel=True, scheduled=False),
    "gd": _Rule(optax.sgd, sign=False, relative=True, per_channel=True, scheduled=False),
}


@dataclasses.dataclass(frozen=True)
class Crafting:
    """Settings of the outer loop; build a variant with `dataclasses.replace`.

    Attributes:
      steps: M, the num_steps of the run (`report.arm` takes it from here): the rate falls with it.
      optimizer: "sign_adam", "adam", "mom_pgd", "mom_sgd", "pgd" or "gd"; see `update_rule`.
      tau: rate of the first steps; its unit depends on the optimizer.
      decay: whether the rate falls by 10 after floor(M / 2.667), floor(M / 1.6) and
        floor(M / 1.142) steps (93, 156, 218 of 250); "pgd" and "gd" have no schedule.
      std: per channel, pixel units: the unit in which the paper's code takes its steps, the data
        set's standard deviation; one number for all channels.
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

    def __post_init__(self):
        check.at_least(1, steps=self.steps, batch_size=self.batch_size, ensemble=self.ensemble)
        check.one_of(_RULES, optimizer=self.optimizer)
        check.positive(tau=self.tau)
        if not self.std:
            raise InputError("std is empty; it must have one number, or one per channel")
        for std in self.std:
            check.positive(std=std)
        if not callable(self.init):
            check.one_of(INITIAL, init=self.init)


WITCHES_BREW = Crafting()
"""The paper's main settings but for `std` and `augment`, which depend on the data."""


def craft(
    victim: Victim,
    objective: Callable[[Victim], Objective],
    *,
    eps: float,
    crafting: Crafting,
    clean_gradient: bool = False,
) -> Attack:
    """The attack that minimizes an objective of its poisons at trained surrogates.

    Args:
      victim: the surrogate network; its trained `Variables` are `scenario.aux`.
      objective: of a network.
      eps: L-infinity radius, pixel units (8/255).
      crafting: settings of the loop.
      clean_gradient: gradients are taken at the clean images, see `perturb.at_clean`.

    Returns: an Attack whose `num_steps` are `crafting.steps`.
    """
    space = per_sample(Budget("linf", eps), init=_initial(crafting))
    hypergrad = at_surrogate(
        objective(victim),
        at_clean(space) if clean_gradient else space,
        batch_size=crafting.batch_size,
        augment=crafting.augment,
        full_data=crafting.full_data,
    )
    if crafting.ensemble > 1:
        hypergrad = over_ensemble(
            hypergrad, crafting.ensemble, aux_axis=0, shared=True, mesh=crafting.mesh
        )
    attack = bilevel(space, hypergrad, update_rule(crafting, eps))
    return attack._replace(num_steps=crafting.steps)


def update_rule(crafting: Crafting, eps: float | Float[Array, ""]) -> optax.GradientTransformation:
    """The rule of delta [P, H, W, C] in pixel units, taken as in the paper on (x - mean) / std.

    With G = sum_k d objective_k / d (delta / std) = K std mean_k(d objective_k / d delta), s_c the
    std of channel c, B the batch size and b = (B / 512) / K, step m = 0, 1, ... is

      delta_c <- delta_c - s_c rate_m R(G)_c,

      "sign_adam", "adam"  R = Adam (0.9, 0.999, 1e-8) of sign(G), of G;  rate_0 = tau b
      "mom_pgd", "mom_sgd" R = v <- 0.9 v + sign(G), + G;    rate_0 = mean_c(eps / s_c) tau b
      "pgd", "gd"          R = sign(G), G;     rate = (eps / s_c) tau b, so s_c rate = eps tau b

    and rate_m as `Crafting.decay` says. Of gradients without zeros "sign_adam" is
    v <- 0.9 v + 0.1 sign(G), delta <- delta - s rate_m v / (1 - 0.9^(m + 1)).

    G is the sum over members, as in the paper: `over_ensemble` gives the mean, times K here. With
    sign rules that changes nothing but the rate's 1 / K; "gd" and "mom_sgd" are linear in G, so the
    K cancels; "adam" feels it in its 1e-8 alone. The paper's code takes steps of "pgd" and "gd"
    right after each batch of poisons: every row is in one batch, so that is the same.

    Args:
      crafting: the settings.
      eps: L-infinity radius, pixel units; may be traced.

    Returns: gradients (the mean over members) to updates; its `init` raises InputError if `std` has
      another number of channels than delta.
    Source: Geiping et al. 2021, released code.
    """
    rule = _RULES[crafting.optimizer]
    std = np.asarray(crafting.std, np.float32)
    rate = crafting.tau * crafting.batch_size / REFERENCE_BATCH / crafting.ensemble
    unit = 1 / std if rule.per_channel else np.mean(1 / std) if rule.relative else 1.0
    if rule.relative:
        rate = rate * eps
    if rule.scheduled and crafting.decay:
        drops = collections.Counter(int(crafting.steps // share) for share in DROPS)
        rate = optax.piecewise_constant_schedule(rate, {m: 0.1**n for m, n in drops.items()})
    sign = [optax.stateless(lambda g, _: jax.tree.map(jnp.sign, g))] if rule.sign else []
    return optax.chain(
        _scaled(crafting.ensemble * std), *sign, rule.make(rate), _scaled(std * unit)
    )


def _scaled(factor) -> optax.GradientTransformation:
    """Updates times a factor per channel, of their last axis."""

    def init(params):
        for x in jax.tree.leaves(params):
            _check_channels(factor, x.shape)
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params

        def scale(u):
            return u * jnp.asarray(factor, u.dtype).reshape((1,) * (u.ndim - 1) + (-1,))

        return jax.tree.map(scale, updates), state

    return optax.GradientTransformation(init, update)


def _initial(crafting: Crafting) -> Any:
    """What `per_sample` takes: the draw in normalized units is none of its names."""
    if crafting.init != "unit_normal":
        return crafting.init

    def unit_normal(key, shape, dtype, budget):
        del budget
        _check_channels(crafting.std, shape)
        std = jnp.asarray(crafting.std, dtype).reshape(1, 1, 1, -1)
        return std * jax.random.normal(key, shape, dtype)

    return unit_normal


def _check_channels(std, shape) -> None:
    if len(std) not in (1, shape[-1]):
        raise InputError(f"std has {len(std)} numbers; the images have {shape[-1]} channels")
