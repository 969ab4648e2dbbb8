"""Update rules of the outer loop: stated on normalized images, as papers do, taken in pixels."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxpoison.types import InputError

__all__ = ["REFERENCE_BATCH", "RULES", "check_channels", "update_rule"]

DROPS = (2.667, 1.6, 1.142)  # the rate falls after M // 2.667 steps, M // 1.6, M // 1.142
REFERENCE_BATCH = 512  # of the poisons: the rate is stated for it


def update_rule(
    optimizer: str,
    *,
    steps: int,
    tau: float | Float[Array, ""],
    decay: bool,
    std: Sequence[float],
    batch_size: int,
    ensemble: int,
    eps: float | Float[Array, ""],
) -> optax.GradientTransformation:
    """The rule of delta [P, H, W, C] in pixel units, taken as in the paper on (x - mean) / std.

    With G = sum_k d objective_k / d (delta / std) = K std mean_k(d objective_k / d delta), s_c the
    std of channel c, B the batch size and b = (B / 512) / K, step m = 0, 1, ... is

      delta_c <- delta_c - s_c rate_m R(G)_c,

      "sign_adam", "adam"  R = Adam (0.9, 0.999, 1e-8) of sign(G), of G;  rate_0 = tau b
      "mom_pgd", "mom_sgd" R = v <- 0.9 v + sign(G), + G;    rate_0 = mean_c(eps / s_c) tau b
      "pgd", "gd"          R = sign(G), G;     rate = (eps / s_c) tau b, so s_c rate = eps tau b

    With `decay` the rates of all but "pgd" and "gd" fall by 10 after floor(M / 2.667),
    floor(M / 1.6) and floor(M / 1.142) steps. Of gradients without zeros "sign_adam" is
    v <- 0.9 v + 0.1 sign(G), delta <- delta - s rate_m v / (1 - 0.9^(m + 1)).

    G is the sum over members, as in the paper: `over_ensemble` gives the mean, times K here. With
    sign rules that changes nothing but the rate's 1 / K; "gd" and "mom_sgd" are linear in G, so the
    K cancels; "adam" feels it in its 1e-8 alone. The paper's code takes steps of "pgd" and "gd"
    right after each batch of poisons: every row is in one batch, so that is the same.

    Args:
      optimizer: the rule.
      steps: M.
      tau: see above.
      decay: whether rates fall.
      std: s, per channel, or one number for all; pixel units.
      batch_size: B.
      ensemble: K.
      eps: L-infinity radius, pixel units; may be traced.

    Returns: gradients (the mean over members) to updates; its `init` raises InputError if `std` has
      another number of channels than delta.
    Source: Geiping et al. 2021, released code.
    """
    rule = RULES[optimizer]
    channel = np.asarray(std, np.float32)
    rate = tau * batch_size / REFERENCE_BATCH / ensemble
    unit = 1 / channel if rule.per_channel else np.mean(1 / channel) if rule.relative else 1.0
    if rule.relative:
        rate = rate * eps
    if rule.scheduled and decay:
        drops = collections.Counter(int(steps // share) for share in DROPS)
        rate = optax.piecewise_constant_schedule(rate, {m: 0.1**n for m, n in drops.items()})
    sign = [optax.stateless(lambda g, _: jax.tree.map(jnp.sign, g))] if rule.sign else []
    total, step = _scaled(ensemble * channel), _scaled(channel * unit)
    return optax.chain(total, *sign, rule.make(rate), step)


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


RULES = {
    "sign_adam": _Rule(optax.adam, sign=True),
    "adam": _Rule(optax.adam, sign=False),
    "mom_pgd": _Rule(_momentum, sign=True, relative=True),
    "mom_sgd": _Rule(_momentum, sign=False, relative=True),
    "pgd": _Rule(optax.sgd, sign=True, relative=True, per_channel=True, scheduled=False),
    "gd": _Rule(optax.sgd, sign=False, relative=True, per_channel=True, scheduled=False),
}


def _scaled(factor) -> optax.GradientTransformation:
    """Updates times a factor per channel, of their last axis."""

    def init(params):
        for x in jax.tree.leaves(params):
            check_channels(factor, x.shape)
        return optax.EmptyState()

    def update(updates, state, params=None):
        del params

        def scale(u):
            return u * jnp.asarray(factor, u.dtype).reshape((1,) * (u.ndim - 1) + (-1,))

        return jax.tree.map(scale, updates), state

    return optax.GradientTransformation(init, update)


def check_channels(std: Any, shape: Sequence[int]) -> None:
    """An `InputError` unless there is one std, or one for each channel of [..., C]."""
    if len(std) not in (1, shape[-1]):
        raise InputError(f"std has {len(std)} numbers; the images have {shape[-1]} channels")
