"""Sets that stay on disk: labels in memory, images read by row when they are asked for.

For training sets larger than a device; see `victims.streamed_training`. Rows come from a prepared
TFDS set (array_record has random access), from an uncompressed npz file or a poison folder (both
mapped into memory, so the system reads the pages that are touched). There are no worker processes
(as grain has them): augmentation runs on the device, so that reading and decoding is all there is
to do on the host, and threads do that.
"""

import dataclasses
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpoison import check
from jaxpoison.data.check_dataset import check_labels, check_pixels, check_shapes
from jaxpoison.data.folder import check_arrays, check_file, read_array
from jaxpoison.data.manifest import MANIFEST, read_manifest
from jaxpoison.data.sources import check_split, digits, npz_files
from jaxpoison.data.tfds import check_bounds, open_tfds, some_of
from jaxpoison.types import Dataset, InputError

__all__ = ["Rows", "StreamSplit", "hold", "stream"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Labeled images on disk. To jax it is one hashable value without arrays.

    Attributes:
      source: what it is called in errors.
      label: [N] int32, in memory.
      image_shape: (H, W, C).
      dtype: of the images: uint8, or float32 in [0, 1].
      fetch: (index [P], whole numbers below N) -> images [P, H, W, C] in that order, called from
        several threads at once.
    """

    source: str
    label: np.ndarray
    image_shape: tuple[int, int, int]
    dtype: np.dtype
    fetch: Callable[[np.ndarray], np.ndarray]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def row_bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self.image_shape)) * self.dtype.itemsize

    def read(self, index: np.ndarray) -> np.ndarray:
        """Images [P, H, W, C] of the rows `index`, checked; InputError for unsound files."""
        image = self.fetch(index)
        if image.shape[1:] != self.image_shape or image.dtype != self.dtype:
            raise InputError(
                f"{self.source}: rows are {image.dtype} {image.shape[1:]}, row 0 is {self.dtype} "
                f"{self.image_shape}; all must be equal"
            )
        try:
            check_pixels(image)
        except InputError as error:
            raise InputError(f"{self.source}: {error}") from error
        return image


class StreamSplit(NamedTuple):
    """A `Split` whose sets stay on disk.

    Attributes:
      train: the (poisoned) training set.
      test: held-out clean data; read by evaluation only.
    """

    train: Rows
    test: Rows


def stream(name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None) -> Rows:
    """The set that `data.load` would read, left on disk; also a poison folder.

    Args:
      name: as in `load`, or the path of a poison folder (then `split` is not read).
      split: as in `load`.
      data_dir: as in `load`.

    Returns: Rows in the stored order. Labels are read at once (TFDS: without decoding an image).
    Errors: InputError as in `load`; for a compressed npz, which has no random access; for a poison
      folder whose files are not those of its manifest.
    """
    if (pathlib.Path(name) / MANIFEST).is_file():
        return _poison_folder(pathlib.Path(name))
    if name.endswith(".npz"):
        return _npz(name)
    files = {} if data_dir is None else npz_files(pathlib.Path(data_dir))
    head = f"{name}-"
    splits = {stem[len(head) :]: file for stem, file in files.items() if stem.startswith(head)}
    part, bounds = some_of(split)
    if name == "digits":
        rows = hold(digits(part), source="digits")
    elif splits:
        check_split(name, part, splits)
        rows = _npz(splits[part])
    else:
        also = ["digits", *(stem.rpartition("-")[0] for stem in files)]
        return _tfds(name, split, data_dir, also)  # cuts slices itself
    if bounds is None:
        return rows
    check_bounds(split, len(rows))
    return _part(rows, split, slice(*bounds))


def hold(dataset: Dataset, *, source: str = "set") -> Rows:
    """A set in (host) memory as Rows, so that a small test set can stand beside a large one."""
    return _rows(source, np.asarray(dataset.image), np.asarray(dataset.label))


def _rows(source: str, image: np.ndarray, label: np.ndarray, num_classes: Any = None) -> Rows:
    try:
        check_shapes(image, label)
        check_labels(label, num_classes)
        if image.dtype not in (np.uint8, np.float32):
            raise InputError(f"images are {image.dtype}; allowed are uint8 and float32")
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    shape = (image.shape[1], image.shape[2], image.shape[3])
    return Rows(source, label.astype(np.int32), shape, image.dtype, lambda index: image[index])


def _part(rows: Rows, split: str, part: slice) -> Rows:
    kept = np.arange(len(rows))[part]
    if not len(kept):
        raise InputError(f"split {split!r} holds no rows; {rows.source} has {len(rows)}")
    fetch = rows.fetch
    return dataclasses.replace(rows, label=rows.label[kept], fetch=lambda index: fetch(kept[index]))


def _tfds(name: str, split: str, data_dir: Any, also: list[str]) -> Rows:
    stored = open_tfds(name, split, data_dir, also=also)
    first, _ = stored.read([0])
    label = stored.labels()
    try:
        check_labels(label, stored.num_classes)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    return Rows(
        name,
        label.astype(np.int32),
        (first.shape[1], first.shape[2], first.shape[3]),
        first.dtype,
        lambda index: stored.read(index.tolist())[0],
    )


def _npz(path: str | os.PathLike[str]) -> Rows:
    """Arrays `image` and `label` of an uncompressed npz file, the images mapped."""
    try:
        with zipfile.ZipFile(path) as file:
            there = {item.filename.removesuffix(".npy"): item for item in file.infolist()}
            for wanted in ("image", "label"):
                if wanted not in there:
                    held = ", ".join(ascii(key)[1:-1] for key in there) or "nothing"
                    raise InputError(f"{path} lacks the array {wanted!r}; it holds {held}")
            image = _mapped(path, file, there["image"])
            with file.open(there["label"]) as member:
                label = np.lib.format.read_array(member, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"no file {path}") from error
    except InputError:
        raise
    except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as .npz: {check.one_line(error)}") from error
    return _rows(str(path), image, label)


def _mapped(path: Any, file: zipfile.ZipFile, item: zipfile.ZipInfo) -> np.ndarray:
    """A stored member of a zip file as a memory map."""
    if item.compress_type != zipfile.ZIP_STORED:
        raise InputError(
            f"{path} is compressed, so its rows cannot be read one by one; "
            "write it with numpy.savez"
        )
    with file.open(item) as member:
        version = np.lib.format.read_magic(member)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise InputError(f"{path}: array format {version}; allowed are (1, 0) and (2, 0)")
        shape, fortran_order, dtype = read(member)
        header = member.tell()
    if dtype.hasobject:
        raise InputError(f"{path}: images are Python objects; allowed are uint8 and float32")
    with open(path, "rb") as stream:  # the local header: 30 bytes, then a name and an extra field
        stream.seek(item.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", stream.read(4))
    offset = item.header_offset + 30 + name_length + extra_length + header
    order = "F" if fortran_order else "C"
    return np.memmap(path, dtype, "r", offset, shape, order)


def _poison_folder(folder: pathlib.Path) -> Rows:
    manifest, sound = read_manifest(folder)
    if not sound:
        raise InputError(f"{folder / MANIFEST} was changed after it was written")
    if manifest.domain == "features":
        raise InputError(f"{folder} holds features; allowed are images")
    check_file(folder, "images.npy", manifest.files["images.npy"])
    label = read_array(folder, "labels.npy", manifest.files["labels.npy"])
    try:
        image = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        line = check.one_line(error)
        raise InputError(f"{folder / 'images.npy'} cannot be read: {line}") from error
    check_arrays({"images.npy": image, "labels.npy": label}, manifest, folder)
    return _rows(str(folder), image, label)
