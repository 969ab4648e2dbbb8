"""Purifiers fitted and applied, and the ones that have nothing to fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxpoison import check, loops
from jaxpoison.types import Dataset, InputError, Key, Purifier

__all__ = ["fit_purify", "fixed"]


def fit_purify(purifier: Purifier, key: Key, dataset: Dataset) -> tuple[Dataset, Any]:
    """Fit a purifier to a training set and apply it to that set.

    The fit and what `apply` draws have keys of their own, so that the same key gives the same bits.

    Args:
      purifier: built once; its fit is compiled once per shape.
      key: of both.
      dataset: N rows as a victim would get them, uint8 or float in [0, 1].

    Returns: (the purified set, info of the fit with leaves [T, ...]; () without one).
    Errors: InputError for an empty set, and what the purifier raises.
    """
    check.at_least(1, rows=len(dataset.label))
    fit_key, apply_key = jax.random.split(key)
    state, info = (), ()
    if purifier.num_steps:
        state, info = loops.run(purifier, fit_key, dataset, num_steps=purifier.num_steps)
    return purifier.apply(apply_key, state, dataset), info


def fixed(change: Callable[[Num[np.ndarray, "n h w c"]], Num[np.ndarray, "n h w c"]]) -> Purifier:
    """A purifier without a fit and without chance: a fixed function of stored grey levels.

    Args:
      change: uint8 [N, H, W, C] -> uint8 of the same shape, on the host.

    Returns: a Purifier with num_steps = 0. Its apply raises InputError for images that are not
      uint8: what it does is defined on grey levels.
    """

    def step(key, state, dataset):
        del key, dataset
        return state, ()

    def apply(key, state, dataset):
        del key, state
        image = np.asarray(dataset.image)
        if image.dtype != np.uint8:
            raise InputError(f"images are {image.dtype}; this purifier takes uint8 grey levels")
        return Dataset(jnp.asarray(change(image)), dataset.label)

    return Purifier(lambda key, dataset: (), step, apply)
