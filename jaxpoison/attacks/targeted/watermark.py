"""Watermark: the target shines faintly through the poisons; the simplest targeted baseline.

delta_i = P(w (x_t^{i mod T} - x_i)),  w = eps / std,  P the ball and then the image box

Threat model: the images of `scenario.index` may change within eps, labels stay; no network is
needed. `scenario.goal` holds the T targets.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxpoison import check
from jaxpoison.attacks.bilevel import closed_form
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, InputError, as_float

__all__ = ["watermark"]


def watermark(*, eps: float, std: float | Sequence[float] = 1.0) -> Attack:
    """A blend of weight eps / std with the target; row i of `scenario.index` takes i mod T.

    Args:
      eps: L-infinity radius, pixel units (16/255: a blend of 6 % at std = 1).
      std: one number or one per channel. 1.0 is the form of Witches' Brew's comparison, where no
        image reaches the edge of the ball; the data set's standard deviation is that of its
        authors' later code, a blend four times as strong on CIFAR-10.

    Returns: an Attack without steps.
    Raises: InputError for a bad value; at init if `std` does not fit the channels or the scenario
      has no rows that may change.
    Source: Geiping et al. 2021, released code (both forms).
    """
    budget = Budget("linf", eps)
    units = tuple(std) if isinstance(std, Sequence) else (std,)
    check.positive(**{"std" if len(units) == 1 else f"std[{c}]": u for c, u in enumerate(units)})
    space = per_sample(budget)

    def init(key, scenario):
        del key
        check.some_rows(scenario)
        clean = as_float(scenario.train.image[scenario.index])
        if len(units) not in (1, clean.shape[-1]):
            raise InputError(
                f"std has {len(units)} numbers for images of {clean.shape[-1]} channels"
            )
        target = as_float(scenario.goal.image)
        target = target[jnp.arange(clean.shape[0]) % target.shape[0]]
        weight = budget.eps / jnp.asarray(units, clean.dtype).reshape(1, 1, 1, -1)
        return space.project(weight * (target - clean), scenario)

    return closed_form(space._replace(init=init))
