"""MetaPoison: its loss and schedule by numpy, its crowd of surrogates, its color map, its effect.

Measured on digits, an MLP, 576 rows, 29 poisons of radius 0.2, three targets, six fresh victims:
mean probability of the wanted class clean 0.002 to 0.040, noise 0.004 to 0.046, `metapoison` 0.031
to 0.158, `metapoison_at_surrogate` 0.026 to 0.140.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.attacks import Crafting, MetaCrafting, metapoison, metapoison_at_surrogate
from jaxpoison.attacks.targeted.metapoison import _margin, _rate
from jaxpoison.types import Dataset, InputError, Scenario
from jaxpoison.victims import Recipe

pytestmark = pytest.mark.usefixtures("quick_module")
KEY, EPS = jax.random.key(0), 0.2


def test_the_margin_is_the_published_one():
    """The wanted logit is a 0 in the maximum; each margin is at least -100."""
    logits = np.array([[3.0, -1.0, 2.0], [-5.0, -7.0, 2.0], [1.0, 1.0, 300.0]], np.float32)
    label = np.array([1, 2, 2])
    expected = [3.0 - -1.0, 0.0 - 2.0, -100.0]
    np.testing.assert_allclose(_margin(jnp.asarray(logits), jnp.asarray(label)), np.mean(expected))


def test_the_rate_rises_as_a_square_and_falls_twice():
    steps = np.arange(60)
    rise = np.minimum(1, (steps + 1) / 5) ** 2
    expected = 200 / 255 * rise * 0.1 ** np.searchsorted([20, 40], steps, "right")
    np.testing.assert_allclose(jax.vmap(_rate(MetaCrafting()))(steps), expected, rtol=1e-5)
    constant = MetaCrafting(warmup=0, milestones=(), learning_rate=0.3)
    np.testing.assert_allclose(jax.vmap(_rate(constant))(steps), 0.3)


def test_the_presets_are_what_they_say():
    paper, small = MetaCrafting(), MetaCrafting.small()
    assert (paper.steps, paper.members, paper.stagger, paper.unroll_steps) == (60, 24, 1, 2)
    assert (paper.init, paper.color_cells, paper.smoothness) == ("uniform", 10, 1.0)
    recipe = paper.recipe
    assert (recipe.batch_size, recipe.learning_rate, recipe.momentum) == (125, 0.1, 0.0)
    assert small.members == 4 and max(small.milestones) < small.steps == 20


def color_scenario():
    """Six RGB images, two of which may change; one target."""
    image = np.random.RandomState(0).randint(20, 235, (6, 4, 4, 3))
    train = Dataset(jnp.asarray(image, jnp.uint8), jnp.array([0, 1, 2, 0, 1, 2], jnp.int32))
    goal = Dataset(255 - train.image[:1], jnp.array([1], jnp.int32))
    return Scenario(train, goal, jnp.array([1, 4], jnp.int32))


@functools.cache
def color_run(steps):
    """Three surrogates on as many devices, two epochs apart, three batches each; in color."""
    net = jp.models.mlp((4, 4, 3), 3, hidden=(4,), batch_norm=False, logits_norm=False)
    crafting = MetaCrafting(
        steps=2, members=3, stagger=2, recipe=Recipe(9, 2, 0.1, momentum=0.0), color_shift=0.04,
        color_cells=3, mesh=jp.device_mesh(3, axis="member"),
    )  # fmt: skip
    attack = metapoison(net, eps=8 / 255, crafting=crafting)
    assert attack.num_steps == 2
    return attack, *jp.run(attack, KEY, color_scenario(), num_steps=steps)


def test_members_keep_their_distance_in_age():
    """Ages 0, 2, 4 before; after two epochs 2, 4 and, at 6, the third starts anew."""
    _, state, _ = color_run(2)
    np.testing.assert_array_equal(state.phi.epoch, [2, 4, 0])
    counts = [x for x in jax.tree.leaves(state.phi.state.opt_state) if x.dtype == jnp.int32]
    for count in counts:  # of updates since the start: three an epoch
        np.testing.assert_array_equal(count, [6, 12, 0])
    assert counts
    kernels = state.phi.state.params["Dense_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[2]).max() > 0.1


def test_the_color_map_is_used_within_the_summed_radius():
    attack, state, info = color_run(2)
    assert np.isfinite(info.outer_loss).all() and info.finite.all()
    grid, data = np.asarray(state.theta.grid), color_scenario()
    assert 0.01 < np.abs(grid).max() <= np.float32(0.04)
    image = np.asarray(attack.poison(state, data).image)
    change = np.abs(image - np.asarray(data.train.image, np.float32) / 255).max(axis=(1, 2, 3))
    assert change[[0, 2, 3, 5]].max() < 1e-6
    assert 8 / 255 < change.max() <= 8 / 255 + jp.perturb.color_bound(0.04) + 1e-6


EPOCHS, ROWS, TARGETS = 15, 576, (2, 3, 5)


@functools.cache
def victim():
    return jp.models.mlp((8, 8, 1), 10, hidden=(32,), batch_norm=False, logits_norm=False)


@functools.cache
def split():
    train, test = jp.data.digits("train"), jp.data.digits("test")
    train = Dataset(jnp.asarray(train.image[:ROWS]), jnp.asarray(train.label[:ROWS]))
    return jp.Split(train, Dataset(jnp.asarray(test.image), jnp.asarray(test.label)))


RECIPE = Recipe(EPOCHS, 32, 0.1, momentum=0.0)


@functools.cache
def training():
    return jp.over_restarts(jp.victims.victim_training(victim(), RECIPE, ROWS), 6, chunk=None)


@functools.cache
def surrogate():
    state, _ = jp.run(training(), jax.random.key(5), split(), num_steps=EPOCHS)
    return jp.tree.take(state.variables, 0)


def scenario(number):
    """Target `number` of the test set shall be read as another class, 29 images of which change."""
    train, test = split()
    wanted = (test.label[number] + 1 + number) % 10
    index = jnp.flatnonzero(train.label == wanted)[:29].astype(jnp.int32)
    goal = Dataset(test.image[number][None], wanted[None])
    return Scenario(train, goal, index, surrogate())


def crafted(attack, data):
    state, _ = jp.run(attack, jax.random.key(3), data, num_steps=attack.num_steps)
    return np.asarray(attack.poison(state, data).image)


def noisy(data):
    """Random signs at the full radius."""
    image = np.array(data.train.image, np.float32) / 255
    sign = np.random.RandomState(0).choice([-EPS, EPS], image[data.index].shape)
    image[data.index] = np.clip(image[data.index] + sign, 0, 1)
    return image


def wanted_probability(image, data):
    """Mean over six fresh victims of p(wanted class) at the target, on the stored images."""
    stored = jnp.asarray(np.rint(255 * image), jnp.uint8)
    poisoned = split()._replace(train=Dataset(stored, data.train.label))
    phi, _ = jp.run(training(), jax.random.key(9), poisoned, num_steps=EPOCHS)
    image = data.goal.image.astype(jnp.float32) / 255
    logits = jax.vmap(lambda v: victim().apply(v, image, train=False)[0][0])(phi.variables)
    return float(jnp.mean(jax.nn.softmax(logits)[:, data.goal.label[0]]))


def test_fresh_victims_lean_to_the_wanted_class():
    """At every target at least twice, on the whole three times as likely as with noise."""
    crafting = MetaCrafting(
        steps=12, members=4, stagger=3, recipe=RECIPE, warmup=2, milestones=(4, 8)
    )
    attacks = {
        "meta": metapoison(victim(), eps=EPS, crafting=crafting),
        "at_surrogate": metapoison_at_surrogate(
            victim(), eps=EPS, learning_rate=0.01, crafting=Crafting(steps=60, tau=0.16)
        ),
    }
    scenarios = [scenario(number) for number in TARGETS]
    noise = np.array([wanted_probability(noisy(data), data) for data in scenarios])
    for name, attack in attacks.items():
        found = [wanted_probability(crafted(attack, data), data) for data in scenarios]
        ratio = np.array(found) / noise
        assert ratio.min() > 2 and np.exp(np.log(ratio).mean()) > 3, (name, found, noise)


def test_bad_settings_are_named():
    for options, message in (
        ({"members": 0}, "members = 0"),
        ({"stagger": 0}, "stagger = 0"),
        ({"unroll_steps": 0}, "unroll_steps = 0"),
        ({"learning_rate": 0}, "learning_rate = 0"),
        ({"warmup": -1}, "warmup = -1"),
        ({"milestones": (0,)}, "milestones = 0"),
        ({"color_shift": 2}, "color_shift = 2"),
        ({"color_cells": 1}, "color_cells = 1"),
        ({"smoothness": -1}, "smoothness = -1"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(MetaCrafting(), **options)
    with pytest.raises(InputError, match="eps = 8 looks like grey levels"):
        metapoison(victim(), eps=8)
    with pytest.raises(InputError, match="unroll_steps = 0"):
        metapoison_at_surrogate(victim(), eps=EPS, unroll_steps=0)
