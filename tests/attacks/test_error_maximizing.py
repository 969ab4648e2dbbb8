import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from tests import oracles
from tests.attacks import tiny

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
EPS = 0.15


def scenario():
    """Eight images, some of them at the box; rows 6, 2, 0, 5, 3 may change."""
    data = oracles.tiny_scenario()
    image = data.train.image.at[2, 0].set(0.0).at[5, 1].set(1.0)
    variables = oracles.smooth_victim().init(jax.random.key(7))
    index = jnp.array([6, 2, 0, 5, 3], jnp.int32)
    return jp.Scenario(data.train._replace(image=image), data.goal, index, aux=variables)


def attack(**options):
    settings = {"eps": EPS, "num_classes": 3, "batch_size": 2, "step_size": 0.04, "augment": None}
    return jp.attacks.error_maximizing(oracles.smooth_victim(), **(settings | options))


@pytest.mark.parametrize("goal", ["targeted", "untargeted"])
@pytest.mark.parametrize("factor", [None, 0.5])
def test_a_step_is_the_hand_formula(goal, factor):
    """d <- clip(clip(d - 0.04 sign g, -eps, eps), -x, 1 - x), g from the net in closed form."""
    data = scenario()
    augment = None if factor is None else lambda key, image: factor * image
    single = attack(goal=goal, augment=augment)
    before = single.init(KEY, data)
    after, info = jax.jit(single.step)(KEY, before, data)

    w, v = (np.asarray(data.aux.params[name], np.float64) for name in "wv")
    x = np.asarray(data.train.image, np.float64)[np.asarray(data.index)]
    y = np.asarray(data.train.label)[np.asarray(data.index)]
    delta = np.asarray(before.theta, np.float64)
    sign, wanted = (1, (y + 1) % 3) if goal == "targeted" else (-1, y)
    scale = 1 if factor is None else factor
    loss, gradient, _, _ = tiny.losses_and_gradients(w, v, scale * (x + delta), wanted)
    gradient = sign * scale * gradient
    stepped = np.clip(delta - 0.04 * np.sign(gradient), -EPS, EPS)
    np.testing.assert_allclose(after.theta, np.clip(stepped, -x, 1 - x), atol=1e-6)
    assert float(info.outer_loss) == pytest.approx(sign * loss.mean(), abs=1e-5)
    assert float(info.grad_norm) == pytest.approx(np.linalg.norm(gradient) / 5, rel=1e-4)
    np.testing.assert_array_equal(after.phi.params["w"], data.aux.params["w"])


def test_the_start_is_normal_cut_at_the_budget_and_the_step_is_a_twentieth():
    image = jnp.full((40, 8, 8, 1), 0.5)
    train = jp.Dataset(image, jnp.zeros(40, jnp.int32))
    data = jp.Scenario(train, train, jnp.arange(40, dtype=jnp.int32))
    data = data._replace(aux=oracles.smooth_victim(size=64).init(KEY))
    options = {"eps": EPS, "num_classes": 3, "augment": None}
    single = jp.attacks.error_maximizing(oracles.smooth_victim(size=64), **options)
    before = single.init(KEY, data)
    start = np.asarray(before.theta)
    assert np.abs(start).max() == np.float32(EPS)
    assert abs(np.mean(np.abs(start) == np.float32(EPS)) - 0.317) < 0.03  # P(|N| > 1)
    inside = start[np.abs(start) < EPS]
    assert inside.std() == pytest.approx(0.5397 * EPS, rel=0.05)  # a normal cut at one sigma
    after, _ = jax.jit(single.step)(KEY, before, data)
    moved = np.abs(np.asarray(after.theta) - start)
    assert moved.max() == pytest.approx(0.05 * EPS, rel=1e-4)


def test_the_best_restart_is_not_worse_than_the_first():
    data = scenario()
    three = jp.over_restarts(attack(), 3)
    state, info = jp.run(three, KEY, data, num_steps=6)
    _, best = jp.best_of(three, state, info)
    last = np.asarray(info.outer_loss)[-1]
    chosen = int(np.argmin(last))
    assert last[chosen] < last.max()
    np.testing.assert_array_equal(best.theta, state.theta[chosen])


def test_each_image_and_step_draws_its_own_augmentation():
    seen = []

    def augment(key, image):
        drawn = jax.random.uniform(key, image.shape[:1])
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), drawn)
        return image

    _, info = jp.run(attack(augment=augment, batch_size=5), KEY, scenario(), num_steps=3)
    jax.block_until_ready(info)
    jax.effects_barrier()
    assert len(seen) == 3 and len(np.unique(np.stack(seen))) == 15


def test_by_default_the_surrogate_reads_images_shifted_by_part_of_a_pixel_and_mirrored():
    """White left columns are seen there or on the right, at most H / 8 = 1 pixel away."""
    net, seen = oracles.smooth_victim(size=64), []

    def apply(variables, image, **mode):
        jax.debug.callback(lambda value: seen.append(np.asarray(value)), image)
        return net.apply(variables, image, **mode)

    train = jp.Dataset(jnp.zeros((32, 8, 8, 1)).at[:, :, 0].set(1.0), jnp.zeros(32, jnp.int32))
    data = jp.Scenario(train, train, jnp.arange(32, dtype=jnp.int32), aux=net.init(KEY))
    single = jp.attacks.error_maximizing(net._replace(apply=apply), eps=0.0, num_classes=3)
    jax.block_until_ready(jax.jit(single.step)(KEY, single.init(KEY, data), data))
    jax.effects_barrier()
    row = np.concatenate([image[:, 4, :, 0] for image in seen])
    left, right = row[:, :2].sum(axis=1), row[:, 6:].sum(axis=1)
    assert not row[:, 2:6].any() and np.all((left > 0) != (right > 0))
    assert 0.2 < np.mean(right > 0) < 0.8
    assert np.any((row > 0.05) & (row < 0.95))
