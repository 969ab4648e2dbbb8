"""Checks of single values: silent, or an `InputError` of one line that says what is allowed.

A keyword is the name in that line: `at_least(1, num=num)`. Traced numbers pass: they have no value
to look at yet.
"""

import difflib
import math
import numbers
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxpoison.types import Dataset, InputError, Replaced, Scenario, Split, Sweep

__all__ = [
    "NORMS",
    "at_least",
    "distinct_rows",
    "fraction",
    "images",
    "kind",
    "labels",
    "nearest",
    "number",
    "one_line",
    "one_of",
    "positive",
    "presets",
    "radius",
    "rows",
    "some_rows",
]

NORMS = ("linf", "l2", "l0")
"""The norms a budget may be stated in."""


def at_least(low: int, **values: Any) -> None:
    """Whole numbers >= low; a boolean is none."""
    for name, value in values.items():
        item = _item(value)
        if isinstance(item, jax.core.Tracer):
            continue
        if isinstance(item, bool) or not isinstance(item, numbers.Integral):
            raise InputError(f"{name} = {_shown(value)}; it must be a whole number")
        if item < low:
            raise InputError(f"{name} = {_shown(value)}; it must be at least {low}")


def number(
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
    **values: Any,
) -> None:
    """Finite numbers, least <= value <= most and above < value < below; a boolean is none."""
    limits = ((least, "at least"), (above, "above"), (most, "at most"), (below, "below"))
    words = " and ".join(f"{word} {limit:g}" for limit, word in limits if math.isfinite(limit))
    kind = "finite number" if most == below == math.inf else "number"
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer):
            continue
        x = _float(value)
        if not (math.isfinite(x) and least <= x <= most and above < x < below):
            raise InputError(f"{name} = {_shown(value)}; it must be a {kind} {words}".rstrip())


def positive(**values: Any) -> None:
    """Finite numbers above 0."""
    number(above=0, **values)


def fraction(**values: Any) -> None:
    """Numbers in [0, 1]."""
    number(least=0, most=1, **values)


def one_of(allowed: Iterable[Any], **values: Any) -> None:
    """Values that are among `allowed`."""
    allowed = tuple(allowed)
    for name, value in values.items():
        if value not in allowed:
            known = ", ".join(str(one) or "''" for one in allowed)
            words = f"allowed are {known}" if allowed else "there are none"
            raise InputError(f"{name} = {_shown(value)}; {words}")


def kind(wanted: type | tuple[type, ...], *, hint: Any = "", **values: Any) -> None:
    """Instances of a class, or of one of several; `hint` ends the line."""
    for name, value in values.items():
        if not isinstance(value, wanted):
            names = [one.__name__ for one in (wanted if isinstance(wanted, tuple) else (wanted,))]
            raise InputError(
                f"{name} is {_article(type(value).__name__)}; it must be "
                f"{' or '.join(map(_article, names))}{hint}"
            )


