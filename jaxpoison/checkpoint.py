"""Checkpoints of any state: orbax writes the arrays, a digest file says that they are whole.

A checkpoint is a folder `<step>/` with `state/` (orbax) and, written last, `meta.json` with the
SHA-256 of every file and of itself. One without `meta.json` was cut off while being written and
does not count; one whose digests differ is damaged. The newest valid one wins.
"""

import errno
import hashlib
import json
import logging
import pathlib
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxpoison import check, hosts
from jaxpoison.types import InputError

__all__ = [
    "Restored",
    "digest",
    "json_text",
    "replacing",
    "restore",
    "save",
    "sealed",
    "valid_steps",
    "write_json",
]

PyTree = Any
_LEFT_BEHIND = "coroutine 'async_serialize_from_host"  # orbax's, of a save that failed elsewhere
_UNSOUND = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Restored(NamedTuple):
    """What `restore` found: the state, the number of steps done, and the notes saved with it."""

    state: PyTree
    step: int
    notes: Any


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_text(value: Any) -> str:
    """`value` as the text of a JSON file; a NaN or infinity is a ValueError."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with one more entry, last: the SHA-256 of the JSON text of the others."""
    return content | {"sha256": hashlib.sha256(json_text(content).encode()).hexdigest()}


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write `value` to `path` in one step: a reader sees the old file or the new one, whole."""
    with replacing(path) as temporary:
        temporary.write_text(json_text(value))


@contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A name to write under, beside `path`, whose place it takes at the end.

    Raises:
      OSError: as the system raises it, with the name of `path`; what stood there is untouched.
    """
    temporary = path.with_name(f".{path.name}.new")  # a killed writer's is written over
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or check.one_line(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def save(
    folder: pathlib.Path, step: int, state: PyTree, *, notes: dict[str, Any], keep: int = 2
) -> None:
    """Write `folder/<step>` and keep the `keep` newest up to it; all others are removed.

    Args:
      folder: the checkpoints of one run.
      step: steps done.
      state: pytree of arrays.
      notes: JSON values that come back with the state.
      keep: how many checkpoints stay.

    Raises:
      OSError: the folder cannot be written; older checkpoints are untouched.
    """
    path = folder / f"{step:08d}"
    hosts.first(lambda: shutil.rmtree(path, ignore_errors=True))
    try:
        with _quiet_threads():
            ocp.save(str(path.absolute() / "state"), _written(state))
        hosts.first(lambda: _seal(path, step, notes))
    except (OSError, ValueError) as error:  # a full disk is either, depending on the moment
        warnings.filterwarnings("ignore", _LEFT_BEHIND, RuntimeWarning)  # said when collected
        if hosts.is_first():
            shutil.rmtree(path, ignore_errors=True)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OSError(f"checkpoint {path} not written, older ones are kept: {reason}") from error
    if hosts.is_first():
        stay = {f"{s:08d}" for s in [s for s in valid_steps(folder) if s <= step][-keep:]}
        for other in folder.glob("[0-9]*"):  # older, cut off, or damaged and passed over
            if other.name not in stay:
                shutil.rmtree(other, ignore_errors=True)


def restore(
    folder: pathlib.Path, like: PyTree, *, read: Callable[[dict[str, Any]], Any] = dict
) -> Restored | None:
    """The newest valid checkpoint of `folder`, or None where there is none yet.

    Args:
      folder: the checkpoints of one run.
      like: a state of the wanted structure, shapes, dtypes and shardings.
      read: makes of the notes what is returned; an error of its own says that they are damaged.

    Raises:
      InputError: every checkpoint is damaged, or the newest was made with other settings.
    """
    found = hosts.first(lambda: _newest(folder, read))
    if found is None:
        return None
    step, notes = found
    return Restored(_load(folder / f"{step:08d}" / "state", like), step, read(notes))


def _load(path: pathlib.Path, like: PyTree) -> PyTree:
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _without_empty(like)
    )
    shapes, expected = _shapes(ocp.metadata(str(path.absolute())).metadata), _shapes(wanted)
    if differing := [n for n in expected | shapes if shapes.get(n) != expected.get(n)]:
        name = differing[0]
        raise InputError(
            f"checkpoint {path.parent} was made with other settings: state {name or 'array'} is "
            f"{shapes.get(name, 'absent')} there and {expected.get(name, 'absent')} in this run"
        )
    full = iter(jax.tree.leaves(ocp.load(str(path.absolute()), wanted)))
    return jax.tree.map(lambda x: next(full) if x.size else x, like)


