"""What the victims of a poison are shown beside the clean test set: its noise, and new poison."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxpoison.data.verification import floats
from jaxpoison.types import Dataset, Scenario

__all__ = ["HELD_OUT", "PROBES", "Probe", "everything", "noise", "wanted"]

Probe = Literal["train-noise", "test-noise", "poisoned-test"]
PROBES: dict[Probe, str] = {
    "train-noise": "the noise alone of the poisoned training images",
    "test-noise": "the noise alone that the trained generator adds to the test images",
    "poisoned-test": "the test images as the trained generator poisons them",
}
"""What each one is; all have their true labels."""
HELD_OUT = frozenset(("test-noise", "poisoned-test"))
"""Those that need a generator: an attack of one delta per image has nothing for new images."""


def noise(poisoned: Dataset, clean: Dataset, rows: np.ndarray | None = None) -> Dataset:
    """x_p - x of stored images as float32 in [-1, 1], with the labels of the clean images.

    Args:
      poisoned: [N, H, W, C], uint8 grey levels or floats.
      clean: the same rows.
      rows: [P] of them; None is all.

    Source: Feng et al. 2019, table 2, which shows f(g(x)).
    """
    chosen = slice(None) if rows is None else np.asarray(rows)
    image, source = (np.asarray(part.image)[chosen] for part in (poisoned, clean))
    if image.dtype == np.uint8:
        shift = (image.astype(np.int16) - source) / np.float32(255)
    else:
        shift = image - floats(source)
    return Dataset(jnp.asarray(shift, jnp.float32), jnp.asarray(clean.label)[chosen])


def everything(clean: Dataset) -> Scenario:
    """A set as a scenario of its own, of which every row may change."""
    return Scenario(clean, clean, jnp.arange(len(clean.label), dtype=jnp.int32))


def wanted(test: Dataset, label_map: tuple[int, ...]) -> Dataset:
    """The clean test images with the labels eta(y) that a label-specific attacker wants."""
    return Dataset(test.image, jnp.asarray(label_map, jnp.int32)[test.label])
