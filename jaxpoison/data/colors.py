"""Color augmentations of images in [0, 1]: jitter, grey, blur, solarization; each draws per image.

An image of one channel is grey already: hue, saturation and grey leave it as it is.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.data.augment import Augmentation, separable
from jaxpoison.types import InputError, Key

__all__ = [
    "blur",
    "channel_shuffle",
    "color_jitter",
    "grayscale",
    "jitter",
    "luma",
    "sometimes",
    "solarize",
]

LUMA = (0.299, 0.587, 0.114)


def color_jitter(
    *, brightness: float, contrast: float, saturation: float, hue: float
) -> Augmentation:
    """`jitter` with factors uniform on [max(0, 1 - s), 1 + s] and the hue's turn on [-hue, hue].

    The order of the four is uniform, per image.

    Args:
      brightness: s of its factor, at least 0.
      contrast: likewise.
      saturation: likewise.
      hue: in [0, 1/2], turns of the color circle.

    Errors: InputError for a negative strength or a hue above 1/2.
    Source: Chen et al. 2020, appendix A; as torchvision's ColorJitter.
    """
    check.number(least=0, brightness=brightness, contrast=contrast, saturation=saturation)
    check.number(least=0, most=0.5, hue=hue)
    strengths = (brightness, contrast, saturation)
    low = np.asarray([*(max(0.0, 1 - s) for s in strengths), -hue], np.float32)
    high = np.asarray([*(1 + s for s in strengths), hue], np.float32)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        order_key, amount_key = jax.random.split(key)
        drawn = jax.random.uniform(order_key, (len(image), 4))
        amount = jax.random.uniform(amount_key, (len(image), 4), jnp.float32)
        amount = low[None] + (high - low)[None] * amount
        return jitter(image, jnp.argsort(drawn, axis=1), jnp.asarray(amount, image.dtype))

    return apply


def jitter(
    image: Float[Array, "b h w c"], order: Int[Array, "b 4"], amount: Float[Array, "b 4"]
) -> Float[Array, "b h w c"]:
    """Brightness (0), contrast (1), saturation (2) and hue (3) of image n in the order order_n.

    The first three are x <- clip(f x + (1 - f) m, 0, 1), f = amount_n[kind], with m zero, the mean
    of the image's luma, its luma; the last adds amount_n[3] to the hue of x in HSV, modulo 1.

    Args:
      image: [B, H, W, C], C 1 or 3.
      order: [B, 4], a permutation of 0..3 for each image.
      amount: [B, 4], by kind.
    """

    def change(place, image):
        kinds = lax.dynamic_slice_in_dim(order, place, 1, axis=1)
        kind, factor = kinds[:, :, None, None], jnp.take_along_axis(amount, kinds, axis=1)
        factor, grey = factor[:, :, None, None], luma(image)
        mean = jnp.mean(grey, axis=(1, 2, 3), keepdims=True)
        other = jnp.where(kind == 0, 0, jnp.where(kind == 1, mean, grey))
        mixed = jnp.clip(factor * image + (1 - factor) * other, 0, 1)
        return jnp.where(kind == 3, _turned(image, factor), mixed)

    return lax.fori_loop(0, 4, change, image)


def grayscale() -> Augmentation:
    """Every channel becomes the luma, always; `sometimes` makes it a draw."""

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        del key
        return jnp.broadcast_to(luma(image), image.shape)

    return apply


def blur(*, sigma: tuple[float, float] = (0.1, 2.0), reach: float = 0.05) -> Augmentation:
    """A Gaussian blur whose width is uniform on `sigma`, per image.

    Args:
      sigma: least and largest, pixels.
      reach: half the size of the kernel as a share of the image's height, at least one pixel; the
        kernel is 1/10 of the image, as published. At the border what is inside is averaged.

    Errors: InputError for a sigma that is not positive, bounds out of order, a bad reach.
    Source: Chen et al. 2020, appendix A.
    """
    check.positive(sigma=sigma[0])
    if sigma[1] < sigma[0]:
        raise InputError(f"sigma = {sigma}; it must be (least, largest)")
    check.fraction(reach=reach)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        num, height, width, _ = image.shape
        spread = jax.random.uniform(key, (num,), jnp.float32, *sigma)
        radius = max(1, round(reach * height))
        return separable(image, _gauss(spread, height, radius), _gauss(spread, width, radius))

    return apply


def solarize(*, threshold: float = 0.5) -> Augmentation:
    """1 - x instead of every x >= threshold, always; InputError for a threshold outside [0, 1]."""
    check.fraction(threshold=threshold)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        del key
        return jnp.where(image >= threshold, 1 - image, image)

    return apply


def channel_shuffle() -> Augmentation:
    """The channels in a uniform order, per image, always."""

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        drawn = jax.random.uniform(key, (len(image), image.shape[3]))
        order = jnp.argsort(drawn, axis=1)[:, None, None]
        return jnp.take_along_axis(image, order, axis=3)

    return apply


def sometimes(augmentation: Augmentation, probability: float) -> Augmentation:
    """The augmentation with a probability, per image; InputError outside [0, 1]."""
    check.fraction(probability=probability)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        chosen_key, own_key = jax.random.split(key)
        chosen = jax.random.uniform(chosen_key, image.shape[:1], jnp.float32) < probability
        return jnp.where(chosen[:, None, None, None], augmentation(own_key, image), image)

    return apply


def luma(image: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """0.299 R + 0.587 G + 0.114 B; one channel as it is. InputError for another number of them."""
    if image.shape[-1] == 1:
        return image
    if image.shape[-1] != 3:
        raise InputError(f"images are {image.shape}; colors are those of 1 or 3 channels")
    return jnp.sum(image * jnp.asarray([[[LUMA]]], image.dtype), axis=-1, keepdims=True)


def _turned(image: Float[Array, "b h w c"], by: Float[Array, "b 1 1 1"]) -> Array:
    if image.shape[-1] == 1:
        return image
    import dm_pix as pix  # here: a machine without it has all else

    hue, saturation, value = jnp.split(jnp.asarray(pix.rgb_to_hsv(image)), 3, axis=-1)
    hue = (hue + by) % 1.0
    return jnp.asarray(pix.hsv_to_rgb(jnp.concatenate([hue, saturation, value], axis=-1)))


def _gauss(sigma: Float[Array, " b"], size: int, radius: int) -> Float[Array, "b n n"]:
    """Rows sum to one: exp(-(i - j)^2 / (2 sigma^2)), |i - j| <= radius."""
    offset = (jnp.arange(size)[:, None] - jnp.arange(size)[None]).astype(jnp.float32)
    value = jnp.exp(-(offset[None] ** 2) / (2 * sigma[:, None, None] ** 2))
    value = jnp.where(jnp.abs(offset)[None] <= radius, value, 0)
    return value / jnp.sum(value, axis=2, keepdims=True)
