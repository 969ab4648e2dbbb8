"""UEraser (Qin et al. 2023): train on the worst of several strong augmentations of each image."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check
from jaxpoison.data.augment import Augmentation, compose
from jaxpoison.data.colors import channel_shuffle, sometimes
from jaxpoison.data.compression import jpeg as compressed
from jaxpoison.data.plasma import plasma_brightness, plasma_contrast
from jaxpoison.data.policies import trivial_augment
from jaxpoison.types import InputError, TrainingDefense

__all__ = ["erasing", "ueraser"]

MODES = ("lite", "standard", "max")


def ueraser(
    mode: str = "standard",
    *,
    copies: int = 5,
    epochs: int = 50,
    probability: float = 0.5,
    jpeg: int | tuple[int, int] | None = None,
) -> TrainingDefense:
    """l_i = max_j CE(f(A_j(x_i)), y_i), j < K, A_j independent draws of `erasing`.

    The copies are compared without gradient, in train mode, K forward passes one after the other;
    then the worst of every row takes an ordinary step. So the other copies get no gradient, and
    running statistics move once, by the batch of the worst. With BatchNorm the loss is that of this
    batch, not of the batches in which the copies were compared; otherwise it is the maximum.

    Args:
      mode: "lite", K = 1; "standard", K = `copies` in the first `epochs` epochs, then 1; "max",
        K = `copies` always.
      copies: K, at least 1.
      epochs: E_a, of "standard".
      probability: of each plasma, per image; 1 in the authors' notebook and in APBench.
      jpeg: the quality of "UEraser-JPEG", which compresses each copy last: 10, or (10, 99), drawn
        for the batch; None for none. APBench takes it, with probability = 0.8, for TAP and AR.

    Returns: a TrainingDefense; "standard" needs a learner that counts epochs, as those of
      `victims.victim_training` do.
    Raises: InputError for a bad value, named; on tracing, where the epoch is not known.
    Cost: of a step, K forward passes more, K > 1; about (K + 3) / 3 steps, where computing all
      gradients takes K. Under `vmap` (restarts at once) "standard" costs that in all epochs.
    Source: Qin et al. 2023; released code, its modes fast, standard and em. Recipes: rate 0.01, 200
      epochs, crop and flip first.
    """
    check.one_of(MODES, mode=mode)
    check.at_least(1, copies=copies)
    check.at_least(0, epochs=epochs)
    augment = erasing(probability=probability, jpeg=jpeg)

    def defense(losses):
        def changed(victim, key, variables, batch):
            own_key, key = jax.random.split(key)

            def draw(number):
                return augment(jax.random.fold_in(own_key, number), batch.image)

            def compare(best, number):
                image = draw(number)
                fixed = lax.stop_gradient(variables)
                copy = batch._replace(image=lax.stop_gradient(image))
                loss = lax.stop_gradient(losses(victim, key, fixed, copy)[0])
                worse = loss > best[0]
                image = jnp.where(worse[:, None, None, None], image, best[1])
                return (jnp.where(worse, loss, best[0]), image), None

            def worst():
                none = jnp.full(batch.label.shape, -jnp.inf, batch.image.dtype)
                return lax.scan(compare, (none, batch.image), jnp.arange(copies))[0][1]

            if mode == "lite" or copies == 1:
                image = draw(0)
            elif mode == "max":
                image = worst()
            elif batch.epoch is None:
                raise InputError(
                    "the epoch is not known: UEraser's standard mode needs a learner with "
                    "steps_per_epoch, or victim_training(..., defense=...)"
                )
            else:
                image = lax.cond(batch.epoch < epochs, worst, lambda: draw(0))
            return losses(victim, key, variables, batch._replace(image=image))

        return changed

    return defense


def erasing(*, probability: float = 0.5, jpeg: int | tuple[int, int] | None = None) -> Augmentation:
    """A: plasma brightness, plasma contrast, shuffled channels, TrivialAugment, in this order.

    Args:
      probability: of the first and of the second, per image; of the third it is 1/2.
      jpeg: as of `ueraser`; `data.compression.jpeg` after the others.

    Errors: InputError for a probability outside [0, 1], a quality as in `data.compression.jpeg`.
    Source: Qin et al. 2023, released code, ueraser.py. Differs from it: images are compressed each
      by itself, not as tiles of one picture of the batch, whose chroma planes blend at the seams.
    """
    last = () if jpeg is None else (compressed(jpeg),)
    return compose(
        sometimes(plasma_brightness(), probability),
        sometimes(plasma_contrast(), probability),
        sometimes(channel_shuffle(), 0.5),
        trivial_augment(),
        *last,
    )
