"""Shares below which constrained points cannot make a target stationary: lower bounds; float64.

For every direction U: reachable only if <U, G> <= eps sup (-<U, d loss / d W>), the supremum over
the points that are allowed. Each U gives a bound; the largest of a few is reported. The terms are
those of `thresholds`; a box low <= x <= high is in the units that W multiplies (behind the
network's mean and std), and covers pixel boxes, feature ranges, x >= 0 (high = inf) and, as the
hull of its balls, an L-inf budget.
Source: Lu et al. 2023 (ICML), whose threshold is U = W without a box; reference section 5.5.
"""

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from jaxpoison import check
from jaxpoison.hypergrad.thresholds import alike, centered, finite_array
from jaxpoison.types import InputError

__all__ = ["box_share", "direction_share", "largest_supremum", "ray_share"]

ANGLES = 33


def direction_share(direction: Any, weight: Any, gradient: Any, low: Any, high: Any) -> float:
    """<u, g>_+ / sup of y <u, x> sigma(-y <w, x>) over the box and y: the share that u asks for.

    Two classes without bias, exact for its u: as a function of s = <w, x> the largest <u, x> over
    the box is concave and piecewise linear, and its product with sigma has one maximum.

    Args:
      direction: u [D].
      weight: w [D].
      gradient: g [D], the clean mean gradient; with weight decay the `effective_gradient`.
      low: [D] or a number, the smallest allowed values; finite.
      high: likewise the largest.

    Errors: InputError for a box that is empty or not finite.
    """
    w, g = alike(weight, gradient)
    u, (low, high) = finite_array("direction", direction, 1), _box(low, high, len(w))
    if not np.all(np.isfinite(low) & np.isfinite(high)):
        raise InputError("the box must be finite; use largest_supremum for one that is not")
    gap = float(u @ g)
    if gap <= 0:
        return 0.0
    best = max(_most(y * u, y * w, low, high) for y in (-1, 1))
    return gap / best if best > 0 else math.inf


def box_share(weight: Any, gradient: Any, low: Any, high: Any) -> float:
    """The largest share that any of a few directions asks for, points in a box; a lower bound.

    Two classes [D]: u between w and g, in 33 steps of their angle, by `direction_share`. Kernels
    [D, L]: U = G, by the cheap <G, G> / `largest_supremum`, since p - e_y is a mean of e_k - e_y.

    Args:
      weight: w [D] or W [D, L].
      gradient: like weight.
      low: as in `direction_share`; -inf is allowed for kernels.
      high: likewise, inf.
    """
    w, g = alike(weight, gradient)
    if w.ndim == 2:
        g = centered(g)
        most = largest_supremum(g, low, high)
        square = float(np.vdot(g, g))
        return square / most if most > 0 else (math.inf if square > 0 else 0.0)
    size = float(np.linalg.norm(w))
    if not size:
        return direction_share(g, w, g, low, high)
    along = w / size
    across = g - along * float(along @ g)
    rest = float(np.linalg.norm(across))
    across = across / rest if rest else across
    angles = np.linspace(-np.pi, np.pi, ANGLES) if rest else np.zeros(1)
    directions = [np.cos(a) * along + np.sin(a) * across for a in angles]
    return max(direction_share(u, w, g, low, high) for u in [w, g, *directions])


def largest_supremum(direction: Any, low: Any, high: Any) -> float:
    """Max over pairs of classes k, y and the box of <U_y - U_k, x>, infinite where x is free.

    No point gives more to -<U, d CE / d W> than that, whatever W is.

    Args:
      direction: U [D, L].
      low: [D] or a number, -inf allowed.
      high: likewise, inf.
    """
    u = finite_array("direction", direction, 2)
    low, high = _box(low, high, len(u))
    steps = (u[:, :, None] - u[:, None, :]).reshape(len(u), -1)

    def sums(bound, part):
        """sum_d bound_d part_d, 0 inf = 0."""
        used = part != 0
        return np.sum(np.where(used, bound[:, None] * np.where(used, part, 1), 0), axis=0)

    return float(np.max(sums(high, np.maximum(steps, 0)) + sums(low, np.minimum(steps, 0))))


def ray_share(margins: Any, *, scale: float = 0.0) -> float:
    """The share at which a convex victim would rather shrink the target to scale w than stay.

    eps >= (1/N) sum_i [l(m_i) - l(scale m_i)] / sup_t [l(scale t) - l(t)], l(m) = ln(1 + e^-m), for
    two classes without bias; no gradient is needed. It tends to tau as scale -> 1 and never exceeds
    it.

    Args:
      margins: [N] m_i = y_i <w, x_i> of the clean rows at the target.
      scale: at least 0, below 1.
    """
    check.number(least=0, below=1, scale=scale)
    m = finite_array("margins", margins, 1)
    gain = float(np.mean(np.logaddexp(0, -m) - np.logaddexp(0, -scale * m)))
    if gain <= 0:
        return 0.0
    if scale == 0:
        return gain / math.log(2)

    def less(t):
        return float(np.logaddexp(0, -t) - np.logaddexp(0, -scale * t))

    options = {"xatol": 1e-12}
    found = minimize_scalar(less, bounds=(0, 40 / scale), method="bounded", options=options)
    return gain / -less(float(found.x))


def _most(u: np.ndarray, w: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Sup over the box of <u, x> sigma(-<w, x>), at least 0."""
    slope = np.where(w != 0, u / np.where(w != 0, w, 1), 0)
    order = np.argsort(-slope)
    order = order[w[order] != 0]
    flat = float(np.sum(np.maximum(u * low, u * high)[w == 0]))
    start = np.where(w > 0, low, high)[order]
    width = np.abs(w[order]) * (high - low)[order]
    s = float(w[order] @ start) + np.concatenate([[0.0], np.cumsum(width)])
    top = flat + float(u[order] @ start) + np.concatenate([[0.0], np.cumsum(slope[order] * width)])

    positive = np.flatnonzero(top > 0)
    if not positive.size:
        return 0.0

    def minus_log(x):
        return np.logaddexp(0, x) - math.log(max(float(np.interp(x, s, top)), 1e-300))

    best = min(positive.tolist(), key=lambda i: minus_log(s[i]))
    bracket = [_toward(s, top, best, best + step) for step in (-1, 1)]
    lowest = minus_log(s[best])
    if bracket[1] > bracket[0]:
        options = {"xatol": 1e-12 * max(1.0, bracket[1] - bracket[0])}
        found = minimize_scalar(minus_log, bounds=bracket, method="bounded", options=options)
        lowest = min(lowest, float(found.fun))
    return math.exp(-lowest)


def _toward(s: np.ndarray, top: np.ndarray, here: int, there: int) -> float:
    """The next vertex of the line, or where it crosses zero before that."""
    if not 0 <= there < len(s):
        return float(s[here])
    part = 1.0 if top[there] > 0 else top[here] / (top[here] - top[there])
    return float(s[here] + part * (s[there] - s[here]))


def _box(low: Any, high: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.asarray(x, np.float64) for x in (low, high))
    if any(x.shape not in ((), (width,)) for x in (low, high)) or not np.all(low <= high):
        raise InputError(f"the box must be low <= high, numbers or arrays of shape ({width},)")
    return np.broadcast_to(low, width), np.broadcast_to(high, width)
