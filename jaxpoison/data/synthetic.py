"""Data made from a key: `blobs` for tests in milliseconds, `toy_shapes` for small experiments."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.types import Dataset, Key

__all__ = ["blobs", "toy_shapes"]

_SIDE = 32


def blobs(
    key: Key,
    num: int,
    num_classes: int = 3,
    image_shape: tuple[int, int, int] = (8, 8, 1),
    *,
    noise: float = 0.1,
) -> Dataset:
    """One Gaussian blob per class in pixel space; a linear classifier separates them.

    image = grey(clip(m_y + noise * e, 0, 1)),  m ~ U[0.2, 0.8]^(H W C) per class,  e ~ N(0, 1)

    Classes are balanced: labels are 0, 1, .., L-1 repeated and shuffled. The means depend on
    `key` alone and not on `num`, so split one call's rows for a test set.

    Args:
      key: typed key.
      num: N >= 1.
      num_classes: L >= 1.
      image_shape: (H, W, C).
      noise: standard deviation within a class, pixel units in [0, 1].

    Returns:
      image uint8 [N, H, W, C], label int32 [N].

    Errors:
      InputError for N or L below 1.
    """
    check.at_least(1, num=num, num_classes=num_classes)
    mean_key, noise_key, label_key = jax.random.split(key, 3)
    label = jax.random.permutation(label_key, jnp.arange(num, dtype=jnp.int32) % num_classes)
    means = jax.random.uniform(
        mean_key, (num_classes, *image_shape), jnp.float32, minval=0.2, maxval=0.8
    )
    spread = noise * jax.random.normal(noise_key, (num, *image_shape), jnp.float32)
    return Dataset(_grey(means[label] + spread), label)


def toy_shapes(key: Key, num: int) -> Dataset:
    """32 x 32 color images of one shape each; the class is its outline and its texture.

    Label 2 s + t: s is disk, square, triangle, ring, cross; t is 0 for solid, 1 for stripes of 2
    pixels. Center, radius, colors, stripe phase and a smooth background (a random 4 x 4 color grid
    enlarged to 32 x 32) are drawn per image and say nothing about the class; half of the images
    are dark on bright. Harder than `blobs`: a linear classifier does little better than chance.

    Args:
      key: typed key.
      num: N >= 1. Classes are balanced up to rounding; split one call's rows for a test set.

    Returns:
      image uint8 [N, 32, 32, 3], label int32 [N] in [0, 10).

    Errors:
      InputError for N below 1.

    Cost: about 0.1 ms an image on one CPU core, after a few seconds of compilation.
    """
    check.at_least(1, num=num)
    label_key, image_key = jax.random.split(key)
    label = jax.random.permutation(label_key, jnp.arange(num, dtype=jnp.int32) % 10)
    keys = jax.random.split(image_key, num)
    # A mapped function is compiled as one program even where the caller does not jit.
    image = jax.lax.map(lambda draw: _grey(_toy_shape(*draw)), (keys, label), batch_size=250)
    return Dataset(image, label)


def _toy_shape(key: Key, label: Int[Array, ""]) -> Float[Array, "h w c"]:
    center_key, radius_key, ink_key, back_key, phase_key, invert_key, noise_key = jax.random.split(
        key, 7
    )
    center = jax.random.uniform(center_key, (2,), minval=11.0, maxval=20.0)
    radius = jax.random.uniform(radius_key, minval=7.0, maxval=10.0)
    rows, columns = jnp.mgrid[:_SIDE, :_SIDE]
    mask = _outline((rows - center[0]) / radius, (columns - center[1]) / radius, label // 2)
    stripe = (rows + jax.random.randint(phase_key, (), 0, 4)) // 2 % 2 == 0
    mask = mask & (stripe | (label % 2 == 0))
    ink = jax.random.uniform(ink_key, (1, 1, 3), minval=0.6)
    grid = jax.random.uniform(back_key, (4, 4, 3), maxval=0.4)
    back = jax.image.resize(grid, (_SIDE, _SIDE, 3), "linear")
    image = jnp.where(mask[:, :, None], ink, back)
    image = jnp.where(jax.random.bernoulli(invert_key), 1 - image, image)
    return image + 0.02 * jax.random.normal(noise_key, image.shape)


def _outline(y: Float[Array, "h w"], x: Float[Array, "h w"], shape: Int[Array, ""]) -> Array:
    """Bool [H, W]: inside shape 0..4, in coordinates where its radius is 1."""
    round_, box = y**2 + x**2, jnp.maximum(jnp.abs(y), jnp.abs(x))
    disk, square = round_ <= 1, box <= 0.9
    triangle = (jnp.abs(y) <= 1) & (2 * jnp.abs(x) <= y + 1)
    ring = disk & (round_ >= 0.36)
    cross = (box <= 1) & (jnp.minimum(jnp.abs(y), jnp.abs(x)) <= 0.3)
    return jnp.stack([disk, square, triangle, ring, cross])[shape]


def _grey(image: jax.Array) -> jax.Array:
    """Nearest grey level of pixels in [0, 1], clipped."""
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)
