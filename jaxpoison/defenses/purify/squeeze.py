"""Squeezing of values: one channel for three, fewer grey levels (Liu et al. 2023, "ISS")."""

import numpy as np
from jaxtyping import UInt8

from jaxpoison import check
from jaxpoison.defenses.purified import fixed
from jaxpoison.types import InputError, Purifier

__all__ = ["bit_depth", "grayscale"]

LUMA = (19595, 38470, 7471)  # of 2^16, ITU-R 601; as pillow's "L"


def grayscale() -> Purifier:
    """L = (19595 R + 38470 G + 7471 B + 2^15) >> 16 in all three channels, in whole numbers.

    Images of one channel come back unchanged.

    Returns: a Purifier of uint8 images, without a fit.
    Errors: InputError, when applied, for images of other than 1 or 3 channels.
    Source: Liu et al. 2023, section 3.2; the rule is pillow's mode "L".
    """

    def change(image: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        channels = image.shape[3]
        if channels == 1:
            return image
        if channels != 3:
            raise InputError(f"images have {channels} channels; grayscale takes 1 or 3")
        level = (image.astype(np.int32) @ np.asarray(LUMA, np.int32) + 2**15) >> 16
        return np.repeat(level.astype(np.uint8)[..., None], 3, axis=3)

    return fixed(change)


def bit_depth(*, bits: int = 2) -> Purifier:
    """Keep the top bits of each value: v & ~(2^(8 - bits) - 1), so 0, 64, 128, 192 for 2 bits.

    Args:
      bits: 1 to 8; 8 changes nothing.

    Returns: a Purifier of uint8 images, without a fit.
    Errors: InputError for bits that are not whole or not from 1 to 8.
    Source: Liu et al. 2023, code (posterize, 2 bits).
    """
    check.at_least(1, bits=bits)
    if bits > 8:
        raise InputError(f"bits = {bits}; it must be from 1 to 8")
    mask = np.uint8(256 - 2 ** (8 - bits))
    return fixed(lambda image: image & mask)
