"""Random resized crops: a box of an image, enlarged to the image's size, in matrix form."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison.data.augment import Augmentation, separable, triangle
from jaxpoison.types import InputError, Key

__all__ = ["check_crop", "crop_boxes", "enlarge", "resized_crop"]

ATTEMPTS = 10


def resized_crop(
    *, area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Augmentation:
    """A random box of every image, enlarged to its size: `enlarge` of `crop_boxes`.

    Args:
      area: least and largest share of the image, in (0, 1].
      ratio: least and largest width / height of the box.

    Errors: InputError for bounds out of order or out of range.
    Source: Szegedy et al. 2015; the numbers are torchvision's and those of Chen et al. 2020.
    """
    check_crop(area, ratio)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        num, height, width, _ = image.shape
        boxes = crop_boxes(key, num, height, width, area=area, ratio=ratio)
        return enlarge(image, *boxes)

    return apply


def crop_boxes(
    key: Key,
    num: int,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Array, Array, Array, Array]:
    """(top, left, rows, columns) of `num` boxes, each [num], whole numbers as float32.

    rows = round(sqrt(a H W / r)), columns = round(sqrt(a H W r)), a uniform on `area`, log r
    uniform on the logarithm of `ratio`; the first of ten draws that fits the image, the whole image
    if none does. Then the place is uniform.

    Args:
      key: of all boxes.
      num: how many.
      height: H.
      width: W.
      area: least and largest share of the image.
      ratio: least and largest width / height.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    shape = (num, ATTEMPTS)
    share = jax.random.uniform(area_key, shape, jnp.float32, *area)
    low, high = map(math.log, ratio)
    aspect = jnp.exp(jax.random.uniform(ratio_key, shape, jnp.float32, low, high))
    rows = jnp.round(jnp.sqrt(share * height * width / aspect))
    columns = jnp.round(jnp.sqrt(share * height * width * aspect))
    fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
    first, found = jnp.argmax(fits, axis=1), jnp.any(fits, axis=1)
    own = jnp.arange(num)
    rows = jnp.where(found, rows[own, first], height)
    columns = jnp.where(found, columns[own, first], width)
    top = jnp.floor(jax.random.uniform(top_key, (num,)) * (height - rows + 1))
    left = jnp.floor(jax.random.uniform(left_key, (num,)) * (width - columns + 1))
    return top, left, rows, columns


def enlarge(
    image: Float[Array, "b h w c"],
    top: Float[Array, " b"],
    left: Float[Array, " b"],
    rows: Float[Array, " b"],
    columns: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The box of image n at (top_n, left_n) of rows_n x columns_n pixels, bilinearly H x W.

    Pixel i reads row top + clip((i + 1/2) rows / H - 1/2, 0, rows - 1), columns alike: the half
    pixel convention, with nothing read from outside the box.

    Args:
      image: [B, H, W, C], any float dtype.
      top: [B] pixels.
      left: [B] pixels.
      rows: [B] height of the box, 1 to H.
      columns: [B] width of the box, 1 to W.

    Cost: two batched products, O(B H W C (H + W)).
    """
    height, width = image.shape[1:3]
    down = triangle(_read(top, rows, height), height)
    across = triangle(_read(left, columns, width), width)
    return separable(image, down, across)


def check_crop(area: tuple[float, float], ratio: tuple[float, float]) -> None:
    """An `InputError` unless both are bounds in order, shares in (0, 1] and ratios positive."""
    for name, pair, most in (("area", area, 1.0), ("ratio", ratio, math.inf)):
        if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
            allowed = "positive" + ("" if most == math.inf else ", at most 1")
            raise InputError(f"{name} = {tuple(pair)}; it must be (least, largest), {allowed}")


def _read(start: Array, length: Array, size: int) -> Float[Array, "b n"]:
    inside = (jnp.arange(size)[None] + 0.5) * (length[:, None] / size) - 0.5
    return start[:, None] + jnp.clip(inside, 0, length[:, None] - 1)
