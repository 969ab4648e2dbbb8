"""The leader's loss against numpy, presets against the tables, and partial poisoning."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.attacks import selection
from jaxpoison.attacks.unlearnable.deepconfuse import CIFAR10, IMAGENET2, MNIST
from jaxpoison.victims import Recipe, learner, training
from tests import oracles
from tests.attacks import tiny

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


def confuse(**options):
    networks = oracles.smooth_victim(), oracles.smooth_generator()
    settings = {"eps": 0.2, "trial_steps": 2, "batch_size": 8, "select_every": 0, **options}
    return jp.attacks.deepconfuse(*networks, **settings)


@pytest.mark.parametrize("label_map", [None, (2, 2, 1)])
def test_the_leader_minimizes_what_is_stated(label_map):
    """At a follower that hardly moves: -CE(y) or CE(eta(y)) on clean images."""
    data = oracles.tiny_scenario(changed=8)
    attack = confuse(label_map=label_map, learning_rate=1e-9)
    state, info = jp.run(attack, KEY, data, num_steps=1)
    params = jax.tree.map(np.asarray, state.phi.phi.follower.params)
    x, y = map(np.asarray, data.train)
    wanted = y if label_map is None else np.asarray(label_map)[y]
    loss = tiny.losses_and_gradients(params["w"], params["v"], x, wanted)[0].mean()
    np.testing.assert_allclose(info.outer_loss[0], -loss if label_map is None else loss, rtol=1e-5)


def test_the_generator_of_a_state_is_what_poisons():
    data = oracles.tiny_scenario()
    attack = confuse(batch_size=4, generator_rate=0.1)
    state, _ = jp.run(attack, KEY, data, num_steps=3)
    theta = attack.generator(state)
    noise, _ = oracles.smooth_generator().apply(theta, data.train.image, train=False)
    expected = np.clip(data.train.image + 0.2 * noise, 0, 1)
    image = np.asarray(attack.poison(state, data).image)
    np.testing.assert_allclose(image[:5], expected[:5], atol=1e-6)
    np.testing.assert_array_equal(image[5:], data.train.image[5:])


def test_rows_that_stay_clean_teach_the_generator_nothing():
    """With part of the rows, others may hold anything."""
    data = oracles.tiny_scenario()
    other = data.train.image.at[5:].set(0.5)
    attack = confuse(batch_size=4, learning_rate=0.5)
    states = [
        jp.run(attack, KEY, data._replace(train=jp.Dataset(image, data.train.label)), num_steps=4)
        for image in (data.train.image, other)
    ]
    one, two = (np.asarray(state.theta.params["w"]) for state, _ in states)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("preset", "num", "steps", "eps", "rate"),
    [
        (MNIST, 60000, 937, 0.3, 1e-4),
        (CIFAR10, 50000, 20 * 195, 0.032, 1e-4),
        (IMAGENET2, 2600, 5 * 81, 0.1, 1e-3),
    ],
    ids=["mnist", "cifar10", "imagenet2"],
)
def test_presets_are_the_tables(preset, num, steps, eps, rate):
    options = preset.options(num)
    confuse(**options)
    assert (options["trial_steps"], options["eps"]) == (steps, eps)
    assert options["learning_rate"] == 0.01 and preset.trials == 500
    assert options["select_epochs"] == preset.passes
    assert preset.num_steps(num, trials=3) == 3 * (steps + preset.passes)
    rule = options["tx"](options["generator_rate"])
    state = rule.init(jnp.zeros(()))
    updates, state = rule.update(jnp.ones(()), state, jnp.zeros(()))
    np.testing.assert_allclose(updates, -rate, rtol=1e-4)  # Adam's first step
    assert hasattr(state[0], "nu_max") == (preset is IMAGENET2)


def test_a_set_smaller_than_a_batch_is_one_line():
    with pytest.raises(jp.InputError, match="^num_train = 63; it must be at least 64$"):
        MNIST.options(63)


@pytest.mark.parametrize("label_map", [None, (2, 2, 1)])
def test_selection_keeps_the_generator_of_the_best_round(label_map):
    """Round: two trials of 2 steps, then two epochs; the last round's victim is trained by hand."""
    data = oracles.tiny_scenario(num=20, changed=20)
    attack = confuse(
        batch_size=4, generator_rate=0.3, select_every=2, select_epochs=2, holdout=0.3,
        learning_rate=0.5, label_map=label_map,
    )  # fmt: skip
    state, info = jp.run(attack, KEY, data, num_steps=selection.num_steps(3, every=4, epochs=2))
    rounds = np.asarray(info.held_out)[5::6]
    np.testing.assert_allclose(np.asarray(info.best)[5::6], np.minimum.accumulate(rounds))
    assert int(state.attack.opt_state[0].count) == 12
    chex.assert_trees_all_equal(attack.generator(state), state.best.theta)

    rest, held = selection.held_out_rows(20, 0.3)
    released = confuse(batch_size=4).poison(state.attack, data)
    test = jp.tree.take(data.train, held)
    if label_map:
        test = test._replace(label=jnp.asarray(label_map, jnp.int32)[test.label])
    surrogate = learner(oracles.smooth_victim(), optax.sgd(0.5))
    process = training(surrogate, Recipe(2, 4, 0.5, drop_last=True))
    split, steps_key = jp.Split(jp.tree.take(released, rest), test), jax.random.split(KEY)[1]
    (start, first), (_, second) = (
        jax.random.split(jax.random.fold_in(steps_key, t)) for t in (16, 17)
    )
    phi = process.init(start, split)
    for key in (first, second):
        phi, told = jax.jit(process.step)(key, phi, split)
    chex.assert_trees_all_close(state.monitor.variables, phi.variables, atol=1e-5)
    fails = 1 - told.test_accuracy if label_map else told.test_accuracy
    np.testing.assert_allclose(rounds[-1], fails, atol=1e-6)
