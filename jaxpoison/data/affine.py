"""Affine moves of images: rotation, shear, translation, each image by its own matrix.

A matrix A [2, 3] says where a pixel is read: the center of pixel (row i, column j) of the result,
(j + 1/2, i + 1/2), is at A (j + 1/2, i + 1/2, 1) of the image, in (x, y); as pillow's `transform`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["matrices", "warp"]


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
) -> Float[Array, "b 2 3"]:
    """A of a turn about the image's center, then of shears and shifts; zeros are the identity.

    A (x, y, 1) = c + R (p - c),  p = (x + s_x y + t_x, y + s_y x + t_y),  c the center,
    R = [cos a, -sin a; sin a, cos a]: what is seen turns counterclockwise by a.

    Args:
      height: H.
      width: W.
      angle: a [B], radians.
      shear: (s_x, s_y).
      shift: (t_x, t_y) in pixels; positive reads further right and down.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn = jnp.stack([jnp.stack([cos, -sin], 1), jnp.stack([sin, cos], 1)], 1)
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
