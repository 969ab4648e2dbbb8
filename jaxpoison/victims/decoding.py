"""Decoders in training: from the features of a frozen extractor back to its images.

min over theta of E ||d_theta(f(x)) - x||^2, f in eval mode. An attacker who has poisoned features
turns them into images with such a decoder (decoder inversion).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Num

from jaxpoison import check, tree
from jaxpoison.types import Dataset, Decoder, Training, TrainState, Variables, as_float
from jaxpoison.victims.extract import Extractor, extract

__all__ = [
    "DecoderInfo",
    "PairSplit",
    "Pairs",
    "Reconstruction",
    "decode",
    "decoder_training",
    "pairs",
    "reconstruction",
]


class Pairs(NamedTuple):
    """Images beside their features.

    Attributes:
      features: [N, D].
      image: [N, H, W, C], as stored.
    """

    features: Float[Array, "n d"]
    image: Num[Array, "n h w c"]


class PairSplit(NamedTuple):
    """What a decoder is trained and judged on: `train`, and `test`, which no update reads."""

    train: Pairs
    test: Pairs


class DecoderInfo(NamedTuple):
    """Diagnostics of one epoch; errors are means over pixels, (1 / HWC) ||d(phi) - x||^2.

    Attributes:
      outer_loss: mean over the updates, train mode.
      grad_norm: mean gradient norm.
      finite: whether every update was finite.
      test_error: on `test` after the epoch, eval mode.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    test_error: Float[Array, "..."]


class Reconstruction(NamedTuple):
    """How well a decoder inverts an extractor on real images.

    Attributes:
      error: mean over pixels of (d(f(x)) - x)^2.
      pixel_variance: of all pixels of these images around their one mean: a constant image's error.
      feature_error: mean over rows of ||f(d(phi)) - phi||.
      feature_norm: mean over rows of ||phi||, to read it by.
    """

    error: Float[Array, ""]
    pixel_variance: Float[Array, ""]
    feature_error: Float[Array, ""]
    feature_norm: Float[Array, ""]


def pairs(extractor: Extractor, dataset: Dataset, *, batch_size: int = 500) -> Pairs:
    """Images and what `extract` makes of them, once: a frozen extractor gives the same each epoch.

    Args:
      extractor: network and arrays.
      dataset: N rows, as stored; no augmentation.
      batch_size: rows at a time.
    """
    found = extract(extractor, dataset, batch_size=batch_size).image
    return Pairs(found.reshape(found.shape[0], -1), jnp.asarray(dataset.image))


def decoder_training(
    decoder: Decoder, *, learning_rate: float = 1e-3, batch_size: int = 256
) -> Training:
    """Adam on the mean square error over batches of pairs, shuffled anew each epoch; f is frozen.

    Rows behind the last whole batch of an epoch are left out of it.

    Args:
      decoder: the network.
      learning_rate: of Adam, constant.
      batch_size: B; smaller sets are one batch.

    Returns: Training with init(key, PairSplit) and step(key, phi, PairSplit) -> (phi, DecoderInfo),
      one epoch a step: 50 to 100 on CIFAR-10.
    Errors: InputError for a bad argument.
    """
    check.kind(Decoder, decoder=decoder)
    check.positive(learning_rate=learning_rate)
    check.at_least(1, batch_size=batch_size)
    tx = optax.adam(learning_rate)

    def init(key, split):
        del split
        params, stats = decoder.init(key)
        return TrainState(params, stats, tx.init(params))

    def loss(params, stats, some):
        image, stats = decoder.apply(Variables(params, stats), some.features, train=True)
        return jnp.mean((image - as_float(some.image)) ** 2), stats

    def update(phi, rows, split):
        some = jax.tree.map(lambda x: x[rows], split.train)
        slope = jax.value_and_grad(loss, has_aux=True)
        (value, stats), gradient = slope(phi.params, phi.stats, some)
        updates, opt_state = tx.update(gradient, phi.opt_state, phi.params)
        params = optax.apply_updates(phi.params, updates)
        return TrainState(params, stats, opt_state), (value, tree.norm(gradient))

    def step(key, phi, split):
        num = split.train.features.shape[0]
        size = min(batch_size, num)
        order = jax.random.permutation(key, num)[: num // size * size].reshape(-1, size)
        phi, (value, norm) = lax.scan(lambda p, rows: update(p, rows, split), phi, order)
        found = decode(decoder, phi.variables, split.test.features)
        error = jnp.mean((found - as_float(split.test.image)) ** 2)
        finite = jnp.all(jnp.isfinite(value) & jnp.isfinite(norm))
        return phi, DecoderInfo(jnp.mean(value), jnp.mean(norm), finite, error)

    return Training(init, step)


def decode(
    decoder: Decoder, variables: Variables, features: Float[Array, "n d"], *, batch_size: int = 500
) -> Float[Array, "n h w c"]:
    """Images d(phi_i), eval mode, `batch_size` rows at a time."""
    batches, _ = tree.batches(features, batch_size)
    image = lax.map(lambda phi: decoder.apply(variables, phi, train=False)[0], batches)
    return image.reshape(-1, *image.shape[2:])[: features.shape[0]]


def reconstruction(
    decoder: Decoder, variables: Variables, extractor: Extractor, pairs: Pairs
) -> Reconstruction:
    """What the decoder makes of features of real images, and what the extractor makes of that."""
    image = as_float(pairs.image)
    found = decode(decoder, variables, pairs.features)
    label = jnp.zeros(image.shape[0], jnp.int32)
    again = extract(extractor, Dataset(found, label)).image.reshape(pairs.features.shape)
    return Reconstruction(
        jnp.mean((found - image) ** 2),
        jnp.var(image),
        jnp.mean(jnp.linalg.norm(again - pairs.features, axis=1)),
        jnp.mean(jnp.linalg.norm(pairs.features, axis=1)),
    )