def presets(name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A frozen mapping, as public constants are, of which an unknown key is one line."""
    return types.MappingProxyType(_Presets(name, values))


class _Presets(dict):
    def __init__(self, name: str, values: Mapping[str, Any]):
        super().__init__(values)
        self._name = name

    def __missing__(self, key: Any) -> Any:
        hint = nearest(key, self) if isinstance(key, str) else ""
        raise InputError(f"{self._name} has no {key!r}; it has {', '.join(self)}{hint}")


def radius(norm: Any, eps: Any, *, pixels: bool = True) -> Any:
    """`eps` as a Python number, if it is a radius in `norm`.

    Args:
      norm: one of `NORMS`.
      eps: a number, a NumPy or JAX scalar, or a traced scalar, whose value is not looked at.
      pixels: whether linf is of pixels in [0, 1], where it is at most 1.

    Returns:
      An int for l0, a float for the other norms, the tracer itself if traced.
    """
    one_of(NORMS, norm=norm)
    number(least=0, eps=eps)
    if isinstance(eps, jax.core.Tracer):
        if eps.shape:
            raise InputError(f"eps has shape {eps.shape}; a scalar is needed")
        return eps
    size = _float(eps)
    if norm == "l0":
        if size != int(size):
            raise InputError(f"eps = {size:g} counts pixels under l0; write a whole number")
        return int(size)
    if norm == "linf" and pixels and size > 1:
        if size <= 255:
            raise InputError(f"eps = {size:g} looks like grey levels; write {size:g}/255")
        raise InputError(f"eps = {size:g} is too large; pixels are in [0, 1]")
    return size


def rows(data: Any) -> None:
    """The rows that a Scenario lets change: an integer array [P], each row of the set at most once.

    Likewise the rows of every setup of a Sweep, and of a Replaced. Anything else passes, and so do
    traced rows.
    """
    if any(callable(leaf) for leaf in jax.tree.leaves(data)):
        raise InputError(
            "the data hold functions (a Victim as scenario.aux?); they must be arrays, as the "
            "Variables of a trained network are"
        )
    if isinstance(data, Sweep):
        _sweep(data)
    elif isinstance(data, Scenario):
        for name, one in (("train", data.train), ("goal", data.goal)):
            if isinstance(one, Split | Scenario):
                kind = type(one).__name__
                raise InputError(f"scenario.{name} is a {kind}; it must be a Dataset")
        if not isinstance(data.index, jax.core.Tracer):
            distinct_rows("scenario.index", data.index, len(data.train.label))


def _sweep(sweep: Sweep) -> None:
    data = sweep.data
    if np.ndim(sweep.number) == 0:  # of one setup, see `sweep.numbered`
        rows(data)
        return
    data = data.data if isinstance(getattr(data, "data", None), Replaced) else data
    if isinstance(data, Scenario):
        name, index, num = "index", data.index, len(data.train.label)
    elif isinstance(data, Replaced):
        name, index, num = "rows", data.rows, len(data.split.train.label)
        if (found := data.image.dtype) != (wanted := data.split.train.image.dtype):
            raise InputError(f"sweep.data.image is {found}; the training set is {wanted}")
    else:
        kind = type(data).__name__
        raise InputError(f"sweep.data is a {kind}; it must be a Scenario or a Replaced")
    if isinstance(index, jax.core.Tracer) or isinstance(sweep.number, jax.core.Tracer):
        return
    numbers = np.asarray(sweep.number)
    if numbers.dtype.kind != "i" or numbers.min(initial=0) < 0:
        raise InputError("sweep.number must be whole numbers from 0")
    if np.ndim(index) != 2 or len(index) != len(numbers):
        raise InputError(
            f"sweep.data.{name} has shape {np.shape(index)}; {len(numbers)} setups ask for "
            f"[{len(numbers)}, P]"
        )
    for number, own in zip(numbers, np.asarray(index), strict=True):
        distinct_rows(f"{name} of setup {number}", own, num)


def distinct_rows(name: str, index: Any, num: int) -> None:
    """An integer array of one axis that names rows of `num`, each at most once."""
    if not isinstance(index, jax.Array | np.ndarray) or index.ndim != 1 or index.dtype.kind != "i":
        kind = getattr(index, "dtype", type(index).__name__)
        raise InputError(f"{name} is {kind}; it must be an array of whole numbers [P]")
    index = np.asarray(index)
    if not index.size:
        return
    if index.min() < 0 or index.max() >= num:
        raise InputError(
            f"{name} runs from {index.min()} to {index.max()}; allowed are 0 to {num - 1}"
        )
    if len(np.unique(index)) != len(index):
        raise InputError(f"{name} names a row twice; each row may stand in it once")


def labels(num_classes: int, **values: Any) -> None:
    """Whole numbers from 0 to num_classes - 1, [N]; traced labels pass."""
    for name, value in values.items():
        if isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct) or not np.size(value):
            continue
        label = np.asarray(value)
        if label.dtype.kind not in "iu":
            raise InputError(f"{name} are {label.dtype}; they must be whole numbers")
        low, high = int(label.min()), int(label.max())
        if low < 0 or high >= num_classes:
            raise InputError(
                f"{name} run from {low} to {high}; num_classes = {num_classes} allows 0 to "
                f"{num_classes - 1}"
            )


def images(data: Any) -> None:
    """The images of a Scenario, a Split or a Dataset: uint8 grey levels, or floats.

    Refused are whole numbers of another dtype, and floats that are grey levels not divided by 255,
    by the first 256 rows. Rows [1, 1, D] are features and hold what they hold; other values outside
    [0, 1] pass, as added points may be there, and so does anything traced.
    """
    if isinstance(data, Scenario):
        sets = {"scenario.train": data.train, "scenario.goal": data.goal}
    elif isinstance(data, Split):
        sets = {"split.train": data.train, "split.test": data.test}
    else:
        sets = {"the set": data}
    for name, one in sets.items():
        image = one.image if isinstance(one, Dataset) else None
        arrays = isinstance(image, jax.Array | np.ndarray)
        if not arrays or isinstance(image, jax.core.Tracer) or image.dtype == np.uint8:
            continue
        if image.dtype.kind in "iub":
            raise InputError(
                f"the images of {name} are {image.dtype}; allowed are uint8 grey levels and floats "
                "in [0, 1]"
            )
        if image.ndim == 4 and image.shape[1:3] != (1, 1):
            some = np.asarray(image[:256], np.float32)
            if some.size and some.min() >= 0 and some.max() > 1 and not np.any(some % 1):
                raise InputError(
                    f"the images of {name} are {image.dtype} grey levels up to {some.max():g}; "
                    "divide by 255 or store uint8"
                )


def some_rows(scenario: Scenario) -> None:
    """A scenario with rows that may change: a mean over none is undefined."""
    if not scenario.index.shape[0]:
        raise InputError("scenario.index is empty; it must name the rows that may change")


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of a message that names what may have been meant; empty if nothing is."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(error: BaseException) -> str:
    """What a foreign exception says, on one line of at most 300 characters."""
    return _short(str(error), 300) or type(error).__name__


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _item(value: Any) -> Any:
    """What a concrete array without axes holds; all else as it is."""
    arrays = np.ndarray | jax.Array
    if isinstance(value, arrays) and value.shape == () and not isinstance(value, jax.core.Tracer):
        return value.item()
    return value


def _float(value: Any) -> float:
    """NaN if it is no real number."""
    item = _item(value)
    real = isinstance(item, numbers.Real) and not isinstance(item, bool)
    return float(item) if real else math.nan


def _shown(value: Any) -> str:
    return _short(repr(value) if isinstance(value, str) else str(value), 60)


def _short(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}..."
