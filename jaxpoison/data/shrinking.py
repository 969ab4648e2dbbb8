"""Smaller images for small experiments: block means of stored grey levels."""

import numpy as np
from jaxtyping import UInt8

from jaxpoison import check
from jaxpoison.types import Dataset, InputError

__all__ = ["shrunk"]


def shrunk(dataset: Dataset, side: int) -> Dataset:
    """Each block of side x side pixels becomes its mean, channel by channel.

    x'[i, j] = round(mean of x[side i + a, side j + b], 0 <= a, b < side), half to even.

    Args:
      dataset: N rows of grey levels, uint8 [N, H, W, C].
      side: of the blocks; divides H and W.

    Returns: uint8 [N, H / side, W / side, C] and the same labels, on the host.
    Errors: InputError for images that are not uint8 [N, H, W, C], or a side that does not divide
      them.
    """
    check.at_least(1, side=side)
    image: UInt8[np.ndarray, "n h w c"] = np.asarray(dataset.image)
    if image.dtype != np.uint8 or image.ndim != 4:
        raise InputError(f"images are {image.dtype} {image.shape}; uint8 [N, H, W, C] are needed")
    num, height, width, channels = image.shape
    if height % side or width % side:
        raise InputError(f"side = {side} does not divide the {height} x {width} image")
    blocks = image.reshape(num, height // side, side, width // side, side, channels)
    mean = blocks.mean(axis=(2, 4), dtype=np.float64)
    return Dataset(np.rint(mean).astype(np.uint8), dataset.label)
