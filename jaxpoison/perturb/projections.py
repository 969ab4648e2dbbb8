"""Projections of perturbations onto a norm ball and the image box 0 <= x + p <= 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison.perturb.budget import Budget

__all__ = ["project", "project_ball", "project_l0", "project_l2", "project_linf"]

Deltas = Float[Array, "n h w c"]

_MAX_NEWTON = 64


def project_linf(delta: Deltas, image: Deltas, *, eps: Any) -> Deltas:
    """Nearest point of the l-infinity ball and the image box, in any separable norm.

    p = clip(delta, max(-eps, -x), min(eps, 1 - x))

    Args:
      delta: [N, H, W, C] perturbation, pixel units.
      image: [N, H, W, C] clean images x in [0, 1].
      eps: radius, pixel units; a float or a traced scalar.

    Returns:
      [N, H, W, C], max|p| <= eps and x + p in [0, 1], both exactly in floating point.
      Gradient: one inside, zero where a bound holds, one half where delta equals a bound (the
      rule of jnp.clip, split among equal arguments).
    """
    return _linf(delta, -image, 1 - image, eps)


def project_l2(delta: Deltas, image: Deltas, *, eps: Any) -> Deltas:
    """Euclidean projection onto the l2 ball intersected with the image box.

    min_p ||p - delta||_2  s.t.  ||p||_2 <= eps, 0 <= x + p <= 1, whose solution is
    p = clip(s * delta, -x, 1 - x) with the largest s in (0, 1] that keeps ||p||_2 <= eps
    (s = 1 / (1 + multiplier)). With t = s^2 and b_i the bound on the side of delta_i,
    ||p||^2 = sum_i min(t delta_i^2, b_i^2) is concave and piecewise linear in t, so Newton's
    method from the left stays inside the ball and ends at the solution after few steps.

    Args:
      delta: [N, H, W, C] perturbation, pixel units.
      image: [N, H, W, C] clean images x in [0, 1].
      eps: radius over all H W C entries of one image; a float or a traced scalar.

    Returns:
      [N, H, W, C]; a point that was outside lands at radius eps (1 - 16 ulp), so that rounding
      errors of the sum of squares do not put it back outside. Differentiable: the multiplier is
      found outside the graph and re-solved once inside it on its active set.
    """
    return _l2(delta, -image, 1 - image, eps)


def project_l0(delta: Deltas, image: Deltas, *, eps: Any) -> Deltas:
    """The `eps` pixels that change most after clipping to the box; the others go to zero.

    q = clip(delta, -x, 1 - x);  p = q on the eps pixels with the largest sum_c q_c^2, else 0.
    This is the nearest point of the l0 ball to q. The point of both sets nearest to `delta`
    would rank by sum_c q_c (2 delta_c - q_c) and so prefer pixels whose change the box cuts
    away; it is not what an attack wants. Of equal pixels the first in row order is kept.

    Args:
      delta: [N, H, W, C] perturbation, pixel units.
      image: [N, H, W, C] clean images x in [0, 1].
      eps: how many pixels may change (all channels of one count once); int or traced scalar.

    Returns:
      [N, H, W, C], at most eps pixels nonzero and x + p in [0, 1].
    """
    return _l0(delta, -image, 1 - image, eps)


def project(delta: Deltas, image: Deltas, budget: Budget) -> Deltas:
    """`project_linf`, `project_l2` or `project_l0`, as the budget says.

    Args:
      delta: [N, H, W, C] perturbation, pixel units.
      image: [N, H, W, C] clean images in [0, 1].
      budget: norm and radius.

    Returns:
      [N, H, W, C], inside the ball and, joined to `image`, the box.
    """
    return _PROJECTIONS[budget.norm](delta, -image, 1 - image, budget.eps)


def project_ball(delta: Deltas, budget: Budget) -> Deltas:
    """Nearest point of the ball alone, for perturbations that several images share.

    Args:
      delta: [N, H, W, C] perturbation, pixel units.
      budget: norm and radius.

    Returns:
      [N, H, W, C], inside the ball.
    """
    infinity = jnp.full_like(delta, jnp.inf)
    return _PROJECTIONS[budget.norm](delta, -infinity, infinity, budget.eps)


def _linf(delta: Deltas, low: Deltas, high: Deltas, eps: Any) -> Deltas:
    eps = jnp.asarray(eps, delta.dtype)
    return jnp.clip(delta, jnp.maximum(low, -eps), jnp.minimum(high, eps))


def _l2(delta: Deltas, low: Deltas, high: Deltas, eps: Any) -> Deltas:
    eps = jnp.asarray(eps, delta.dtype)
    radius = eps * (1 - 16 * float(jnp.finfo(delta.dtype).eps))
    clipped = jnp.clip(delta, low, high)
    # u = delta / max|delta| keeps the squares of huge deltas finite.
    largest = jnp.max(jnp.abs(delta), axis=(1, 2, 3), keepdims=True)
    unit = delta / jnp.maximum(largest, 1)
    inside = _sum(clipped**2) <= eps**2
    square = jnp.where(inside, jnp.zeros_like(unit), unit**2)
    bound = jnp.where(delta > 0, high, low) ** 2
    found = _newton(*jax.lax.stop_gradient((square, bound, radius**2)))
    scale = _sqrt(_solve(found, square, bound, radius**2))
    return jnp.where(inside, clipped, jnp.clip(scale * unit, low, high))


class _Search(NamedTuple):
    """Newton's method for t; the last three never change (so that the loop has no closure)."""

    step: Any
    t: Array
    last: Array
    square: Array
    bound: Array
    target: Array


