"""Image-classification sets of TensorFlow Datasets, read without TensorFlow from array_record."""

import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from jaxpoison import check
from jaxpoison.data.check_dataset import checked
from jaxpoison.types import Dataset, InputError

__all__ = ["from_tfds"]

_CHUNK = 4096
_NAMES = {  # the stock builder learns them only from the archive that it downloads
    "cifar10": tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
}


def from_tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    also: Iterable[str] = (),
) -> Dataset:
    """A prepared TFDS set, row i of the result = example i of the stored split.

    Nothing is downloaded. TFDS shuffles when it prepares a stock set, unless its builder says
    `disable_shuffling=True`, so "stored order" need not be the order of the original files.

    Args:
      name: "set", "set/config" or "set:version" in TFDS' words; needs an image and a label
        feature, by name or as the builder's `supervised_keys`.
      split: a split, or TFDS' slices and sums of them, such as "train[:1000]" or "train+test".
      data_dir: the folder that holds prepared sets; None is TFDS' own default.
      also: names to offer, beside those of TFDS and of the folder, in place of an unknown one.

    Returns:
      image uint8 [N, H, W, C], label int32 [N], on the default device.

    Errors:
      InputError: no such folder, set or split (with the nearest match); a set not prepared, or
      prepared as TFRECORD (with the command that helps); images that are not uint8 of one shape
      (resizing is not done); damaged files.

    Cost: about 0.1 ms an image of 32 x 32; everything is held in memory.
    """
    stored = open_tfds(name, split, data_dir, also=also)
    image, label = stored.read()
    return checked(image, label, num_classes=stored.num_classes, source=name)


