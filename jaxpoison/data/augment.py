"""Augmentations as pure functions (key, images) -> images, differentiable in the images.

One module serves crafting, which differentiates through it, and victim training. Every image of a
batch draws its own parameters from the one key; the same key and batch size give the same draw.
Factories return an `Augmentation`; `compose` chains them. Moves are matrix products,

    out[n] = fill + sum_{j,k} R_n[i, j] (image[n, j, k] - fill) C_n[l, k],

with R_n[i, j] = max(0, 1 - |i + row_n - j|): exact copies for whole pixels, bilinear between,
`fill` outside. The derivative is the transposed product; no gather, no scatter.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpoison import check
from jaxpoison.types import InputError, Key

__all__ = [
    "Augmentation",
    "compose",
    "crop",
    "cutout",
    "flip",
    "move",
    "separable",
    "shift",
    "shift_flip",
    "shift_flip_at",
    "spans",
    "triangle",
]

Augmentation = Callable[[Key, Float[Array, "b h w c"]], Float[Array, "b h w c"]]
Fill = float | Sequence[float] | Float[Array, "..."]


def compose(*augmentations: Augmentation) -> Augmentation:
    """The augmentations one after the other, the i-th with key fold_in(key, i); none: identity."""

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        for i, augmentation in enumerate(augmentations):
            image = augmentation(jax.random.fold_in(key, i), image)
        return image

    return apply


def flip(*, probability: float = 0.5) -> Augmentation:
    """Mirror left and right with the given probability; InputError outside [0, 1]."""
    check.fraction(probability=probability)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mirror = jax.random.uniform(key, image.shape[:1], jnp.float32) < probability
        return jnp.where(mirror[:, None, None, None], image[:, :, ::-1], image)

    return apply


def crop(padding: int = 4, *, fill: Fill = 0.0) -> Augmentation:
    """A window of the image's own size at a random place of the image padded on all sides.

    Args:
      padding: pixels added on each side; the offset is uniform on the (2 padding + 1)^2 places.
      fill: color of the border, one number or C of them, in [0, 1]. Zero is black, as in the
        usual recipes; a recipe that pads after normalization pads with the mean color.

    Errors:
      InputError for a negative padding.
    """
    check.at_least(0, padding=padding)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        offset = jax.random.randint(key, (2, len(image)), -padding, padding + 1)
        row, column = offset.astype(jnp.float32)
        return move(image, row, column, fill=fill)

    return apply


def shift(*, max_pixels: float | None = None, fill: Fill = 0.0) -> Augmentation:
    """`shift_flip` without its mirror: for digits and other images that have a left and a right."""
    _check_pixels(max_pixels)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        u0, u1 = jax.random.uniform(key, (2, len(image)), jnp.float32)
        return shift_flip_at(image, u0, u1, jnp.zeros_like(u0), max_pixels=max_pixels, fill=fill)

    return apply


def shift_flip(*, max_pixels: float | None = None, fill: Fill = 0.0) -> Augmentation:
    """Random sub-pixel shift, then a mirror with probability 1/2: `shift_flip_at` u ~ U[0, 1)^3.

    Args:
      max_pixels: largest shift, in pixels of both axes; None is 1/8 of each axis, as published
        (4 px at 32 x 32).
      fill: color outside, one number or C of them, in [0, 1]. The published code shifts
        normalized images with zeros outside, which is `fill` = the data set's mean color.

    Errors:
      InputError for a negative max_pixels.
    """
    _check_pixels(max_pixels)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        u0, u1, u2 = jax.random.uniform(key, (3, len(image)), jnp.float32)
        return shift_flip_at(image, u0, u1, u2, max_pixels=max_pixels, fill=fill)

    return apply


def shift_flip_at(
    image: Float[Array, "b h w c"],
    u0: Float[Array, " b"],
    u1: Float[Array, " b"],
    u2: Float[Array, " b"],
    *,
    max_pixels: float | None = None,
    fill: Fill = 0.0,
) -> Float[Array, "b h w c"]:
    """The shift with its uniforms given; u0 = u1 = 1/2, u2 <= 1/2 is the identity.

    With corners aligned at -1 and 1, the value of pixel (i, j) is read, bilinearly, at
        (gx, gy) = (x_j + (2 u0 - 1) s, y_i + (2 u1 - 1) s),  s = S / (H - 1),  S = H / 4,
    and gx <- -gx where u2 > 1/2: the mirror comes after the shift. In pixels the row read is
    i + (2 u1 - 1) H / 8, the column j + (2 u0 - 1) W / 8, or W - 1 minus that.

    Args:
      image: [B, H, W, C], any float dtype.
      u0: [B] in [0, 1], horizontal.
      u1: [B] in [0, 1], vertical.
      u2: [B] in [0, 1], mirror.
      max_pixels: as in `shift_flip`.
      fill: as in `shift_flip`.

    Source: Geiping et al. 2021, the differentiable augmentation of their public code; differs:
    the axes of an image that is not square each have their own range.
    """
    height, width = image.shape[1:3]
    rows = height / 8 if max_pixels is None else max_pixels
    columns = width / 8 if max_pixels is None else max_pixels
    return move(image, (2 * u1 - 1) * rows, (2 * u0 - 1) * columns, u2 > 0.5, fill=fill)


def cutout(size: int, *, fill: Fill = 0.0) -> Augmentation:
    """A square of size x size pixels, centered on a random pixel, painted with `fill`.

    The square is cut off at the border, so that fewer pixels may go. Rows
    y - size // 2 .. y - size // 2 + size - 1 for a center y uniform on 0 .. H - 1; columns alike.

    Errors:
      InputError for a size below 1; when it runs, for one above a side of the images.

    Source: DeVries and Taylor 2017, section 3.2.
    """
    check.at_least(1, size=size)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        num, height, width, _ = image.shape
        if size > min(height, width):
            raise InputError(
                f"size = {size}; of images of {height} x {width} pixels it must be at most "
                f"{min(height, width)}"
            )
        row_key, column_key = jax.random.split(key)
        rows = spans(jax.random.randint(row_key, (num,), 0, height), height, size)
        columns = spans(jax.random.randint(column_key, (num,), 0, width), width, size)
        hole = rows[:, :, None, None] & columns[:, None, :, None]
        return jnp.where(hole, _color(fill, image), image)

    return apply


def move(
    image: Float[Array, "b h w c"],
    row: Float[Array, " b"],
    column: Float[Array, " b"],
    mirror: Bool[Array, " b"] | None = None,
    *,
    fill: Fill = 0.0,
) -> Float[Array, "b h w c"]:
    """Pixel (i, j) of image n becomes the one at (i + row_n, j + column_n), bilinearly.

    Args:
      image: [B, H, W, C], any float dtype.
      row: [B] pixels; positive moves the content up.
      column: [B] pixels; positive moves the content left.
      mirror: [B]; where true the column read is W - 1 - (j + column_n).
      fill: the color outside the image, one number or C of them.

    Cost: two batched products, O(B H W C (H + W)), in full precision on every device.
    """
    height, width = image.shape[1:3]
    color = _color(fill, image)
    mirror = jnp.zeros(len(image), bool) if mirror is None else mirror
    down = jnp.arange(height)[None] + row[:, None]
    across = jnp.arange(width)[None] + column[:, None]
    across = jnp.where(mirror[:, None], width - 1 - across, across)
    return separable(image - color, triangle(down, height), triangle(across, width)) + color


def separable(
    image: Float[Array, "b h w c"], rows: Float[Array, "b y h"], columns: Float[Array, "b x w"]
) -> Float[Array, "b y x c"]:
    """out[n, i, l] = sum_{j,k} rows[n, i, j] columns[n, l, k] image[n, j, k], in full precision."""
    return jnp.einsum(
        "nij,njkc,nlk->nilc",
        rows.astype(image.dtype),
        image,
        columns.astype(image.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


def triangle(position: Float[Array, "b n"], size: int) -> Float[Array, "b n k"]:
    """[n, i, k]: max(0, 1 - |position[n, i] - k|), k < size: bilinear weights of what is read."""
    return jnp.maximum(1 - jnp.abs(position[:, :, None] - jnp.arange(size)[None, None]), 0)


def spans(
    center: Int[Array, " b"], length: int, size: int | Int[Array, " b"]
) -> Bool[Array, "b n"]:
    """[n, i]: whether i is one of size_n places from center_n - size_n // 2 on, 0 <= i < length."""
    size = jnp.broadcast_to(size, center.shape)
    distance = jnp.arange(length)[None] - (center - size // 2)[:, None]
    return (distance >= 0) & (distance < size[:, None])


def _color(fill: Fill, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return jnp.broadcast_to(jnp.asarray(fill, image.dtype), image.shape)


def _check_pixels(max_pixels: float | None) -> None:
    if max_pixels is not None:
        check.number(least=0, max_pixels=max_pixels)
