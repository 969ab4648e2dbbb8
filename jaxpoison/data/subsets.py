"""Rows of a data set chosen outside traced code: a validation split, the first of each class."""

import jax
import numpy as np

from jaxpoison.types import Dataset, InputError, Key

__all__ = ["first_per_class", "split_validation"]


def split_validation(key: Key, dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """The data set without, and its uniformly drawn part of, round(fraction * N) rows.

    Args:
      key: typed key; the same key and N draw the same rows.
      dataset: N >= 2 rows.
      fraction: in (0, 1), the share of the second part.

    Returns:
      (train, validation): disjoint, together everything, each in the original order.

    Errors:
      InputError for a fraction outside (0, 1), or one that leaves a part empty.
    """
    num = len(dataset.label)
    if not 0 < fraction < 1:
        raise InputError(f"fraction is {fraction}; must lie between 0 and 1")
    held = round(fraction * num)
    if held in (0, num):
        raise InputError(f"fraction {fraction} of {num} rows leaves one of the two parts empty")
    out = np.zeros(num, bool)
    out[np.asarray(jax.random.permutation(key, num)[:held])] = True
    return _rows(dataset, np.flatnonzero(~out)), _rows(dataset, np.flatnonzero(out))


def first_per_class(dataset: Dataset, num: int, *, num_classes: int | None = None) -> Dataset:
    """The first `num` images of every class, in the original order: small, balanced, no key.

    Args:
      dataset: labels in [0, L).
      num: images per class, at least 1.
      num_classes: L; None is the largest label + 1.

    Returns:
      num * L rows.

    Errors:
      InputError naming the class that has fewer than `num` images, and how many it has.
    """
    if num < 1:
        raise InputError(f"num is {num}; must be at least 1 image per class")
    label = np.asarray(dataset.label)
    counts = np.bincount(label, minlength=num_classes or 0)
    short = np.flatnonzero(counts < num)
    if short.size:
        raise InputError(f"class {short[0]} has {counts[short[0]]} images; {num} are asked for")
    rows = [np.flatnonzero(label == c)[:num] for c in range(num_classes or len(counts))]
    return _rows(dataset, np.sort(np.concatenate(rows)))


def _rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    return Dataset(dataset.image[rows], dataset.label[rows])
