"""The manifest of a poison folder: what the data are, how they were made, and their hashes."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import numbers
import os
import pathlib
import platform
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import jaxpoison
from jaxpoison import check, checkpoint
from jaxpoison.types import InputError

__all__ = ["MANIFEST", "SCHEMA", "Manifest"]

SCHEMA = 1
MANIFEST = "manifest.json"
ARRAYS = ("images.npy", "labels.npy", "mask.npy", "delta.npy", "source_rows.npy")
"""The files a folder may hold beside the manifest; the first three always."""
DOMAINS = ("uint8", "float", "unbounded", "features")
PIXELS = DOMAINS[:2]
"""Of values in [0, 1]; those of the others have any size."""
ROWS = ("changed", "added")
STATEMENT = (
    "These data are POISONED: they were altered so that a model trained on them fails as the "
    "attack named here intends. They serve research on attacks and defenses. Do not train a "
    "model for use on them."
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything about a poison but its arrays; as `manifest.json` with the same names.

    Attributes:
      attack: name of the attack.
      settings: all its settings, as JSON values.
      norm: "linf", "l2", "l0", or None for no budget.
      eps: radius that the stored rows keep; pixel units in [0, 1] (linf, l2), a number of pixels
        (l0), or None.
      measured: largest change of a stored row in that norm, and in grey levels, where there is a
        source row to compare with; of added rows that are no grey levels also where values begin
        and end, theirs (value_low, value_high) and those of the clean set (clean_low, clean_high).
      rounding: "nearest", "truncate", or "cast" (then a linf eps is 1/255 more than the attack's,
        as the cast to 8 bits may add a grey level); None where nothing was rounded.
      domain: "uint8" (grey levels), "float" (images in [0, 1]), "unbounded" (values of any size,
        in the shape of images) or "features".
      rows: "changed" (every row stands for its source row) or "added" (rows without a source
        row stand beside the source set, or, where all rows are marked, all of them: added points
        alone, a source row is then the base that a point was made of).
      labels_changed: whether labels may differ from the source's.
      shape: [N, ...] of images.npy.
      num_changed: how many rows the mask marks.
      source: name, split, data_dir, num_rows, image_sha256, label_sha256 of the clean set.
      index_map: "identity" (row i comes from source row i) or "source_rows.npy", which lists the
        source row of each row, -1 for added ones.
      key: the random key: {"impl", "data"}, an integer seed, or None.
      versions: package -> version.
      device: platform and kind of the device.
      wall_time_s: seconds the attack took, if known.
      date_utc: when the folder was written, ISO 8601.
      files: file name -> SHA-256 of its bytes.
      extra: anything else, as JSON values.
      statement: what the data are, for a reader who finds the folder.
    """

    attack: str
    settings: dict[str, Any]
    norm: str | None
    eps: float | int | None
    measured: dict[str, Any]
    rounding: str | None
    domain: str
    rows: str
    labels_changed: bool
    shape: list[int]
    num_changed: int
    source: dict[str, Any]
    index_map: str
    key: dict[str, Any] | int | None
    versions: dict[str, str]
    device: str
    wall_time_s: float | int | None
    date_utc: str
    files: dict[str, str]
    extra: dict[str, Any]
    statement: str = STATEMENT

    def rows_in_words(self) -> str:
        """How many rows there are, and what they are to the source set."""
        num, clean = self.shape[0], self.source.get("num_rows")
        if self.rows == "added" and self.num_changed == num:
            share = f" (eps_d = {num / clean:.4g})" if isinstance(clean, int) and clean else ""
            return f"{num} rows to be added to the {clean} of the source{share}"
        return f"{self.num_changed} of {num} rows may differ"

    def to_text(self) -> str:
        """The JSON text; its last entry is the SHA-256 of the text without that entry."""
        content = {"schema": SCHEMA, "statement": self.statement, **dataclasses.asdict(self)}
        return checkpoint.json_text(checkpoint.sealed(content))


def read_manifest(folder: pathlib.Path) -> tuple[Manifest, bool]:
    """The manifest in a folder, and whether its text is as it was written.

    Raises no error for edited values, so that `verify` can report them; `read` refuses them.

    Errors:
      InputError: no folder, no manifest, no JSON, another schema, a missing or mistyped entry.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        content = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (FileNotFoundError, NotADirectoryError) as error:
        old = leftovers(folder, "old")
        inside = _inside(folder)
        hint = f"; a write died midway, the folder from before is {old[0]}" if old else inside
        raise InputError(f"{folder} is no poison folder: it has no {MANIFEST}{hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise InputError(f"{path} has schema {found!r}; this version reads {SCHEMA}")
    values = {}
    for field in dataclasses.fields(Manifest):
        if field.name not in content:
            raise InputError(f"{path} lacks the entry {field.name!r}")
        values[field.name] = content[field.name]
    check_values(values, path)
    manifest = Manifest(**values)
    try:
        return manifest, manifest.to_text() == text
    except RecursionError as error:
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error


def leftovers(target: pathlib.Path, kind: str) -> list[pathlib.Path]:
    """Folders beside `target` that a killed `install` left: "new" ones, "old" ones or "new|old"."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.({kind})")
    try:
        beside = [path for path in target.parent.iterdir() if name.fullmatch(path.name)]
        return sorted(path for path in beside if path.is_dir() and not path.is_symlink())
    except (OSError, ValueError):
        return []


