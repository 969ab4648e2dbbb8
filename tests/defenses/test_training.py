"""Defenses in a victim's training: the epoch they are told, adversarial examples of mixed rows."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.types import as_float
from jaxpoison.victims.learner import cross_entropy
from jaxpoison.victims.train import make_learner

KEY, SHAPE, CLASSES = jax.random.key(0), (4, 4, 3), 3
RECIPE = jp.victims.Recipe(epochs=3, batch_size=8, learning_rate=0.1)

pytestmark = pytest.mark.usefixtures("quick_module")


def blobs(num):
    return jp.data.synthetic.blobs(jax.random.key(1), num, CLASSES, SHAPE)


def linear():
    return jp.models.logistic_regression(SHAPE, CLASSES)


def clock(losses):
    """Losses of no image: the epoch itself."""

    def changed(victim, key, variables, batch):
        values, aux = losses(victim, key, variables, batch)
        return 0 * values + batch.epoch, aux

    return changed


@pytest.mark.parametrize(
    ("defense", "line"),
    [
        (jp.defenses.jpeg(), "defense is a Purifier; it must be a training-time defense"),
        ("mixup", "defense is a str; it must be a training-time defense, such as defenses.mixup()"),
        (jp.defenses.mixup, r"defense does not take losses; was mixup\(\.\.\.\) meant?"),
    ],
)
def test_what_is_no_defense_is_one_line(defense, line):
    recipe = jp.victims.Recipe(1, 8, 0.1)
    untyped = inspect.unwrap(make_learner)
    with pytest.raises(jp.InputError, match=f"^{line}"):
        untyped(linear(), recipe, 20, 1, defense)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_defense_is_told_the_epoch(accumulate, drop_last):
    recipe = jp.victims.Recipe(3, 8, 0.1, drop_last=drop_last)
    options = {"defense": clock, "accumulate": accumulate}
    training = jp.victims.victim_training(linear(), recipe, 20, **options)
    state, info = jp.run(training, KEY, jp.Split(blobs(20), blobs(5)), num_steps=3)
    np.testing.assert_array_equal(info.outer_loss, [0, 1, 2])
    assert int(state.opt_state.updates) == 3 * (2 if drop_last else 3)


def test_a_defense_around_the_adversarial_training_of_a_recipe_equals_composed_ones():
    data = jp.Split(blobs(16), blobs(5))
    mixup = jp.defenses.mixup()
    attack = {"adversarial": "pgd", "adversarial_eps": 0.1, "adversarial_steps": 2}
    hard = jp.victims.Recipe(1, 8, 0.1, **attack)
    composed = jp.defenses.compose(mixup, jp.defenses.adversarial(eps=0.1, steps=2))
    first, second = (
        jp.victims.victim_training(linear(), recipe, 16, defense=defense)
        for recipe, defense in ((hard, mixup), (RECIPE, composed))
    )
    one, _ = jp.run(first, KEY, data, num_steps=1)
    other, _ = jp.run(second, KEY, data, num_steps=1)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_adversarial_examples_of_mixed_rows_are_near_them_and_worse():
    """mixup sees the batch first; the attack climbs the loss of the mixed label."""
    victim = linear()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), victim.init(KEY).params)
    variables, data = jp.Variables(params, {}), blobs(12)
    rows = jnp.arange(12, dtype=jnp.int32)
    batch = jp.Batch(as_float(data.image), data.label, jnp.ones(12), rows)
    batches = []

    def spy(victim, key, variables, batch):
        batches.append(batch)
        return cross_entropy(victim, key, variables, batch)

    mixup, hard = jp.defenses.mixup(), jp.defenses.adversarial(eps=0.05, steps=3)
    soft, _ = mixup(spy)(victim, KEY, variables, batch)
    with jax.disable_jit():  # so that the spy sees values
        worse, _ = jp.defenses.compose(mixup, hard)(spy)(victim, KEY, variables, batch)
    mixed, attacked = batches[0], batches[-1]
    np.testing.assert_array_equal(mixed.mixture.weight, attacked.mixture.weight)
    change = np.abs(attacked.image - mixed.image).max(axis=(1, 2, 3))
    assert (change <= 0.05 + 1e-6).all() and (change > 0.04).all()
    assert (np.asarray(worse) > np.asarray(soft)).all()


def test_trades_takes_no_other_losses():
    with pytest.raises(jp.InputError, match="^TRADES is a loss of its own; of several .* the last"):
        jp.defenses.compose(jp.defenses.trades(), jp.defenses.mixup())(cross_entropy)
