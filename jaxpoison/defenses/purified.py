"""Purifiers fitted and applied, one after another, and the ones that have nothing to fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxpoison import check, loops
from jaxpoison.types import Dataset, InputError, Key, Purifier

__all__ = ["chain", "fit_purify", "fixed"]


def fit_purify(purifier: Purifier, key: Key, dataset: Dataset) -> tuple[Dataset, Any]:
    """Fit a purifier to a training set and apply it to that set.

    The fit and what `apply` draws have keys of their own, so that the same key gives the same bits.

    Args:
      purifier: built once; its fit is compiled once per shape.
      key: of both.
      dataset: N rows as a victim would get them, uint8 or float in [0, 1].

    Returns: (the purified set, info of the fit with leaves [T, ...]; () without one).
    Errors: InputError for another object, an empty set, and what the purifier raises.
    """
    check.kind(Purifier, purifier=purifier)
    check.kind(Dataset, dataset=dataset)
    check.at_least(1, rows=len(dataset.label))
    fit_key, apply_key = jax.random.split(key)
    state, info = (), ()
    if purifier.num_steps:
        state, info = loops.run(purifier, fit_key, dataset, num_steps=purifier.num_steps)
        if not np.all(getattr(info, "finite", True)):
            first = int(np.argmin(np.asarray(info.finite)))
            raise loops.NonFiniteError(f"the fit of the purifier is not finite at step {first}")
    return purifier.apply(apply_key, state, dataset), info


def chain(*purifiers: Purifier) -> Purifier:
    """The purifiers one after the other, each fitted to what the one before made; none: no change.

    chain(grayscale(), jpeg()) is both parts of ISS. The i-th is `fit_purify` with fold_in(key, i).
    All of it happens when the chain is applied, and so to the set that it is applied to: an encoder
    of the host may stand before a fit. To watch a long fit, or to keep its checkpoints, purify in
    steps instead, with `run_chunks`. `orthogonal_projection` makes floats, which the others do not
    take: it stands last.

    Args:
      purifiers: in the order of their work; built once, like the chain.

    Returns: a Purifier with num_steps = 0.
    Errors: InputError for anything but purifiers (training-time defenses: `compose`), and what they
      raise, when applied.
    """
    for one in purifiers:
        check.kind(Purifier, hint="; `compose` takes training-time defenses", purifier=one)

    def step(key, state, dataset):
        del key, dataset
        return state, ()

    def apply(key, state, dataset):
        del state
        for number, one in enumerate(purifiers):
            try:
                dataset, _ = fit_purify(one, jax.random.fold_in(key, number), dataset)
            except (loops.NonFiniteError, InputError) as error:
                raise type(error)(f"purifier {number}: {error}") from error
        return dataset

    return Purifier(lambda key, dataset: (), step, apply)


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
            raise InputError(
                f"images are {image.dtype}; this purifier takes uint8 grey levels, as "
                "data.rounding.to_uint8 and a poison folder (data.poisoned.write) make them"
            )
        return Dataset(jnp.asarray(change(image)), dataset.label)

    return Purifier(lambda key, dataset: (), step, apply)
