"""Where labeled images come from: scikit-learn's digits, npz files, data sets of TFDS."""

import os
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from jaxpoison.data.check import check
from jaxpoison.types import Dataset, InputError

__all__ = ["digits", "from_npz"]

_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def digits(split: str = "train") -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey, 10 classes; no file, no network.

    image = round(x * 255 / 16) of the stored x in 0..16, the rows in the order
    `RandomState(0).permutation(1797)`: the first 1,400 are "train", the last 397 "test".

    Args:
      split: "train" or "test".

    Returns:
      image uint8 [1400 or 397, 8, 8, 1], label int32.

    Errors:
      InputError for another split.
    """
    # Imported here: it costs a second, and most programs load other data.
    from sklearn.datasets import load_digits

    parts = {"train": slice(0, 1400), "test": slice(1400, 1797)}
    _check_split("digits", split, parts)
    bunch = load_digits()
    rows = np.random.RandomState(0).permutation(1797)[parts[split]]
    image = np.round(bunch.images[rows] * (255 / 16)).astype(np.uint8)
    return check(Dataset(image[..., None], bunch.target[rows]), num_classes=10)


def from_npz(path: str | os.PathLike[str]) -> Dataset:
    """Arrays `image` [N, H, W, C] and `label` [N] of one .npz file; nothing is unpickled.

    Args:
      path: a file as `numpy.savez(path, image=..., label=...)` writes it.

    Returns:
      The checked data set, rows in the stored order; see `check` for what is allowed.

    Errors:
      InputError for a missing or damaged file, missing arrays, or unsound values.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, Mapping):
                raise InputError(f"{path} is one bare array; allowed is .npz with image and label")
            missing = [key for key in ("image", "label") if key not in file]
            if missing:
                there = ", ".join(file) or "nothing"
                raise InputError(f"{path} lacks the array {missing[0]!r}; it holds {there}")
            dataset = Dataset(file["image"], file["label"])
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as .npz: {reason}") from error
    return _named(str(path), dataset)


def _named(source: str, dataset: Dataset, num_classes: int | None = None) -> Dataset:
    try:
        return check(dataset, num_classes=num_classes)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def _check_split(name: str, split: str, splits: Mapping[str, object]) -> None:
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; there are: {', '.join(splits)}")
