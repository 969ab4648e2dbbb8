"""The training set that a victim sees, put together from the clean one and stored poisons."""

import jax.numpy as jnp
import numpy as np

from jaxpoison.data.poisoned import Poisoned
from jaxpoison.data.verification import floats
from jaxpoison.types import Dataset, InputError

__all__ = ["with_poison"]


def with_poison(clean: Dataset, poison: Poisoned) -> Dataset:
    """The clean set with the rows of a poison folder in the place of those that they came from.

    A folder may hold some rows of the set alone (its `source_rows` say which), as a targeted poison
    of 1 % of the rows is a hundredth of the size so.

    Args:
      clean: the whole source set, N rows; float where the poison is.
      poison: from `poisoned.read`; verified, lest it be of another set.

    Returns: N rows, uint8, or float32 where the poison is stored so.
    Raises: InputError for added rows, rows that come twice or from beyond N, or features.
    """
    rows, domain = poison.source_rows, poison.manifest.domain
    if domain == "features":
        raise InputError("the poison holds features; images are needed")
    if len(np.unique(rows)) != len(rows):
        raise InputError("a row of the clean set comes twice in the poison; once is allowed")
    if len(rows) and (rows.min() < 0 or rows.max() >= len(clean.label)):
        raise InputError(
            f"source rows of the poison run from {rows.min()} to {rows.max()}; the clean set has "
            f"rows 0 to {len(clean.label) - 1}"
        )
    image, label = np.array(clean.image), np.array(clean.label)
    image = floats(image).copy() if domain == "float" else image
    image[rows], label[rows] = np.asarray(poison.dataset.image), np.asarray(poison.dataset.label)
    return Dataset(jnp.asarray(image), jnp.asarray(label))