def _inside(folder: pathlib.Path) -> str:
    """The tail of a message that names the poison folders of a run folder; empty if it is none."""
    try:
        found = sorted(path.parent for path in folder.glob(f"poison/*/{MANIFEST}"))
    except (OSError, ValueError):
        return ""
    return f"; did you mean {' or '.join(map(str, found))}?" if found else ""


def as_json(value: Any, name: str) -> Any:
    """`value` as JSON can hold it; functions become their names.

    Errors:
      InputError: a value of another kind, or a number that is not finite, naming where it is.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if _is_key(value):
        return key_record(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return as_json(value.tolist(), name)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise InputError(f"{name} = {value} is not finite; a manifest cannot hold it")
        return float(value)
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise InputError(f"{name} is a {type(value).__name__}; a manifest holds numbers, text, lists")


def key_record(key: Any) -> dict[str, Any] | int | None:
    """A typed key as {"impl", "data"}, an integer seed as itself, None as None."""
    if key is None or (isinstance(key, numbers.Integral) and not isinstance(key, bool)):
        return key if key is None else int(key)
    if _is_key(key):
        impl = str(jax.random.key_impl(key))
        return {"impl": impl, "data": np.asarray(jax.random.key_data(key)).tolist()}
    raise InputError(f"key is a {type(key).__name__}; allowed are a jax.random.key, an int, None")


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of the dtype, the shape and the bytes in row order; little-endian."""
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    head = f"{array.dtype.str}{list(array.shape)}"
    digest = hashlib.sha256(head.encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def tree_sha256(arrays: Any) -> str:
    """One SHA-256 of all arrays of a pytree and where they stand in it."""
    leaves = jax.tree.leaves_with_path(arrays)
    names = [[jax.tree_util.keystr(path), array_sha256(np.asarray(x))] for path, x in leaves]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Python, this library and the packages that decide the numbers; "unknown" if not installed."""
    found = {"python": platform.python_version(), "jaxpoison": jaxpoison.__version__}
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def device() -> dict[str, Any]:
    """Platform, kind and number of accelerators, and the host's processor and its cores."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "host": _processor(),
        "host_cores": os.cpu_count(),
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text} is not finite")
    return value


def _is_number(value: Any) -> bool:
    """Whether it is a JSON number that a float can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


_TYPES: dict[str, type | tuple[type, ...]] = {
    "attack": str,
    "settings": dict,
    "norm": (str, type(None)),
    "eps": (float, int, type(None)),
    "measured": dict,
    "rounding": (str, type(None)),
    "domain": str,
    "rows": str,
    "labels_changed": bool,
    "shape": list,
    "num_changed": int,
    "source": dict,
    "index_map": str,
    "key": (dict, int, type(None)),
    "versions": dict,
    "device": str,
    "wall_time_s": (float, int, type(None)),
    "date_utc": str,
    "files": dict,
    "extra": dict,
    "statement": str,
}


def check_values(values: dict[str, Any], path: pathlib.Path) -> None:
    """An `InputError` naming the first entry that a manifest at `path` cannot have."""
    for name, kind in _TYPES.items():
        if not isinstance(values[name], kind):
            raise InputError(f"{path}: the entry {name!r} is a {type(values[name]).__name__}")
    unknown = set(values["files"]) - set(ARRAYS)
    missing = set(ARRAYS[:3]) - set(values["files"])
    if unknown or missing:
        raise InputError(f"{path}: 'files' names {sorted(values['files'])}; allowed are {ARRAYS}")
    sizes = {f"measured.{name}": value for name, value in values["measured"].items()}
    sizes |= {name: values[name] for name in ("eps", "wall_time_s")}
    for name, value in sizes.items():
        if value is not None and not _is_number(value):
            raise InputError(f"{path}: {name!r} is no finite number")
    for name in ("name", "split", "data_dir"):
        value = values["source"].get(name)
        if not isinstance(value, str | None) or "\0" in (value or ""):
            raise InputError(f"{path}: 'source.{name}' is {value!r}; allowed is text")
    for name, allowed in (("domain", DOMAINS), ("rows", ROWS)):
        if values[name] not in allowed:
            raise InputError(f"{path}: {name!r} is {values[name]!r}; allowed are {allowed}")
    if not all(isinstance(size, int) for size in values["shape"]) or len(values["shape"]) < 2:
        raise InputError(f"{path}: 'shape' is {values['shape']}; allowed is [N, ...]")
