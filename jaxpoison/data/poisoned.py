"""The poison folder: images, labels, mask, delta, manifest with hashes; write, read, verify."""

import datetime
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpoison import check
from jaxpoison.data.folder import check_arrays, check_file, install, read_array, rows_of
from jaxpoison.data.manifest import (
    DOMAINS,
    MANIFEST,
    PIXELS,
    ROWS,
    Manifest,
    as_json,
    check_values,
    device,
    key_record,
    read_manifest,
    versions,
)
from jaxpoison.data.rounding import blocks, check_norm, promised, to_uint8
from jaxpoison.data.verification import (
    Check,
    Report,
    differing_rows,
    extent,
    fingerprint,
    floats,
    measure,
    source_images,
    verify,
)
from jaxpoison.types import Dataset, InputError

__all__ = ["Check", "Poisoned", "Report", "check_files", "read", "verify", "write"]

_SOURCE = {"name": None, "split": "train", "data_dir": None}


class Poisoned(NamedTuple):
    """A poison folder in memory.

    Attributes:
      dataset: what the victim sees; image [N, ...] uint8 or float32, label [N] int32.
      mask: [N] bool, the rows that may differ from their source row, or were added.
      delta: [P, ...] float32 of the P masked rows in order, before rounding, or None.
      source_rows: [N] int32, the row of the clean set each row comes from; of an added row its
        base, -1 without one.
      manifest: the rest.
    """

    dataset: Dataset
    mask: np.ndarray
    delta: np.ndarray | None
    source_rows: np.ndarray
    manifest: Manifest


