import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpoison.attacks import error_minimizing
from tests import oracles
from tests.attacks import tiny

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
EPS, STEP = 0.2, 0.05
INDEX = np.array([6, 2, 0, 5, 3])


@functools.cache
def scenario():
    """Eight images, some of them at the box; rows 6, 2, 0, 5, 3 may change."""
    data = oracles.tiny_scenario()
    image = data.train.image.at[2, 0].set(0.0).at[5, 1].set(1.0)
    return data._replace(train=data.train._replace(image=image), index=jnp.asarray(INDEX))


def arrays():
    train = scenario().train
    return np.asarray(train.image, np.float64), np.asarray(train.label)


def attack(**options):
    settings = {"eps": EPS, "num_classes": 3, "step_size": STEP, "stop_error": 0.0, **options}
    return error_minimizing(oracles.smooth_victim(), **settings)


def weights(phi):
    return [np.asarray(phi.params[name], np.float64) for name in "wv"]


def sgd(parameters, gradients, momentum):
    """Clip to norm 5, add weight decay 5e-4, momentum 0.9, rate 0.1."""
    length = np.sqrt(sum(np.sum(g**2) for g in gradients))
    gradients = [g * min(1, 5 / length) for g in gradients]
    gradients = [g + 5e-4 * p for g, p in zip(gradients, parameters, strict=True)]
    momentum = [g + 0.9 * m for g, m in zip(gradients, momentum, strict=True)]
    return [p - 0.1 * m for p, m in zip(parameters, momentum, strict=True)], momentum


def sample_rounds(parameters, num_rounds):
    """Sample-wise rounds in plain loops: M = 2 updates of 3 rows, T = 3 sweeps."""
    x, y = arrays()
    eta = np.zeros_like(x)  # rows outside the index stay zero
    momentum, cursor = [np.zeros_like(p) for p in parameters], 0
    for _ in range(num_rounds):
        for _ in range(2):
            rows = [(cursor + k) % 8 for k in range(3)]
            cursor = (cursor + 3) % 8
            image = np.clip(x[rows] + eta[rows], 0, 1)
            _, _, *gradients = tiny.losses_and_gradients(*parameters, image, y[rows])
            parameters, momentum = sgd(parameters, [g / 3 for g in gradients], momentum)
        for row in INDEX:
            u = np.clip(x[row] + eta[row], 0, 1)
            for _ in range(3):
                loss, g, _, _ = tiny.losses_and_gradients(*parameters, u[None], y[row : row + 1])
                eta[row] = np.clip(u - STEP * np.sign(g[0]) - x[row], -EPS, EPS)
                u = np.clip(x[row] + eta[row], 0, 1)
    logits, _ = tiny.forward(*parameters, np.clip(x + eta, 0, 1)[INDEX])
    error = np.mean(logits.argmax(axis=1) != y[INDEX])
    return np.clip(x + eta, 0, 1), parameters, cursor, error


