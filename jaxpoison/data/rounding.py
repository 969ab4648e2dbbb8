"""From float images to grey levels without leaving the budget, and the size of a change."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxpoison import check
from jaxpoison.types import InputError

__all__ = ["ROUNDINGS", "change_size", "check_norm", "promised", "to_uint8"]

ROUNDINGS = ("nearest", "truncate", "cast")

_BLOCK_ENTRIES = 2**21
_PIXEL_ERROR = 1e-6
"""What float32 arithmetic may add to one pixel value in [0, 1]."""


def to_uint8(
    poisoned: Any, clean: Any, *, norm: str | None, eps: float | None, rounding: str = "nearest"
) -> np.ndarray:
    """The grey levels nearest to `poisoned` that lie inside the ball around `clean`.

    q = round(255 v) ("nearest") or floor(255 v) ("truncate"), then, with d = q - u in levels,
      linf: d <- clip(d, -floor(255 eps), floor(255 eps));
      l2: while ||d|| > 255 eps, move the entry that rounding carried farthest from u (largest
        |d| - |255 v - u|) one level toward u. Truncating all such entries suffices.
      l0, None: as rounded; an unchanged pixel stays unchanged.
    "cast" is floor(255 v) in float32 as published code takes it, and stays so, up to one level
    outside (15 of the 256 levels under a noise of -8/255); `promised` is the ball that it keeps.

    Args:
      poisoned: v [N, H, W, C] float in [0, 1], inside the budget up to float error.
      clean: u [N, H, W, C] uint8, the same rows.
      norm: "linf", "l2", "l0", or None for plain rounding.
      eps: radius in pixel units (linf, l2) or number of pixels (l0); None with norm None.
      rounding: "nearest", "truncate" (biased, inside the ball), or "cast" (biased; not under l2).

    Returns:
      [N, H, W, C] uint8, never outside the budget, or with "cast" outside the `promised` one.

    Errors:
      InputError: unequal shapes, `clean` no uint8, `poisoned` outside [0, 1] or the budget (the
        first such row is named), unknown norm or rounding, "cast" under l2.

    Source: of "cast", GUE's evaluation (Liu et al. 2024, code): 255 P cast to uint8.
    """
    poisoned, clean = np.asarray(poisoned), np.asarray(clean)
    check_norm(norm, eps)
    promised(norm, eps, rounding)
    if clean.dtype != np.uint8:
        raise InputError(f"clean images are {clean.dtype}; rounding to grey levels needs uint8")
    if poisoned.shape != clean.shape:
        raise InputError(f"poisoned images {poisoned.shape} and clean {clean.shape} must match")
    radius = 0.0 if eps is None else float(eps)
    out = np.empty_like(clean)
    for rows in blocks(clean.shape):
        value, start = poisoned[rows].astype(np.float64), clean[rows].astype(np.float64)
        _check_box(value, rows.start)
        if norm is not None:
            _check_float_budget(value, start / 255, norm, radius, rows.start)
        exact = 255 * value
        shift = np.clip(_levels(exact, poisoned[rows], start, rounding), 0, 255) - start
        if norm == "linf" and rounding != "cast":
            most = math.floor(255 * radius + 1e-6)
            shift = np.clip(shift, -most, most)
        elif norm == "l2":
            _move_inside(shift, exact - start, _square_limit(radius))
        out[rows] = (start + shift).astype(np.uint8)
    return out


def promised(norm: str | None, eps: float | int | None, rounding: str) -> float | int | None:
    """The radius that rounded images keep: `eps`, and of a "cast" under linf one grey level more.

    Errors: InputError for an unknown rounding, and for "cast" under l2, where each entry may add.
    """
    check.one_of(ROUNDINGS, rounding=rounding)
    if rounding != "cast" or norm not in ("linf", "l2"):
        return eps
    if norm == "l2":
        raise InputError("rounding = 'cast' keeps no l2 budget; allowed are nearest and truncate")
    return min(1.0, float(eps or 0) + 1 / 255)


def change_size(
    changed: Any, clean: Any, *, norm: str, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's change in a norm, and whether it is larger than the budget allows.

    Grey levels are compared exactly (l2: up to 1e-6 of the squared radius); floats up to the
    rounding error of float32.

    Args:
      changed: [N, ...] images or features.
      clean: [N, ...] of the same shape; both uint8, or both float.
      norm: "linf", "l2" over all entries of a row, or "l0": how many pixels differ, a pixel being
        the last axis of an image, or one entry of a feature vector [N, D].
      eps: radius; pixel units or a count.

    Returns:
      (size [N] float64, pixel units or a count; too_large [N] bool).
    """
    changed, clean = np.asarray(changed), np.asarray(clean)
    grey = changed.dtype == np.uint8 and clean.dtype == np.uint8
    sizes, beyond = np.zeros(len(clean)), np.zeros(len(clean), bool)
    for rows in blocks(clean.shape):
        if grey:
            shift = changed[rows].astype(np.float64) - clean[rows]
            sizes[rows] = _size(shift, norm) / (1 if norm == "l0" else 255)
            beyond[rows] = _grey_beyond(shift, norm, eps)
        else:
            first, last = clean[rows].astype(np.float64), changed[rows].astype(np.float64)
            sizes[rows] = _float_size(last, first, norm)
            beyond[rows] = ~(sizes[rows] <= eps + _float_slack(first, norm, eps))
    return sizes, beyond