def write(
    path: str | os.PathLike[str],
    *,
    poisoned: Dataset,
    clean: Dataset,
    index: Any,
    attack: str,
    settings: Mapping[str, Any],
    norm: str | None,
    eps: float | int | None,
    source: Mapping[str, Any],
    key: Any = None,
    delta: bool = True,
    domain: str = "uint8",
    rows: str = "changed",
    source_rows: Any = None,
    labels_changed: bool = False,
    rounding: str = "nearest",
    wall_time_s: float | None = None,
    extra: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Stores a poison so that anyone can verify it; the same input gives the same bytes.

    The folder is filled under a temporary name beside `path` and then renamed: a failure leaves
    nothing behind, and an existing poison is never half overwritten.

    Args:
      path: the folder to make; its parents are made too.
      poisoned: N rows; float images in [0, 1] (rounded here, inside the budget), or uint8.
      clean: the whole source set, as `data.load` returns it.
      index: rows of `poisoned` that may differ: [P] integers, or [N] booleans.
      attack: its name.
      settings: everything that made it; JSON values, arrays, functions (stored by name).
      norm: "linf", "l2", "l0", or None for no budget.
      eps: radius, pixel units (8/255) or number of pixels; None with norm None.
      source: name, split and, if any, data_dir, with which `data.load` finds `clean`.
      key: the random key or integer seed.
      delta: whether to keep the float change of the P rows before rounding.
      domain: "uint8", "float" (float32 images in [0, 1]), "unbounded" (float32 values of any size
        in the shape of images) or "features" (any float32 [N, ...]; `clean` has features, too).
      rows: "changed", or "added" if some rows have no source row, or all are added points, which
        `data.with_added` joins to the clean set; then source rows are their bases.
      source_rows: [N] integers, the source row of each row; of an added one its base, -1 without
        one. None: row i comes from row i; further rows than `clean` has are added ones. With a base
        labels and budget are those of changed rows, without one nothing is known of them.
      labels_changed: whether labels of the P rows may differ.
      rounding: "nearest", "truncate" or "cast", see `rounding.to_uint8`. With "cast" the manifest's
        linf eps is one grey level larger than this one, and says so.
      wall_time_s: seconds the attack took.
      extra: anything else worth keeping, as `settings`; of features whose they are:
        {"extractor": {"variables_sha256": ...}}, see `data.manifest.tree_sha256`.
      overwrite: whether to replace an existing poison folder.

    Returns:
      The manifest.

    Errors:
      InputError, one line: values outside the budget or the box, rows or labels that changed
      without leave, shapes that do not fit, an existing or unwritable path, a full disk.
    """
    eps = as_json(eps, "eps")
    check.one_of(DOMAINS, domain=domain)
    check_norm(norm, eps, pixels=domain in PIXELS)
    check.one_of(ROWS, rows=rows)
    check_source(source)
    label, clean_label = np.asarray(poisoned.label, np.int32), np.asarray(clean.label, np.int32)
    origin = _origin(source_rows, len(label), len(clean_label), rows)
    mask = _mask(index, len(label), origin)
    base = _base(np.asarray(clean.image), origin, domain)
    image = _image(np.asarray(poisoned.image), base, label, domain)
    image = _rest(image, base, mask) if domain == "float" else image
    rounded = domain == "uint8" and image.dtype != np.uint8
    stored = _stored(image, base, origin, norm, eps, rounding) if rounded else image
    eps = promised(norm, eps, rounding) if rounded else eps
    _check_rows(stored, base, label, clean_label, origin, mask=mask, labels_changed=labels_changed)
    measured = measure(stored, base, origin >= 0, norm, eps)
    if measured.get("rows_beyond"):
        raise InputError(
            f"{measured['rows_beyond']} rows exceed {norm} eps = {eps:.6g}; the largest change is "
            f"{measured['norm_max']:.6g}"
        )
    if rows == "added" and domain != "uint8":
        measured |= extent(stored[mask], np.asarray(clean.image))
    arrays = {"images.npy": stored, "labels.npy": label, "mask.npy": mask}
    if delta and rows == "changed" and image.dtype != np.uint8:
        arrays["delta.npy"] = _delta(image, base, np.flatnonzero(mask))
    identity = len(origin) == len(clean_label) and bool((origin == np.arange(len(origin))).all())
    if not identity:
        arrays["source_rows.npy"] = origin
    manifest = Manifest(
        attack=attack,
        settings=as_json(settings, "settings"),
        norm=norm,
        eps=eps,
        measured=measured,
        rounding=rounding if rounded else None,
        domain=domain,
        rows=rows,
        labels_changed=labels_changed,
        shape=list(stored.shape),
        num_changed=int(mask.sum()),
        source={**_SOURCE, **as_json(source, "source"), **fingerprint(clean)},
        index_map="identity" if identity else "source_rows.npy",
        key=key_record(key),
        versions=versions(),
        device="{platform}: {kind}".format(**device()),
        wall_time_s=as_json(wall_time_s, "wall_time_s"),
        date_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files=dict.fromkeys(arrays, ""),
        extra=as_json(extra or {}, "extra"),
    )
    check_values(vars(manifest), pathlib.Path(path) / MANIFEST)
    return install(pathlib.Path(path), arrays, manifest, overwrite=overwrite)


def read(path: str | os.PathLike[str]) -> Poisoned:
    """A poison folder whose every byte is as it was written; nothing is unpickled.

    Args:
      path: the folder.

    Returns:
      The poison; `dataset` holds jax arrays, ready for training.

    Errors:
      InputError naming the file that is missing, damaged or changed.
    """
    folder = pathlib.Path(path)
    manifest = _intact_manifest(folder)
    arrays = {name: read_array(folder, name, digest) for name, digest in manifest.files.items()}
    check_arrays(arrays, manifest, folder)
    dataset = Dataset(jnp.asarray(arrays["images.npy"]), jnp.asarray(arrays["labels.npy"]))
    return Poisoned(
        dataset, arrays["mask.npy"], arrays.get("delta.npy"), rows_of(arrays, manifest), manifest
    )


def check_files(path: str | os.PathLike[str]) -> None:
    """Every file of a poison folder is as it was written, by its hash; the arrays are not read.

    Errors:
      InputError naming the file that is missing, damaged or changed.
    """
    folder = pathlib.Path(path)
    for name, digest in _intact_manifest(folder).files.items():
        check_file(folder, name, digest)


def _intact_manifest(folder: pathlib.Path) -> Manifest:
    manifest, intact = read_manifest(folder)
    if not intact:
        raise InputError(f"{folder / MANIFEST} was changed after it was written")
    return manifest


def check_source(source: Any) -> None:
    """An `InputError` unless it says where a set comes from, as `write` takes it."""
    sound = isinstance(source, Mapping) and set(source) <= set(_SOURCE)
    if not sound or not source.get("name"):
        raise InputError(
            f"source = {source!r}; a dict is needed: allowed are name (needed), split, data_dir"
        )


def _origin(source_rows: Any, num: int, num_clean: int, rows: str) -> np.ndarray:
    if source_rows is None:
        origin = np.arange(num, dtype=np.int32)
        origin[num_clean:] = -1
    else:
        origin = np.asarray(source_rows)
        if origin.shape != (num,) or not np.issubdtype(origin.dtype, np.integer):
            raise InputError(
                f"source_rows is {origin.dtype} {origin.shape}; allowed are integers [{num}]"
            )
        origin = origin.astype(np.int32)
    if num and (origin.min() < -1 or origin.max() >= num_clean):
        raise InputError(
            f"source_rows run from {origin.min()} to {origin.max()}; allowed are -1 (added) to "
            f"{num_clean - 1}"
        )
    added = int((origin < 0).sum())
    if added and rows == "changed":
        raise InputError(f"{added} rows have no source row; say rows='added'")
    return origin


def _mask(index: Any, num: int, origin: np.ndarray) -> np.ndarray:
    index = np.asarray(index)
    mask = np.zeros(num, bool)
    if index.dtype == bool:
        if index.shape != (num,):
            raise InputError(f"the mask has shape {index.shape}; allowed is ({num},)")
        mask[:] = index
    elif index.size:
        if index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise InputError(f"index is {index.dtype} {index.shape}; allowed are integers [P]")
        if index.min() < 0 or index.max() >= num:
            raise InputError(
                f"index runs from {index.min()} to {index.max()}; allowed are 0 to {num - 1}"
            )
        mask[index] = True
    unmarked = np.flatnonzero((origin < 0) & ~mask)
    if unmarked.size:
        raise InputError(f"row {unmarked[0]} has no source row but is not in index")
    return mask


def _base(clean: np.ndarray, origin: np.ndarray, domain: str) -> np.ndarray:
    """The source row of every row, zeros for added ones, in the dtype that is stored."""
    if domain == "uint8" and clean.dtype != np.uint8:
        raise InputError(f"clean images are {clean.dtype}; domain 'uint8' needs uint8")
    return source_images(clean, origin, domain)


def _image(image: np.ndarray, base: np.ndarray, label: np.ndarray, domain: str) -> np.ndarray:
    if image.shape != (len(label), *base.shape[1:]):
        raise InputError(
            f"poisoned images are {image.shape}; {len(label)} labels and the clean images ask for "
            f"{(len(label), *base.shape[1:])}"
        )
    if domain == "uint8":
        if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
            raise InputError(f"poisoned images are {image.dtype}; allowed are uint8 and float")
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"poisoned values are {image.dtype}; domain {domain!r} needs float")
    if not np.isfinite(image).all():
        raise InputError("poisoned values are not all finite")
    if domain == "float" and image.size and (image.min() < -1e-6 or image.max() > 1 + 1e-6):
        raise InputError(
            f"poisoned values run from {image.min():g} to {image.max():g}; allowed is [0, 1]"
        )
    image = image.astype(np.float32)
    return np.clip(image, 0, 1) if domain == "float" else image


def _rest(image: np.ndarray, base: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Rows outside the mask that differ from their source by float rounding alone are the source.

    Compiled code takes v / 255 as a product, which moves last bits.
    """
    same = ~mask & (np.abs(image - base) < 1e-6).reshape(len(mask), -1).all(axis=1)
    return np.where(same.reshape(-1, *[1] * (image.ndim - 1)), base, image)


def _delta(image: np.ndarray, base: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """The change of the rows `changed` before rounding, float32."""
    out = np.empty((len(changed), *image.shape[1:]), np.float32)
    for block in blocks(out.shape):
        rows = changed[block]
        out[block] = image[rows].astype(np.float32) - floats(base[rows])
    return out


def _stored(
    image: np.ndarray,
    base: np.ndarray,
    origin: np.ndarray,
    norm: str | None,
    eps: float | int | None,
    rounding: str,
) -> np.ndarray:
    """Grey levels: inside the ball around the source row, plainly rounded for added rows."""
    added = origin < 0
    if not added.any():
        return to_uint8(image, base, norm=norm, eps=eps, rounding=rounding)
    out = np.empty_like(base)
    kept = ~added
    out[kept] = to_uint8(image[kept], base[kept], norm=norm, eps=eps, rounding=rounding)
    out[added] = to_uint8(image[added], base[added], norm=None, eps=None, rounding=rounding)
    return out


def _check_rows(
    stored: np.ndarray,
    base: np.ndarray,
    label: np.ndarray,
    clean_label: np.ndarray,
    origin: np.ndarray,
    *,
    mask: np.ndarray,
    labels_changed: bool,
) -> None:
    moved = differing_rows(stored, base, ~mask)
    if moved.size:
        raise InputError(f"row {moved[0]} differs from the clean one but is not in index")
    other = (label != clean_label[np.maximum(origin, 0)]) & (origin >= 0)
    wrong = np.flatnonzero(other & ~mask if labels_changed else other)
    if wrong.size:
        leave = " and is not in index" if labels_changed else "; say labels_changed=True"
        raise InputError(f"row {wrong[0]} has another label than the clean one{leave}")
