"""Floating-point operations of a traced function: products of matrices and convolutions alone.

XLA's own count takes a loop's body once and, on CPU, sees the weight gradient inside a loop; this
one multiplies by the length of each scan. 2 operations per product; the zeros that a dilation puts
into an image count nothing, those of padding count. Where a convolution differs by platform, it is
the form of the default device that counts.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

__all__ = ["gflop"]


def gflop(fn: Callable[..., Any], *args: Any) -> float:
    """GFLOP of one call of `fn` with arguments of these shapes; nothing is computed."""
    return _count(jax.make_jaxpr(fn)(*args).jaxpr) / 1e9


def _count(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, settings = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = settings["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * terms
    if name == "bilinear_conv":
        return _of_cpu_conv(equation, settings["window"])
    if name == "conv_general_dilated":
        outputs = settings["dimension_numbers"].rhs_spec[0]
        return _of_conv(equation, outputs, settings["lhs_dilation"])
    if name == "cond":  # also the choice of a platform
        on_cpu = [b for b in settings["branches"] if "bilinear_conv" in str(b.jaxpr)]
        others = [b for b in settings["branches"] if b not in on_cpu]
        here = on_cpu if jax.default_backend() == "cpu" else others
        return max(_count(branch.jaxpr) for branch in here or settings["branches"])
    repeats = settings["length"] if name == "scan" else 1
    return repeats * sum(_count(inner) for inner in _inner(settings))


def _of_conv(equation: Any, outputs: int, dilation: Any) -> float:
    """2 x outputs x kernel entries per output channel, without the zeros of a dilated image."""
    kernel = equation.invars[1].aval.shape
    terms = math.prod(kernel) / kernel[outputs]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * terms / math.prod(dilation)


def _of_cpu_conv(equation: Any, window: Any) -> float:
    """As `_of_conv`, with image and kernel exchanged where the library does so."""
    x, w = (variable.aval.shape for variable in equation.invars)
    if math.prod(w[:-2]) <= math.prod(x[1:-1]):
        return _of_conv(equation, -1, window.lhs_dilation)
    terms = math.prod(x[1:]) / math.prod(window.rhs_dilation)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * terms


def _inner(settings: dict[str, Any]) -> list[Any]:
    """The functions an equation calls."""
    found = []
    for value in settings.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
