"""Value-function descent against numpy: losses by hand, differences in float64, Adam by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison import tree, victims
from jaxpoison.hypergrad import generator_game, value_function
from jaxpoison.hypergrad.value_function import multiplier
from jaxpoison.types import InputError, Variables
from tests import oracles
from tests.attacks.tiny import forward, losses_and_gradients

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
EPS, BARRIER, RATE = 0.1, 1.5, 0.02


def worst(logits, label):
    """The leader's loss as the definition has it: a loop over samples and wrong classes."""
    total = 0.0
    for z, y in zip(logits, label, strict=True):
        others = [k for k in range(len(z)) if k != y]
        total += max(np.log(np.sum(np.exp(z))) - z[k] for k in others)
    return total / len(label)


def payoff(logits, label):
    own = jax.nn.one_hot(label, logits.shape[1], dtype=bool)
    lowest = jnp.min(jnp.where(own, jnp.inf, logits), axis=1)
    return jax.nn.logsumexp(logits, axis=1) - lowest


def tiny_game():
    follower = victims.learner(oracles.smooth_victim(), optax.sgd(1.0))
    return generator_game(follower, oracles.smooth_generator(), eps=EPS, payoff=payoff)


def estimator(**options):
    settings = {"barrier": BARRIER, "inner_tx": optax.adam(RATE), "follower_tx": optax.sgd(0.1)}
    return value_function(tiny_game(), **(settings | options))


def poisoned(a, x):
    """`oracles.smooth_generator` in train mode; a = its (w, v)."""
    hidden = x.reshape(len(x), -1) @ a[0]
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
    return x + EPS * np.tanh(np.tanh(hidden) @ a[1]).reshape(x.shape)


def slopes(fn, a):
    """d fn / d a for a pair a of matrices."""
    return [
        oracles.central_differences(lambda u: fn((u, a[1])), a[0]),
        oracles.central_differences(lambda u: fn((a[0], u)), a[1]),
    ]


def adam(w, v, x, y, steps):
    """(w, v) after `steps` of Adam on the mean cross-entropy, from zero moments."""
    first, second = [0, 0], [0, 0]
    for t in range(1, steps + 1):
        gradients = [g / len(y) for g in losses_and_gradients(w, v, x, y)[2:]]
        first = [0.9 * m + 0.1 * g for m, g in zip(first, gradients, strict=True)]
        second = [0.999 * s + 0.001 * g * g for s, g in zip(second, gradients, strict=True)]
        moves = [
            RATE * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
            for m, s in zip(first, second, strict=True)
        ]
        w, v = w - moves[0], v - moves[1]
    return w, v


