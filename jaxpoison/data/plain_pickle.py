"""A pickle of plain values and NumPy integers, read without running it.

A pickle is a program for a small machine whose opcodes can import anything and call it. Here it is
taken apart by `pickletools.genops`, which runs nothing, and a machine that knows only lists, dicts,
tuples, text, whole numbers and NumPy's integers builds them: no opcode leads to a call outside this
file.
"""

import io
import math
import pickletools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["PlainPickleError", "parsed"]


class PlainPickleError(ValueError):
    """What the pickle asks for beyond plain values, or where it is damaged; one line."""


def parsed(content: bytes) -> Any:
    """The plain value that a pickle of any protocol stands for.

    Args:
      content: the whole file; its length bounds what is made of it, but for arrays and lists that
        are named several times, which are the same object.

    Returns:
      Lists, dicts with text as keys, tuples, text, bytes, int, bool, None, and NumPy arrays of
      integers (those of no axis for scalars).

    Errors:
      PlainPickleError for anything else, and for a damaged pickle.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes in text
            return _run(content)
    except PlainPickleError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise PlainPickleError("it is damaged, or no pickle") from error


def _run(content: bytes) -> Any:
    machine = _Machine(len(content))
    for opcode, argument, place in pickletools.genops(io.BytesIO(content)):
        if opcode.name == "STOP":
            if place is None or place + 1 != len(content) or machine.below:
                raise PlainPickleError("something follows its end")
            (value,) = machine.stack
            return _finished(value)
        machine.run(opcode.name, argument)
    raise PlainPickleError("it has no end")


class _Array:
    """A NumPy array in the making: without a value until its state is set."""

    value: np.ndarray | None = None


class _Dtype:
    """A NumPy integer dtype in the making: its kind and size, and the byte order set later."""

    def __init__(self, name: Any):
        if name not in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise PlainPickleError("it holds NumPy values that are not integers")
        self.value = np.dtype(name)


class _Function(NamedTuple):
    """What stands for a function that a pickle names."""

    call: Callable[..., Any]


class _Machine:
    """The stack and the memory of a pickle; every opcode it does not know is refused."""

    def __init__(self, num_bytes: int) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stack under each MARK
        self.memory: dict[int, Any] = {}
        self.left = num_bytes  # of text that may be turned into bytes

    def run(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self.stack[-_TUPLES[name] :])]
        elif name in _PUT:
            self.memory[len(self.memory) if argument is None else argument] = self.stack[-1]
        elif name in _GET:
            self.stack.append(self.memory[argument])
        elif name == "GLOBAL":
            self.stack.append(_function(*argument.split(" ", 1)))
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name not in _IGNORED:
            raise PlainPickleError(f"it uses the opcode {name}, which plain values do not need")

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pair(self) -> list[Any]:
        last = self.stack.pop()
        return [self.stack.pop(), last]

    def make(self, kind: Callable[[list[Any]], Any]) -> None:
        items = self.since_mark()
        self.stack.append(kind(items))

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PlainPickleError("it adds items to what is no list")
        self.stack[-1].extend(map(_finished, items))

    def set_items(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict:
            raise PlainPickleError("it sets items of what is no dict")
        self.stack[-1].update(_dict(items))

    def stack_global(self) -> None:
        self.stack.append(_function(*self.pair()))

    def reduce(self) -> None:
        function, arguments = self.pair()
        if not isinstance(function, _Function) or type(arguments) is not tuple:
            raise PlainPickleError("it calls what is no function")
        self.stack.append(function.call(self, *arguments))

    def build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if type(state) is not tuple or not isinstance(made, _Array | _Dtype):
            raise PlainPickleError("it sets the state of what is no array")
        if isinstance(made, _Array):
            _, shape, dtype, fortran, data = state
            made.value = self.array(data, dtype, shape, "F" if fortran else "C")
            return
        if any(x is not None for x in state[2:5]) or state[1] not in ("<", ">", "|", "="):
            raise PlainPickleError("it holds NumPy values that are not integers")
        made.value = made.value.newbyteorder(state[1])

    def array(self, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """Integers [*shape] from their bytes, of which there must be as many as that takes."""
        if not isinstance(dtype, _Dtype) or type(shape) is not tuple or order not in ("C", "F"):
            raise PlainPickleError("it holds NumPy values that are not integers")
        if type(data) is str:  # as Python 2 wrote it
            data = self.encode(data, "latin1")
        sizes = all(type(size) is int and size >= 0 for size in shape)
        if type(data) not in (bytes, bytearray) or not sizes or len(shape) > 2:
            raise PlainPickleError("it holds NumPy values that are not integers")
        if math.prod(shape) * dtype.value.itemsize != len(data):
            raise PlainPickleError("it holds an array whose size is not that of its data")
        return np.frombuffer(data, dtype.value).reshape(shape, order=order)

    def encode(self, text: Any, encoding: Any) -> bytes:
        """How protocols before 3 write bytes."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise PlainPickleError("it encodes what is no text")
        self.left -= len(text)
        if self.left < 0:
            raise PlainPickleError("it makes more bytes than it has")
        return text.encode("latin1")

    def empty_array(self, kind: Any, shape: Any, code: Any) -> _Array:
        """What `build` fills."""
        if kind is not _FUNCTIONS["numpy.ndarray"]:
            raise PlainPickleError("it makes an array of an unknown kind")
        return _Array()

    def no_call(self, *arguments: Any) -> None:
        raise PlainPickleError("it makes an array of an unknown kind")


def _function(module: Any, name: Any) -> _Function:
    if type(module) is not str or type(name) is not str:
        raise PlainPickleError("it asks for what has no name")
    where = f"{module}.{name}"
    function = _FUNCTIONS.get(where.replace("numpy._core.", "numpy.core."))
    if function is None:
        raise PlainPickleError(f"it asks for {ascii(where)[:80]}")
    return function


def _dict(items: list[Any]) -> dict[str, Any]:
    """Of keys and values in turn."""
    if not all(type(key) is str for key in items[::2]):
        raise PlainPickleError("it holds a dict whose keys are no text")
    return dict(zip(items[::2], map(_finished, items[1::2]), strict=True))


def _finished(value: Any) -> Any:
    """The array inside one that was in the making."""
    if isinstance(value, _Array):
        if value.value is None:
            raise PlainPickleError("it holds an array without values")
        return value.value
    return value


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_IGNORED = {"PROTO", "FRAME"}
_ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": lambda machine: machine.make(tuple),
    "LIST": lambda machine: machine.make(lambda items: [_finished(x) for x in items]),
    "DICT": lambda machine: machine.make(_dict),
    "APPEND": lambda machine: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine: machine.set_items(machine.pair()),
    "SETITEMS": lambda machine: machine.set_items(machine.since_mark()),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
_FUNCTIONS = {
    "numpy.ndarray": _Function(_Machine.no_call),
    "numpy.dtype": _Function(lambda machine, name, align=False, copy=False: _Dtype(name)),
    "numpy.core.multiarray._reconstruct": _Function(_Machine.empty_array),
    "numpy.core.multiarray.scalar": _Function(
        lambda machine, dtype, data: machine.array(data, dtype, (), "C")
    ),
    "numpy.core.numeric._frombuffer": _Function(_Machine.array),
    "_codecs.encode": _Function(_Machine.encode),
}