def test_sample_wise_rounds_are_the_plain_loops():
    """Also: the surrogate's batches follow one another in stored order, from round to round.

    The error goes 0.4, 0.2, 0.8, 0.6, 0.2: a rise does not stop the rounds.
    """
    single = attack(train_steps=2, sweep_steps=3, batch_size=3)
    state = single.init(jax.random.key(5), scenario())
    start, step, errors = weights(state.phi), jax.jit(single.step), []
    for num in range(1, 6):
        state, info = step(jax.random.key(num), state, scenario())
        image, parameters, cursor, error = sample_rounds(start, num)
        np.testing.assert_allclose(single.poison(state, scenario()).image, image, atol=1e-5)
        for ours, theirs in zip(weights(state.phi), parameters, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert int(state.cursor) == cursor == 6 * num % 8
        assert float(info.error) == pytest.approx(error)
        errors.append(error)
    assert max(np.diff(errors)) > 0.5 and min(errors) > 0


def class_sweep(parameters, noise, batches):
    """One sign step per batch from D[y], its mean per class becomes D, batch after batch."""
    x, y = arrays()
    noise = noise.copy()
    for rows in map(list, batches):
        u = np.clip(x[rows] + noise[y[rows]], 0, 1)
        _, g, _, _ = tiny.losses_and_gradients(*parameters, u, y[rows])
        eta = np.clip(u - STEP * np.sign(g) - x[rows], -EPS, EPS)
        for c in np.unique(y[rows]):
            noise[c] = np.clip(eta[y[rows] == c].mean(axis=0), -EPS, EPS)
    return noise


def class_round(batch_size):
    """The noise before and after one class-wise round whose surrogate stands still."""
    options = {"noise": "class", "portion": 1.0, "tx": optax.set_to_zero()}
    single = attack(batch_size=batch_size, **options)
    state = single.init(KEY, scenario())
    np.testing.assert_array_equal(state.theta, 0)
    noise = np.random.RandomState(2).uniform(-EPS, EPS, state.theta.shape)
    state = state._replace(theta=jnp.asarray(noise, jnp.float32))
    after, _ = jax.jit(single.step)(KEY, state, scenario())
    return weights(state.phi), noise, np.asarray(after.theta)


def test_a_class_wise_batch_is_the_plain_loop():
    parameters, noise, after = class_round(batch_size=5)
    np.testing.assert_allclose(after, class_sweep(parameters, noise, [INDEX]), atol=1e-5)


def test_class_wise_noise_moves_batch_after_batch():
    """Batches of 2, 2, 1 rows in a random order: just one of the 30 orders explains the result."""
    parameters, noise, after = class_round(batch_size=2)
    orders = {
        (frozenset(p[:2]), frozenset(p[2:4]), frozenset(p[4:]))
        for p in itertools.permutations(INDEX.tolist())
    }
    gaps = [np.abs(class_sweep(parameters, noise, order) - after).max() for order in orders]
    assert len(orders) == 30 and min(gaps) < 1e-5
    assert np.abs(class_sweep(parameters, noise, [INDEX]) - after).max() > 0.01


@pytest.mark.parametrize("noise", ["sample", "class"])
def test_once_fitted_nothing_moves(noise):
    single = attack(noise=noise, stop_error=1.0, train_steps=2, sweep_steps=2, batch_size=3)
    step = jax.jit(single.step)
    first, _ = step(jax.random.key(1), single.init(KEY, scenario()), scenario())
    assert bool(first.done) and np.abs(first.theta).max() > 0
    second, info = step(jax.random.key(2), first, scenario())
    jax.tree.map(np.testing.assert_array_equal, second, first)
    assert bool(info.finite) and float(info.grad_norm) == 0
    x, y = arrays()
    poisoned = np.asarray(single.poison(first, scenario()).image, np.float64)
    loss, *_ = tiny.losses_and_gradients(*weights(first.phi), poisoned[INDEX], y[INDEX])
    assert float(info.outer_loss) == pytest.approx(loss.mean(), abs=1e-5)


@pytest.mark.parametrize("noise", ["sample", "class"])
def test_the_released_noise_has_lost_its_negative_half(noise):
    """Images only ever get brighter: max(x, x'); the rounds are those of the signed noise."""
    signed, positive = (
        attack(noise=noise, legacy_positive_only=legacy, batch_size=3) for legacy in (False, True)
    )
    state, _ = jax.jit(signed.step)(KEY, signed.init(KEY, scenario()), scenario())
    x, _ = arrays()
    image = np.asarray(signed.poison(state, scenario()).image)
    assert np.min(image - x) < -0.01
    out = positive.poison(state, scenario())
    np.testing.assert_allclose(out.image, np.maximum(x, image), atol=1e-6)
    np.testing.assert_array_equal(out.label, scenario().train.label)


@pytest.mark.parametrize("noise", ["sample", "class"])
def test_a_random_start_is_uniform_in_the_ball(noise):
    data = scenario()
    grey = data._replace(train=data.train._replace(image=jnp.full((8, 20, 20, 1), 0.5)))
    make = functools.partial(error_minimizing, oracles.smooth_victim(size=400), eps=EPS)
    still, moved = (
        make(num_classes=3, noise=noise, random_start=start).init(KEY, grey).theta
        for start in (False, True)
    )
    assert not np.any(still)
    quantiles = np.quantile(np.asarray(moved), [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, EPS * np.array([-0.8, -0.5, 0, 0.5, 0.8]), atol=0.02)
    assert np.abs(moved).max() <= np.float32(EPS)
