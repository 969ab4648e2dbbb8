"""Value checks that attack factories share; traced values pass, so that sweeps can vmap."""

import math
import numbers
from typing import Any

import jax

from jaxpoison.types import InputError, Scenario

__all__ = ["check_at_least", "check_fraction", "check_one_of", "check_positive", "check_rows"]


def check_at_least(low: int, **values: Any) -> None:
    """InputError unless every value is a whole number >= low; the line names it."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise InputError(f"{name} = {value!r}; it must be a whole number")
        if value < low:
            raise InputError(f"{name} = {value}; it must be at least {low}")


def check_fraction(**values: Any) -> None:
    """InputError unless every value is in [0, 1] or traced."""
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer) and not 0 <= value <= 1:
            raise InputError(f"{name} = {value}; allowed is 0 to 1")


def check_one_of(allowed: tuple[str, ...], **values: Any) -> None:
    """InputError unless every value is one of `allowed`."""
    for name, value in values.items():
        if value not in allowed:
            raise InputError(f"{name} = {value!r}; allowed are {' and '.join(map(repr, allowed))}")


def check_positive(**values: Any) -> None:
    """InputError unless every value is a finite number above 0, or traced."""
    for name, value in values.items():
        if not isinstance(value, jax.core.Tracer) and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} = {value}; it must be above 0")


def check_rows(scenario: Scenario) -> None:
    """InputError if no row may change: a mean over no rows is undefined."""
    if not scenario.index.shape[0]:
        raise InputError("scenario.index is empty; it must name the rows that may change")
