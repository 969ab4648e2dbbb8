"""Victims at the minimum: scikit-learn's solver, stationarity in numpy, and the loops."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import jaxpoison as jp
from jaxpoison.types import InputError, Split
from jaxpoison.victims import ToConvergence, converge, convergent_training

pytestmark = pytest.mark.usefixtures("quick_module")
NUM, FEATURES, CLASSES = 30, 4, 3


def rows(dtype=np.float32, num=NUM, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, num)
    image = rng.normal(size=(num, FEATURES)) + np.eye(CLASSES, FEATURES)[label]
    return jp.Dataset(jnp.asarray(image[:, None, None, :], dtype), jnp.asarray(label, jnp.int32))


@functools.cache
def head(dtype=jnp.float32, bias=True):
    return jp.models.logistic_regression((1, 1, FEATURES), CLASSES, bias=bias, dtype=dtype)


def flat(dataset):
    return np.asarray(dataset.image, np.float64).reshape(len(dataset.label), -1)


def reference(dataset, decay, weight=None):
    """[D + 1, L] of sum_i a_i CE / sum_i a_i + decay / 2 ||w||^2, the bias as a feature of ones."""
    data = np.concatenate([flat(dataset), np.ones((len(dataset.label), 1))], axis=1)
    total = len(data) if weight is None else weight.sum()
    fit = LogisticRegression(
        C=1 / (decay * total), fit_intercept=False, solver="newton-cg", tol=1e-12
    )
    return fit.fit(data, np.asarray(dataset.label), sample_weight=weight).coef_.T


def stacked(variables):
    kernel, bias = sorted(jax.tree.leaves(variables.params), key=lambda x: -x.ndim)
    return np.concatenate([kernel, bias[None]])


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_it_is_scikit_learns_minimum(x64, batch_size):
    data, victim = rows(np.float64), head(jnp.float64)
    settings = ToConvergence(weight_decay=0.05, tolerance=1e-10, batch_size=batch_size)
    found, solved = converge(victim, victim.init(jax.random.key(0)), data, settings, num_clean=NUM)
    np.testing.assert_allclose(stacked(found), reference(data, 0.05), atol=1e-8)
    assert solved.grad_norm < 1e-10 and 1 < solved.steps < 100
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(found))


def test_the_reported_norm_is_that_of_the_gradient_and_the_step_limit_shows():
    data, victim = rows(), head()
    start = victim.init(jax.random.key(1))
    for steps in (2, 200):
        settings = ToConvergence(weight_decay=0.1, tolerance=1e-6, max_steps=steps)
        found, solved = converge(victim, start, data, settings, num_clean=NUM)
        w, x = stacked(found).astype(np.float64), flat(data)
        x = np.concatenate([x, np.ones((NUM, 1))], axis=1)
        scores = np.exp(x @ w)
        wrong = scores / scores.sum(1, keepdims=True) - np.eye(CLASSES)[data.label]
        size = np.linalg.norm(x.T @ wrong / NUM + 0.1 * w)
        np.testing.assert_allclose(solved.grad_norm, size, rtol=1e-3, atol=5e-7)
        assert (size < 2e-6) == (steps == 200)
        assert (solved.steps == 2) == (steps == 2)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))


def test_added_rows_and_normalization(x64):
    """D is stated: all rows, or clean rows alone; a heavy point is many equal ones."""
    victim, clean, added = head(jnp.float64), rows(np.float64), rows(np.float64, 4, seed=1)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), clean, added)
    start, exact = victim.init(jax.random.key(0)), {"tolerance": 1e-10}

    def solved(data=both, weights=None, **options):
        settings = ToConvergence(weight_decay=0.05, **exact, **options)
        return stacked(
            converge(victim, start, data, settings, num_clean=NUM, row_weights=weights)[0]
        )

    np.testing.assert_allclose(solved(normalize="all"), reference(both, 0.05), atol=1e-8)
    np.testing.assert_allclose(solved(), reference(both, 0.05 * NUM / (NUM + 4)), atol=1e-8)
    weight = np.concatenate([np.ones(NUM), np.full(4, 2.5)])
    wanted, weights = reference(both, 0.05, weight), jnp.asarray(weight)
    np.testing.assert_allclose(solved(normalize="all", added_weight=2.5), wanted, atol=1e-8)
    np.testing.assert_allclose(solved(weights=weights, normalize="all"), wanted, atol=1e-8)
    kept = jnp.asarray(np.arange(NUM + 4) < NUM, jnp.float64)
    np.testing.assert_allclose(solved(weights=kept), solved(data=clean), atol=1e-8)


def test_seeds_in_the_loops_and_the_judge():
    victim, data = head(), Split(rows(), rows(seed=2, num=20))
    settings = ToConvergence(weight_decay=0.05, tolerance=1e-6)
    training = jp.over_restarts(convergent_training(victim, settings, NUM), 2)
    state, info = jp.run(training, jax.random.key(0), data, num_steps=1)
    np.testing.assert_allclose(
        stacked(jp.tree.take(state.variables, 0)), reference(data.train, 0.05), atol=1e-4
    )
    chex.assert_trees_all_equal(*(jp.tree.take(state, i) for i in (0, 1)))  # from zeros
    assert np.all(info.grad_norm < 1e-6) and np.all(info.finite)
    judgment = jp.victims.judge(victim, state, info, *data)
    wanted = reference(data.train, 0.05)
    predicted = (flat(data.test) @ wanted[:-1] + wanted[-1]).argmax(1)
    share = np.mean(predicted == np.asarray(data.test.label))
    np.testing.assert_allclose(judgment.final_accuracy.values, [share, share], atol=1e-6)
    np.testing.assert_allclose(judgment.curve, [share], atol=1e-6)


def test_drawn_starts_differ_and_stay_apart_where_nothing_is_solved():
    settings = ToConvergence(start="draw", tolerance=1e9)
    training = jp.over_restarts(convergent_training(head(), settings, NUM), 2, chunk=None)
    state, info = jp.run(training, jax.random.key(0), Split(rows(), rows()), num_steps=1)
    one, two = (stacked(jp.tree.take(state.variables, i)) for i in (0, 1))
    assert np.abs(one - two).max() > 0.01
    assert np.ptp(info.grad_norm) > 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"normalize": "poison"}, "clean, all"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"start": "ones"}, "zeros, draw"),
        ({"memory": 0}, "memory"),
    ],
)
def test_bad_settings(options, why):
    with pytest.raises(InputError, match=why):
        ToConvergence(**options)


def test_bad_arguments():
    victim, settings = head(), ToConvergence()
    start = victim.init(jax.random.key(0))
    with pytest.raises(InputError, match="30 rows"):
        converge(victim, start, rows(), settings, num_clean=NUM, row_weights=jnp.ones(3))
    with pytest.raises(InputError, match="num_clean"):
        convergent_training(victim, settings, 0)
    with pytest.raises(InputError, match="empty"):
        converge(victim, start, jax.tree.map(lambda x: x[:0], rows()), settings, num_clean=NUM)
