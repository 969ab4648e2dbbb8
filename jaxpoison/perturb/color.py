"""A smooth change of color beside the additive change: one map of the color space per image."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.perturb.per_sample import slots
from jaxpoison.types import Dataset, InputError, Perturbation, as_float

__all__ = ["Colored", "color_bound", "color_map", "colored", "roughness"]

_RED, _, _BLUE = np.eye(3)
_LUMA = np.array([0.299, 0.587, 0.114])
RGB_TO_YUV = np.stack(
    [_LUMA, 0.436 * (_BLUE - _LUMA) / (1 - 0.114), 0.615 * (_RED - _LUMA) / (1 - 0.299)]
)
"""BT.601: Y of pixels in [0, 1] is in [0, 1], |U| <= 0.436, |V| <= 0.615."""
YUV_TO_RGB = np.linalg.inv(RGB_TO_YUV)
LOW = np.minimum(RGB_TO_YUV, 0).sum(axis=1)
HIGH = np.maximum(RGB_TO_YUV, 0).sum(axis=1)


class Colored(NamedTuple):
    """Theta of `colored`: that of the additive space, and a grid [P, n, n, n, 3] per image."""

    delta: Float[Array, "p h w c"]
    grid: Float[Array, "p n n n c"]


def colored(space: Perturbation, *, shift: float = 0.04, cells: int = 10) -> Perturbation:
    """Image r becomes c_r(x_r) + theta.delta[slot of r]: a map of its colors, then `space`.

    c_r = `color_map` of theta.grid[slot of r], |grid| <= shift in each of Y, U, V, all zero at the
    start. `project` clips the grid, then keeps delta in its own ball and joined to the recolored
    image in the box. So an entry of an image changes by at most eps + `color_bound(shift)` under
    L-infinity: that is the radius to state for it, `Budget("linf", eps + color_bound(0.04))`.

    Args:
      space: the additive perturbation, one delta per image: `per_sample`.
      shift: radius of the grid's entries, color units; 0.04 is the paper's.
      cells: n, nodes per axis; at least 2.

    Returns: a Perturbation whose theta is `Colored`; at zero grids its images are those of `space`.
    Raises: InputError for a bad value, named; at init for images without three channels.
    Source: Huang et al. 2020 (MetaPoison), section 3; Laidlaw and Feizi 2019 (ReColorAdv).
    """
    check.fraction(shift=shift)
    check.at_least(2, cells=cells)

    def init(key, scenario):
        channels = scenario.train.image.shape[-1]
        if channels != 3:
            raise InputError(f"images have {channels} channels; a color map needs 3 (RGB)")
        delta = space.init(key, scenario)
        shape = (scenario.index.shape[0], cells, cells, cells, 3)
        return Colored(delta, jnp.zeros(shape, delta.dtype))

    def apply(theta, scenario, rows):
        batch = space.apply(theta.delta, scenario, rows)
        slot = slots(scenario)[rows]
        clean = as_float(scenario.train.image[rows])
        moved = color_map(theta.grid[jnp.maximum(slot, 0)], clean) - clean
        moved = jnp.where((slot >= 0).reshape(-1, 1, 1, 1), moved, jnp.zeros_like(moved))
        return batch._replace(image=batch.image + moved)

    def project(theta, scenario):
        grid = jnp.clip(theta.grid, -shift, shift)
        index = scenario.index
        image = color_map(grid, as_float(scenario.train.image[index]))
        recolored = scenario._replace(
            train=Dataset(image, scenario.train.label[index]),
            index=jnp.arange(index.shape[0], dtype=index.dtype),
        )
        return Colored(space.project(theta.delta, recolored), grid)

    return Perturbation(init, apply, project)


def color_map(
    grid: Float[Array, "p n n n c"], image: Float[Array, "p h w c"]
) -> Float[Array, "p h w c"]:
    """c(x) = clip(x + M^-1 g(M x), 0, 1) pixel by pixel, M from RGB to YUV.

    g interpolates the grid trilinearly; its n nodes per axis are evenly spaced over the range of
    that axis: Y in [0, 1], U in [-0.436, 0.436], V in [-0.615, 0.615]. A zero grid changes no bit.

    Args:
      grid: [P, n, n, n, 3], the shifts of (Y, U, V) at the nodes of axes Y, U, V.
      image: [P, H, W, 3] in [0, 1].

    Returns: [P, H, W, 3] in [0, 1]; differentiable in the grid, zero where the clip holds.
    """
    dtype, n = image.dtype, grid.shape[1]
    yuv = image @ jnp.asarray(RGB_TO_YUV.T, dtype)
    low, span = (jnp.asarray(x, dtype).reshape(1, 1, 1, 3) for x in (LOW, HIGH - LOW))
    place = jnp.clip((yuv - low) / span, 0, 1) * (n - 1)
    node = jnp.minimum(jnp.floor(place), n - 2)
    part, node = place - node, node.astype(jnp.int32)
    which = jnp.arange(image.shape[0]).reshape(-1, 1, 1)
    shift = jnp.zeros_like(image)
    for corner in np.ndindex(2, 2, 2):
        near = [part[..., a] if corner[a] else 1 - part[..., a] for a in range(3)]
        weight = near[0] * near[1] * near[2]
        at = [node[..., a] + corner[a] for a in range(3)]
        shift += weight[..., None] * grid[which, at[0], at[1], at[2]]
    return jnp.clip(image + shift @ jnp.asarray(YUV_TO_RGB.T, dtype), 0, 1)


def color_bound(shift: float) -> float:
    """The most that a color map changes an RGB entry: shift max_c sum_a |M^-1|_ca = 3.03 shift."""
    return float(shift * np.abs(YUV_TO_RGB).sum(axis=1).max())


def roughness(grid: Float[Array, "p n n n c"]) -> Float[Array, ""]:
    """sum_i mean over pairs (a, b) of neighboring nodes of ||grid_i[a] - grid_i[b]||_2.

    A pair differs by one in one of the three axes. The gradient of a pair without a difference is
    zero.

    Source: the smoothness term of Laidlaw and Feizi 2019, section 4, here as a mean over pairs.
    """
    gaps = [jnp.diff(grid, axis=axis).reshape(grid.shape[0], -1, 3) for axis in (1, 2, 3)]
    square = jnp.sum(jnp.concatenate(gaps, axis=1) ** 2, axis=-1)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return jnp.sum(jnp.mean(length, axis=1))
