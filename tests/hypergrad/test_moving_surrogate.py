"""A surrogate that trains between crafting steps, against the same epochs taken by hand."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.attacks import Crafting
from jaxpoison.attacks.crafting import craft
from jaxpoison.types import InputError, Objective, TrainState
from jaxpoison.victims import Recipe, victim_training

KEY = jax.random.key(0)
RECIPE = Recipe(epochs=4, batch_size=4, learning_rate=0.1, momentum=0.9, schedule="cosine")
NUM = 8
pytestmark = pytest.mark.usefixtures("quick_compile")


@functools.cache
def victim():
    return jp.models.mlp((4, 4, 1), 2, hidden=(2,))


@functools.cache
def scenario():
    random = np.random.RandomState(0)
    image = jnp.asarray(random.uniform(0.2, 0.8, size=(NUM, 4, 4, 1)), jnp.float32)
    label = jnp.asarray(random.randint(2, size=NUM), jnp.int32)
    train = jp.Dataset(image, label)
    shapes = jax.eval_shape(victim().init, KEY)
    aux = jax.tree.map(lambda x: jnp.asarray(random.uniform(0.1, 1, size=x.shape), x.dtype), shapes)
    goal = jp.tree.take(train, jnp.arange(2))
    return jp.Scenario(train, goal, jnp.arange(3, dtype=jnp.int32), aux=aux)


def size(variables):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(variables.params))


def objective(victim):
    """Size of the network times the mean of x, and its aim too is that size."""

    def value_and_grad(key, variables, aim, batch, scenario):
        del key, scenario
        return jax.value_and_grad(lambda x: (size(variables) + aim) * jnp.mean(x))(batch.image)

    return Objective(lambda key, variables, scenario: size(variables), value_and_grad)


@functools.cache
def attack(**options):
    options = {"retrain": RECIPE, "steps": 3, "init": "zero", "optimizer": "pgd"} | options
    return craft(victim(), objective, eps=0.1, crafting=Crafting(tau=0.4, **options))


def crafted(aux, **options):
    one, data = attack(**options), scenario()._replace(aux=aux)
    return one, *jp.run(one, KEY, data, num_steps=3), data


@functools.cache
def finished(on="poisoned"):
    return crafted(scenario().aux, retrain_on=on)


@pytest.mark.parametrize("on", ["poisoned", "clean"])
def test_the_surrogate_takes_the_recipes_epochs_between_steps(on):
    _, state, info, data = finished(on)
    training = victim_training(victim(), RECIPE, NUM)
    epoch = jax.jit(training.step)
    fresh = jax.jit(training.init)(KEY, jp.Split(data.train, data.goal))
    phi = TrainState(data.aux.params, data.aux.stats, fresh.opt_state)
    delta, (_, steps_key) = np.zeros((3, 4, 4, 1), np.float32), jax.random.split(KEY)
    for m in range(3):
        if m:
            image = data.train.image.at[:3].add(delta) if on == "poisoned" else data.train.image
            own = jax.random.split(jax.random.fold_in(steps_key, m), 3)[1]
            own = jax.random.fold_in(own, state.phi.member)
            phi, _ = epoch(own, phi, jp.Split(data.train._replace(image=image), data.goal))
        poisoned = np.mean(np.asarray(data.train.image[:3]) + delta)
        expected = 2 * float(size(phi.variables)) * poisoned
        np.testing.assert_allclose(info.outer_loss[m], expected, rtol=1e-5)
        delta = np.maximum(delta - 0.4 * 0.1, -0.1)  # the gradient is positive everywhere
    chex.assert_trees_all_close(state.phi.state, phi, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(state.phi.aim, size(phi.variables), rtol=1e-5)
    np.testing.assert_allclose(state.theta, delta, atol=1e-6)


def test_a_training_state_goes_on_where_it_stands():
    training = victim_training(victim(), RECIPE, NUM)
    fresh = jax.jit(training.init)(KEY, jp.Split(scenario().train, scenario().goal))
    begun = TrainState(*scenario().aux, fresh.opt_state)
    _, state, info, _ = crafted(begun)
    chex.assert_trees_all_close(state, finished()[1], rtol=1e-6)
    moved = jax.tree.map(lambda x: x + 1 if x.ndim else x, fresh.opt_state)  # its momentum
    _, _, other, _ = crafted(begun._replace(opt_state=moved))
    assert info.outer_loss[0] == other.outer_loss[0] and info.outer_loss[1] != other.outer_loss[1]
    with pytest.raises(InputError, match="^the optimizer state of scenario.aux is not that of the"):
        crafted(begun._replace(opt_state=()))
    with pytest.raises(InputError, match="^scenario.aux is not the Variables of its network"):
        crafted(begun, retrain=None)


def test_members_train_apart_on_the_same_poisons():
    two = jax.tree.map(lambda x: jnp.stack([x, x]), scenario().aux)
    one, state, info, data = crafted(two, ensemble=2, score="averaged", score_draws=2)
    phi = state.phi.state
    assert info.outer_loss.shape == (3,)
    kernel = np.asarray(jax.tree.leaves(phi.params)[0])
    assert not np.array_equal(kernel[0], kernel[1])  # their epochs are shuffled differently
    sizes = [float(size(jp.tree.take(phi, m).variables)) for m in range(2)]
    score = jax.jit(one.score)(state, data)
    poisons = np.mean(np.asarray(data.train.image[:3]) + np.asarray(state.theta))
    np.testing.assert_allclose(score, 2 * np.mean(sizes) * poisons, rtol=1e-5)


def test_wrong_values_are_one_line():
    with pytest.raises(InputError, match="^retrain_on = 'both'; allowed are poisoned, clean$"):
        Crafting(retrain_on="both")
    big = Recipe(epochs=1, batch_size=9, learning_rate=0.1)
    with pytest.raises(InputError, match="^batch_size = 9 is larger than the training set of 8"):
        crafted(scenario().aux, retrain=big)
