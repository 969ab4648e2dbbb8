"""Training-time defenses chained, and augmentations as defenses."""

import jax

from jaxpoison.data.augment import Augmentation
from jaxpoison.types import InputError, TrainingDefense

__all__ = ["augmented", "compose"]


def compose(*defenses: TrainingDefense) -> TrainingDefense:
    """The defenses one around the other: the first sees the batch first; none: no defense.

    compose(mixup(), adversarial(eps=8 / 255)) mixes the batch and trains on adversarial examples of
    the mixed images.

    Errors: InputError for a Purifier, which changes the set before training (`chain`), or anything
      else that is no function.
    """
    for one in defenses:
        if not callable(one):
            raise InputError(
                f"a defense is a {type(one).__name__}; compose takes training-time defenses, chain "
                "takes purifiers"
            )

    def defense(losses):
        for one in reversed(defenses):
            losses = one(losses)
        return losses

    return defense


def augmented(augmentation: Augmentation) -> TrainingDefense:
    """Train on augmented images: a step's batch goes through (key, image) -> image, a fresh draw.

    It comes after the recipe's own augmentation. Labels and weights stay.
    """

    def defense(losses):
        def changed(victim, key, variables, batch):
            own_key, key = jax.random.split(key)
            image = augmentation(own_key, batch.image)
            return losses(victim, key, variables, batch._replace(image=image))

        return changed

    return defense
