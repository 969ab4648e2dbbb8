"""Hypergradients against closed forms of a quadratic game and finite differences in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpoison import victims
from jaxpoison.ensemble import over_ensemble
from jaxpoison.hypergrad import alternating, one_step, poisoned_training, rowwise_loss, unrolled
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import InputError, TrainState
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


@pytest.fixture
def quadratic(x64):
    return oracles.quadratic()


@pytest.mark.parametrize("steps", [1, 2, 7, 36])
@pytest.mark.parametrize("remat", [True, False])
def test_unrolled_is_the_closed_form(quadratic, steps, remat):
    estimator = unrolled(oracles.quadratic_problem(quadratic), steps=steps, remat=remat)
    theta = jnp.array([0.3, -1.0, 0.5])
    phi = estimator.init(KEY, None)
    gradient, after, loss = jax.jit(estimator.estimate)(KEY, theta, phi, None)
    expected = quadratic.after(np.asarray(theta), steps)
    np.testing.assert_allclose(after.params, expected, rtol=1e-10)
    np.testing.assert_allclose(
        loss, np.sum((expected - quadratic.b) ** 2) / 2 + quadratic.c @ theta, rtol=1e-10
    )
    np.testing.assert_allclose(
        gradient, quadratic.hypergradient(np.asarray(theta), steps), rtol=1e-9
    )


@pytest.mark.parametrize("steps", [2, 36])
def test_unrolled_read_after_every_step_is_the_mean_of_the_closed_forms(quadratic, steps):
    estimator = unrolled(oracles.quadratic_problem(quadratic), steps=steps, every_step=True)
    theta = np.array([0.3, -1.0, 0.5])
    phi = estimator.init(KEY, None)
    gradient, after, loss = jax.jit(estimator.estimate)(KEY, jnp.asarray(theta), phi, None)
    ks = range(1, steps + 1)
    values = [np.sum((quadratic.after(theta, k) - quadratic.b) ** 2) / 2 for k in ks]
    np.testing.assert_allclose(loss, np.mean(values) + quadratic.c @ theta, rtol=1e-10)
    expected = np.mean([quadratic.hypergradient(theta, k) for k in ks], axis=0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)
    np.testing.assert_allclose(after.params, quadratic.after(theta, steps), rtol=1e-10)


def test_unrolled_goes_on_or_starts_anew(quadratic):
    theta = jnp.array([0.3, -1.0, 0.5])
    moved = TrainState(jnp.zeros(4), (), ())
    for restart, start in ((False, np.zeros(4)), (True, quadratic.start)):
        estimator = unrolled(oracles.quadratic_problem(quadratic), steps=2, restart=restart)
        _, after, _ = estimator.estimate(KEY, theta, moved, None)
        np.testing.assert_allclose(after.params, quadratic.after(theta, 2, start), rtol=1e-10)


def test_one_step_is_the_hand_formula(quadratic):
    q = quadratic
    theta, rate = np.array([0.3, -1.0, 0.5]), 0.07
    ahead = q.start - rate * q.h @ (q.start - q.a @ theta)
    expected = rate * q.a.T @ q.h @ (ahead - q.b) + q.c
    estimator = one_step(oracles.quadratic_problem(q), learning_rate=rate)
    gradient, after, loss = jax.jit(estimator.estimate)(
        KEY, jnp.asarray(theta), estimator.init(KEY, None), None
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    np.testing.assert_allclose(loss, np.sum((ahead - q.b) ** 2) / 2 + q.c @ theta, rtol=1e-10)
    np.testing.assert_allclose(after.params, q.after(theta, 1), rtol=1e-10)


def test_one_step_equals_one_unrolled_step(quadratic):
    problem, theta = oracles.quadratic_problem(quadratic), jnp.array([0.3, -1.0, 0.5])
    phi = problem.inner_init(KEY, None)
    short = one_step(problem, learning_rate=quadratic.rate).estimate(KEY, theta, phi, None)
    long = unrolled(problem, steps=1).estimate(KEY, theta, phi, None)
    np.testing.assert_allclose(short[0], long[0], rtol=1e-10)


def test_alternating_takes_the_partial_derivative(quadratic):
    problem, theta = oracles.quadratic_problem(quadratic), jnp.array([0.3, -1.0, 0.5])
    phi = problem.inner_init(KEY, None)
    gradient, after, _ = alternating(problem, inner_steps=3).estimate(KEY, theta, phi, None)
    np.testing.assert_allclose(gradient, quadratic.c)
    np.testing.assert_allclose(after.params, quadratic.after(theta, 3), rtol=1e-10)
    _, still, _ = alternating(problem, inner_steps=0).estimate(KEY, theta, phi, None)
    chex.assert_trees_all_equal(still, phi)


def game(scenario, tx):
    """Poisoned training of a smooth net; the outer loss reads clean goal data."""
    del scenario
    victim = oracles.smooth_victim()
    model = victims.learner(victim, tx)

    def outer_loss(key, theta, phi, scenario):
        del key, theta
        scores, _ = victim.apply(phi.variables, scenario.goal.image, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, scenario.goal.label)
        return jnp.mean(losses)

    space = per_sample(Budget("linf", 0.1))
    return poisoned_training(model, space, batch_size=6, outer_loss=outer_loss)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda p: unrolled(p, steps=3),
        lambda p: one_step(p, learning_rate=0.5),
    ],
    ids=["unrolled", "one_step"],
)
def test_hypergradient_of_poisoned_training_is_central_differences(x64, estimator):
    scenario = oracles.tiny_scenario()
    hypergrad = estimator(game(scenario, optax.sgd(0.5, momentum=0.9)))
    theta = jnp.asarray(np.random.RandomState(2).uniform(-0.1, 0.1, (5, 3, 3, 1)))
    phi = hypergrad.init(KEY, scenario)
    loss = jax.jit(lambda t: hypergrad.estimate(KEY, t, phi, scenario)[2])
    gradient = jax.jit(hypergrad.estimate)(KEY, theta, phi, scenario)[0]
    expected = oracles.central_differences(loss, np.asarray(theta))
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda p: unrolled(p, steps=3),
        lambda p: one_step(p, learning_rate=0.5),
        lambda p: alternating(p, inner_steps=2),
        lambda p: over_ensemble(unrolled(p, steps=2), 2),
    ],
    ids=["unrolled", "one_step", "alternating", "ensemble"],
)
def test_no_dtype_is_promoted(strict_dtypes, estimator):
    scenario = oracles.tiny_scenario()
    hypergrad = estimator(game(scenario, optax.sgd(0.5, momentum=0.9)))
    theta = jnp.full((5, 3, 3, 1), 0.05)
    phi = hypergrad.init(KEY, scenario)
    gradient, after, loss = jax.jit(hypergrad.estimate)(KEY, theta, phi, scenario)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, phi)
    assert gradient.dtype == loss.dtype == np.float32 and np.isfinite(gradient).all()


@pytest.mark.parametrize("all_rows", [False, True])
def test_rowwise_loss_promotes_no_dtype(strict_dtypes, all_rows):
    scenario = oracles.tiny_scenario()
    victim = oracles.smooth_victim()

    def row_loss(key, phi, image, label):
        del key
        scores, _ = victim.apply(phi, image, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(scores, label)

    space = per_sample(Budget("linf", 0.1))
    outer = rowwise_loss(row_loss, space, batch_size=2, all_rows=all_rows)
    variables, theta = victim.init(KEY), jnp.full((5, 3, 3, 1), 0.05)
    value, gradient = jax.value_and_grad(lambda t: outer(KEY, t, variables, scenario))(theta)
    assert value.dtype == gradient.dtype == np.float32 and np.isfinite(gradient).all()


@pytest.mark.parametrize("batch_size", [2, 5, 64])
@pytest.mark.parametrize("all_rows", [False, True])
def test_rowwise_loss_is_the_mean_over_rows(x64, batch_size, all_rows):
    scenario = oracles.tiny_scenario()
    victim = oracles.smooth_victim()
    space = per_sample(Budget("linf", 0.1))
    variables = victim.init(KEY)

    def row_loss(key, phi, image, label):
        del key
        scores, _ = victim.apply(phi, image, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(scores, label)

    def plain(theta):
        rows = jnp.arange(8) if all_rows else scenario.index
        batch = space.apply(theta, scenario, rows)
        return jnp.mean(row_loss(None, variables, batch.image, batch.label))

    outer = rowwise_loss(row_loss, space, batch_size=batch_size, all_rows=all_rows)
    theta = jnp.asarray(np.random.RandomState(2).uniform(-0.1, 0.1, (5, 3, 3, 1)))
    value, gradient = jax.value_and_grad(lambda t: outer(KEY, t, variables, scenario))(theta)
    expected, expected_gradient = jax.value_and_grad(plain)(theta)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-10)


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_an_ensemble_is_the_mean_of_its_members(quadratic, chunk):
    del quadratic
    scenario = oracles.tiny_scenario()
    single = unrolled(game(scenario, optax.sgd(0.5)), steps=2)
    ensemble = over_ensemble(single, 4, chunk=chunk)
    theta = jnp.zeros((5, 3, 3, 1))
    phi = ensemble.init(KEY, scenario)
    gradient, after, loss = ensemble.estimate(KEY, theta, phi, scenario)
    members = []
    for m in range(4):
        key = jax.random.fold_in(KEY, m)
        members.append(single.estimate(key, theta, single.init(key, scenario), scenario))
    np.testing.assert_allclose(gradient, np.mean([g for g, _, _ in members], axis=0), rtol=1e-9)
    np.testing.assert_allclose(loss, np.mean([value for _, _, value in members]), rtol=1e-9)
    np.testing.assert_allclose(
        after.params["w"], np.stack([p.params["w"] for _, p, _ in members]), rtol=1e-9
    )


def test_an_ensemble_gives_each_member_its_own_frozen_parameters(x64):
    q = oracles.quadratic()
    problem = oracles.quadratic_problem(q)
    problem = problem._replace(inner_init=lambda key, s: TrainState(s.aux, (), ()))
    stacked = jnp.arange(12.0).reshape(3, 4)
    scenario = oracles.tiny_scenario()._replace(aux=stacked)
    ensemble = over_ensemble(alternating(problem, inner_steps=0), 3, aux_axis=0)
    np.testing.assert_array_equal(ensemble.init(KEY, scenario).params, stacked)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: unrolled(p, steps=0), "steps = 0"),
        (lambda p: alternating(p, inner_steps=-1), "inner_steps = -1"),
        (lambda p: over_ensemble(alternating(p, inner_steps=0), 0), "num = 0"),
        (lambda p: over_ensemble(alternating(p, inner_steps=0), 2, chunk=0), "chunk = 0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make(oracles.quadratic_problem(oracles.quadratic()))
