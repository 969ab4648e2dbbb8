"""How close poisoned images stay to clean ones, and what a purifier leaves of a poison."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from jaxpoison.types import InputError, as_float

__all__ = ["Similarity", "residual_energy", "similarity"]

ROUNDING = 1e-6
"""Two equal images, made floats in one compiled expression, may differ by less."""


class Similarity(NamedTuple):
    """How close poisoned images are to clean ones, mean over changed rows; None where undefined.

    Attributes:
      psnr: 10 log10(1 / MSE), decibels; None if nothing changed.
      ssim: structural similarity (Wang et al. 2004, eq. 13), mean over places and channels;
        Gaussian window of sigma 1.5 and up to 11 pixels (odd, at most the image); None likewise.
    """

    psnr: float | None
    ssim: float | None


def similarity(
    clean: Num[Array, "n h w c"], poisoned: Num[Array, "..."], *, batch_size: int = 500
) -> Similarity:
    """PSNR and SSIM of the rows that differ, mean over rows; see `Similarity`.

    Args:
      clean: images, uint8 or float in [0, 1].
      poisoned: the same rows, poisoned.
      batch_size: rows at a time.

    Raises: InputError if the two differ in shape.
    """
    if clean.shape != poisoned.shape:
        raise InputError(f"clean images are {clean.shape}, poisoned ones {poisoned.shape}")
    sums = np.zeros(3)
    for i in range(0, len(clean), batch_size):
        rows = slice(i, i + batch_size)
        sums += np.asarray(jax.device_get(_closeness(clean[rows], poisoned[rows])))
    psnr, ssim, changed = sums.tolist()
    if not changed:
        return Similarity(None, None)
    return Similarity(psnr / changed, ssim / changed)


def residual_energy(
    clean: Num[Array, "n h w c"],
    poisoned: Num[Array, "..."],
    purified: Num[Array, "..."],
    *,
    batch_size: int = 500,
) -> float | None:
    """What is left of the poison along the poison itself, as a share of its energy.

    sum_i <u_i - x_i, d_i>^2 / |d_i|^2 over sum_i |d_i|^2 with d_i = p_i - x_i, over the rows that
    the poison changed; x clean, p poisoned, u purified images. 1 where nothing was purified, 0
    where the purifier undid all, or turned it into something orthogonal. Its own errors along the
    poison count, so a coarse purifier may exceed 1.

    Args:
      clean: images, uint8 or float in [0, 1].
      poisoned: the same rows, poisoned.
      purified: those, purified.
      batch_size: rows at a time.

    Returns: the share; None if the poison changed nothing.
    Raises: InputError if they differ in shape.
    """
    for name, other in (("poisoned", poisoned), ("purified", purified)):
        if clean.shape != other.shape:
            raise InputError(f"clean images are {clean.shape}, {name} ones {other.shape}")
    left = total = 0.0
    for i in range(0, len(clean), batch_size):
        rows = slice(i, i + batch_size)
        found = jax.device_get(_energies(clean[rows], poisoned[rows], purified[rows]))
        left, total = left + float(found[0]), total + float(found[1])
    return left / total if total else None


@jax.jit
def _energies(clean, poisoned, purified):
    x, p, u = (as_float(one).reshape(len(one), -1) for one in (clean, poisoned, purified))
    delta = jnp.where(jnp.abs(p - x) > ROUNDING, p - x, 0)
    energy = jnp.sum(delta**2, axis=1)
    along = jnp.sum((u - x) * delta, axis=1) ** 2
    return jnp.sum(along / jnp.where(energy, energy, 1)), jnp.sum(energy)


@jax.jit
def _closeness(clean, poisoned):
    import dm_pix  # here: a machine without it has all else

    a, b = as_float(clean), as_float(poisoned)
    changed = jnp.any(a != b, axis=(1, 2, 3))
    window = min(11, *(side - 1 + side % 2 for side in a.shape[1:3]))
    psnr = jnp.where(changed, dm_pix.psnr(a, b), 0)
    ssim = jnp.where(changed, dm_pix.ssim(a, b, filter_size=window), 0)
    return jnp.sum(psnr), jnp.sum(ssim), jnp.sum(changed)
