"""Tone operations of automatic augmentation, as pillow and torchvision define them on grey levels.

Images are in [0, 1]; a level is round(255 x). Each image has its own strength.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison.data.colors import luma

__all__ = ["autocontrast", "blend", "equalize", "mean_luma", "posterize", "smoothed"]


def blend(
    image: Float[Array, "b h w c"], other: Float[Array, "b h w c"], factor: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """clip(f x + (1 - f) m, 0, 1): m at f = 0, the image at 1, beyond it above.

    Brightness has m = 0, color `luma`, contrast `mean_luma`, sharpness `smoothed`.
    """
    f = factor[:, None, None, None]
    return jnp.clip(f * image + (1 - f) * other, 0, 1)


def mean_luma(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Every pixel is the mean luma of its image."""
    mean = jnp.mean(luma(image), axis=(1, 2, 3), keepdims=True)
    return jnp.broadcast_to(mean, image.shape)


def smoothed(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Mean of 3 x 3 pixels with weight 5 in the middle; pixels of the border stay."""
    if min(image.shape[1:3]) < 3:
        return image
    inner = image[:, 1:-1, 1:-1]
    rows = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner
    return image.at[:, 1:-1, 1:-1].set(total / 13)


def autocontrast(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """(x - min) / (max - min) of every channel; a constant one stays."""
    low = jnp.min(image, axis=(1, 2), keepdims=True)
    span = jnp.max(image, axis=(1, 2), keepdims=True) - low
    return jnp.where(span > 0, (image - low) / jnp.where(span > 0, span, 1), image)


def posterize(image: Float[Array, "b h w c"], bits: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """The top `bits` bits of every level: 2^(8 - b) floor(level / 2^(8 - b)); 0 bits are black."""
    size = (2 ** (8 - bits))[:, None, None, None].astype(image.dtype)
    return jnp.floor(_levels(image) / size) * size / 255


def equalize(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Levels of every channel spread evenly: v -> min(255, (floor(s / 2) + #{< v}) div s) / 255.

    s = (H W - number of pixels of the highest level) div 255; a channel with s = 0 stays. #{< v}
    counts the pixels of its channel below the level v.
    """
    num, height, width, channels = image.shape
    level = jnp.moveaxis(_levels(image), 3, 1).reshape(num * channels, -1).astype(jnp.int32)
    below = jax.vmap(lambda x: jnp.searchsorted(jnp.sort(x), x, side="left"))(level)
    step = jnp.max(below, axis=1, keepdims=True) // 255
    even = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    even = jnp.moveaxis(even.reshape(num, channels, height, width), 1, 3).astype(image.dtype) / 255
    stays = jnp.moveaxis((step == 0).reshape(num, channels, 1, 1), 1, 3)
    return jnp.where(stays, image, even)


def _levels(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return jnp.round(255 * image)
