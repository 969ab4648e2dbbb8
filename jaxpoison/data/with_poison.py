"""The training set that a victim sees, put together from the clean one and stored poisons."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpoison import check
from jaxpoison.data.manifest import PIXELS
from jaxpoison.data.poisoned import Poisoned
from jaxpoison.data.verification import floats
from jaxpoison.types import Dataset, InputError

__all__ = ["with_added", "with_poison"]


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
    _check(clean, poison)
    rows, domain = poison.source_rows, poison.manifest.domain
    if poison.manifest.rows == "added":
        raise InputError("the poison holds rows to add; they replace none: see with_added")
    if domain not in PIXELS:
        raise InputError(f"the poison holds {domain} values; images are needed")
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


def with_added(clean: Dataset, poison: Poisoned) -> Dataset:
    """The clean set, and after it the rows of a folder of added points.

    Whether the clean set is the one that the points were made for is not checked but by its number
    of rows: a folder of added points has no row of it to compare.

    Args:
      clean: the whole source set, N rows: images, or features where the poison has such.
      poison: from `poisoned.read`, P added rows alone; verified, lest it be of another set.

    Returns: N + P rows, uint8 where both are, else float32.
    Raises: InputError for a folder that has other rows than added ones, a clean set of
      another number of rows, or rows of another shape.
    """
    _check(clean, poison)
    if poison.manifest.rows != "added" or not poison.mask.all():
        raise InputError("the poison does not consist of added rows alone; see with_poison")
    if len(clean.label) != (num := poison.manifest.source["num_rows"]):
        raise InputError(
            f"the clean set has {len(clean.label)} rows; the poison is of one of {num}"
        )
    image, added = np.asarray(clean.image), np.asarray(poison.dataset.image)
    if image.shape[1:] != added.shape[1:]:
        raise InputError(f"clean rows are {image.shape[1:]}, added ones {added.shape[1:]}")
    if image.dtype != added.dtype:
        image, added = floats(image), floats(added)
    label = np.concatenate([clean.label, poison.dataset.label])
    return Dataset(jnp.asarray(np.concatenate([image, added])), jnp.asarray(label, jnp.int32))


def _check(clean: Any, poison: Any) -> None:
    check.kind(Dataset, clean=clean)
    check.kind(Poisoned, poison=poison, hint=", such as poisoned.read(folder)")
