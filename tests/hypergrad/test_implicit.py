"""The total gradient against closed forms, re-solved differences and long unrolls, in float64."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.hypergrad import cg, implicit, neumann, normal_cg, unrolled
from jaxpoison.types import Bilevel, InputError, TrainState
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
X = np.random.RandomState(5).randn(8, 4)


def estimate(rule, theta, phi=None, scenario=None):
    phi = rule.init(KEY, scenario) if phi is None else phi
    return jax.jit(rule.estimate)(KEY, theta, phi, scenario)


@pytest.mark.parametrize("solver", [cg, normal_cg, functools.partial(neumann, step_size=0.3)])
def test_ridge_is_the_closed_form(x64, solver):
    r = oracles.ridge()
    rule = implicit(oracles.ridge_problem(r), solver=solver, iterations=400, inner_steps=600)
    gradient, phi, loss = estimate(rule, jnp.asarray(X))
    np.testing.assert_allclose(gradient, r.hypergradient(X), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(phi.follower.params, r.solution(X), rtol=1e-10)
    np.testing.assert_allclose(loss, np.sum((r.z @ r.solution(X) - r.t) ** 2) / 10, rtol=1e-10)
    assert phi.solve.residual < 1e-9


def test_a_direct_effect_of_theta_is_added(x64):
    """The outer loss of the quadratic game reads theta itself as well."""
    q = oracles.quadratic()
    theta = np.array([0.3, -1.0, 0.5])
    rule = implicit(oracles.quadratic_problem(q), iterations=4, inner_steps=600)
    gradient, _, _ = estimate(rule, jnp.asarray(theta))
    np.testing.assert_allclose(gradient, q.a.T @ (q.a @ theta - q.b) + q.c, rtol=1e-8)


def test_damping_and_a_follower_that_does_not_rest_follow_the_formula(x64):
    """One inner step and a damped H: nothing but the formula, at the phi that is there."""
    r = oracles.ridge()
    rule = implicit(oracles.ridge_problem(r, rate=0.2), iterations=4, damping=0.5, inner_steps=1)
    gradient, after, _ = estimate(rule, jnp.asarray(X))
    phi = 0.2 * X.T @ r.y / 8
    np.testing.assert_allclose(after.follower.params, phi, rtol=1e-12)
    h = X.T @ X / 8 + (r.decay + 0.5) * np.eye(4)
    v = np.linalg.solve(h, r.z.T @ (r.z @ phi - r.t) / 5)
    expected = -(np.outer(X @ phi - r.y, v) + np.outer(X @ v, phi)) / 8
    np.testing.assert_allclose(gradient, expected, rtol=1e-9)


@pytest.mark.parametrize("problem", ["ridge", "quadratic"])
def test_long_unrolls_tend_to_it(x64, problem):
    if problem == "ridge":
        game, theta = oracles.ridge_problem(oracles.ridge()), jnp.asarray(X)
    else:
        game = oracles.quadratic_problem(oracles.quadratic())
        theta = jnp.array([0.3, -1.0, 0.5])
    expected = estimate(implicit(game, iterations=8, inner_steps=2000), theta)[0]
    errors = []
    for steps in (5, 50, 1000):
        gradient, _, _ = estimate(unrolled(game, steps=steps), theta)
        errors.append(float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected)))
    assert errors[0] > 10 * errors[1] and errors[2] < 1e-9


def added_points_game(decay, classes, rate=1.0):
    """Softmax regression without bias on clean rows and added points; outer is minus the goal's CE.

    inner = sum over all rows of CE / N + decay |W|^2 / 2; theta [P, D].
    """
    ce = optax.softmax_cross_entropy_with_integer_labels

    def inner_loss(key, theta, phi, scenario):
        del key
        clean, label = scenario.train.image.reshape(-1, theta.shape[1]), scenario.train.label
        losses = jnp.concatenate([
            ce(clean @ phi.params, label),
            ce(theta @ phi.params, label[scenario.index]),
        ])  # fmt: skip
        return jnp.sum(losses) / label.shape[0] + decay / 2 * jnp.sum(phi.params**2)

    def inner_init(key, scenario):
        del key
        return TrainState(jnp.zeros((scenario.train.image[0].size, classes)), (), ())

    def inner_step(key, theta, phi, scenario):
        slope = jax.grad(lambda p: inner_loss(key, theta, TrainState(p, (), ()), scenario))
        return TrainState(phi.params - rate * slope(phi.params), (), ()), None

    def outer_loss(key, theta, phi, scenario):
        del key, theta
        scores = scenario.goal.image.reshape(len(scenario.goal.label), -1) @ phi.params
        return -jnp.mean(ce(scores, scenario.goal.label))

    return Bilevel(inner_init, inner_step, inner_loss, outer_loss)


def test_total_gradient_is_central_differences_of_the_re_solved_problem(x64):
    decay, classes = 0.05, 3
    scenario = oracles.tiny_scenario(num=10, side=2, changed=3)
    image, label = np.asarray(scenario.train.image), np.asarray(scenario.train.label)
    goal = np.asarray(scenario.goal.image).reshape(4, 4), np.asarray(scenario.goal.label)
    theta = np.random.RandomState(6).uniform(0, 1, (3, 4))

    def re_solved(points):
        rows = np.concatenate([image.reshape(10, 4), points])
        labels = np.concatenate([label, label[:3]])
        w = oracles.softmax_regression(rows, labels, classes, decay=decay, divisor=10)
        scores = goal[0] @ w
        top = np.log(np.exp(scores).sum(axis=1))
        return np.mean(scores[np.arange(4), goal[1]] - top)

    rule = implicit(added_points_game(decay, classes), iterations=24, inner_steps=800)
    gradient, _, loss = estimate(rule, jnp.asarray(theta), scenario=scenario)
    expected = oracles.central_differences(re_solved, theta)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(loss, re_solved(theta), rtol=1e-8)
    relative = np.linalg.norm(gradient - expected) / np.linalg.norm(expected)
    assert relative < 1e-5
    steps = unrolled(added_points_game(decay, classes), steps=800)
    np.testing.assert_allclose(
        estimate(steps, jnp.asarray(theta), scenario=scenario)[0], gradient, rtol=1e-6
    )


def training_game():
    """Poisoned training of a smooth net: params are a dict, the follower a TrainState."""
    victim = oracles.smooth_victim()
    space = jp.perturb.per_sample(jp.perturb.Budget("linf", 0.1))

    def outer_loss(key, theta, phi, scenario):
        del key, theta
        scores, _ = victim.apply(phi.variables, scenario.goal.image, train=False)
        ce = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(ce(scores, scenario.goal.label))

    model = jp.victims.learner(victim, optax.sgd(0.5, momentum=0.9))
    return jp.hypergrad.poisoned_training(model, space, batch_size=6, outer_loss=outer_loss)


def test_any_training_and_no_dtype_is_promoted(strict_dtypes):
    scenario = oracles.tiny_scenario()
    rule = implicit(training_game(), iterations=3, damping=0.1, inner_steps=2)
    theta = jnp.full((5, 3, 3, 1), 0.05)
    phi = rule.init(KEY, scenario)
    gradient, after, loss = estimate(rule, theta, phi, scenario)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, phi)
    assert gradient.dtype == loss.dtype == np.float32
    assert np.abs(gradient).max() > 0 and np.isfinite(gradient).all()
    assert 0 < after.solve.residual < 1 and after.solve.iterations == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations = 0"),
        ({"inner_steps": -1}, "inner_steps = -1"),
        ({"damping": -1.0}, "damping = -1"),
        ({"tolerance": -1.0}, "tolerance = -1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        implicit(oracles.ridge_problem(oracles.ridge()), **settings)