class StoredSet:
    """A prepared split whose rows are read when asked for.

    Attributes:
      num: N.
      num_classes: L, or None where the label feature does not say.
    """

    def __init__(self, tfds: Any, name: str, split: str, builder: Any):
        self._name, self._split, self._builder = name, split, builder
        self._keys = _keys(tfds, name, builder.info)
        self._skip = tfds.decode.SkipDecoding()
        self._records = _records(name, split, builder)
        self.num = len(self._records)
        label = builder.info.features[self._keys[1]]
        self.num_classes = getattr(label, "num_classes", None)

    def read(self, index: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images [P, H, W, C] and labels [P] of the rows `index`; None is all."""
        rows = range(self.num) if index is None else index
        return _read(self._name, self._records, rows, *self._keys)

    def labels(self) -> np.ndarray:
        """Labels [N], no image decoded."""
        image_key, label_key = self._keys
        still = {image_key: self._skip}
        records = _records(self._name, self._split, self._builder, decoders=still)
        label = np.empty(self.num, np.int64)
        for start in range(0, self.num, _CHUNK):
            rows = range(start, min(start + _CHUNK, self.num))
            for row, example in zip(rows, _examples(self._name, records, rows), strict=True):
                label[row] = example[label_key]
        return label


def open_tfds(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    also: Iterable[str] = (),
) -> StoredSet:
    """The split that `from_tfds` would read; arguments and errors are those."""
    # Imported here: slow, and unneeded by npz, digits and synthetic data.
    import tensorflow_datasets as tfds

    if data_dir is not None and not os.path.isdir(data_dir):
        raise InputError(f"data_dir {str(data_dir)!r} is not a folder")
    builder = _builder(tfds, name, data_dir, also)
    if not builder.is_prepared():
        raise InputError(
            f"{name} is not prepared (no {builder.data_dir}); "
            f"run: {_prepare_command(name, data_dir)}, or put "
            f"{name}-{some_of(split)[0]}.npz in data_dir"
        )
    return StoredSet(tfds, name, split, builder)


def tfds_class_names(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[str, ...] | None:
    """The names of the label feature, in label order; None for a set that is not known or unnamed.

    Args:
      name: as in `from_tfds`.
      data_dir: as in `from_tfds`; a stock set need not be prepared.
    """
    import tensorflow_datasets as tfds

    try:
        info = _builder(tfds, name, data_dir, ()).info
        label = info.features[_keys(tfds, name, info)[1]]
    except InputError:
        return None
    names = tuple(getattr(label, "names", None) or ())
    named = names != tuple(map(str, range(len(names))))
    return names if named else _NAMES.get(name)


def some_of(split: str) -> tuple[str, tuple[int | None, int | None] | None]:
    """("train", (a, b)) of "train[a:b]"; (split, None) of anything else."""
    found = re.fullmatch(r"(.*)\[(\d*):(\d*)\]", split)
    if found is None:
        return split, None
    start, stop = (int(x) if x else None for x in found.group(2, 3))
    return found[1], (start, stop)


def check_bounds(split: str, num: int) -> None:
    """An `InputError` if "train[a:b]" asks for more than the `num` rows that train has."""
    name, bounds = some_of(split)
    if bounds is not None and max(x or 0 for x in bounds) > num:
        raise InputError(f"split {split!r} asks for rows beyond the {num} of {name}")


def _builder(
    tfds: Any, name: str, data_dir: str | os.PathLike[str] | None, also: Iterable[str]
) -> Any:
    from google.protobuf.json_format import ParseError

    base, folders = name.split(":")[0].split("/")[0], _folders(data_dir)
    known = [*also, *folders, *tfds.list_builders(with_community_datasets=False)]
    unknown = InputError(f"no data set {name!r}{check.nearest(base, known)}")
    if not base.isidentifier():
        raise unknown
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        if base not in folders:
            raise unknown from error
        inside = ", ".join(_folders(pathlib.Path(data_dir or "") / base)) or "nothing"
        raise InputError(
            f"{name!r} is not prepared in {data_dir}; {base} there holds: {inside}"
        ) from error
    except (ValueError, AssertionError, ImportError, OSError, ParseError) as error:
        raise InputError(f"TFDS cannot open {name!r}: {check.one_line(error)}") from error


def _keys(tfds: Any, name: str, info: Any) -> tuple[str, str]:
    """The (image, label) features: `supervised_keys` if they are such a pair, else by name."""
    features = info.features
    for pair in (info.supervised_keys, ("image", "label")):
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(k in features for k in pair)):
            continue
        image, label = (features[key] for key in pair)
        whole = not label.shape and np.issubdtype(label.np_dtype, np.integer)
        if isinstance(image, tfds.features.Image) and whole:
            return pair
    raise InputError(
        f"{name} is no image-classification set: it needs an image feature and an integer label; "
        f"its features are {', '.join(sorted(features))}"
    )


def _records(name: str, split: str, builder: Any, **options: Any) -> Any:
    there = ", ".join(builder.info.splits)
    for part in map(str.strip, split.split("+")):
        whole = some_of(part)[0]
        if whole in builder.info.splits:
            check_bounds(part, builder.info.splits[whole].num_examples)
    try:
        records = builder.as_data_source(split=str(split), **options)
        if len(records):
            return records
    except NotImplementedError as error:  # no format with random access
        root = builder.data_dir.rpartition(f"{os.sep}{builder.name}{os.sep}")[0]
        raise InputError(
            f"{name} is prepared as {builder.info.file_format.value}, which needs TensorFlow; "
            f"prepare it in a second folder and name that as data_dir, "
            f"run: {_prepare_command(name, f'{root}-array_record')}"
        ) from error
    except (OSError, RuntimeError) as error:
        raise _damaged(name, error) from error
    except ValueError as error:
        if any(split == s for s in builder.info.splits):
            raise _damaged(name, error) from error
        raise InputError(f"{name} has no split {split!r}; there are: {there}") from error
    raise InputError(f"{name} split {split!r} holds no example; there are: {there}")


def _read(
    name: str, records: Any, index: Sequence[int], image_key: str, label_key: str
) -> tuple[np.ndarray, np.ndarray]:
    image, label = np.empty(0, np.uint8), np.empty(len(index), np.int64)
    for start in range(0, len(index), _CHUNK):
        rows = index[start : start + _CHUNK]
        for i, example in enumerate(_examples(name, records, rows), start):
            pixels = example[image_key]
            if i == 0:
                image = np.empty((len(index), *pixels.shape), np.uint8)
            if pixels.dtype != np.uint8:
                raise InputError(f"{name}: images are {pixels.dtype}; allowed is uint8")
            if pixels.shape != image.shape[1:]:
                raise InputError(
                    f"{name}: image {index[i]} has shape {pixels.shape}, image {index[0]} "
                    f"{image.shape[1:]}; all must be equal (resizing is not done here)"
                )
            image[i], label[i] = pixels, example[label_key]
    return image, label


def _examples(name: str, records: Any, rows: Sequence[int]) -> list[dict[str, Any]]:
    try:
        with _no_opencv_hint():
            return records.__getitems__([int(row) for row in rows])
    except (RuntimeError, OSError, ValueError, SyntaxError) as error:
        raise _damaged(name, error) from error


@contextmanager
def _no_opencv_hint() -> Iterator[None]:
    """Without TFDS' advice to install OpenCV: pillow, which we depend on, decodes as well."""
    logger = logging.getLogger("absl")

    def keep(entry: logging.LogRecord) -> bool:
        return "OpenCV" not in str(entry.msg)

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: a stored file is missing or damaged: {check.one_line(error)}")


def _prepare_command(name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """For a shell, with the extra `tensorflow`; a set that is not TFDS' own needs its builder."""
    where = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
    return (
        "pip install 'jaxpoison[tensorflow]' && python -c "
        f'"import tensorflow_datasets as tfds; tfds.builder({name!r}{where})'
        ".download_and_prepare(file_format='array_record')\""
    )


def _folders(path: str | os.PathLike[str] | None) -> list[str]:
    if path is None or not os.path.isdir(path):
        return []
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
