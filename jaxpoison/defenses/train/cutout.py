"""Cutout (DeVries and Taylor 2017) as a defense: the shortcut may lie under a black square."""

from jaxpoison.data import augment
from jaxpoison.defenses.combined import augmented
from jaxpoison.types import TrainingDefense

__all__ = ["cutout"]


def cutout(*, size: int = 16) -> TrainingDefense:
    """Every image of every batch loses a square of `size` pixels, centered on a random one.

    The square is zero, and cut off at the border: `data.augment.cutout`.

    Args:
      size: pixels; 16 is that of CIFAR-10's 32.

    Errors: InputError for a size below 1; when it runs, for one above a side of the images.
    Source: DeVries and Taylor 2017, section 3.2; against poisons Liu et al. 2023 (ISS), code.
    """
    return augmented(augment.cutout(size))
