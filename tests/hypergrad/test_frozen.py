"""One trial after the other: both forms, BatchNorm modes, and the hypergradient by other means."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.hypergrad import clean_batch, frozen, generator_game, trajectory
from jaxpoison.perturb import generated, generator
from jaxpoison.types import Variables
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
EPS, RATE, STEPS = 0.15, 0.5, 5


def payoff(logits, label):
    return -optax.softmax_cross_entropy_with_integer_labels(logits, label)


def parts(victim=None, *, batch_norm=True, rate=RATE):
    """(generator network, its space, the game)."""
    network = oracles.smooth_generator(batch_norm=batch_norm)
    model = jp.victims.learner(victim or oracles.smooth_victim(), optax.sgd(rate))
    game = generator_game(model, network, eps=EPS, payoff=payoff)
    return network, generator(network, eps=EPS), game


def under_way(hypergrad, space, scenario):
    """A theta, and the state after one step of a trial that another generator began."""
    phi = hypergrad.init(KEY, scenario)
    began = space.init(jax.random.key(1), scenario)
    _, phi, _ = jax.jit(hypergrad.estimate)(KEY, began, phi, scenario)
    return space.init(jax.random.key(2), scenario), phi


def test_the_hypergradient_is_central_differences(x64):
    scenario = oracles.tiny_scenario()
    _, space, game = parts()
    hypergrad = frozen(game, space, learning_rate=RATE, trial_steps=STEPS)
    theta, phi = under_way(hypergrad, space, scenario)
    gradient = jax.jit(hypergrad.estimate)(KEY, theta, phi, scenario)[0]
    for name in ("w", "v"):

        @jax.jit
        def loss(leaf, name=name):
            moved = Variables({**theta.params, name: leaf}, theta.stats)
            return hypergrad.estimate(KEY, moved, phi, scenario)[2]

        expected = oracles.central_differences(loss, np.asarray(theta.params[name]))
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(gradient.params[name], expected, rtol=1e-6, atol=1e-9)


def test_every_network_is_in_the_mode_of_the_released_code():
    """Reverse over reverse, with each mode written out: train, train, train (clean), then eval."""
    scenario = oracles.tiny_scenario()
    victim = jp.models.mlp((3, 3, 1), 3, hidden=(7,))
    network, space, game = parts(victim)
    hypergrad = frozen(game, space, learning_rate=RATE, trial_steps=STEPS)
    theta, phi = under_way(hypergrad, space, scenario)
    x, y = scenario.train
    before = phi.follower

    def ce(params, image):
        logits, stats = victim.apply(Variables(params, before.stats), image, train=True)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), stats

    def led(params):
        noise, _ = network.apply(Variables(params, theta.stats), x, train=True)
        poisoned = jnp.clip(x + EPS * noise, 0, 1)
        down = jax.grad(lambda p: ce(p, poisoned)[0])(before.params)
        return -ce(jax.tree.map(lambda p, g: p - RATE * g, before.params, down), x)[0]

    loss, expected = jax.jit(jax.value_and_grad(led))(theta.params)
    gradient, after, value = jax.jit(hypergrad.estimate)(KEY, theta, phi, scenario)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    chex.assert_trees_all_close(gradient.params, expected, rtol=1e-4, atol=1e-6)

    h = np.asarray(x).reshape(8, 9) @ np.asarray(theta.params["w"])
    np.testing.assert_allclose(gradient.stats["mean"], 0.1 * h.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient.stats["var"], 0.9 + 0.1 * h.var(axis=0), rtol=1e-4)

    noise, _ = network.apply(phi.frozen, x, train=False)
    (_, stats), down = jax.value_and_grad(ce, has_aux=True)(
        before.params, jnp.clip(x + EPS * noise, 0, 1)
    )
    expected = jax.tree.map(lambda p, g: p - RATE * g, before.params, down)
    chex.assert_trees_all_close(after.follower.params, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(after.follower.stats, stats, rtol=1e-4, atol=1e-6)


def test_inside_a_trial_the_follower_knows_only_the_generator_of_its_start():
    """Weights and running statistics; the next trial takes the newest of both."""
    scenario = oracles.tiny_scenario()
    _, space, game = parts()
    hypergrad = frozen(game, space, learning_rate=RATE, trial_steps=2)
    estimate = jax.jit(hypergrad.estimate)
    one, two = (Variables(space.init(jax.random.key(k), scenario).params, {
        "mean": jnp.full(6, float(k)), "var": jnp.full(6, 1.0 + k)
    }) for k in (1, 2))  # fmt: skip
    phi = estimate(KEY, one, hypergrad.init(KEY, scenario), scenario)[1]
    chex.assert_trees_all_equal(phi.frozen, one)
    same, other = (estimate(KEY, theta, phi, scenario)[1] for theta in (one, two))
    chex.assert_trees_all_equal(other, same)
    chex.assert_trees_all_equal(other.frozen, one)
    assert int(other.number) == 0
    chex.assert_trees_all_equal(estimate(KEY, two, other, scenario)[1].frozen, two)


def test_every_trial_begins_with_another_follower():
    scenario = oracles.tiny_scenario()
    _, space, game = parts(rate=1e-7)
    hypergrad = frozen(game, space, learning_rate=1e-7, trial_steps=3)
    theta, phi = space.init(KEY, scenario), hypergrad.init(KEY, scenario)
    estimate, weights = jax.jit(hypergrad.estimate), []
    for t in range(9):
        _, phi, _ = estimate(jax.random.fold_in(KEY, t), theta, phi, scenario)
        weights.append(np.asarray(phi.follower.params["w"]))
    apart = np.abs(np.stack(weights)[:, None] - np.stack(weights)[None]).max(axis=(2, 3))
    trial = np.arange(9) // 3
    same = trial[:, None] == trial[None]
    assert apart[same].max() < 1e-5 and apart[~same].min() > 0.1


@pytest.mark.parametrize("batch_norm", [False, True])
def test_both_forms_train_the_same_generator(batch_norm):
    """Two trials of 5 steps, which cross the ends of passes; Adam, mini-batches of 3 of 8 rows."""
    scenario = oracles.tiny_scenario(num=10, changed=8)
    attacks = [
        jp.attacks.deepconfuse(
            oracles.smooth_victim(), oracles.smooth_generator(batch_norm=batch_norm), eps=EPS,
            trial_steps=STEPS, batch_size=3, learning_rate=RATE, generator_rate=0.05, form=form,
            select_every=0,
        )
        for form in ("memory", "trajectory")
    ]  # fmt: skip
    one, whole = (jax.jit(attack.init)(KEY, scenario) for attack in attacks)
    start = one.theta
    chex.assert_trees_all_equal(whole.theta, start)
    step_one, step_whole = (jax.jit(attack.step) for attack in attacks)
    for t in range(2):
        trial = jax.random.fold_in(KEY, t)
        for i in range(STEPS):
            key = jax.random.fold_in(trial, i)
            one, info = step_one(key, one, scenario)
            whole, again = step_whole(key if i else trial, whole, scenario)
            np.testing.assert_allclose(again.outer_loss, info.outer_loss, rtol=1e-4)
        chex.assert_trees_all_close(whole.theta, one.theta, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.theta.params, start.params)
    assert min(moved.values()) > 0.05
    assert int(one.opt_state[0].count) == 2 * STEPS  # Adam's, over both trials
    np.testing.assert_array_equal(whole.phi.rows, one.phi.rows)


def test_no_dtype_is_promoted(strict_dtypes):
    scenario = oracles.tiny_scenario()
    _, space, game = parts()
    for hypergrad, data in (
        (frozen(game, space, learning_rate=RATE, trial_steps=2), scenario),
        (trajectory(game, space, learning_rate=RATE, trial_steps=2, batch_size=2), scenario),
    ):
        theta, phi = space.init(KEY, data), hypergrad.init(KEY, data)
        gradient, after, _ = jax.jit(hypergrad.estimate)(KEY, theta, phi, data)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, phi)
        chex.assert_trees_all_equal_shapes_and_dtypes(gradient, theta)


def test_released_poison_is_in_eval_mode_and_inside_the_ball():
    scenario = oracles.tiny_scenario()
    network, _, game = parts()
    theta = network.init(KEY)
    theta = Variables(jax.tree.map(lambda p: 100 * p, theta.params), theta.stats)
    x = clean_batch(scenario).image
    released = game.release(theta, x)
    np.testing.assert_array_equal(released[:1], game.release(theta, x[:1]))
    trained, _ = generated(network, theta, x, eps=EPS, train=True)
    assert np.abs(np.asarray(trained - released)).max() > 0.1
    assert np.abs(np.asarray(released - x)).max() <= EPS + 1e-6
    assert np.abs(np.asarray(released - x)).max() > 0.99 * EPS


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (frozen, {"trial_steps": 0}, "trial_steps = 0; it must be at least 1"),
        (trajectory, {"trial_steps": 0, "batch_size": 2}, "trial_steps = 0"),
        (trajectory, {"trial_steps": 1, "batch_size": 0}, "batch_size = 0"),
        (
            trajectory,
            {"trial_steps": 1, "batch_size": 1, "train_fraction": 0.0},
            "train_fraction = 0.0; it must be a number above 0 and at most 1",
        ),
    ],
)
def test_bad_settings_are_named(make, options, message):
    _, space, game = parts()
    with pytest.raises(jp.InputError, match=f"^{message}"):
        make(game, space, learning_rate=RATE, **options)
