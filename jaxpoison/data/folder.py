"""The files of a poison folder: written under a temporary name and renamed, read with care."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping

import numpy as np

from jaxpoison import check, checkpoint
from jaxpoison.data.manifest import MANIFEST, Manifest, leftovers
from jaxpoison.types import InputError

__all__ = ["check_arrays", "check_file", "install", "read_array", "rows_of", "staged"]


def install(
    target: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    manifest: Manifest,
    *,
    overwrite: bool,
) -> Manifest:
    """Writes a poison folder through `staged`; only a poison folder is ever replaced.

    If a process died between the two renames of a replacement, the old folder comes back first.

    Args:
      target: where the folder will stand; parents are made.
      arrays: file name -> array.
      manifest: all but `files`.
      overwrite: whether an existing poison folder may be replaced.

    Returns:
      The manifest with the hashes of the files.

    Errors:
      InputError: the path is taken, or the system refuses (no directory, no right, disk full).
    """
    _restore(target)
    _check_free(target, overwrite)
    with staged(target, "the poison", replace=overwrite) as staging:
        return _fill(staging, arrays, manifest)


@contextlib.contextmanager
def staged(target: pathlib.Path, what: str, *, replace: bool) -> Iterator[pathlib.Path]:
    """A folder beside `target` to be filled; renamed at the end, removed on failure.

    With `replace` the old folder is renamed away first and removed last, and comes back if the new
    one cannot take its place; without it a path that is taken is an error. What a killed process
    left under a temporary name is cleared away by the next write of the same path. So two
    processes must not write one path at once.

    Args:
      target: where the folder will stand; parents are made, and removed again on failure.
      what: what is written, for the error.
      replace: whether a folder that is there gives way.

    Errors:
      InputError: the system refuses (no directory, no right, disk full).
    """
    mark = uuid.uuid4().hex[:8]
    staging = target.parent / f".{target.name}.{mark}.new"
    old = target.parent / f".{target.name}.{mark}.old"
    made: list[pathlib.Path] = []
    try:
        _make_parents(target.parent, made)
        for left in leftovers(target, "new|old" if replace else "new"):
            shutil.rmtree(left, ignore_errors=True)
        staging.mkdir()
        yield staging
        if replace and target.exists():
            target.rename(old)
        try:
            staging.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        with contextlib.suppress(OSError):
            old.rename(staging)  # from here on it is rubbish, and never taken for the only copy
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        raise InputError(f"cannot write {what} to {target}: {check.one_line(error)}") from error
    finally:
        if staging.exists():
            shutil.rmtree(staging, ignore_errors=True)
        if not target.exists():
            _remove_empty(made)


def read_array(folder: pathlib.Path, name: str, digest: str | None = None) -> np.ndarray:
    """One array file; with `digest` its SHA-256 must be that. Nothing is unpickled.

    Errors:
      InputError naming the file: missing, damaged, changed, or holding Python objects.
    """
    path = folder / name
    try:
        if digest is not None:
            check_file(folder, name, digest)
        with path.open("rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error


def check_file(folder: pathlib.Path, name: str, digest: str) -> None:
    """The SHA-256 of a file is the manifest's.

    Errors:
      InputError naming the file: missing, unreadable, damaged or changed.
    """
    path = folder / name
    try:
        found = checkpoint.digest(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error
    if found != digest:
        raise InputError(f"{path} was damaged or changed: its SHA-256 is not the manifest's")


def check_arrays(
    arrays: Mapping[str, np.ndarray], manifest: Manifest, folder: pathlib.Path
) -> None:
    """Dtypes and shapes of the files that are at hand, as the manifest has them.

    Errors:
      InputError naming the first file that does not fit.
    """
    num, *rest = manifest.shape
    image = "uint8" if manifest.domain == "uint8" else "float32"
    wanted = {
        "images.npy": (image, (num, *rest)),
        "labels.npy": ("int32", (num,)),
        "mask.npy": ("bool", (num,)),
        "delta.npy": ("float32", (manifest.num_changed, *rest)),
        "source_rows.npy": ("int32", (num,)),
    }
    for name, array in arrays.items():
        dtype, shape = wanted[name]
        if array.dtype.name != dtype or array.shape != shape:
            raise InputError(
                f"{folder / name} is {array.dtype.name} {array.shape}; the manifest asks for "
                f"{dtype} {shape}"
            )
    mask = arrays.get("mask.npy")
    if mask is not None and int(mask.sum()) != manifest.num_changed:
        raise InputError(
            f"{folder / 'mask.npy'} marks {int(mask.sum())} rows; the manifest says "
            f"{manifest.num_changed}"
        )
    if (manifest.index_map == "source_rows.npy") != ("source_rows.npy" in manifest.files):
        raise InputError(f"{folder / MANIFEST}: index_map and files contradict each other")


def rows_of(arrays: Mapping[str, np.ndarray], manifest: Manifest) -> np.ndarray:
    """The source row of each row, [N] int32; -1 for added ones."""
    identity = np.arange(manifest.shape[0], dtype=np.int32)
    return arrays.get("source_rows.npy", identity)


def _restore(target: pathlib.Path) -> None:
    """The folder that was to be replaced when a process died between the two renames."""
    try:
        if not os.path.lexists(target):
            for old in leftovers(target, "old")[:1]:
                old.rename(target)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the poison to {target}: {check.one_line(error)}") from error


def _check_free(target: pathlib.Path, overwrite: bool) -> None:
    try:
        if not (target.exists() or target.is_symlink()):
            return
        if not overwrite:
            raise InputError(f"{target} exists; pass overwrite=True to replace a poison folder")
        if target.is_symlink() or not (target / MANIFEST).is_file():
            raise InputError(f"{target} exists and is no poison folder; it is not overwritten")
    except OSError as error:
        raise InputError(f"cannot write the poison to {target}: {check.one_line(error)}") from error


def _make_parents(folder: pathlib.Path, made: list[pathlib.Path]) -> None:
    """As mkdir(parents=True), noting each folder made."""
    if not folder.exists():
        _make_parents(folder.parent, made)
        folder.mkdir(exist_ok=True)
        made.append(folder)


def _remove_empty(made: list[pathlib.Path]) -> None:
    for folder in reversed(made):
        try:
            folder.rmdir()
        except OSError:
            return


def _fill(folder: pathlib.Path, arrays: Mapping[str, np.ndarray], manifest: Manifest) -> Manifest:
    files = {}
    for name, array in arrays.items():
        with (folder / name).open("wb") as stream:
            np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        files[name] = checkpoint.digest(folder / name)
    manifest = dataclasses.replace(manifest, files=files)
    with (folder / MANIFEST).open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(manifest.to_text())
        stream.flush()
        os.fsync(stream.fileno())
    return manifest
