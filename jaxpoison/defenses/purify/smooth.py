"""Smoothing filters on stored grey levels: mean, median, Gaussian and bilateral.

Borders are those of OpenCV's functions of these names, "reflect 101" (d c b | a b c d | c b a) and,
for the median, the edge repeated; results are rounded to the nearest level.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8
from scipy import ndimage

from jaxpoison import check
from jaxpoison.defenses.purified import fixed
from jaxpoison.types import InputError, Purifier

__all__ = ["bilateral", "gaussian", "gaussian_iss", "mean", "median"]

BLOCK = 256  # images at a time: their float copies stay in the cache
Images = UInt8[np.ndarray, "n h w c"]


def mean(*, size: int = 3) -> Purifier:
    """Each value becomes the mean of the size x size values around it, channel by channel.

    Args:
      size: odd; 3 in the paper.

    Returns: a Purifier of uint8 images, without a fit.
    Errors: InputError for a size that is not whole, odd and at least 1; when applied, for one that
      reaches beyond the image from its other edge.
    Source: Liu et al. 2023, code (cv2.blur).
    """
    _check_odd(size=size)
    return _in_blocks(
        size,
        lambda image: ndimage.uniform_filter(
            image, (1, size, size, 1), output=np.float64, mode="mirror"
        ),
    )


def median(*, size: int = 3) -> Purifier:
    """Each value becomes the median of the size x size values around it, channel by channel.

    Args:
      size: odd; 3 in the paper.

    Returns: a Purifier of uint8 images, without a fit.
    Errors: InputError for a size that is not whole, odd and at least 1; when applied, for one that
      reaches beyond the image from its other edge.
    Source: Liu et al. 2023, code (cv2.medianBlur).
    """
    _check_odd(size=size)
    return _in_blocks(
        size, lambda image: ndimage.median_filter(image, (1, size, size, 1), mode="nearest")
    )


def gaussian(*, sigma: float = 1.0, size: int = 3) -> Purifier:
    """A weighted mean with w(i, j) = exp(-(i^2 + j^2) / (2 sigma^2)), divided by their sum.

    Args:
      sigma: pixels; OpenCV takes 0.8 for size 3 where none is given.
      size: odd, of the square window.

    Returns: a Purifier of uint8 images, without a fit.
    Errors: InputError for a sigma that is not positive, or a size as in `mean`.
    Source: the filter of Fu et al. 2022 (REM), code, with sigma 0.8.
    """
    check.positive(sigma=sigma)
    _check_odd(size=size)
    return _in_blocks(
        size,
        lambda image: ndimage.gaussian_filter(
            image, sigma, output=np.float64, mode="mirror", radius=size // 2, axes=(1, 2)
        ),
    )


def gaussian_iss() -> Purifier:
    """`gaussian(sigma=0.1, size=3)`, the blur of ISS and APBench: it changes nothing.

    The weight of a neighbor is e^-50. Here so that their tables can be made again.

    Returns: a Purifier of uint8 images, without a fit.
    Source: Liu et al. 2023 and APBench, code.
    """
    return gaussian(sigma=0.1, size=3)


def bilateral(*, size: int = 9, sigma_color: float = 75.0, sigma_space: float = 75.0) -> Purifier:
    """A mean over the disk around a pixel, weighted by distance and by likeness of color.

    x'_p = sum_q w_pq x_q / sum_q w_pq over |p - q| <= size // 2,
    w_pq = exp(-|p - q|^2 / (2 sigma_space^2)) exp(-|x_p - x_q|_1^2 / (2 sigma_color^2)),
    |.|_1 the sum over channels in grey levels, so that all channels share their weights.

    Args:
      size: odd; the diameter of the disk.
      sigma_color: grey levels.
      sigma_space: pixels.

    Returns: a Purifier of uint8 images, without a fit.
    Errors: InputError for a sigma that is not positive, or a size as in `mean`.
    Cost: 49 passes over the images for size 9, on the device in blocks.
    Source: Tomasi & Manduchi 1998, as cv2.bilateralFilter has it; 9, 75, 75: Fu et al. 2022, code.
    """
    _check_odd(size=size)
    check.positive(sigma_color=sigma_color, sigma_space=sigma_space)
    radius = size // 2
    offset = np.mgrid[: 2 * radius + 1, : 2 * radius + 1].reshape(2, -1).T
    squared = np.sum((offset - radius) ** 2, axis=1)
    inside = squared <= radius**2
    near = np.exp(-squared[inside] / (2 * sigma_space**2)).astype(np.float32)
    offset = offset[inside].astype(np.int32)

    def change(image: Images) -> Images:
        _check_window(size, image)
        arrays = (jnp.asarray(x) for x in (image, offset, near, np.float32(sigma_color)))
        return np.asarray(_bilateral(radius, *arrays))

    return fixed(change)


def _check_odd(*, size: int) -> None:
    check.at_least(1, size=size)
    if size % 2 == 0:
        raise InputError(f"size = {size}; it must be odd")


def _check_window(size: int, image: Images) -> None:
    height, width = image.shape[1:3]
    if size // 2 >= (side := min(height, width)):
        raise InputError(
            f"size = {size}; of images of {height} x {width} pixels it must be at most "
            f"{2 * side - 1}"
        )


def _in_blocks(size: int, smooth: Callable[[Images], np.ndarray]) -> Purifier:
    """A purifier by a filter of whole arrays, whose results are rounded half to even."""

    def change(image: Images) -> Images:
        _check_window(size, image)
        result = np.empty_like(image)
        for start in range(0, len(image), BLOCK):
            rows = slice(start, start + BLOCK)
            result[rows] = np.rint(smooth(image[rows]))
        return result

    return fixed(change)


@functools.partial(jax.jit, static_argnums=0)
def _bilateral(
    radius: int,
    image: UInt8[Array, "n h w c"],
    offset: Int[Array, "k 2"],
    near: Float[Array, " k"],
    sigma_color: Float[Array, ""],
) -> UInt8[Array, "n h w c"]:
    pad = ((radius, radius), (radius, radius), (0, 0))

    def of_image(one):
        x = one.astype(jnp.float32)
        padded = jnp.pad(x, pad, mode="reflect")

        def add(sums, term):
            (row, column), weight = term
            other = lax.dynamic_slice(padded, (row, column, 0), x.shape)
            gap = jnp.sum(jnp.abs(x - other), axis=2, keepdims=True)
            weight = weight * jnp.exp(-(gap**2) / (2 * sigma_color**2))
            return (sums[0] + weight * other, sums[1] + weight), None

        zero = jnp.zeros_like(x), jnp.zeros_like(x[:, :, :1])
        (total, weight), _ = lax.scan(add, zero, (offset, near))
        return jnp.round(total / weight).astype(jnp.uint8)

    return lax.map(of_image, image, batch_size=BLOCK)
