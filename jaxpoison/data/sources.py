"""Where labeled images come from: scikit-learn's digits, npz files, data sets of TFDS."""

import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np

from jaxpoison import check
from jaxpoison.data.check_dataset import checked
from jaxpoison.data.tfds import check_bounds, from_tfds, some_of, tfds_class_names
from jaxpoison.types import Dataset, InputError

__all__ = ["class_names", "digits", "from_npz", "from_tfds", "load"]

UNREADABLE = (
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
    check_split("digits", split, parts)
    grey, label = load_digits(return_X_y=True)
    rows = np.random.RandomState(0).permutation(1797)[parts[split]]
    image = np.round(grey[rows].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    return checked(image, label[rows], num_classes=10, source="digits")


def from_npz(path: str | os.PathLike[str]) -> Dataset:
    """Arrays `image` [N, H, W, C] and `label` [N] of one .npz file; nothing is unpickled.

    Args:
      path: a file as `numpy.savez(path, image=..., label=...)` writes it.

    Returns:
      The checked data set, rows in the stored order; see `check_dataset` for what is allowed.

    Errors:
      InputError for a missing or damaged file, missing arrays, or unsound values.
    """
    try:
        with open(path, "rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, Mapping):
                raise InputError(f"{path} is one bare array; allowed is .npz with image and label")
            missing = [key for key in ("image", "label") if key not in file]
            if missing:
                there = ", ".join(ascii(key)[1:-1] for key in file) or "nothing"
                raise InputError(f"{path} lacks the array {missing[0]!r}; it holds {there}")
            image, label = file["image"], file["label"]
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read as .npz: {check.one_line(error)}") from error
    return checked(image, label, source=str(path))


def load(
    name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """One labeled set by name: where a script turns its settings into data.

    Args:
      name: "digits"; or a path ending in ".npz", which holds one split, so `split` is not read;
        or a set kept as `<data_dir>/<name>-<split>.npz`; or else a set of TFDS. "NAME[2,5,0]" is
        the rows of these classes in what `split` says of NAME, with labels 0, 1, 2.
      split: "train", "test" or what else the set has; also rows of it, "train[:1000]".
      data_dir: folder of npz files or of prepared TFDS sets; None is TFDS' default.

    Returns:
      The checked data set, rows in the stored order.

    Errors:
      InputError, one line, with the nearest match for an unknown name; see `from_npz` and
      `from_tfds`.
    """
    whole, classes = some_classes(name)
    if classes:
        return _of_classes(load(whole, split, data_dir), classes, name)
    if name == "digits":
        return _rows(digits, split)
    if name.endswith(".npz"):
        return from_npz(name)
    files = {} if data_dir is None else npz_files(pathlib.Path(data_dir))
    head = f"{name}-"
    splits = {stem[len(head) :]: file for stem, file in files.items() if stem.startswith(head)}
    if splits:

        def stored(part: str) -> Dataset:
            check_split(name, part, splits)
            return from_npz(splits[part])

        return _rows(stored, split)
    also = ["digits", *(stem.rpartition("-")[0] for stem in files)]
    return from_tfds(name, split, data_dir, also=also)


def class_names(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[str, ...] | None:
    """What the classes of a set are called, in label order.

    Args:
      name: as in `load`.
      data_dir: as in `load`.

    Returns:
      L names, or None where nothing names them: npz files, and sets that TFDS does not know.
    """
    whole, classes = some_classes(name)
    if classes:
        names = class_names(whole, data_dir)
        known = names is not None and max(classes) < len(names)
        return tuple(names[c] for c in classes) if known else None
    if name == "digits":
        return tuple("0123456789")
    if name.endswith(".npz"):
        return None
    return tfds_class_names(name, data_dir)


def some_classes(name: str) -> tuple[str, tuple[int, ...]]:
    """("NAME", (2, 5, 0)) of "NAME[2,5,0]", (name, ()) of other names.

    Raises: InputError for a class named twice.
    """
    match = re.fullmatch(r"(.+)\[(\d{1,6}(?:,\d{1,6})*)\]", name, re.ASCII)
    if match is None:
        return name, ()
    classes = tuple(map(int, match[2].split(",")))
    if len(set(classes)) < len(classes):
        raise InputError(f"{name} names a class twice; name each once")
    return match[1], classes


def _of_classes(dataset: Dataset, classes: tuple[int, ...], name: str) -> Dataset:
    label = np.asarray(dataset.label)
    found = label == np.reshape(classes, (-1, 1))
    if not found.any(axis=1).all():
        absent = classes[int(np.argmin(found.any(axis=1)))]
        raise InputError(f"{name}: no image of class {absent} is in this split")
    rows = np.flatnonzero(found.any(axis=0))
    return checked(dataset.image[rows], found.argmax(axis=0)[rows], source=name)


def _rows(read: Callable[[str], Dataset], split: str) -> Dataset:
    """`read(part)`, or the rows a:b of it where split is "part[a:b]", as TFDS writes them."""
    name, bounds = some_of(split)
    if bounds is None:
        return read(split)
    dataset = read(name)
    check_bounds(split, len(dataset.label))
    rows = Dataset(dataset.image[slice(*bounds)], dataset.label[slice(*bounds)])
    if not len(rows.label):
        raise InputError(f"split {split!r} holds no rows; {name} has {len(dataset.label)}")
    return rows


def npz_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The sets of a folder, "name-split" -> file."""
    return {path.stem: path for path in sorted(folder.glob("*-*.npz"))}


def check_split(name: str, split: str, splits: Mapping[str, object]) -> None:
    """An `InputError` for a split that the set does not have."""
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; there are: {', '.join(splits)}")
