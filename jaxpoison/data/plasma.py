"""Plasma fractals, and the brightness and contrast that they lay over an image."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxpoison.data.augment import Augmentation
from jaxpoison.types import InputError, Key

__all__ = ["plasma", "plasma_brightness", "plasma_contrast"]


def plasma(
    key: Key, roughness: Float[Array, " b"], height: int, width: int, channels: int
) -> Float[Array, "b h w c"]:
    """Diamond-square maps in [0, 1], one of its own for every image and channel.

    Of 3 x 3 nodes the corners are uniform, the center is their mean, and the middle of an edge the
    mean of its two corners and the center. Level k = 1, 2, ... doubles the grid with s = r^k:
    the center of four nodes is (1 - s) (their mean) + s u, then the middle of two nodes
    (1 - s) (mean of its four neighbors along the axes, three at the border) + s u, u ~ U(0, 1).
    The first 2^n + 1 >= max(H, W) nodes a side, cut to H x W.

    Args:
      key: of all maps.
      roughness: r [B] in [0, 1]; 0 is smooth.
      height: H.
      width: W.
      channels: C.

    Source: Fournier et al. 1982; as the plasma augmentations of kornia have it.
    """
    levels = max(1, math.ceil(math.log2(max(height, width, 2) - 1)))
    shape, keys = (len(roughness), channels), jax.random.split(key, levels)
    corner = jax.random.uniform(keys[0], (*shape, 2, 2), roughness.dtype)
    center = jnp.mean(corner, axis=(2, 3), keepdims=True)
    top_bottom = (jnp.sum(corner, axis=3, keepdims=True) + center) / 3
    left_right = (jnp.sum(corner, axis=2, keepdims=True) + center) / 3
    nodes = _woven(corner, top_bottom, left_right, center)
    for level in range(1, levels):
        share = (roughness**level)[:, None, None, None]
        nodes = _doubled(keys[level], nodes, share)
    return jnp.moveaxis(nodes[:, :, :height, :width], 1, 3)


def plasma_brightness(
    *,
    roughness: tuple[float, float] = (0.3, 0.7),
    intensity: tuple[float, float] = (0.5, 1.0),
) -> Augmentation:
    """clip(x + a (2 F - 1), 0, 1), F a `plasma`, a and its roughness uniform for every image.

    Args:
      roughness: least and largest, in [0, 1].
      intensity: least and largest a, in [0, 1].

    Errors: InputError for bounds out of order or out of range.
    Source: Qin et al. 2023 (UEraser), code; kornia's RandomPlasmaBrightness.
    """
    _check_bounds(roughness=roughness, intensity=intensity)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        map_key, key = jax.random.split(key)
        size = jax.random.uniform(key, (len(image), 1, 1, 1), image.dtype, *intensity)
        return jnp.clip(image + size * (2 * _maps(map_key, image, roughness) - 1), 0, 1)

    return apply


def plasma_contrast(*, roughness: tuple[float, float] = (0.3, 0.7)) -> Augmentation:
    """clip(4 F (x - 1/2) + 1/2, 0, 1), F a `plasma` of uniform roughness for every image.

    Args:
      roughness: least and largest, in [0, 1].

    Errors: InputError for bounds out of order or out of range.
    Source: Qin et al. 2023 (UEraser), code; kornia's RandomPlasmaContrast.
    """
    _check_bounds(roughness=roughness)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return jnp.clip(4 * _maps(key, image, roughness) * (image - 0.5) + 0.5, 0, 1)

    return apply


def _maps(key: Key, image: Array, roughness: tuple[float, float]) -> Float[Array, "b h w c"]:
    map_key, key = jax.random.split(key)
    rough = jax.random.uniform(key, image.shape[:1], image.dtype, *roughness)
    return plasma(map_key, rough, *image.shape[1:])


def _doubled(key: Key, nodes: Array, share: Array) -> Array:
    """[B, C, m, m] -> [B, C, 2 m - 1, 2 m - 1]."""
    batch, channels, size, _ = nodes.shape
    drawn = jax.random.uniform(key, (batch, channels, size - 1, 3 * size - 1), nodes.dtype)
    inner, below, beside = jnp.split(drawn, (size - 1, 2 * size - 1), axis=3)

    def rough(mean, noise):
        return (1 - share) * mean + share * noise

    pairs = nodes[:, :, :, :-1] + nodes[:, :, :, 1:]  # of neighbors in a row
    stacks = nodes[:, :, :-1] + nodes[:, :, 1:]
    center = rough((pairs[:, :, :-1] + pairs[:, :, 1:]) / 4, inner)
    count = jnp.full(size, 4, nodes.dtype).at[jnp.array([0, size - 1])].set(3)

    def around(pair, axis):
        """Sum of a pair and of the centers on both sides, as a mean; at the border of one."""
        low, high = [(0, 0)] * 4, [(0, 0)] * 4
        low[axis], high[axis] = (1, 0), (0, 1)
        total = pair + jnp.pad(center, low) + jnp.pad(center, high)
        return total / jnp.expand_dims(count, [0, 1, 5 - axis])

    middle = rough(around(pairs, 2), jnp.swapaxes(below, 2, 3))
    return _woven(nodes, middle, rough(around(stacks, 3), beside), center)


def _woven(nodes: Array, in_rows: Array, in_columns: Array, centers: Array) -> Array:
    """Nodes m x m, those between neighbors of a row (m x m-1), of a column, and of four."""
    even = _alternating(nodes, in_rows, axis=3)
    return _alternating(even, _alternating(in_columns, centers, axis=3), axis=2)


def _alternating(first: Array, second: Array, *, axis: int) -> Array:
    """first[0], second[0], first[1], ..., of m and m - 1 along an axis."""
    padding = [(0, 0)] * first.ndim
    padding[axis] = (0, 1)
    both = jnp.stack([first, jnp.pad(second, padding)], axis=axis + 1)
    shape = (*first.shape[:axis], 2 * first.shape[axis], *first.shape[axis + 1 :])
    return lax.slice_in_dim(both.reshape(shape), 0, shape[axis] - 1, axis=axis)


def _check_bounds(**bounds: tuple[float, float]) -> None:
    for name, pair in bounds.items():
        if len(pair) != 2 or not 0 <= pair[0] <= pair[1] <= 1:
            raise InputError(f"{name} = {tuple(pair)}; it must be (least, largest), in [0, 1]")
