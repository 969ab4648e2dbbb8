"""Decoder training: against the closed form, on digits, and the pairs it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxpoison as jp
from jaxpoison.victims import Pairs, PairSplit, decode, decoder_training
from tests.digits_extractor import digits, extractor

pytestmark = pytest.mark.usefixtures("quick_module")


class Affine(nn.Module):
    """A decoder whose best parameters have a closed form."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(4)(x).reshape(-1, 2, 2, 1)


def test_an_affine_decoder_learns_least_squares():
    rng = np.random.default_rng(0)
    phi, image = rng.normal(size=(60, 3)), rng.uniform(size=(60, 2, 2, 1))
    some = Pairs(jnp.float32(phi), jnp.float32(image))
    held_out = Pairs(some.features[:7], some.image[:7])
    decoder = jp.models.adapt_decoder(Affine(), 3, (2, 2, 1))
    training = decoder_training(decoder, learning_rate=0.02, batch_size=100)
    state, info = jp.run(training, jax.random.key(0), PairSplit(some, held_out), num_steps=400)
    design = np.concatenate([phi, np.ones((60, 1))], axis=1)
    best = design @ np.linalg.lstsq(design, image.reshape(60, 4), rcond=None)[0]
    found = decode(decoder, state.variables, some.features, batch_size=25)
    np.testing.assert_allclose(found.reshape(60, 4), best, atol=1e-4)
    squares = (best - image.reshape(60, 4)) ** 2
    np.testing.assert_allclose(info.outer_loss[-1], squares.mean(), rtol=1e-4)
    np.testing.assert_allclose(info.test_error[-1], squares[:7].mean(), rtol=1e-3)
    assert np.all(info.finite) and info.grad_norm[-1] < 1e-3


def test_clean_digits_come_back_from_their_features():
    """Error over variance of the pixels: 0.08, of held-out images 0.11; a constant image has 1."""
    known, split = extractor(), digits()
    data = PairSplit(*(jp.victims.pairs(known, part, batch_size=450) for part in split))
    assert data.train.features.shape == (1400, 32) and data.train.image.dtype == jnp.uint8
    want = known.victim.features(known.variables, jp.types.as_float(split.test.image[:3]))
    np.testing.assert_allclose(data.test.features[:3], want, atol=1e-4)
    decoder = jp.models.mlp_decoder(32, (8, 8, 1))
    training = decoder_training(decoder, learning_rate=1e-2, batch_size=256)
    state, info = jp.run(training, jax.random.key(2), data, num_steps=240)
    seen = jp.victims.reconstruction(decoder, state.variables, known, data.train)
    np.testing.assert_allclose(seen.pixel_variance, np.var(split.train.image / 255.0), rtol=1e-5)
    assert seen.error < 0.1 * seen.pixel_variance
    assert seen.feature_error < 0.3 * seen.feature_norm
    held_out = jp.victims.reconstruction(decoder, state.variables, known, data.test)
    np.testing.assert_allclose(held_out.error, info.test_error[-1], rtol=1e-4)
    assert held_out.error < 0.13 * held_out.pixel_variance


def test_batch_norm_moves_and_epochs_leave_out_the_rest():
    """7 rows, batches of 3: two updates an epoch; statistics follow them."""
    decoder = jp.models.conv_decoder(5, (4, 4, 1), width=2, stages=1)
    rng = np.random.default_rng(0)
    some = Pairs(jnp.float32(rng.normal(size=(7, 5))), jnp.float32(rng.uniform(size=(7, 4, 4, 1))))
    training = decoder_training(decoder, batch_size=3)
    start = training.init(jax.random.key(0), PairSplit(some, some))
    after, info = jax.jit(training.step)(jax.random.key(1), start, PairSplit(some, some))
    assert after.opt_state[0].count == 2 and bool(info.finite)
    assert np.any(after.stats["norm1"]["mean"] != start.stats["norm1"]["mean"])


def test_wrong_settings_are_one_clear_line():
    decoder = jp.models.mlp_decoder(5, (4, 4, 1))
    with pytest.raises(jp.InputError, match="learning_rate = 0; it must be a finite number above"):
        decoder_training(decoder, learning_rate=0)
    with pytest.raises(jp.InputError, match="batch_size = 0; it must be at least 1"):
        decoder_training(decoder, batch_size=0)
