"""The public poisoning benchmark's files of setups: plain arrays, or the published pickles."""

import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxpoison import check
from jaxpoison.data.plain_pickle import PlainPickleError, parsed
from jaxpoison.data.sources import UNREADABLE
from jaxpoison.types import InputError

__all__ = ["PUBLISHED", "Published", "npz_setups", "pickled_setups"]

PUBLISHED = {
    "cd763e45a9dc6619f9f7d0f48613ef9c39b7ef98ce0e28cdf31da69cb30429df": "cifar10_from_scratch",
    "2510d189785725e36aef0f36ad020cebcecebe18af2f7450a72d6f773a662485": "cifar10_transfer_learning",
    "b09af8540f622e1208c634096aab69a2058a42370815325a72908ba1d76455ab": "tinyimagenet_from_scratch",
    "ec46cd09c243ac6a16e93b046a3010f8770ce4a62b6ff324c94dd7b3f5fef93c": (
        "tinyimagenet_transfer_learning"
    ),
}
"""SHA-256 of the published pickles."""

MAX_BYTES = 1 << 22  # the largest of the four has 0.4 MB
_COLUMNS = ("target_class", "target_index", "base_class", "base_indices")


class Published(NamedTuple):
    """One entry of such a file: true label and test row of the target, wanted label, poisons."""

    true: int
    target_row: int
    wanted: int
    rows: np.ndarray


def npz_setups(path: str | os.PathLike[str]) -> list[Published]:
    """The entries of an .npz file; see `data.setups.from_benchmark`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = [np.asarray(file[name]) for name in _COLUMNS]
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no .npz file with the arrays {', '.join(_COLUMNS)}") from error
    shapes = [x.shape for x in columns]
    num = len(columns[0]) if shapes[0] else 0
    whole = all(x.dtype.kind in "iu" for x in columns)
    if not whole or shapes[:3] != [(num,)] * 3 or shapes[3][:1] != (num,) or len(shapes[3]) != 2:
        raise InputError(f"{path}: the arrays are {shapes}; allowed are integers [S], [S, P]")
    return [_entry(path, i, *entry) for i, entry in enumerate(zip(*columns, strict=True))]


def pickled_setups(path: str | os.PathLike[str]) -> tuple[str, list[Published]]:
    """The name of the file's content and its entries; see `data.setups.from_pickle`."""
    try:
        with pathlib.Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error
    try:
        if len(content) > MAX_BYTES:
            raise PlainPickleError(f"it has more than {MAX_BYTES} bytes")
        entries = _dicts(parsed(content), len(content))
    except PlainPickleError as error:
        raise InputError(
            f"{path} is no pickle of benchmark setups, and was not run: {error}"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    name = PUBLISHED.get(digest, f"unknown-{digest[:8]}")
    return name, [_entry(path, i, *entry) for i, entry in enumerate(entries)]


def _entry(path: Any, i: int, true: Any, row: Any, wanted: Any, rows: Any) -> Published:
    """A row that stands twice among the poisons counts where it stands first."""
    rows = np.asarray(rows)
    true, row, wanted = int(true), int(row), int(wanted)
    limit = np.iinfo(np.int32).max
    least, most = rows.min(initial=0), rows.max(initial=0)
    if min(true, row, wanted, least) < 0 or max(true, row, wanted, most) > limit:
        raise InputError(f"{path}: setup {i} has a class or row outside 0 to {limit}")
    if not rows.size:
        raise InputError(f"{path}: setup {i} has no base index")
    _, first = np.unique(rows, return_index=True)
    return Published(true, row, wanted, rows[np.sort(first)].astype(np.int64))


def _dicts(value: Any, num_bytes: int) -> list[list[Any]]:
    """The four values of each dict, in the order of `_COLUMNS`."""
    if type(value) is not list or not value:
        raise PlainPickleError("it holds no list of setups")
    names = [name.replace("_", " ") for name in _COLUMNS]
    entries, total = [], 0
    for one in value:
        if type(one) is not dict or set(one) != set(names):
            raise PlainPickleError(f"a setup is a dict with the keys {', '.join(names)}")
        *numbers, rows = (one[name] for name in names)
        if type(rows) is list:
            rows = np.asarray([_whole(row) for row in rows])
        if not isinstance(rows, np.ndarray) or rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise PlainPickleError("base indices are a list or an array of whole numbers")
        total += rows.size
        if total > num_bytes:  # only one array named many times can do this
            raise PlainPickleError("it stands for more base indices than it has bytes")
        entries.append([*map(_whole, numbers), rows])
    return entries


def _whole(value: Any) -> int:
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if type(value) is not int:
        raise PlainPickleError("a class or row is no whole number")
    return value