def check_norm(norm: Any, eps: Any, *, pixels: bool = True) -> None:
    """An `InputError` unless `eps` is a radius in `norm`, or both are None.

    Args:
      norm: "linf", "l2", "l0" or None.
      eps: a finite number >= 0, or None. With `pixels`, linf allows at most 1.
      pixels: whether the values are pixels in [0, 1] (else features of any size).
    """
    check.one_of((*check.NORMS, None), norm=norm)
    if norm is not None:
        check.radius(norm, eps, pixels=pixels)
    elif eps is not None:
        raise InputError(f"eps = {eps} without a norm; allowed is None")


def _levels(exact: np.ndarray, value: np.ndarray, start: np.ndarray, rounding: str) -> np.ndarray:
    """Grey levels before the ball is looked at, from 255 v in float64."""
    if rounding == "nearest":
        return np.rint(exact)
    if rounding == "truncate":
        return np.floor(exact + 255 * _PIXEL_ERROR)
    cast = np.floor(np.float32(255) * value.astype(np.float32))
    return np.where(np.abs(exact - start) < 255 * _PIXEL_ERROR, start, cast)


def _move_inside(shift: np.ndarray, change: np.ndarray, limit: float) -> None:
    """Rows of integer `shift` with a larger square sum than `limit` come inside, in place."""
    flat, exact = shift.reshape(len(shift), -1), change.reshape(len(shift), -1)
    square = (flat**2).sum(axis=1)
    over = np.flatnonzero(square > limit)
    if not over.size:
        return
    length = np.abs(flat[over])
    excess = np.where(length > 0, length - np.abs(exact[over]), -np.inf)
    order = np.argsort(-excess, axis=1, kind="stable")
    gain = np.take_along_axis(np.where(length > 0, 2 * length - 1, 0), order, axis=1)
    needed = (square[over] - limit)[:, None]
    moved = np.zeros_like(length)
    np.put_along_axis(moved, order, np.cumsum(gain, axis=1) - gain < needed, axis=1)
    flat[over] -= np.sign(flat[over]) * moved
    shift[...] = flat.reshape(shift.shape)


def _check_box(value: np.ndarray, first: int) -> None:
    """NaN fails both comparisons."""
    inside = (value >= -_PIXEL_ERROR) & (value <= 1 + _PIXEL_ERROR)
    if not inside.all():
        row, *_ = np.argwhere(~inside)[0]
        worst = value[row][~inside[row]][0]
        raise InputError(f"poisoned row {first + row} holds the value {worst:g}; allowed is [0, 1]")


def _check_float_budget(
    value: np.ndarray, clean: np.ndarray, norm: str, eps: Any, first: int
) -> None:
    size = _float_size(value, clean, norm)
    beyond = size > eps + _float_slack(clean, norm, eps)
    if beyond.any():
        row = int(np.argmax(beyond))
        raise InputError(
            f"poisoned row {first + row} differs by {size[row]:.6g} in {norm}; the budget is "
            f"{eps:.6g}"
        )


def _float_size(value: np.ndarray, clean: np.ndarray, norm: str) -> np.ndarray:
    change = value - clean
    if norm == "l0":
        change = np.where(np.abs(change) > _PIXEL_ERROR * _scale(clean), change, 0)
    return _size(change, norm)


def _float_slack(clean: np.ndarray, norm: str, eps: float) -> float:
    if norm == "l0":
        return 0.0
    entries = math.prod(clean.shape[1:]) if norm == "l2" else 1
    return _scale(clean) * _PIXEL_ERROR * max(1.0, 0.2 * math.sqrt(entries)) + 1e-5 * eps


def _scale(clean: np.ndarray) -> float:
    return max(1.0, float(np.abs(clean).max(initial=0)))


def _grey_beyond(shift: np.ndarray, norm: str, eps: float) -> np.ndarray:
    if norm == "l0":
        return _size(shift, norm) > eps
    if norm == "linf":
        return _size(shift, norm) > math.floor(255 * eps + 1e-6)
    return (shift**2).reshape(len(shift), -1).sum(axis=1) > _square_limit(eps)


def _square_limit(eps: float) -> float:
    return (255 * eps) ** 2 * (1 + 1e-6)


def _size(change: np.ndarray, norm: str) -> np.ndarray:
    rows = np.abs(change).reshape(len(change), -1)
    if norm == "linf":
        return rows.max(axis=1)
    if norm == "l2":
        return np.sqrt((rows**2).sum(axis=1))
    pixels = change.any(axis=-1) if change.ndim > 2 else change != 0
    return pixels.reshape(len(change), -1).sum(axis=1).astype(np.float64)


def blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices of the first axis that hold about `_BLOCK_ENTRIES` entries each, at least a row."""
    step = max(1, _BLOCK_ENTRIES // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
