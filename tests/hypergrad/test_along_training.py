"""An epoch of unrolls along clean training: against numpy and finite differences in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.hypergrad import along_training
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Dataset, InputError
from jaxpoison.victims import Recipe
from tests import oracles
from tests.attacks import tiny

KEY, RATE, INDEX = jax.random.key(0), 0.5, np.array([1, 4, 6])
RECIPE = Recipe(10, 4, RATE, momentum=0.0)
SPACE = per_sample(Budget("linf", 0.2))
pytestmark = pytest.mark.usefixtures("quick_compile")
VICTIMS = {"plain": oracles.smooth_victim(), "normalized": oracles.normalized_victim()}


def score(logits, label):
    """A smooth loss of the targets, so that central differences are exact to their order."""
    wanted = jnp.take_along_axis(logits, label[:, None], axis=1)
    return jnp.mean(jnp.tanh((logits.sum(axis=1, keepdims=True) - 4 * wanted) / 8))


def penalty(theta):
    return jnp.sum(theta**3)


def scenario(age=1):
    """Eight rows, two batches of four; one target."""
    whole = oracles.tiny_scenario()
    goal = Dataset(whole.goal.image[:1], whole.goal.label[:1])
    return whole._replace(index=jnp.asarray(INDEX, jnp.int32), goal=goal, aux=jnp.int32(age))


@functools.cache
def hypergrad(name, **options):
    settings = {"steps": 2, "target_loss": score, "restart_after": 3, "penalty": penalty} | options
    return along_training(VICTIMS[name], SPACE, RECIPE, **settings)


@functools.cache
def compiled(name):
    return jax.jit(hypergrad(name).init), jax.jit(hypergrad(name).estimate)


def noise():
    return jnp.asarray(np.random.RandomState(2).uniform(-0.1, 0.1, (3, 3, 3, 1)))


@pytest.mark.parametrize("name", VICTIMS)
def test_the_gradient_of_an_epoch_is_central_differences(x64, name):
    init, estimate = compiled(name)
    phi = init(KEY, scenario())
    gradient, _, _ = estimate(KEY, noise(), phi, scenario())
    expected = oracles.central_differences(
        lambda t: estimate(KEY, jnp.asarray(t), phi, scenario())[2], noise()
    )
    assert np.abs(expected).max(axis=(1, 2, 3)).min() > 1e-3  # of every poison
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spread", [True, False], ids=["both batches", "one batch"])
def test_the_value_and_the_surrogate_are_those_of_numpy(x64, spread):
    """The net in numpy, on the same order of rows; its surrogate never sees a poison.

    A batch without poisons counts for nothing, in the sum and in the number that it is divided by.
    """
    order = jax.random.permutation(jax.random.split(jax.random.split(KEY)[0])[0], 8)
    batches = np.asarray(order).reshape(2, 4)
    index = INDEX if spread else batches[1, :3]
    assert [np.isin(rows, index).any() for rows in batches] == [spread, True]
    init, estimate = compiled("plain")
    data = scenario()._replace(index=jnp.asarray(index, jnp.int32))
    phi = init(KEY, data)
    _, after, loss = estimate(KEY, noise(), phi, data)
    x, y = np.asarray(data.train.image), np.asarray(data.train.label)
    poisoned = x.copy()
    poisoned[index] += np.asarray(noise())

    def step(weights, images, rows):
        _, _, at_w, at_v = tiny.losses_and_gradients(*weights, images[rows], y[rows])
        return weights[0] - RATE * at_w / 4, weights[1] - RATE * at_v / 4

    def read(weights):
        logits, _ = tiny.forward(*weights, np.asarray(data.goal.image))
        return float(score(jnp.asarray(logits), data.goal.label))

    weights, values = tuple(np.asarray(phi.state.params[k]) for k in "wv"), []
    for b, rows in enumerate(batches):
        one = step(weights, poisoned, rows)
        two = step(one, x, batches[(b + 1) % 2])
        if np.isin(rows, index).any():
            values.append((read(one) + read(two)) / 2)
        weights = step(weights, x, rows)
    expected = (sum(values) + np.sum(np.asarray(noise()) ** 3)) / len(values)
    np.testing.assert_allclose(loss, expected, rtol=1e-10)
    np.testing.assert_allclose(after.state.params["w"], weights[0], rtol=1e-10)
    np.testing.assert_allclose(after.state.params["v"], weights[1], rtol=1e-10)


def test_after_step_k_the_targets_are_read_beside_clean_batch_b_plus_k(x64):
    """The epoch once more, batch by batch, in the formulas of `along_training`."""
    init, estimate = compiled("normalized")
    data, net = scenario(), VICTIMS["normalized"]
    phi = init(KEY, data)
    order = jax.random.permutation(jax.random.split(jax.random.split(KEY)[0])[0], 8)
    poisoned = data.train.image.at[INDEX].add(noise())

    def logits(params, images, rows):
        beside = jnp.concatenate([images[rows], data.goal.image])
        return net.apply(phi.state.variables._replace(params=params), beside, train=True)[0]

    def step(params, images, rows):
        def loss(params):
            logs = jax.nn.log_softmax(logits(params, images, rows)[:4])
            return -jnp.mean(logs[jnp.arange(4), data.train.label[rows]])

        return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss)(params))

    @jax.jit
    def epoch(params):
        clean, total, rows = data.train.image, 0.0, order.reshape(2, 4)
        for b in range(2):
            one = step(params, poisoned, rows[b])
            two = step(one, clean, rows[1 - b])
            for weights, at in ((one, rows[1 - b]), (two, rows[b])):
                total += score(logits(weights, clean, at)[4:], data.goal.label) / 4
            params = step(params, clean, rows[b])
        return total

    expected = epoch(phi.state.params) + penalty(noise()) / 2
    np.testing.assert_allclose(estimate(KEY, noise(), phi, data)[2], expected, rtol=1e-10)


def test_ages_and_the_fresh_start(x64):
    """Steps taken are epochs x batches; a surrogate of full age forgets every image it saw."""
    init, estimate = compiled("plain")
    other = scenario()._replace(train=scenario().train._replace(image=0.5 * scenario().train.image))
    for age in (0, 1, 2):
        phi = init(KEY, scenario(age))
        assert phi.epoch == age
        _, after, _ = estimate(KEY, noise(), phi, scenario())
        elsewhere = init(KEY, other._replace(aux=jnp.int32(age)))
        _, changed, _ = estimate(KEY, noise(), elsewhere, other)
        gap = np.abs(after.state.params["w"] - changed.state.params["w"]).max()
        if age < 2:
            assert after.epoch == age + 1 and gap > 1e-3
        else:
            assert after.epoch == 0 and gap == 0
            assert np.abs(after.state.params["w"] - phi.state.params["w"]).max() > 0.1
    young, old = init(KEY, scenario(0)), init(KEY, scenario(1))
    assert np.abs(young.state.params["w"] - old.state.params["w"]).max() > 1e-3


@pytest.mark.parametrize("name", VICTIMS)
def test_targets_are_in_the_batch_statistics_where_there_are_any(x64, name):
    _, estimate = compiled(name)
    phi = compiled(name)[0](KEY, scenario())
    goal = scenario().goal
    far = scenario()._replace(goal=Dataset(1 - goal.image, goal.label))
    states = [estimate(KEY, noise(), phi, data)[1].state for data in (scenario(), far)]
    gap = np.abs(states[0].params["w"] - states[1].params["w"]).max()
    assert (gap > 1e-4) == (name == "normalized")


def test_no_dtype_is_promoted(strict_dtypes):
    data = scenario()
    estimator = hypergrad("normalized")
    phi = jax.eval_shape(estimator.init, KEY, data)
    theta = jax.ShapeDtypeStruct((3, 3, 3, 1), jnp.float32)
    gradient, after, loss = jax.eval_shape(estimator.estimate, KEY, theta, phi, data)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, phi)
    assert gradient.dtype == loss.dtype == np.float32


def test_bad_settings_are_named():
    for options, message in (
        ({"steps": 0}, "steps = 0"),
        ({"restart_after": 0}, "restart_after = 0"),
    ):
        with pytest.raises(InputError, match=message):
            hypergrad("plain", **options)
    adversarial = Recipe(1, 4, 0.1, adversarial="pgd")
    with pytest.raises(InputError, match="adversarial = 'pgd'"):
        along_training(
            VICTIMS["plain"], SPACE, adversarial, steps=1, target_loss=score, restart_after=1
        )
    with pytest.raises(InputError, match="scenario.index is empty"):
        hypergrad("plain").init(KEY, scenario()._replace(index=jnp.zeros(0, jnp.int32)))
    large = along_training(
        VICTIMS["plain"], SPACE, Recipe(1, 9, 0.1), steps=1, target_loss=score, restart_after=1
    )
    with pytest.raises(InputError, match="batch_size = 9 is larger than the training set of 8"):
        large.init(KEY, scenario())
