import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from tests import oracles
from tests.attacks import tiny

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
EPS, STEP, MEMBERS = 0.15, 0.04, 3
INDEX = np.array([6, 2, 0, 5, 3])
OPTIONS = {"num_classes": 3, "eps": EPS, "step_size": STEP, "batch_size": 2}


@functools.cache
def scenario():
    """Eight images, some of them at the box; five may change; three networks are known."""
    data = oracles.tiny_scenario()
    image = data.train.image.at[2, 0].set(0.0).at[5, 1].set(1.0)
    keys = jax.random.split(jax.random.key(7), MEMBERS)
    networks = jax.vmap(oracles.smooth_victim().init)(keys)
    train = data.train._replace(image=image)
    return jp.Scenario(train, data.goal, jnp.asarray(INDEX, jnp.int32), aux=networks)


def arrays():
    """Images and labels that may change, and the target classes (y + 3 // 2) mod 3."""
    x = np.asarray(scenario().train.image, np.float64)
    y = np.asarray(scenario().train.label)
    return x[INDEX], y[INDEX], (y[INDEX] + 1) % 3


def network(k):
    return [np.asarray(scenario().aux.params[name][k], np.float64) for name in "wv"]


def toward_class(k, u, wanted):
    """CE(f_k(u), t) of each row, and its gradient."""
    loss, gradient, _, _ = tiny.losses_and_gradients(*network(k), u, wanted)
    return loss, gradient


def toward_mean(k, u, wanted):
    """mean_d (h - m)^2 of each row, and its gradient W 2/D (h - m)(1 - h^2)."""
    w, v = network(k)
    train = scenario().train
    clean = tiny.forward(w, v, np.asarray(train.image, np.float64))[1]
    label = np.asarray(train.label)
    means = np.stack([clean[label == c].mean(axis=0) for c in range(3)])
    hidden = tiny.forward(w, v, u)[1]
    gap = hidden - means[wanted]
    slope = 2 / gap.shape[1] * gap * (1 - hidden**2)
    return (gap**2).mean(axis=1), (slope @ w.T).reshape(u.shape)


def projected(delta, x):
    return np.clip(np.clip(delta, -EPS, EPS), -x, 1 - x)


@pytest.mark.parametrize(
    ("factory", "member"),
    [(jp.attacks.self_ensemble, toward_class), (jp.attacks.feature_alignment, toward_mean)],
    ids=["sep", "fa"],
)
def test_steps_are_the_hand_formula(factory, member):
    """From 0, d <- P(d - step sign(mean over members of the gradient)), of the wanted class."""
    single = factory(oracles.smooth_victim(), checkpoints=MEMBERS, **OPTIONS)
    state, step = single.init(KEY, scenario()), jax.jit(single.step)
    x, _, wanted = arrays()
    delta = np.zeros_like(x)
    for number in range(5):
        each = [member(k, x + delta, wanted) for k in range(MEMBERS)]
        loss, gradient = (np.mean([one[i] for one in each], axis=0) for i in range(2))
        state, info = step(jax.random.key(number), state, scenario())
        assert float(info.outer_loss) == pytest.approx(loss.mean(), abs=1e-5)
        assert float(info.grad_norm) == pytest.approx(np.linalg.norm(gradient) / 5, rel=1e-3)
        delta = projected(delta - STEP * np.sign(gradient), x)
        np.testing.assert_allclose(state.theta, delta, atol=1e-6)


def test_variance_reduced_steps_are_plain_loops():
    """Every batch of two rows with its own draws; each gradient is of the checkpoint drawn."""
    single = jp.attacks.feature_alignment(
        oracles.smooth_victim(), variance_reduced=True, checkpoints=MEMBERS, inner_steps=4,
        **OPTIONS,
    )  # fmt: skip
    state, step = single.init(KEY, scenario()), jax.jit(single.step)
    x, _, wanted = arrays()
    delta = np.zeros_like(x)
    for number in range(3):
        key = jax.random.key(number)
        first = [toward_mean(k, x + delta, wanted) for k in range(MEMBERS)]
        state, info = step(key, state, scenario())
        assert float(info.outer_loss) == pytest.approx(np.mean([f[0] for f in first]), abs=1e-5)
        for b, rows in enumerate(([0, 1], [2, 3], [4])):
            drawn = jax.random.randint(jax.random.fold_in(key, b), (4,), 0, MEMBERS)
            at_start = [f[1][rows] for f in first]
            mean, v, total = np.mean(at_start, axis=0), delta[rows], 0
            for k in np.asarray(drawn):
                _, slope = toward_mean(k, x[rows] + v, wanted[rows])
                total = total + slope - (at_start[k] - mean)
                v = projected(v - STEP * np.sign(total), x[rows])
            delta[rows] = projected(delta[rows] - STEP * np.sign(total), x[rows])
        np.testing.assert_allclose(state.theta, delta, atol=1e-6)


def test_of_more_checkpoints_every_second_is_taken():
    six = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0).at[::2].set(9.0), scenario().aux)
    single = jp.attacks.self_ensemble(oracles.smooth_victim(), checkpoints=MEMBERS, **OPTIONS)
    state = single.init(KEY, scenario()._replace(aux=six))
    jax.tree.map(np.testing.assert_array_equal, state.phi, scenario().aux)


def test_bad_values_are_one_line():
    for options, message in [
        ({"checkpoints": 0}, "checkpoints = 0; it must be at least 1"),
        ({"num_classes": 1}, "num_classes = 1; it must be at least 2"),
        ({"inner_steps": 0}, "inner_steps = 0; it must be at least 1"),
        ({"step_size": 0.0}, "step_size = 0.0; it must be a finite number above 0"),
    ]:
        with pytest.raises(jp.InputError, match=message):
            jp.attacks.feature_alignment(oracles.smooth_victim(), **OPTIONS | options)
    single = jp.attacks.self_ensemble(oracles.smooth_victim(), checkpoints=4, **OPTIONS)
    with pytest.raises(jp.InputError, match="must be stacked over 4 members"):
        single.init(KEY, scenario())
