"""How much of an image the attacker may change: a norm and a radius."""

import dataclasses
import math
import numbers
from typing import Any

import jax
import numpy as np

from jaxpoison.types import InputError

__all__ = ["NORMS", "Budget", "check_budget"]

NORMS = ("linf", "l2", "l0")
"""The norms a budget may be stated in."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """The ball {delta : ||delta||_norm <= eps} around every image, pixels in [0, 1].

    Frozen and hashable; a traced `eps` also works inside a closure, so that a sweep is a `vmap`
    over a function that builds the budget (such an instance cannot be hashed).

    Attributes:
      norm: "linf", "l2" (over all H W C entries of one image) or "l0".
      eps: radius. linf: the largest change of one entry, in [0, 1] (8/255, not 8). l2: pixel
        units, >= 0. l0: the number of pixels that may change, a pixel being all its channels.

    Errors:
      InputError: the norm is unknown or `eps` is not a radius in it.
    """

    norm: str
    eps: Any

    def __post_init__(self):
        object.__setattr__(self, "eps", check_budget(self.norm, self.eps))


def check_budget(norm: Any, eps: Any) -> Any:
    """`eps` as a Python number, or unchanged where it is traced.

    Args:
      norm: one of `NORMS`.
      eps: a number, a NumPy or JAX scalar, or a traced scalar, whose value is not looked at.

    Returns:
      An int for l0, a float for the other norms, the tracer itself if traced.

    Errors:
      InputError: unknown norm; eps no scalar number, NaN, infinite, negative; linf: above 1;
        l0: no whole number.
    """
    if norm not in NORMS:
        raise InputError(f"norm = {norm!r} is not known; allowed are {', '.join(NORMS)}")
    if isinstance(eps, jax.core.Tracer):
        if eps.shape:
            raise InputError(f"eps has shape {eps.shape}; a scalar is needed")
        return eps
    number = _number(eps)
    if not math.isfinite(number) or number < 0:
        raise InputError(f"eps = {number:g} is not a radius; allowed is a finite number >= 0")
    if norm == "l0":
        if number != int(number):
            raise InputError(f"eps = {number:g} counts pixels under l0; write a whole number")
        return int(number)
    if norm == "linf" and number > 1:
        if number <= 255:
            raise InputError(f"eps = {number:g} looks like grey levels; write {number:g}/255")
        raise InputError(f"eps = {number:g} is too large; pixels are in [0, 1]")
    return number


def _number(eps: Any) -> float:
    scalar = isinstance(eps, np.ndarray | jax.Array) and eps.shape == ()
    value = eps.item() if scalar else eps
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"eps = {str(value)[:40]!r} is not a number")
    return float(value)
