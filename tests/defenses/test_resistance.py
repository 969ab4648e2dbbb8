"""Training-time defenses against what a linear victim learns by heart: wrong labels, class noise.

In seconds, for each defense but two: `adversarial` and `trades` are held to their robust accuracy
in tests/victims/test_adversarial.py. One pixel and other poisons: test_training_behavior.py, slow.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.victims.learner import cross_entropy

CLASSES, NUM, STEPS = 10, 300, 100

pytestmark = pytest.mark.usefixtures("quick_module")

DEFENSES = {
    "none": jp.defenses.compose(),
    "mixup": jp.defenses.mixup(),
    "cutmix": jp.defenses.cutmix(),
    "cutout": jp.defenses.cutout(size=4),
    "randaugment": jp.defenses.randaugment(),
    "ueraser": jp.defenses.ueraser("lite"),
}


@functools.cache
def victim():
    return jp.models.logistic_regression((8, 8, 1), CLASSES)


def clean():
    train = jp.data.first_per_class(jp.data.digits("train"), NUM // CLASSES)
    return np.asarray(train.image, np.float32) / 255, np.asarray(train.label)


def mislabeled():
    """40 % of the labels drawn anew."""
    image, label = clean()
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, CLASSES, NUM)
    return image, np.where(rng.random(NUM) < 0.4, drawn, label)


def signs():
    """Random signs of size 0.2, alike within each class."""
    image, label = clean()
    noise = np.random.default_rng(0).choice([-0.2, 0.2], size=(CLASSES, 8, 8, 1))
    return np.clip(image + noise[label], 0, 1), label


@functools.partial(jax.jit, static_argnums=0)
def fit(name, batch):
    losses = DEFENSES[name](cross_entropy)
    learner = jp.victims.learner(victim(), optax.adam(0.05), losses=losses)

    def step(phi, key):
        return learner.step(key, phi, batch)[0], None

    start = learner.init(jax.random.key(4))
    return jax.lax.scan(step, start, jax.random.split(jax.random.key(5), STEPS))[0].variables


@functools.cache
def accuracy(name, poison):
    """On clean test digits."""
    image, label = poison()
    rows = jnp.arange(NUM, dtype=jnp.int32)
    batch = jp.Batch(
        jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32), jnp.ones(NUM), rows
    )
    return float(jp.victims.accuracy(victim(), fit(name, batch), jp.data.digits("test")))


@pytest.mark.parametrize(
    ("name", "gain"), [("mixup", 0.08), ("cutmix", 0.09), ("cutout", 0.03), ("randaugment", 0.07)]
)
def test_fewer_wrong_labels_are_learned_by_heart(name, gain):
    """As Zhang et al. 2018, section 4.3."""
    assert accuracy("none", mislabeled) < 0.8
    assert accuracy(name, mislabeled) > accuracy("none", mislabeled) + gain


def test_ueraser_undoes_linear_class_wise_noise():
    assert accuracy("none", signs) < 0.8 and accuracy("none", clean) > 0.9
    assert accuracy("ueraser", signs) > accuracy("none", signs) + 0.08
    assert accuracy("ueraser", clean) > accuracy("ueraser", signs)
