"""Affine moves of images: rotation, shear, translation, each image by its own matrix.

A matrix A [2, 3] says where a pixel is read: the center of pixel (row i, column j) of the result,
(j + 1/2, i + 1/2), is at A (j + 1/2, i + 1/2, 1) of the image, in (x, y); as pillow's `transform`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.data.augment import Augmentation
from jaxpoison.types import InputError, Key

__all__ = ["matrices", "random_affine", "warp"]


def random_affine(
    *, degrees: float = 0.0, shear: float = 0.0, scale: tuple[float, float] = (1.0, 1.0)
) -> Augmentation:
    """Turned, sheared along the rows and enlarged about the center, each uniformly, per image.

    The nearest pixel is taken, zero outside; the shear is of an angle, x <- x + tan(a) y.

    Args:
      degrees: largest turn each way, below 90.
      shear: largest angle each way, degrees below 90.
      scale: lowest and highest factor, above 0; 1.2 shows less of the image, larger.

    Errors: InputError for a bad value, named.
    Source: as torchvision's RandomRotation (degrees alone) and RandomAffine of degrees = 0.
    """
    check.number(least=0, below=90, degrees=degrees, shear=shear)
    check.positive(**{"scale[0]": scale[0], "scale[1]": scale[1]})
    if scale[0] > scale[1]:
        raise InputError(f"scale = {scale}; the lowest factor must come first")
    turn, lean = math.radians(degrees), math.radians(shear)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        num, height, width, _ = image.shape
        u = jax.random.uniform(key, (3, num), jnp.float32)
        slope = jnp.tan((2 * u[1] - 1) * lean)
        zero = jnp.zeros_like(slope)
        matrix = matrices(
            height,
            width,
            angle=(2 * u[0] - 1) * turn,
            shear=jnp.stack([slope, zero], 1),
            shift=jnp.stack([-slope * height / 2, zero], 1),
            scale=scale[0] + (scale[1] - scale[0]) * u[2],
        )
        return warp(image, matrix, smooth=False)

    return apply


def warp(
    image: Float[Array, "b h w c"], matrix: Float[Array, "b 2 3"], *, smooth: bool
) -> Float[Array, "b h w c"]:
    """The image read through its matrix, zero outside.

    Args:
      image: [B, H, W, C].
      matrix: [B, 2, 3].
      smooth: bilinear between pixel centers, and to zero beyond the last ones; else the pixel that
        the point lies in.

    Cost: one gather, or four.
    """
    height, width = image.shape[1:3]
    place = jnp.stack(
        [
            jnp.broadcast_to(jnp.arange(width)[None] + 0.5, (height, width)),
            jnp.broadcast_to(jnp.arange(height)[:, None] + 0.5, (height, width)),
            jnp.ones((height, width)),
        ]
    ).astype(matrix.dtype)
    x, y = jnp.moveaxis(jnp.einsum("nij,jhw->nihw", matrix, place, precision="highest"), 1, 0)
    if not smooth:
        return _read(image, _whole(y), _whole(x))
    x, y = x - 0.5, y - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    total = jnp.zeros_like(image)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
            pixel = _read(image, _whole(row), _whole(column))
            total = total + weight[..., None].astype(image.dtype) * pixel
    return total


def matrices(
    height: int,
    width: int,
    *,
    angle: Float[Array, " b"],
    shear: Float[Array, "b 2"],
    shift: Float[Array, "b 2"],
    scale: Float[Array, " b"] | None = None,
) -> Float[Array, "b 2 3"]:
    """A of a turn about the image's center, then of shears and shifts; zeros are the identity.

    A (x, y, 1) = c + R (p - c) / scale,  p = (x + s_x y + t_x, y + s_y x + t_y),  c the center,
    R = [cos a, -sin a; sin a, cos a]: what is seen turns counterclockwise by a.

    Args:
      height: H.
      width: W.
      angle: a [B], radians.
      shear: (s_x, s_y).
      shift: (t_x, t_y) in pixels; positive reads further right and down.
      scale: factor by which what is seen grows; None is 1.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin], 1), jnp.stack([sin, cos], 1)], 1)
    if scale is not None:
        turn = turn / scale[:, None, None]
    ones = jnp.ones_like(angle)
    slope = jnp.stack([jnp.stack([ones, shear[:, 0]], 1), jnp.stack([shear[:, 1], ones], 1)], 1)
    center = jnp.asarray([width / 2, height / 2], angle.dtype)[None]
    move = center + jnp.einsum("nij,nj->ni", turn, shift - center, precision="highest")
    both = jnp.einsum("nij,njk->nik", turn, slope, precision="highest")
    return jnp.concatenate([both, move[:, :, None]], axis=2)


def _whole(x: Float[Array, "b h w"]) -> Int[Array, "b h w"]:
    return jnp.floor(x).astype(jnp.int32)


def _read(
    image: Float[Array, "b h w c"], row: Int[Array, "b h w"], column: Int[Array, "b h w"]
) -> Float[Array, "b h w c"]:
    num, height, width, _ = image.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    rows = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    pixel = image[jnp.arange(num)[:, None, None], *rows]
    return jnp.where(inside[..., None], pixel, 0)
