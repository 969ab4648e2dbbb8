"""Who is attacked by which images: target, wanted class and the training rows that may change."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxpoison.types import Dataset, Scenario, Split

__all__ = ["Setup"]


class Setup(NamedTuple):
    """One targeted attack to be made: rows and labels, no images.

    Attributes:
      name: plain, also a folder name: "key-2000000000", "benchmark-007".
      poison_rows: [P] rows of the training set that may change, in the drawn order.
      target_rows: [T] rows of the test set.
      wanted: [T] labels that the attacker wants for them (y_adv).
      true: [T] their own labels.
    """

    name: str
    poison_rows: Int[np.ndarray, " p"]
    target_rows: Int[np.ndarray, " t"]
    wanted: Int[np.ndarray, " t"]
    true: Int[np.ndarray, " t"]

    def scenario(self, split: Split, aux: Any = ()) -> Scenario:
        """What an attack of this setup is given; the goal is the targets with the wanted labels."""
        goal = Dataset(split.test.image[self.target_rows], jnp.asarray(self.wanted, jnp.int32))
        return Scenario(split.train, goal, jnp.asarray(self.poison_rows, jnp.int32), aux)
