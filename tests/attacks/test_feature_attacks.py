"""Objectives in feature space: finite differences, a linear feature map, hand formulas."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import jaxpoison as jp
from jaxpoison.attacks import POLYTOPE_BENCHMARK, Crafting
from jaxpoison.attacks.targeted.convex_polytope import hull_coefficients
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
SIDE, D = 3, 4


def linear_victim(size=D):
    """phi(x) = x A; its logits are not read."""

    def init(key):
        return jp.types.Variables({"a": jax.random.normal(key, (SIDE * SIDE, size))}, {})

    def features(variables, image):
        return image.reshape(image.shape[0], -1) @ variables.params["a"]

    def apply(variables, image, *, train, key=None):
        del train, key
        return features(variables, image), variables.stats

    return jp.Victim(init, apply, features)


def scenario(victim, *, targets=2, poisons=4):
    """Rows 5, 2, 0, 6 (, ...) may change; images in [0.2, 0.8], targets elsewhere."""
    data = oracles.tiny_scenario()
    rng = np.random.RandomState(3)
    goal = jp.Dataset(
        jnp.asarray(rng.uniform(0, 1, (targets, SIDE, SIDE, 1)), data.train.image.dtype),
        jnp.zeros(targets, jnp.int32),
    )
    index = jnp.asarray([5, 2, 0, 6, 1, 3, 4, 7][:poisons], jnp.int32)
    aux = victim.init(jax.random.key(7))
    return jp.Scenario(data.train, goal, index, aux)


def arrays(data):
    """(clean rows that may change, targets) in float64, flat."""
    clean = np.asarray(data.train.image, np.float64)[np.asarray(data.index)]
    target = np.asarray(data.goal.image, np.float64)
    return clean.reshape(len(clean), -1), target.reshape(len(target), -1)


def tanh_features(data):
    w = np.asarray(data.aux.params["w"], np.float64)
    return lambda flat: np.tanh(flat @ w)


def bullseye(poison, target):
    t = target.mean(axis=0)
    return np.linalg.norm(poison.mean(axis=0) - t) / np.linalg.norm(t)


def mean_square(poison, target):
    return np.mean((poison.mean(axis=0) - target.mean(axis=0)) ** 2)


def collision(poison, target):
    return np.mean((poison.mean(axis=0)[None] - target) ** 2)


def nearest_in_hull(points, target):
    """Coefficients, exactly: the best of the least squares solutions of all faces."""
    best = (np.inf, None)
    for size in range(1, len(points) + 1):
        for face in map(list, itertools.combinations(range(len(points)), size)):
            edges = points[face[1:]] - points[face[0]]
            along = np.linalg.lstsq(edges.T, target - points[face[0]], rcond=None)[0]
            c = np.zeros(len(points))
            c[face] = [1 - along.sum(), *along]
            distance = np.linalg.norm(c @ points - target)
            if c.min() >= 0 and distance < best[0]:
                best = distance, c
    return best[1]


def polytope(poison, target):
    gaps = [np.sum((t - nearest_in_hull(poison, t) @ poison) ** 2) / np.sum(t**2) for t in target]
    return np.mean(gaps) / 2


LOSSES = {
    "convex_polytope": (jp.attacks.convex_polytope, {}, polytope),
    "bullseye_polytope": (jp.attacks.bullseye_polytope, {}, bullseye),
    "bullseye_mean_square": (jp.attacks.bullseye_polytope, {"normalized": False}, mean_square),
    "mean_feature_collision": (jp.attacks.mean_feature_collision, {}, collision),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_those_of_the_formula(x64, name):
    """One step of plain gradient descent from zero, in two batches: each has its own mean.

    Of the polytope that is the derivative of the minimum over c, which the attack takes at the c
    that it found to 1e-6 or so.
    """
    factory, options, loss = LOSSES[name]
    victim = oracles.smooth_victim()
    data = scenario(victim)
    clean, target = arrays(data)
    phi = tanh_features(data)
    batches = (slice(0, 3), slice(3, 4))

    def batch_loss(delta, rows):
        return loss(phi(clean[rows] + delta.reshape(-1, clean.shape[1])), phi(target))

    gradient = np.concatenate(
        [
            oracles.central_differences(lambda d, r=r: batch_loss(d, r), np.zeros_like(clean[r]))
            for r in batches
        ]
    )
    plain = {"optimizer": "gd", "init": "zero", "steps": 1, "batch_size": 3}
    attack = factory(victim, eps=0.2, crafting=Crafting(**plain), **options)
    state, info = jax.jit(attack.step)(KEY, attack.init(KEY, data), data)
    rate = 0.2 * 0.1 * 3 / 512
    rtol = 1e-3 if name == "convex_polytope" else 1e-5
    scale = np.abs(rate * gradient).max()
    np.testing.assert_allclose(
        state.theta.reshape(clean.shape), -rate * gradient, rtol=rtol, atol=1e-1 * rtol * scale
    )
    values = [batch_loss(np.zeros_like(clean[r]), r) for r in batches]
    assert float(info.outer_loss) == pytest.approx(np.mean(values), rel=1e-6)


def test_of_one_target_mean_collision_and_bullseye_take_the_same_steps():
    """Their losses are monotone in each other, and the rule sees signs alone."""
    victim = linear_victim()
    data = scenario(victim, targets=1)
    crafting = Crafting(steps=3, tau=0.02, init="zero", decay=False)
    attacks = (jp.attacks.mean_feature_collision, jp.attacks.bullseye_polytope)
    theta = [
        jp.run(attack(victim, eps=0.1, crafting=crafting), KEY, data, num_steps=3)[0].theta
        for attack in attacks
    ]
    assert np.abs(theta[0]).max() == pytest.approx(0.06, rel=1e-4)
    np.testing.assert_allclose(theta[0], theta[1], atol=1e-6)


def test_bullseye_reaches_the_optimum_of_a_linear_map():
    """The mean feature moves by (mean delta) A: bounded least squares in mean delta."""
    victim = linear_victim()
    data = scenario(victim, targets=1)
    clean, target = arrays(data)
    eps = 0.05
    a = np.asarray(data.aux.params["a"], np.float64)
    t = target[0] @ a
    best = optimize.lsq_linear(a.T, t - clean.mean(axis=0) @ a, bounds=(-eps, eps), tol=1e-12)
    expected = np.linalg.norm(best.fun) / np.linalg.norm(t)
    start = np.linalg.norm(clean.mean(axis=0) @ a - t) / np.linalg.norm(t)
    assert 0.05 < expected < 0.9 * start  # the budget binds, and matters
    crafting = Crafting(steps=150, tau=0.02)
    attack = jp.attacks.bullseye_polytope(victim, eps=eps, crafting=crafting)
    _, info = jp.run(attack, KEY, data, num_steps=150)
    assert float(info.outer_loss[-1]) == pytest.approx(expected, rel=1e-3)


def collided(attack, data, num_steps):
    """States after 0, 1, ... steps and the infos."""
    step = jax.jit(attack.step)
    states, infos = [attack.init(KEY, data)], []
    for _ in range(num_steps):
        state, info = step(KEY, states[-1], data)
        states.append(state)
        infos.append(info)
    return states, infos


@pytest.mark.parametrize(("eps", "beta"), [(0.1, 0.0), (1.0, 0.5), (0.1, 0.5)])
def test_collision_steps_are_those_of_a_linear_map(eps, beta):
    """Each poison by itself, in a numpy loop: forward step, prox, clip, step size, stop."""
    victim = linear_victim()
    data = scenario(victim)
    clean, target = arrays(data)
    a = np.asarray(data.aux.params["a"], np.float64)
    options = {"step_size": 0.15, "tolerance": 1e-3, "batch_size": 3}
    attack = jp.attacks.feature_collision(victim, eps=eps, beta=beta, **options)
    states, infos = collided(attack, data, 40)
    low, high = np.maximum(-eps, -clean), np.minimum(eps, 1 - clean)
    shrunk, stopped = 0, 0
    for i in range(4):
        goal = target[i % 2] @ a

        def value(d, i=i, goal=goal):
            return np.sum(((clean[i] + d) @ a - goal) ** 2) + beta / 2 * np.sum(d**2)

        delta, size, done = np.clip(0.3 * (target[i % 2] - clean[i]), low[i], high[i]), 0.15, False
        for state in states:
            np.testing.assert_allclose(state.theta[i].ravel(), delta, atol=2e-5)
            assert float(state.value[i]) == pytest.approx(value(delta), rel=1e-3, abs=1e-4)
            assert bool(state.done[i]) == done
            gradient = 2 * a @ ((clean[i] + delta) @ a - goal)
            moved = np.clip((delta - size * gradient) / (1 + size * beta), low[i], high[i])
            if done:
                continue
            if value(moved) > value(delta):
                size, shrunk = 0.2 * size, shrunk + 1
                continue
            small = np.linalg.norm(moved - delta) < 1e-3 * np.linalg.norm(clean[i] + delta)
            delta, done = moved, small
        stopped += done
    assert shrunk and stopped  # both rules were at work
    assert float(infos[-1].done) == pytest.approx(np.mean(np.asarray(states[-1].done)))
    values = np.array([info.outer_loss for info in infos])
    assert np.all(np.diff(values) <= 1e-6)


def test_collision_converges_to_the_closed_form(x64):
    """min ||x A - t||^2 + beta / 2 ||x - b||^2: (2 A A^T + beta I) x = 2 A t + beta b."""
    victim = linear_victim()
    data = scenario(victim, targets=1)
    clean, target = arrays(data)
    a, beta = np.asarray(data.aux.params["a"], np.float64), 4.0
    left = 2 * a @ a.T + beta * np.eye(len(a))
    best = np.linalg.solve(left, (2 * a @ (target[0] @ a))[:, None] + beta * clean.T).T
    assert best.min() > 0 and best.max() < 1  # the box does not bind
    attack = jp.attacks.feature_collision(victim, eps=1.0, beta=beta, step_size=0.03, tolerance=0)
    state, info = jp.run(attack, KEY, data, num_steps=200)
    np.testing.assert_allclose(clean + state.theta.reshape(4, -1), best, atol=1e-6)
    poisoned = attack.poison(state, data)
    np.testing.assert_allclose(poisoned.image[data.index].reshape(4, -1), best, atol=1e-6)


@pytest.mark.parametrize("several", [False, True])
def test_surrogates_collide_as_one_with_all_features(several):
    """Two of one network, or three of two: A of all side by side."""
    sizes = (4, 2, 4) if several else (4, 4)
    maps = [np.random.RandomState(k).randn(SIDE * SIDE, d) for k, d in enumerate(sizes)]
    stacked = jp.types.Variables({"a": jnp.float32(np.stack(maps[::2] if several else maps))}, {})
    networks, aux = linear_victim(), stacked
    if several:
        networks = (linear_victim(), linear_victim(2))
        aux = (stacked, jp.types.Variables({"a": jnp.float32(maps[1])[None]}, {}))
    whole = linear_victim(sum(sizes))
    data = scenario(whole)
    together = jp.types.Variables({"a": jnp.float32(np.concatenate(maps, axis=1))}, {})
    expected, _ = collided(
        jp.attacks.feature_collision(whole, eps=0.1), data._replace(aux=together), 2
    )
    attack = jp.attacks.feature_collision(networks, eps=0.1, ensemble=len(sizes))
    states, _ = collided(attack, data._replace(aux=aux), 2)
    np.testing.assert_allclose(states[-1].theta, expected[-1].theta, atol=1e-6)
    np.testing.assert_allclose(states[-1].value, expected[-1].value, rtol=1e-5)
    assert np.abs(states[-1].theta - states[0].theta).max() > 1e-3


def test_a_target_that_is_not_a_number_spoils_its_own_poisons_alone():
    """Row i has target i mod 2."""
    victim = linear_victim()
    data = scenario(victim)
    spoiled = data._replace(goal=data.goal._replace(image=data.goal.image.at[1].set(jnp.nan)))
    attack = jp.attacks.feature_collision(victim, eps=0.1)
    states, infos = collided(attack, data, 3)
    others, nothing = collided(attack, spoiled, 3)
    assert bool(infos[0].finite) and not bool(nothing[0].finite)
    np.testing.assert_array_equal(others[-1].theta[::2], states[-1].theta[::2])


@pytest.mark.parametrize("std", [1.0, (0.25,), (0.2, 0.5, 0.1)])
def test_watermark_is_the_blend_inside_the_ball_and_the_box(std):
    rng = np.random.RandomState(0)
    image = rng.uniform(0, 1, (6, 2, 2, 3)).astype(np.float32)
    target = rng.randint(0, 256, (2, 2, 2, 3)).astype(np.uint8)
    index = np.array([4, 1, 3, 0, 5])
    train = jp.Dataset(jnp.asarray(image), jnp.zeros(6, jnp.int32))
    goal = jp.Dataset(jnp.asarray(target), jnp.zeros(2, jnp.int32))
    data = jp.Scenario(train, goal, jnp.asarray(index, jnp.int32))
    attack = jp.attacks.watermark(eps=0.1, std=std)
    state, _ = jp.run(attack, KEY, data, num_steps=1)
    expected = image.copy()
    for i, row in enumerate(index):
        change = (target[i % 2] / 255 - image[row]) * (0.1 / np.asarray(std))
        expected[row] = np.clip(image[row] + np.clip(change, -0.1, 0.1), 0, 1)
    np.testing.assert_allclose(attack.poison(state, data).image, expected, atol=1e-6)
    reached = np.isclose(np.abs(expected - image)[index], 0.1, atol=1e-6).any()
    assert reached == (std != 1.0)


@pytest.mark.parametrize(("num", "size"), [(5, 8), (7, 3)])
def test_hull_coefficients_are_the_nearest_point(num, size):
    """Seven points in three dimensions hold the target: many c are nearest, one point is."""
    rng = np.random.RandomState(num)
    points = rng.randn(num, size)
    target = points.mean(axis=0) + 0.1 if num > size else rng.randn(size)
    solve = jax.jit(hull_coefficients)
    c = solve(KEY, jnp.float32(points), jnp.float32(target))
    assert float(c.min()) >= 0 and float(c.sum()) == pytest.approx(1, abs=1e-6)
    expected = nearest_in_hull(points, target)
    np.testing.assert_allclose(c @ points, expected @ points, atol=2e-4)
    if num <= size:
        assert 1 < np.count_nonzero(expected) < num  # on a face
        np.testing.assert_allclose(c, expected, atol=2e-4)
    solve(KEY, jnp.full((num, size), jnp.nan), jnp.float32(target))  # ends, too


def test_the_benchmark_takes_steps_of_004_in_units_of_std():
    """The first step of Adam, from zero, is the whole rate; after 1,000 steps it still is."""
    crafting = dataclasses.replace(POLYTOPE_BENCHMARK, std=(0.2,))
    victim = linear_victim()
    data = scenario(victim)
    attack = jp.attacks.convex_polytope(victim, eps=0.1, crafting=crafting)
    assert attack.num_steps == 1200
    state, _ = jp.run(attack, KEY, data, num_steps=1)
    moved = np.abs(np.asarray(state.theta)).max(axis=(1, 2, 3))
    assert moved.max() == pytest.approx(0.04 * 0.2, rel=1e-3)


def collide(**options):
    return jp.attacks.feature_collision(linear_victim(), **{"eps": 0.1, **options})


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (collide, {"eps": 8}, "eps = 8 looks like grey levels; write 8/255"),
        (collide, {"beta": -0.1}, "beta = -0.1; it must be a finite number at least 0"),
        (collide, {"steps": 0}, "steps = 0; it must be at least 1"),
        (collide, {"step_size": 0.0}, "step_size = 0.0; it must be a finite number above 0"),
        (collide, {"opacity": 1.5}, "opacity = 1.5; it must be a number at least 0 and at most 1"),
        (collide, {"tolerance": -1.0}, "tolerance = -1.0; it must be a finite number at least 0"),
        (collide, {"ensemble": 0}, "ensemble = 0; it must be at least 1"),
        (collide, {"batch_size": 0}, "batch_size = 0; it must be at least 1"),
        (jp.attacks.watermark, {"eps": 16}, "eps = 16 looks like grey levels; write 16/255"),
        (
            jp.attacks.watermark,
            {"eps": 0.1, "std": 0.0},
            "std = 0.0; it must be a finite number above 0",
        ),
        (
            jp.attacks.watermark,
            {"eps": 0.1, "std": (0.2, -0.2, 0.2)},
            "std[1] = -0.2; it must be a finite number above 0",
        ),
    ],
)
def test_a_bad_setting_is_one_line(make, options, message):
    with pytest.raises(jp.InputError) as caught:
        make(**options)
    assert str(caught.value) == message


def test_a_scenario_that_cannot_be_used_is_one_line():
    data = scenario(linear_victim())
    empty = data._replace(index=jnp.zeros(0, jnp.int32))
    factories = (collide(), jp.attacks.watermark(eps=0.1))
    for attack in factories:
        with pytest.raises(jp.InputError, match="^scenario.index is empty; it must name the rows"):
            attack.init(KEY, empty)
    with pytest.raises(jp.InputError, match="^scenario.aux is empty; it must be the trained"):
        factories[0].init(KEY, data._replace(aux=()))
    with pytest.raises(jp.InputError, match="^std has 2 numbers for images of 1 channels$"):
        jp.attacks.watermark(eps=0.1, std=(0.2, 0.2)).init(KEY, data)
