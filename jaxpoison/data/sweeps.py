"""Setups of one shape as the Sweep that `over_setups` goes through."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpoison.data.setups import Setup
from jaxpoison.types import Dataset, InputError, Scenario, Split, Sweep

__all__ = ["stack_setups"]


def stack_setups(
    setups: Sequence[Setup],
    split: Split,
    aux: Any = (),
    *,
    numbers: Sequence[int] | None = None,
) -> Sweep:
    """The scenarios of S setups as one, training set and `aux` shared.

    Args:
      setups: S of them, with equally many poisons and targets.
      split: the data they are of.
      aux: as in `Setup.scenario`.
      numbers: of each setup, which its keys come from; None is 0 .. S-1. Of a part of a study, such
        as setups 4 to 7, give their numbers in the whole, and the part does as the whole does.

    Returns: goal [S, T, ...], index [S, P].
    Errors: InputError as in `Setup.check`, for no setups, sizes that differ, or other numbers.
    """
    if not setups:
        raise InputError("there are no setups to stack; at least one is needed")
    first = setups[0]
    for one in setups:
        one.check(split)
        for name in ("poison_rows", "target_rows"):
            if (found := len(getattr(one, name))) != (wanted := len(getattr(first, name))):
                raise InputError(
                    f"setup {one.name} has {found} {name}, {first.name} has {wanted}; a sweep "
                    "takes setups of one shape"
                )
    numbers = range(len(setups)) if numbers is None else numbers
    if len(numbers) != len(setups):
        raise InputError(f"{len(numbers)} numbers for {len(setups)} setups; one each is needed")
    rows = np.stack([one.target_rows for one in setups])
    wanted = jnp.asarray(np.stack([one.wanted for one in setups]), jnp.int32)
    index = jnp.asarray(np.stack([one.poison_rows for one in setups]), jnp.int32)
    goal = Dataset(split.test.image[rows], wanted)
    return Sweep(jnp.asarray(list(numbers), jnp.int32), Scenario(split.train, goal, index, aux))
