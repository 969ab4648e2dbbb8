"""Data made from a key: `blobs` for tests in milliseconds, `toy_shapes` for small experiments."""

import jax
import jax.numpy as jnp

from jaxpoison.types import Dataset, InputError, Key

__all__ = ["blobs"]


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
    _check_positive(num=num, num_classes=num_classes)
    mean_key, noise_key, label_key = jax.random.split(key, 3)
    label = jax.random.permutation(label_key, jnp.arange(num, dtype=jnp.int32) % num_classes)
    means = jax.random.uniform(
        mean_key, (num_classes, *image_shape), jnp.float32, minval=0.2, maxval=0.8
    )
    spread = noise * jax.random.normal(noise_key, (num, *image_shape), jnp.float32)
    return Dataset(_grey(means[label] + spread), label)


def _grey(image: jax.Array) -> jax.Array:
    """Nearest grey level of pixels in [0, 1], clipped."""
    return jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} is {value}; must be at least 1")
