"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of single rows, with mixed labels."""

import jax
import jax.numpy as jnp

from jaxpoison import check
from jaxpoison.data.augment import spans
from jaxpoison.types import Batch, Key, Mixture, TrainingDefense

__all__ = ["cutmix", "mixup"]


def mixup(*, alpha: float = 1.0, num_mix: int = 2, probability: float = 0.5) -> TrainingDefense:
    """X <- l x + (1 - l) x_j, q <- l q + (1 - l) q_j,  l ~ Beta(alpha, alpha).

    `num_mix` times, each with a probability, and all of it row by row: a row draws its own l and j.
    x_j is the row of the batch as it came, j uniform on those of positive weight (in proportion to
    weight where weights differ). The loss is the cross-entropy to the mixed label q, of one forward
    pass; a row keeps its weight.

    Args:
      alpha: of the Beta distribution; 1 is uniform.
      num_mix: times, at least 1.
      probability: that a row is mixed, each time.

    Returns: a TrainingDefense. Rows of a micro-batch are mixed among themselves.
    Raises: InputError for a bad value, named.
    Source: Zhang et al. 2018, eq. 1; rows, times and probability of the codes of ISS (Liu et al.
      2023) and D-VAE, whose j is of the whole set, not of the shuffled batch.
    """

    def mix(key, image, other, keep):
        del key
        keep = keep[:, None, None, None]
        return keep * image + (1 - keep) * other, keep[:, 0, 0, 0]

    return _mixing(mix, alpha, num_mix, probability)


def cutmix(*, alpha: float = 1.0, num_mix: int = 2, probability: float = 0.5) -> TrainingDefense:
    """A box of x becomes that of x_j; q <- l q + (1 - l) q_j, 1 - l the share of the pixels.

    l ~ Beta(alpha, alpha) sets the sides floor(sqrt(1 - l) H), floor(sqrt(1 - l) W) of a box around
    a uniform pixel, cut off at the border; l is then that of the box. The rest is as in `mixup`.

    Args:
      alpha: as of `mixup`, like what follows.
      num_mix: likewise.
      probability: likewise.

    Returns: a TrainingDefense. Rows of a micro-batch are mixed among themselves.
    Raises: InputError for a bad value, named.
    Source: Yun et al. 2019, section 3; rows, times and probability as of `mixup`.
    """

    def mix(key, image, other, keep):
        num, height, width, _ = image.shape
        side = jnp.sqrt(1 - keep)
        row_key, column_key = jax.random.split(key)

        def inside(key, length):
            center = jax.random.randint(key, (num,), 0, length)
            return spans(center, length, jnp.floor(side * length).astype(jnp.int32))

        box = inside(row_key, height)[:, :, None] & inside(column_key, width)[:, None]
        area = jnp.mean(box.astype(image.dtype), axis=(1, 2))
        return jnp.where(box[..., None], other, image), 1 - area

    return _mixing(mix, alpha, num_mix, probability)


def _mixing(mix, alpha, num_mix, probability) -> TrainingDefense:
    check.positive(alpha=alpha)
    check.at_least(1, num_mix=num_mix)
    check.fraction(probability=probability)

    def defense(losses):
        def changed(victim, key, variables, batch):
            own_key, key = jax.random.split(key)
            batch = _mixed(own_key, batch, mix, alpha, num_mix, probability)
            return losses(victim, key, variables, batch)

        return changed

    return defense


def _mixed(key: Key, batch: Batch, mix, alpha, num_mix, probability) -> Batch:
    """The batch, mixed; mix: (key, image, other, l [B]) -> (image, l as it came out)."""
    num, dtype = len(batch.label), batch.image.dtype
    alone = Mixture(batch.label[:, None], jnp.ones((num, 1), dtype))
    first = alone if batch.mixture is None else batch.mixture
    image, labels, weights = batch.image, [first.label], [first.weight]
    keys = jax.random.split(key, 4)
    shape = num_mix, num
    keep = _shares(keys[0], alpha, shape, dtype)
    keep = jnp.where(jax.random.uniform(keys[1], shape) < probability, keep, 1)
    partners = jax.random.choice(keys[2], num, shape, p=batch.weight)
    for number in range(num_mix):
        rows, mix_key = partners[number], jax.random.fold_in(keys[3], number)
        image, kept = mix(mix_key, image, batch.image[rows], keep[number])
        weights = [kept[:, None] * weight for weight in weights]
        labels.append(first.label[rows])
        weights.append((1 - kept)[:, None] * first.weight[rows])
    mixture = Mixture(jnp.concatenate(labels, axis=1), jnp.concatenate(weights, axis=1))
    return batch._replace(image=image, mixture=mixture)


def _shares(key: Key, alpha: float, shape, dtype):
    """Beta(alpha, alpha), which is uniform for 1: no rejection sampling then."""
    if alpha == 1:
        return jax.random.uniform(key, shape, dtype)
    return jax.random.beta(key, alpha, alpha, shape, dtype)
