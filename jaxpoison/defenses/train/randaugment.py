"""RandAugment (Cubuk et al. 2020) as a defense."""

from jaxpoison.data.policies import rand_augment
from jaxpoison.defenses.combined import augmented
from jaxpoison.types import TrainingDefense

__all__ = ["randaugment"]


def randaugment(*, num_ops: int = 2, magnitude: int = 9) -> TrainingDefense:
    """Every image of every batch goes through operations drawn for it: `data.rand_augment`.

    Args:
      num_ops: n, operations an image.
      magnitude: m, 0 to 30.

    Errors: InputError for a bad value, named; when it runs, for images of other than 1 or 3
      channels.
    Source: Cubuk et al. 2020, torchvision's defaults; against poisons Wu et al. 2023 (OPS), table
      5.
    """
    return augmented(rand_augment(num_ops=num_ops, magnitude=magnitude))
