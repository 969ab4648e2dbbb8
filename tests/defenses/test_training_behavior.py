"""Which training-time defense undoes which poison: one pixel and class-wise noise on digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.types import as_float

CLASSES, NUM, EPOCHS = 10, 600, 30

pytestmark = pytest.mark.slow


@functools.cache
def clean():
    train = jp.data.first_per_class(jp.data.digits("train"), NUM // CLASSES)
    return jp.Dataset(as_float(jnp.asarray(train.image)), jnp.asarray(train.label))


def poisoned(attack):
    scenario = jp.Scenario(clean(), clean(), jnp.arange(NUM, dtype=jnp.int32))
    state, _ = jp.run(attack, jax.random.key(1), scenario, num_steps=1)
    return attack.poison(state, scenario)


@functools.cache
def one_pixel():
    return poisoned(jp.attacks.one_pixel(num_classes=CLASSES))


@functools.cache
def linearly_separable():
    return poisoned(jp.attacks.lsp(eps=2.4, num_classes=CLASSES, patch=2))


@functools.cache
def signs():
    """Random signs of size 0.2 for every class."""
    noise = np.random.default_rng(0).choice([-0.2, 0.2], size=(CLASSES, 8, 8, 1))
    noise = jnp.asarray(noise, jnp.float32)[clean().label]
    return clean()._replace(image=jnp.clip(clean().image + noise, 0, 1))


DEFENSES = {
    "none": lambda: None,
    "cutout": lambda: jp.defenses.cutout(size=3),
    "adversarial": lambda: jp.defenses.adversarial(eps=0.25, steps=5),
    "ueraser": lambda: jp.defenses.ueraser("max", copies=3),
}


@functools.cache
def training(name):
    victim = jp.models.mlp((8, 8, 1), CLASSES, hidden=(64,))
    recipe = jp.victims.Recipe(EPOCHS, 32, 0.01, optimizer="adam")
    return jp.victims.victim_training(victim, recipe, NUM, defense=DEFENSES[name]())


@functools.cache
def accuracy(name, poison):
    split = jp.Split(poison(), jp.data.digits("test"))
    _, info = jp.run(training(name), jax.random.key(3), split, num_steps=EPOCHS)
    return float(info.test_accuracy[-1])


def test_cutout_undoes_one_pixel():
    assert accuracy("none", one_pixel) < 0.8
    assert accuracy("cutout", one_pixel) > max(0.8, accuracy("none", one_pixel) + 0.1)


def test_adversarial_training_undoes_linearly_separable_noise_and_not_one_pixel():
    """Wu et al. 2023, table 5: one pixel is no small noise."""
    assert accuracy("none", linearly_separable) < 0.6
    gain = accuracy("adversarial", linearly_separable) - accuracy("none", linearly_separable)
    assert gain > 0.2
    assert accuracy("adversarial", one_pixel) < accuracy("none", one_pixel)


def test_ueraser_undoes_class_wise_noise():
    assert accuracy("none", signs) < 0.7
    assert accuracy("ueraser", signs) > accuracy("none", signs) + 0.2
    assert accuracy("ueraser", clean) > 0.9