def _newton(square: Deltas, bound: Deltas, target: Array) -> Array:
    """Largest t [N, 1, 1, 1] with sum_i min(t square_i, bound_i) <= target, from below."""
    total = _sum(square)
    start = jnp.where(total > 0, target / jnp.where(total > 0, total, 1), 0)
    # The first `last` only has to lie below: the loop runs until no t grows.
    search = _Search(jnp.zeros((), jnp.int32), start, start - 1, square, bound, target)
    return jax.lax.while_loop(_unfinished, _advance, search).t


def _unfinished(search: _Search) -> Array:
    return (search.step < _MAX_NEWTON) & jnp.any(search.t > search.last)


def _advance(search: _Search) -> _Search:
    step, t, _, square, bound, target = search
    return _Search(
        step + 1, jnp.maximum(t, _solve(t, square, bound, target)), t, square, bound, target
    )


def _solve(t: Array, square: Deltas, bound: Deltas, target: Array) -> Array:
    """One Newton step: target = t' * (sum over free squares) + (sum over reached bounds)."""
    free = t * square < bound
    slope = _sum(jnp.where(free, square, 0))
    room = jnp.maximum(target - _sum(jnp.where(free, 0, bound)), 0)
    return jnp.where(slope > 0, room / jnp.where(slope > 0, slope, 1), t)


def _l0(delta: Deltas, low: Deltas, high: Deltas, eps: Any) -> Deltas:
    clipped = jnp.clip(delta, low, high)
    change = jnp.sum(clipped**2, axis=3).reshape(delta.shape[0], -1)
    order = jnp.argsort(change, axis=1, stable=True, descending=True)
    rank = jnp.argsort(order, axis=1).astype(delta.dtype)
    keep = (rank < jnp.asarray(eps, delta.dtype)).reshape(*delta.shape[:3], 1)
    return jnp.where(keep, clipped, jnp.zeros_like(clipped))


def _sum(value: Deltas) -> Array:
    return jnp.sum(value, axis=(1, 2, 3), keepdims=True)


def _sqrt(value: Array) -> Array:
    """The square root, with gradient zero instead of NaN at zero."""
    return jnp.where(value > 0, jnp.sqrt(jnp.where(value > 0, value, 1)), 0)


_PROJECTIONS = {"linf": _linf, "l2": _l2, "l0": _l0}
