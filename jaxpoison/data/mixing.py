"""Mixtures of the images of a batch, and the labels that their losses are taken with.

A mixing is a pure function (key, images) -> `Mixed`, differentiable in the images; the training
loss of a mixed batch is sum_j w_j mean_i CE(f(x'_i), y[rows_j[i]]).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.types import InputError, Key

__all__ = ["Mixed", "Mixing", "cutmix", "mixup"]


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes:
      image: [B, H, W, C], x'.
      weight: [J], w_j >= 0, of sum 1.
      rows: [J, B], whose label the j-th term of the loss takes.
    """

    image: Float[Array, "b h w c"]
    weight: Float[Array, " j"]
    rows: Int[Array, "j b"]


Mixing = Callable[[Key, Float[Array, "b h w c"]], Mixed]


def mixup(ways: int = 2, *, alpha: float = 1.0) -> Mixing:
    """Mix n images: x' = sum_j w_j x[pi_j], w ~ Dirichlet(alpha, ..., alpha).

    The pi_j are independent permutations, none the identity; one draw for the whole batch.

    Args:
      ways: n, images in a mixture, at least 2.
      alpha: concentration; 1 is uniform on the simplex.

    Raises: InputError for a bad value; when called, for fewer than 2 images.
    Source: Zhang et al. 2018; n ways as in Borgnia et al. 2021 and the data-poisoning code.
    """
    check.at_least(2, ways=ways)
    check.positive(alpha=alpha)

    def mix(key: Key, image: Float[Array, "b h w c"]) -> Mixed:
        weight_key, rows_key = jax.random.split(key)
        weight = jax.random.dirichlet(weight_key, jnp.full(ways, alpha, image.dtype))
        keys = jax.random.split(rows_key, ways)
        rows = jnp.stack([_permutation(k, len(image)) for k in keys])
        terms = [w * image[order] for w, order in zip(weight, rows, strict=True)]
        return Mixed(sum(terms[1:], terms[0]), weight, rows)

    return mix


def cutmix(*, alpha: float = 1.0, probability: float = 0.5) -> Mixing:
    """A box of every image, the same for the whole batch, is that of another image of the batch.

    lambda ~ Beta(alpha, alpha); sides floor(sqrt(1 - lambda) H), floor(sqrt(1 - lambda) W) around a
    uniform pixel, cut off at the border; w = (1 - a, a), a the share of the pixels replaced.

    Args:
      alpha: of the Beta distribution.
      probability: that a batch is mixed at all.

    Raises: InputError for a bad value; when called, for fewer than 2 images.
    Source: Yun et al. 2019, section 3 and released code.
    """
    check.positive(alpha=alpha)
    check.fraction(probability=probability)

    def mix(key: Key, image: Float[Array, "b h w c"]) -> Mixed:
        keys = jax.random.split(key, 5)
        share = jnp.sqrt(1 - jax.random.beta(keys[0], alpha, alpha, dtype=image.dtype))
        share = jnp.where(jax.random.uniform(keys[1]) < probability, share, 0)
        height, width = image.shape[1:3]
        inside = _span(keys[2], height, share)[:, None] & _span(keys[3], width, share)[None]
        order = _permutation(keys[4], len(image))
        mixed = jnp.where(inside[None, :, :, None], image[order], image)
        area = jnp.mean(inside.astype(image.dtype))
        return Mixed(mixed, jnp.stack([1 - area, area]), jnp.stack([jnp.arange(len(image)), order]))

    return mix


def _permutation(key: Key, num: int) -> Int[Array, " n"]:
    """Uniform, but the identity becomes a rotation by one."""
    if num < 2:
        raise InputError(f"a batch of {num} image cannot be mixed; at least 2 are needed")
    order, same = jax.random.permutation(key, num), jnp.arange(num)
    return jnp.where(jnp.all(order == same), jnp.roll(same, 1), order)


def _span(key: Key, length: int, share: Float[Array, ""]) -> Array:
    """[n] bool: floor(share n) pixels around a uniform center, cut off at the border."""
    size = jnp.floor(share * length).astype(jnp.int32)
    distance = jnp.arange(length) - (jax.random.randint(key, (), 0, length) - size // 2)
    return (distance >= 0) & (distance < size)