def _written(state: PyTree) -> PyTree:
    """What orbax is given: of many processes, the first writes what each of them has whole."""
    state = _without_empty(state)
    if jax.process_count() == 1:
        return state
    return jax.tree.map(lambda x: np.asarray(x) if x.is_fully_addressable else x, state)


def _without_empty(state: PyTree) -> PyTree:
    """Arrays of no entries become empty nodes, and a tuple holds all: orbax refuses the others."""
    return (jax.tree.map(lambda x: x if x.size else (), state),)


def _shapes(state: PyTree) -> dict[str, str]:
    """Path -> dtype[shape], the path in words that orbax's description of a tree shares."""

    def name(path):
        return jax.tree_util.keystr(path[1:], simple=True, separator="/")

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {name(path): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """A save that fails prints much about orbax's threads; the error raised says it all.

    Some of them fail only after it was raised, so of a failed save they stay quiet.
    """
    logger, before, ignored = logging.getLogger("absl"), threading.excepthook, sys.unraisablehook

    def died(told):
        if not type(told.thread).__module__.startswith("orbax."):
            before(told)

    def unraisable(told):
        if str(told.exc_value) != "Event loop is closed":
            ignored(told)

    logger.addFilter(_not_orbax)
    threading.excepthook, sys.unraisablehook = died, unraisable
    yield
    threading.excepthook, sys.unraisablehook = before, ignored
    logger.removeFilter(_not_orbax)


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def valid_steps(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that were written to their end, oldest first."""
    if not folder.is_dir():
        return []
    names = (p.parent.name for p in folder.glob("[0-9]*/meta.json"))
    return sorted(int(name) for name in names if name.isdecimal())


def _seal(path: pathlib.Path, step: int, notes: dict[str, Any]) -> None:
    """Writes meta.json, which makes the checkpoint at `path` one."""
    meta = {"step": step, "files": _digests(path), "notes": notes}
    write_json(path / "meta.json", sealed(meta))


def _newest(
    folder: pathlib.Path, read: Callable[[dict[str, Any]], Any]
) -> tuple[int, dict[str, Any]] | None:
    """Step and notes of the newest sound checkpoint; see `restore`."""
    damaged = []
    for step in reversed(valid_steps(folder)):
        path = folder / f"{step:08d}"
        try:
            notes = _sound_notes(path, step)
            read(notes)
        except _UNSOUND as error:
            damaged.append(f"{path} ({check.one_line(error)})")
            continue
        if damaged:
            warnings.warn(f"damaged checkpoint {damaged[0]} passed over for {path}", stacklevel=2)
        return step, notes
    if damaged:
        raise InputError(
            f"checkpoint {damaged[0]} is damaged and no older one is valid; "
            f"remove {folder} to start again"
        )
    return None


def _sound_notes(path: pathlib.Path, step: int) -> dict[str, Any]:
    """The notes of the checkpoint at `path`; a ValueError names a file not as it was written."""
    try:
        text = (path / "meta.json").read_bytes().decode()
        meta = json.loads(text)
        content = {name: value for name, value in meta.items() if name != "sha256"}
        intact = json_text(sealed(content)) == text
        saved, files, notes = meta["step"], dict(meta["files"]), dict(meta["notes"])
    except _UNSOUND as error:
        raise ValueError(f"meta.json: {check.one_line(error)}") from error
    if not intact or saved != step:
        raise ValueError("meta.json was changed")
    found = _digests(path)
    del found["meta.json"]
    if differing := [name for name in found | files if found.get(name) != files.get(name)]:
        raise ValueError(differing[0])
    return notes


def _digests(path: pathlib.Path) -> dict[str, str]:
    files = sorted(f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): digest(f) for f in files}
