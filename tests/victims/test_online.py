"""A victim that is poisoned as it trains."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.types import Variables
from jaxpoison.victims import poisoned_online
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


def parts():
    network = oracles.smooth_generator()
    theta = network.init(KEY)
    theta = Variables(theta.params, jax.tree.map(lambda s: s + 0.3, theta.stats))
    victim = jp.models.mlp((3, 3, 1), 3, hidden=(4,))
    return victim, network, theta, poisoned_online(victim, network, theta, eps=0.2)


def test_train_mode_reads_poison_and_eval_mode_the_image_itself():
    victim, network, theta, online = parts()
    x = oracles.tiny_scenario().train.image
    state, own = online.init(KEY), victim.init(KEY)
    noise, _ = network.apply(theta, x, train=False)
    poison = jnp.clip(x + 0.2 * noise, 0, 1)
    logits, stats = online.apply(state, x, train=True, key=KEY)
    expected, moved = victim.apply(own, poison, train=True, key=KEY)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(stats["victim"], moved, rtol=1e-5)
    chex.assert_trees_all_equal(stats["generator"], {"params": theta.params, "stats": theta.stats})
    logits, stats = online.apply(state, x, train=False)
    np.testing.assert_array_equal(logits, victim.apply(own, x, train=False)[0])
    chex.assert_trees_all_equal(stats, state.stats)
    np.testing.assert_array_equal(online.features(state, x), victim.features(own, x))


def test_the_generator_sees_the_augmented_image():
    """One SGD step on flipped images: poison of the flip, which is not the flip of the poison."""
    victim, network, theta, online = parts()
    x, y = oracles.tiny_scenario().train
    rule = optax.sgd(0.5)
    flipped = x[:, :, ::-1]
    noise, _ = network.apply(theta, flipped, train=False)
    ones, rows = jnp.ones(8), jnp.arange(8, dtype=jnp.int32)
    made = [
        jax.jit(jp.victims.learner(net, rule).step)(KEY, start, jp.Batch(image, y, ones, rows))[0]
        for net, image, start in (
            (online, flipped, jp.victims.learner(online, rule).init(KEY)),
            (
                victim,
                jnp.clip(flipped + 0.2 * noise, 0, 1),
                jp.victims.learner(victim, rule).init(KEY),
            ),
        )
    ]
    chex.assert_trees_all_close(made[0].params, made[1].params, atol=1e-6)
    fixed = made[0].stats["generator"]
    chex.assert_trees_all_equal(fixed, {"params": theta.params, "stats": theta.stats})


def test_it_trains_by_any_recipe_and_the_step_holds_no_constants():
    _, _, theta, online = parts()
    data = oracles.tiny_scenario().train
    recipe = jp.victims.Recipe(1, 4, 0.1, augmentation="flip")
    process = jp.victims.victim_training(online, recipe, 8)
    split = jp.Split(data, data)
    phi = jax.eval_shape(process.init, KEY, split)
    closed = jax.make_jaxpr(process.step)(KEY, phi, split)
    largest = max((np.size(c) for c in closed.consts), default=0)
    assert largest < theta.params["w"].size


def test_a_radius_in_grey_levels_is_one_line():
    victim, network, theta, _ = parts()
    with pytest.raises(jp.InputError, match="^eps = 8 looks like grey levels; write 8/255$"):
        poisoned_online(victim, network, theta, eps=8)