def test_one_step_is_the_hand_computation(x64):
    scenario, hypergrad = oracles.tiny_scenario(), estimator(inner_steps=3, barrier=8.0)
    theta = oracles.smooth_generator().init(jax.random.key(1))
    phi = hypergrad.init(KEY, scenario)
    gradient, after, loss = jax.jit(hypergrad.estimate)(KEY, theta, phi, scenario)

    x, y = (np.asarray(part) for part in scenario.train)
    a = [np.asarray(theta.params[name]) for name in "wv"]
    w, v = (np.asarray(phi.follower.params[name]) for name in "wv")
    fitted = adam(w, v, poisoned(a, x), y, 3)

    def g(params, a):
        return losses_and_gradients(*params, poisoned(a, x), y)[0].mean()

    q_theta = slopes(lambda b: g((w, v), b) - g(fitted, b), a)
    q_w, q_v = slopes(lambda params: g(params, a), (w, v))
    f_w, f_v = slopes(lambda params: worst(forward(*params, x)[0], y), (w, v))
    square = sum(np.sum(q**2) for q in (*q_theta, q_w, q_v))
    lam = max(0, (8.0 * square - np.sum(f_w * q_w) - np.sum(f_v * q_v)) / (square + 1e-8))

    assert lam > 0
    for name, slope in zip("wv", q_theta, strict=True):
        assert np.abs(slope).max() > 1e-4
        np.testing.assert_allclose(gradient.params[name], lam * slope, rtol=1e-5, atol=1e-8)
    moved = after.follower.params
    np.testing.assert_allclose(moved["w"], w - 0.1 * (f_w + lam * q_w), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moved["v"], v - 0.1 * (f_v + lam * q_v), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(loss, worst(forward(w, v, x)[0], y), rtol=1e-10)
    seen = after.last
    np.testing.assert_allclose(seen.follower_loss, g((w, v), a), rtol=1e-10)
    np.testing.assert_allclose(seen.gap, g((w, v), a) - g(fitted, a), rtol=1e-8)
    np.testing.assert_allclose(seen.multiplier, lam, rtol=1e-6)
    np.testing.assert_allclose(seen.gap_norm, np.sqrt(square), rtol=1e-6)
    np.testing.assert_allclose(seen.lead_norm, np.sqrt(np.sum(f_w**2) + np.sum(f_v**2)), rtol=1e-6)

    # The total derivative, through the fitted copy, is another one.
    def refitted(b):
        return g((w, v), b) - g(adam(w, v, poisoned(b, x), y, 3), b)

    through = slopes(refitted, a)
    assert np.abs(through[0] - q_theta[0]).max() > 1e-2 * np.abs(q_theta[0]).max()


def test_without_inner_steps_the_generator_stands_still():
    scenario, hypergrad = oracles.tiny_scenario(), estimator(inner_steps=0)
    theta = oracles.smooth_generator().init(KEY)
    phi = hypergrad.init(KEY, scenario)
    gradient, after, _ = jax.jit(hypergrad.estimate)(KEY, theta, phi, scenario)
    assert tree.norm(gradient.params) == 0 and after.last.gap == 0
    assert after.last.multiplier > 0
    assert np.any(after.follower.params["w"] != phi.follower.params["w"])


def test_noise_once_is_noise_made_for_every_loss(x64):
    """Every evaluation of g calls the generator anew, in train mode; T Adam steps by optax."""
    game, scenario, steps = tiny_game(), oracles.tiny_scenario(), 4
    hypergrad = estimator(inner_steps=steps)
    theta = oracles.smooth_generator().init(jax.random.key(1))
    phi = hypergrad.init(KEY, scenario)
    image, label = scenario.train

    def g(generator, follower):
        made, _ = game.poison(Variables(generator, theta.stats), image)
        logits, _ = game.follower.victim.apply(Variables(follower, {}), made, train=True)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

    rule = optax.adam(RATE)
    follower, opt_state = phi.follower.params, rule.init(phi.follower.params)
    for _ in range(steps):
        updates, opt_state = rule.update(jax.grad(g, argnums=1)(theta.params, follower), opt_state)
        follower = optax.apply_updates(follower, updates)
    expected = jax.grad(lambda p: g(p, phi.follower.params) - g(p, follower))(theta.params)
    gradient, after, _ = hypergrad.estimate(KEY, theta, phi, scenario)
    expected = jax.tree.map(lambda q: after.last.multiplier * q, expected)
    chex.assert_trees_all_close(gradient.params, expected, rtol=1e-9)


@pytest.mark.parametrize("times", [1, 2, 12])
def test_the_statistics_move_as_often_as_asked(x64, times):
    scenario, hypergrad = oracles.tiny_scenario(), estimator(inner_steps=1, norm_updates=times)
    theta = oracles.smooth_generator().init(KEY)
    theta = theta._replace(stats={"mean": jnp.linspace(-1, 1, 6), "var": jnp.linspace(1, 2, 6)})
    gradient, _, _ = hypergrad.estimate(KEY, theta, hypergrad.init(KEY, scenario), scenario)
    expected = theta
    for _ in range(times):
        expected = expected._replace(stats=tiny_game().poison(expected, scenario.train.image)[1])
    chex.assert_trees_all_close(gradient.stats, expected.stats, rtol=1e-12)


def test_the_followers_optimizer_goes_on_and_nothing_is_promoted(strict_dtypes):
    rule = optax.sgd(0.1, momentum=0.9)
    hypergrad = estimator(inner_steps=2, inner_tx=optax.sgd(0.1), follower_tx=rule)
    scenario = oracles.tiny_scenario()
    theta = oracles.smooth_generator().init(KEY)
    phi = hypergrad.init(KEY, scenario)
    gradient, after, loss = jax.jit(hypergrad.estimate)(KEY, theta, phi, scenario)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, phi)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, theta)
    assert loss.dtype == np.float32
    _, last, _ = jax.jit(hypergrad.estimate)(KEY, theta, after, scenario)
    velocity = after.follower.opt_state[0].trace, last.follower.opt_state[0].trace
    assert 0 < tree.norm(velocity[0]) < tree.norm(velocity[1])


ENTRIES = st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3)


@given(ENTRIES, ENTRIES, ENTRIES, st.floats(0.1, 3))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_direction_lowers_the_gap_at_the_barriers_rate(lead, q_theta, q_phi, barrier):
    lead, q_theta, q_phi = (np.asarray(u) for u in (lead, q_theta, q_phi))
    square, inner = np.sum(q_theta**2) + np.sum(q_phi**2), np.sum(lead * q_phi)
    lam = float(multiplier(jnp.float32(inner), jnp.float32(square), barrier))
    assert np.isfinite(lam) and lam >= 0
    if inner >= barrier * square * (1 + 1e-5) + 1e-5:
        assert lam == 0  # the leader's own gradient is fast enough
    rate = lam * np.sum(q_theta**2) + np.sum((lead + lam * q_phi) * q_phi)
    if square > 1e-2:
        assert rate >= barrier * square - 1e-4 * (1 + abs(inner) + square)
    bound = barrier * np.sqrt(square) + np.linalg.norm(lead)
    assert lam * np.sqrt(square) <= bound * (1 + 1e-5) + 1e-6


def test_the_multiplier_of_a_gap_without_slope_is_zero():
    assert multiplier(jnp.float32(0), jnp.float32(0), 1.5) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": -1}, "inner_steps = -1; it must be at least 0"),
        ({"norm_updates": 0}, "norm_updates = 0; it must be at least 1"),
        ({"barrier": 0.0}, "barrier = 0.0; it must be a finite number above 0"),
    ],
)
def test_wrong_settings_are_one_line(options, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        value_function(tiny_game(), **options)
