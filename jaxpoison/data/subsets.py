"""Rows of a data set chosen outside traced code: to hold out, to keep, to poison."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxpoison import check
from jaxpoison.types import Dataset, InputError, Key

__all__ = ["first_per_class", "poison_rows", "split_validation"]


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
    check.number(above=0, below=1, fraction=fraction)
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
    check.at_least(1, num=num)
    label = np.asarray(dataset.label)
    counts = np.bincount(label, minlength=num_classes or 0)
    short = np.flatnonzero(counts < num)
    if short.size:
        raise InputError(f"class {short[0]} has {counts[short[0]]} images; {num} are asked for")
    rows = [np.flatnonzero(label == c)[:num] for c in range(num_classes or len(counts))]
    return _rows(dataset, np.sort(np.concatenate(rows)))


def poison_rows(
    key: Key, dataset: Dataset, *, share: float, label: int | None = None
) -> Int[Array, " p"]:
    """Rows that an attack may change: floor(share * N), uniform without replacement, ascending.

    Args:
      key: typed key; the same key and N draw the same rows.
      dataset: N rows.
      share: in (0, 1], of all rows of the set, also if they come from one class.
      label: the class they come from; None for any.

    Returns:
      int32 [P], as `Scenario.index` takes it.

    Errors:
      InputError for a share outside (0, 1] or below one row, or a budget larger than the class.
    """
    check.number(above=0, most=1, share=share)
    labels = np.asarray(dataset.label)
    num = int(share * len(labels))
    allowed = np.arange(len(labels)) if label is None else np.flatnonzero(labels == label)
    if num < 1:
        raise InputError(f"share = {share:g} of {len(labels)} rows is less than one")
    if num > len(allowed):
        raise InputError(
            f"share = {share:g} of {len(labels)} rows is {num}, but class {label} has only "
            f"{len(allowed)}"
        )
    picked = np.asarray(jax.random.permutation(key, len(allowed)))[:num]
    return jnp.asarray(np.sort(allowed[picked]), jnp.int32)


def _rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    return Dataset(dataset.image[rows], dataset.label[rows])
