"""Filters against unconstrained gradient canceling on digits, beside random removal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.types import as_float

CLASSES = 10

pytestmark = pytest.mark.usefixtures("quick_module")


@functools.cache
def head():
    return jp.models.logistic_regression((8, 8, 1), CLASSES, bias=False)


@functools.cache
def fit():
    settings = jp.victims.ToConvergence(weight_decay=1e-2, tolerance=1e-3)
    return jp.defenses.converged(head(), settings)


learn = jax.jit(lambda train, keep: fit()(jax.random.key(0), train, keep))


@functools.cache
def game():
    """(400 digits and 40 poisons, who is poison, what a defender knows, test set)."""
    digits = jp.data.digits("train")
    clean, test = jp.data.first_per_class(digits, 40), jp.data.digits("test")
    filled = jax.tree.map(lambda x: jnp.concatenate([x, x[:40]]), clean)
    trained = learn(jp.Dataset(as_float(filled.image), filled.label), jnp.arange(440) < 400)
    attack = jp.attacks.gradient_canceling(
        head(),
        labels="random",
        num_classes=CLASSES,
        corruption=jp.attacks.Corruption(radius=3, scale=0.05),
        steps=300,
        learning_rate=0.5,
    )
    index = jnp.arange(0, 400, 10, dtype=jnp.int32)
    scenario = jp.Scenario(clean, clean, index, trained)
    state, _ = jp.run(attack, jax.random.key(1), scenario, num_steps=attack.num_steps)
    poisoned = attack.poison(state, scenario)
    network = learn(poisoned, jnp.ones(440, bool))
    trusted = jax.tree.map(lambda x: x[300:], clean)
    return poisoned, np.arange(440) >= 400, jp.defenses.Known(network, trusted), test


def outcome(filter):
    poisoned, truth, aux, test = game()
    screening, found = jp.defenses.screen_and_score(filter, jax.random.key(2), poisoned, aux, truth)
    network = learn(poisoned, screening.keep)
    return found, float(jp.victims.accuracy(head(), network, test))


@functools.cache
def random():
    return outcome(jp.defenses.random_filter(share=0.15, num_classes=CLASSES))


def test_the_poison_works_and_random_removal_does_not_help():
    assert random()[1] < 0.6
    assert random()[0].true_positive_rate < 0.35


@pytest.mark.parametrize(
    ("build", "caught", "lost"),
    [
        (lambda: jp.defenses.sever(head(), fit()), 0.95, 0.15),
        (lambda: jp.defenses.largest_gradient(head(), share=0.15, num_classes=10), 0.9, 0.1),
        (lambda: jp.defenses.sphere(share=0.15, num_classes=10), 0.9, 0.1),
        (lambda: jp.defenses.range_filter(), 1.0, 0.0),
    ],
    ids=["sever", "largest_gradient", "sphere", "range_filter"],
)
def test_filters_find_it_and_give_the_accuracy_back(build, caught, lost):
    found, accuracy = outcome(build())
    assert found.true_positive_rate >= caught and found.false_positive_rate <= lost
    assert found.true_positive_rate > random()[0].true_positive_rate + 0.5
    assert accuracy > random()[1] + 0.2 and accuracy > 0.85
