"""The loss after a few steps on the poisons: against numpy, and against the formula of one step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpoison.hypergrad import adaptation, at_surrogate
from jaxpoison.perturb import Budget, at_clean, per_sample
from jaxpoison.types import InputError, Variables
from tests import oracles
from tests.attacks import tiny

KEY = jax.random.key(0)
VICTIM = oracles.smooth_victim()
pytestmark = pytest.mark.usefixtures("quick_compile")


def after_training(w, v, x, y, goal, steps, rate):
    """CE of the goal once the two-layer net took `steps` of gradient descent; numpy alone."""
    for _ in range(steps):
        _, _, at_w, at_v = tiny.losses_and_gradients(w, v, x, y)
        w, v = w - rate * at_w / len(y), v - rate * at_v / len(y)
    return tiny.losses_and_gradients(w, v, *goal)[0].mean()


@pytest.mark.parametrize("steps", [1, 2])
def test_value_and_gradient_are_those_of_numpy(x64, steps):
    scenario, variables, rate = oracles.tiny_scenario(), VICTIM.init(KEY), 0.7
    objective = adaptation(VICTIM, steps=steps, learning_rate=rate)
    batch = per_sample(Budget("linf", 0.1)).apply(jnp.zeros((5, 3, 3, 1)), scenario, jnp.arange(5))
    aim = objective.aim(KEY, variables, scenario)
    value, gradient = jax.jit(objective.value_and_grad)(KEY, variables, aim, batch, scenario)
    w, v = (np.asarray(variables.params[name]) for name in "wv")
    goal, y = tuple(map(np.asarray, scenario.goal)), np.asarray(batch.label)

    def by_numpy(x):
        return after_training(w, v, x, y, goal, steps, rate)

    image = np.asarray(batch.image)
    np.testing.assert_allclose(value, by_numpy(image), rtol=1e-12)
    expected = oracles.central_differences(by_numpy, image)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-10)


def test_one_small_step_is_the_scalar_product_with_the_target_gradient(x64):
    """-a d<t', p>/d delta, by two reverse passes."""
    scenario, variables, rate = oracles.tiny_scenario(), VICTIM.init(KEY), 1e-4
    batch = per_sample(Budget("linf", 0.1)).apply(jnp.zeros((5, 3, 3, 1)), scenario, jnp.arange(5))

    def loss(params, image, label):
        scores, _ = VICTIM.apply(Variables(params, {}), image, train=False)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, label))

    start = variables.params
    objective = adaptation(VICTIM, steps=1, learning_rate=rate)

    @jax.jit
    def gradients(image):
        p = jax.grad(loss)(start, image, batch.label)
        moved = jax.tree.map(lambda w, g: w - rate * g, start, p)
        target = jax.grad(loss)(moved, *scenario.goal)

        def product(image):
            p = jax.grad(loss)(start, image, batch.label)
            return -rate * sum(jnp.vdot(target[name], p[name]) for name in p)

        own = batch._replace(image=image)
        found = objective.value_and_grad(KEY, variables, (), own, scenario)[1]
        return found, jax.grad(product)(image)

    np.testing.assert_allclose(*gradients(batch.image), rtol=1e-10)


def test_the_clean_gradient_is_taken_at_zero_whatever_delta_is(x64):
    scenario = oracles.tiny_scenario()._replace(aux=VICTIM.init(KEY))
    space = per_sample(Budget("linf", 0.1))
    objective = adaptation(VICTIM, learning_rate=0.7)
    plain, clean = (at_surrogate(objective, s, batch_size=3) for s in (space, at_clean(space)))
    delta = jnp.asarray(np.random.RandomState(2).uniform(-0.1, 0.1, (5, 3, 3, 1)))
    phi, estimate = plain.init(KEY, scenario), jax.jit(plain.estimate)
    at_zero, _, _ = estimate(KEY, jnp.zeros_like(delta), phi, scenario)
    at_delta, _, _ = estimate(KEY, delta, phi, scenario)
    gradient, _, _ = jax.jit(clean.estimate)(KEY, delta, phi, scenario)
    np.testing.assert_allclose(gradient, at_zero, rtol=1e-12)
    assert np.abs(gradient - at_delta).max() > 1e-4


def test_no_dtype_is_promoted(strict_dtypes):
    scenario = oracles.tiny_scenario()._replace(aux=VICTIM.init(KEY))
    space = per_sample(Budget("linf", 0.1))
    hypergrad = at_surrogate(adaptation(VICTIM), at_clean(space))
    theta = jnp.full((5, 3, 3, 1), 0.05)
    phi = hypergrad.init(KEY, scenario)
    gradient, _, loss = jax.eval_shape(hypergrad.estimate, KEY, theta, phi, scenario)
    assert gradient.dtype == loss.dtype == np.float32


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="steps = 0; it must be at least 1"):
        adaptation(VICTIM, steps=0)
    with pytest.raises(InputError, match="learning_rate = -1"):
        adaptation(VICTIM, learning_rate=-1)
