"""Removal by what clean rows never show: a larger norm, a value outside their range."""

import jax.numpy as jnp

from jaxpoison import check
from jaxpoison.defenses.known import SPACES, trusted, vectors
from jaxpoison.types import Filter, Screening, Victim

__all__ = ["norm_filter", "range_filter"]


def norm_filter(*, level: float = 1.0, space: str = "data", victim: Victim | None = None) -> Filter:
    """Keep rows with ||x|| at most the `level` quantile of the norms of trusted rows.

    Args:
      level: in (0, 1]; 1 is the largest trusted norm, 0.99 costs about 1 % of clean rows.
      space: "data", or "features" of `Known.variables`.
      victim: the network, for "features".

    Returns: a Filter that reads `Known.trusted`; its score is the norm.
    Errors: InputError for a bad argument, or what is missing in `Known`.
    """
    check.number(above=0, most=1, level=level)
    check.one_of(SPACES, space=space)

    def screen(key, dataset, aux):
        del key
        clean = vectors(space, victim, trusted(aux, dataset), aux)
        score = jnp.linalg.norm(vectors(space, victim, dataset, aux), axis=1)
        limit = jnp.quantile(jnp.linalg.norm(clean, axis=1), level)
        return Screening(score <= limit, score)

    return Filter(screen)


def range_filter(
    *,
    per_coordinate: bool = False,
    tolerance: float = 0.0,
    space: str = "data",
    victim: Victim | None = None,
) -> Filter:
    """Keep rows with every value between the smallest and the largest of trusted rows.

    Args:
      per_coordinate: bounds for every coordinate by itself; else one pair for all.
      tolerance: how far outside a value may lie, in units of the values.
      space: "data", or "features" of `Known.variables`.
      victim: the network, for "features".

    Returns: a Filter that reads `Known.trusted`; its score is how far the row's worst value lies
      outside, 0 inside.
    Errors: InputError for a bad argument, or what is missing in `Known`.
    """
    check.number(least=0, tolerance=tolerance)
    check.one_of(SPACES, space=space)

    def screen(key, dataset, aux):
        del key
        clean, x = (vectors(space, victim, rows, aux) for rows in (trusted(aux, dataset), dataset))
        axis = 0 if per_coordinate else None
        low, high = (f(clean, axis=axis, keepdims=True) for f in (jnp.min, jnp.max))
        score = jnp.max(jnp.maximum(jnp.maximum(low - x, x - high), 0), axis=1)
        return Screening(score <= tolerance, score)

    return Filter(screen)
