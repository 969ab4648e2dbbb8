"""What a pure function is made of, as a hash: its name, and all that it closed over.

Attacks, defenses and networks are tuples of closures. Two that were made alike by two processes
have one identity; another width, constant, array or inner function gives another.
"""

import dataclasses
import enum
import functools
import hashlib
import pathlib
import types
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpoison.data.verification import array_sha256
from jaxpoison.types import InputError

__all__ = ["code_sha256", "identity"]

_PLAIN = str | bytes | int | float | complex | None | type(...)
PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def identity(value: Any) -> str:
    """SHA-256 (hex) of what `value` is made of.

    Plain values, arrays and dtypes count by value; tuples, lists, mappings, sets and dataclasses
    (a flax module is one) by type and content; a function by its module, name, code, defaults and
    closure, a decorated one by what it wraps, a method by its object too; a class by its name; a
    mesh by its axes; other objects by what pickle would write. Globals that a function reads do not
    count: see `code_sha256`.

    Raises: InputError for what cannot be pickled either: nothing tells two of them apart.
    """
    return _Digests().of(value)


@functools.cache
def code_sha256() -> str:
    """SHA-256 (hex) of the package's code, but for this room (report), which only calls it."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] != "report":
            found.update(f"{name.as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


class _Digests:
    """The hashes of objects by their ids, each computed once."""

    def __init__(self):
        self._known: dict[int, tuple[Any, str]] = {}  # the object too: ids are used again

    def of(self, value: Any) -> str:
        if isinstance(value, _PLAIN):
            return f"{type(value).__name__} {value!r}"
        if id(value) not in self._known:
            self._known[id(value)] = (value, "itself")
            content = repr(self._content(value)).encode()
            self._known[id(value)] = (value, hashlib.sha256(content).hexdigest())
        return self._known[id(value)][1]

    def _content(self, value: Any) -> Any:
        kind = _name(type(value))
        if isinstance(value, enum.Enum):
            return (kind, value.name)
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = np.asarray(jax.random.key_data(value))
            return ("key", str(jax.random.key_impl(value)), array_sha256(data))
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return ("array", array_sha256(np.asarray(value)))
        if isinstance(value, np.dtype | pathlib.PurePath):
            return (kind, str(value))
        if isinstance(value, Mesh):
            return ("mesh", tuple(value.shape.items()))
        if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType | np.ufunc):
            return _name(value)
        if isinstance(value, types.CodeType):  # of functions without a name; of one Python version
            return (value.co_code, value.co_names, self.of(value.co_consts))
        if isinstance(value, types.MethodType):
            return ("method", self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            return ("partial", *map(self.of, (value.func, value.args, value.keywords)))
        if hasattr(value, "__wrapped__"):  # of jit, functools.cache, functools.wraps
            return ("wrapped", self.of(value.__wrapped__))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, Mapping):
            return (kind, *sorted((self.of(k), self.of(v)) for k, v in value.items()))
        if isinstance(value, Sequence):
            return (kind, *map(self.of, value))
        if isinstance(value, Set):
            return (kind, *sorted(map(self.of, value)))
        if dataclasses.is_dataclass(value):
            names = [f.name for f in dataclasses.fields(value) if f.name != "parent"]  # of flax
            return (kind, *((name, self.of(getattr(value, name, None))) for name in names))
        try:
            return (kind, self.of(value.__reduce_ex__(2)))  # what pickle would write of it
        except TypeError as error:
            raise InputError(
                f"a {kind} is part of an attack, a defense or a network; the matrix cannot tell "
                "two of them apart"
            ) from error

    def _function(self, value: types.FunctionType) -> Any:
        cells = []
        for cell in value.__closure__ or ():
            try:
                inside = cell.cell_contents
            except ValueError:  # a name that is not bound yet
                inside = "nothing"
            cells.append(self.of(inside))
        defaults = self.of((value.__defaults__, value.__kwdefaults__))
        return (_name(value), self.of(value.__code__), defaults, cells)


def _name(value: Any) -> str:
    named = getattr(value, "__qualname__", None) or getattr(value, "__name__", repr(value))
    return f"{getattr(value, '__module__', None)}.{named}"
