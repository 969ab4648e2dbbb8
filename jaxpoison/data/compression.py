"""JPEG as an augmentation: inside a training step, on the device, with a gradient.

The purifier `defenses.jpeg` is pillow's codec and works once, on the host; this is the same
arithmetic (baseline, Annex K's tables, 4:2:0) in JAX, for what draws a quality in every step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.data.augment import Augmentation
from jaxpoison.types import InputError

__all__ = ["jpeg"]

LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.int32,
)
CHROMA = np.full((8, 8), 99, np.int32)
CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
PLACE, WAVE = np.arange(8), np.arange(8)[:, None]
COSINES = np.where(WAVE == 0, 1, 2**0.5 * np.cos((2 * PLACE + 1) * WAVE * np.pi / 16))
"""C times sqrt 8, so that coefficients come out 8 times as large, as in libjpeg."""


def jpeg(quality: int | tuple[int, int] = 10) -> Augmentation:
    """Code and decode the images; the gradient passes straight through.

    k = round(D / Q), x' from k Q, D = C P C^T of each 8 x 8 block of Y, Cb, Cr less 128, Q Annex
    K's tables scaled by s / 100, s = 5000 / quality below 50 and 200 - 2 quality from there on;
    chroma planes are halved in both sides. Each image by itself, its grey levels the nearest ones.
    dx' / dx is taken as 1.

    Args:
      quality: 1 to 100, or (least, largest): one whole number in between, drawn for the batch.

    Returns: an Augmentation of images of 1 channel (coded as gray) or 3.
    Errors: InputError for a quality that is not whole or out of range; when it runs, for images of
      other channels.
    Source: ITU-T T.81; bias and triangle filter of the chroma planes as in libjpeg. Differs from
      libjpeg where a value stands on a rounding tie, in 1 or 2 % of the pixels.
    """
    limits = quality if isinstance(quality, tuple) else (quality, quality)
    if len(limits) != 2:
        raise InputError(f"quality = {quality}; it must be a whole number or (least, largest)")
    for one in limits:
        check.at_least(1, quality=one)
        if one > 100:
            raise InputError(f"quality = {one}; it must be from 1 to 100")
    if limits[0] > limits[1]:
        raise InputError(f"quality = {quality}; it must be (least, largest)")

    def apply(key, image):
        if image.shape[3] not in (1, 3):
            raise InputError(f"images have {image.shape[3]} channels; jpeg takes 1 or 3")
        drawn = jax.random.randint(key, (), limits[0], limits[1] + 1)
        levels = jnp.round(255 * lax.stop_gradient(image))
        coded = _coded(levels, drawn) / 255
        return image + lax.stop_gradient(coded.astype(image.dtype) - image)

    return apply


def _coded(image: Float[Array, "b h w c"], quality: Int[Array, ""]) -> Float[Array, "b h w c"]:
    """Grey levels through the codec."""
    scale = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    luma, chroma = (jnp.clip((x * scale + 50) // 100, 1, 255) for x in (LUMA, CHROMA))
    if image.shape[3] == 1:
        return _quantized(image[..., 0], luma)[..., None]
    height, width = image.shape[1:3]
    red, green, blue = (image[..., i] for i in range(3))
    y = _rounded(0.299 * red + 0.587 * green + 0.114 * blue)
    cb = jnp.floor(-0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128.4999)
    cr = jnp.floor(0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128.4999)
    y = _quantized(y, luma)
    cb, cr = (_doubled(_quantized(_halved(x), chroma))[:, :height, :width] - 128 for x in (cb, cr))
    parts = (
        y + _rounded(1.402 * cr),
        y + _rounded(-0.344136286 * cb - 0.714136286 * cr),
        y + _rounded(1.772 * cb),
    )
    return jnp.clip(jnp.stack(parts, axis=3), 0, 255)


def _quantized(plane: Float[Array, "b h w"], table: Int[Array, "8 8"]) -> Float[Array, "b h w"]:
    """Blocks of 8 x 8, their coefficients multiples of the table; edges are repeated to fill."""
    num, height, width = plane.shape
    filled = jnp.pad(plane, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge") - 128
    blocks = filled.reshape(num, filled.shape[1] // 8, 8, filled.shape[2] // 8, 8)
    cosines = jnp.asarray(COSINES, plane.dtype)
    table = table[None, None, :, None].astype(plane.dtype)

    def product(equation, x):
        return jnp.einsum(equation, cosines, x, precision=lax.Precision.HIGHEST)

    rows = _rounded(4 * product("lj,nyixj->nyixl", blocks))
    share = _rounded(product("ki,nyixl->nykxl", rows) / 4) / (8 * table)
    kept = jnp.sign(share) * _rounded(jnp.abs(share)) * table
    columns = _rounded(4 * product("ki,nykxl->nyixl", kept))
    back = product("lj,nyixl->nyixj", columns).reshape(filled.shape) / 32
    return jnp.clip(_rounded(back) + 128, 0, 255)[:, :height, :width]


def _rounded(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.floor(x + 0.5)


def _halved(plane: Float[Array, "b h w"]) -> Float[Array, "b h2 w2"]:
    """Sums of 2 x 2 with a bias of 1, 2, 1, .. along the columns, divided by 4, rounded down."""
    num, height, width = plane.shape
    plane = jnp.pad(plane, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    total = plane.reshape(num, (height + 1) // 2, 2, (width + 1) // 2, 2).sum(axis=(2, 4))
    bias = 1 + jnp.arange(total.shape[2], dtype=plane.dtype) % 2
    return jnp.floor((total + bias[None, None]) / 4)


def _doubled(plane: Float[Array, "b h w"]) -> Float[Array, "b h2 w2"]:
    """Twice the sides: 3/4 of the nearer and 1/4 of the farther neighbor, rows then columns."""
    num, height, width = plane.shape
    near = jnp.pad(plane, ((0, 0), (1, 1), (0, 0)), mode="edge")
    rows = jnp.stack([3 * plane + near[:, :-2], 3 * plane + near[:, 2:]], axis=2)
    rows = rows.reshape(num, 2 * height, width)
    near = jnp.pad(rows, ((0, 0), (0, 0), (1, 1)), mode="edge")
    left, right = 3 * rows + near[..., :-2] + 8, 3 * rows + near[..., 2:] + 7
    columns = jnp.stack([left, right], axis=3).reshape(num, 2 * height, 2 * width)
    return jnp.floor(columns / 16)
