"""JPEG compression of the training images (Liu et al. 2023, "ISS"), by pillow's own codec."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxpoison import check
from jaxpoison.defenses.purified import fixed
from jaxpoison.types import InputError, Purifier

__all__ = ["jpeg"]


def jpeg(*, quality: int = 10, subsampling: str = "4:2:0") -> Purifier:
    """Encode and decode each image as a baseline JPEG, before any augmentation.

    Per 8 x 8 block of Y, Cb, Cr: k = round(DCT / Q), then k Q back, with the tables of Annex K
    scaled by s / 100, s = 5000 / quality below 50 and 200 - 2 quality from there on. Images of one
    channel are coded as gray ones. Sides that 8 or 16 do not divide are padded by the codec.

    Args:
      quality: 1 to 100; above 95 files grow with hardly any gain. 10 in the paper.
      subsampling: of the chroma planes; "4:2:0" halves both of their sides, "4:2:2" their width,
        "4:4:4" neither.

    Returns: a Purifier of uint8 images, without a fit.
    Errors: InputError for a quality that is not whole or out of range, or another subsampling; when
      applied, for images of other than 1 or 3 channels.
    Cost: about 0.2 ms for an image of CIFAR's size on one core. Threads gain nothing: for so small
      an image the interpreter's lock is held nearly all the time.
    Source: Liu et al. 2023, section 3.2; code: quality 10 and pillow's defaults.
    """
    check.at_least(1, quality=quality)
    if quality > 100:
        raise InputError(f"quality = {quality}; it must be from 1 to 100")
    check.one_of(("4:2:0", "4:2:2", "4:4:4"), subsampling=subsampling)

    def coded(pixels: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w *c"]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
        return np.asarray(Image.open(file))

    def change(image: UInt8[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
        channels = image.shape[3]
        if channels not in (1, 3):
            raise InputError(f"images have {channels} channels; jpeg takes 1 or 3")
        pixels = image[..., 0] if channels == 1 else image
        return np.stack([coded(one) for one in pixels]).reshape(image.shape)

    return fixed(change)
