"""The color map: against closed forms and numpy loops; its budget on stored images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.perturb import Budget, color_bound, color_map, colored, per_sample, roughness
from jaxpoison.types import Dataset, InputError, Scenario
from tests import oracles

pytestmark = pytest.mark.usefixtures("quick_module")
KEY, EPS, SHIFT = jax.random.key(0), 8 / 255, 0.04
Y = (0.299, 0.587, 0.114)  # BT.601: U = 0.492 (B - Y), V = 0.877 (R - Y), as printed there


def to_yuv(rgb):
    y = rgb @ np.array(Y)
    return np.stack([y, (rgb[..., 2] - y) * 0.436 / 0.886, (rgb[..., 0] - y) * 0.615 / 0.701], -1)


def to_rgb(yuv):
    y, u, v = np.moveaxis(yuv, -1, 0)
    red, blue = y + v * 0.701 / 0.615, y + u * 0.886 / 0.436
    return np.stack([red, (y - Y[0] * red - Y[2] * blue) / Y[1], blue], -1)


@functools.cache
def images(low=0.3, high=0.7):
    return np.random.RandomState(1).uniform(low, high, (2, 4, 4, 3)).astype(np.float32)


def nodes(n):
    """[n, n, n, 3], the (Y, U, V) at each node."""
    axes = np.linspace(0, 1, n), np.linspace(-0.436, 0.436, n), np.linspace(-0.615, 0.615, n)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


@pytest.mark.parametrize("cells", [2, 5])
def test_a_map_that_is_linear_in_the_colors_is_exact(cells, strict_dtypes):
    matrix = np.random.RandomState(2).uniform(-0.05, 0.05, (3, 3))
    offset = np.array([0.02, -0.01, 0.03])
    grid = np.stack([nodes(cells) @ matrix + offset, np.zeros((cells, cells, cells, 3))])
    out = color_map(jnp.asarray(grid, jnp.float32), jnp.asarray(images()))
    colors = to_yuv(images()[0])
    np.testing.assert_allclose(out[0], to_rgb(colors + colors @ matrix + offset), atol=1e-5)
    np.testing.assert_array_equal(out[1], images()[1])  # a zero grid changes no bit


def test_black_white_and_the_pure_colors_have_a_place_in_the_grid():
    corners = np.array(list(np.ndindex(2, 2, 2)), np.float32).reshape(1, 2, 4, 3)
    grid = np.zeros((1, 3, 3, 3, 3), np.float32)
    grid[..., 0] = -0.2 * nodes(3)[None, ..., 0]
    out = color_map(jnp.asarray(grid), jnp.asarray(corners))
    lightness = to_yuv(corners)[..., :1]
    np.testing.assert_allclose(out, np.clip(corners - 0.2 * lightness, 0, 1), atol=1e-6)


def test_the_gradient_in_the_grid_is_central_differences(x64):
    grid = np.random.RandomState(3).uniform(-SHIFT, SHIFT, (2, 2, 2, 2, 3))
    image = jnp.asarray(images(), jnp.float64)
    weight = np.random.RandomState(4).normal(size=image.shape)

    @jax.jit
    def total(grid):
        return jnp.sum(weight * color_map(grid, image)) + roughness(grid)

    expected = oracles.central_differences(total, grid)
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(grid)), expected, rtol=1e-6, atol=1e-9)


def test_roughness_is_a_sum_over_images_and_a_mean_over_neighbors():
    grid = np.random.RandomState(3).normal(size=(2, 3, 3, 3, 3)).astype(np.float32)
    expected = 0.0
    for one in grid:
        lengths = []
        for node in np.ndindex(3, 3, 3):
            for axis in range(3):
                beside = tuple(np.add(node, np.eye(3, dtype=int)[axis]))
                if max(beside) < 3:
                    lengths.append(np.linalg.norm(one[node] - one[beside]))
        assert len(lengths) == 54
        expected += np.mean(lengths)
    np.testing.assert_allclose(roughness(jnp.asarray(grid)), expected, rtol=1e-5)
    flat = jnp.full((1, 3, 3, 3, 3), 0.3)
    value, gradient = jax.value_and_grad(roughness)(flat)
    assert value == 0 and np.all(gradient == 0)


def test_the_bound_is_met_by_a_blue_shift():
    """Blue is Y + 2.032 U; no entry of any map goes further."""
    assert color_bound(SHIFT) == pytest.approx(SHIFT * (1 + 0.886 / 0.436), rel=1e-6)
    grid = jnp.full((1, 2, 2, 2, 3), SHIFT)
    moved = color_map(grid, jnp.full((1, 1, 1, 3), 0.5)) - 0.5
    assert jnp.abs(moved).max() == pytest.approx(color_bound(SHIFT), rel=1e-5)


def scenario():
    """Stored images, many pixels at the ends of the range."""
    image = np.rint(255 * np.clip(images(-0.2, 1.2), 0, 1)).astype(np.uint8)
    image = jnp.asarray(np.concatenate([image, image[::-1]]))
    train = Dataset(image, jnp.zeros(4, jnp.int32))
    return Scenario(train, train, jnp.array([2, 0], jnp.int32))


def test_projection_keeps_ball_grid_and_box_and_the_folder_verifies(tmp_path):
    space, data = colored(per_sample(Budget("linf", EPS)), shift=SHIFT, cells=3), scenario()
    start = space.init(KEY, data)
    np.testing.assert_array_equal(start.grid, 0)
    random = np.random.RandomState(5)
    wild = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), start)
    theta = jax.jit(space.project)(wild, data)
    assert jnp.abs(theta.grid).max() == np.float32(SHIFT)
    assert jnp.abs(theta.delta).max() <= EPS
    again = jax.jit(space.project)(theta, data)
    np.testing.assert_allclose(again.delta, theta.delta, atol=1e-7)
    image = np.asarray(jax.jit(space.apply)(theta, data, jnp.arange(4)).image)
    clean = np.asarray(data.train.image, np.float32) / 255
    assert image.min() >= -1e-6 and image.max() <= 1 + 1e-6
    np.testing.assert_allclose(image[[1, 3]], clean[[1, 3]], atol=1e-7)
    for slot, row in enumerate(data.index):
        recolored = color_map(theta.grid[slot][None], jnp.asarray(clean[row][None]))[0]
        np.testing.assert_allclose(image[row], recolored + theta.delta[slot], atol=1e-6)
    radius = EPS + color_bound(SHIFT)
    change = np.abs(image - clean).max()
    assert EPS + 0.05 < change <= radius + 1e-6
    poisoned = jp.perturb.poison(space, theta, data)
    jp.data.poisoned.write(
        tmp_path / "p", poisoned=poisoned, clean=data.train, index=data.index,
        attack="metapoison", settings={}, norm="linf", eps=radius, source={"name": "random"},
    )  # fmt: skip
    assert jp.data.poisoned.verify(tmp_path / "p", data.train).passed


def test_bad_settings_are_named():
    space = per_sample(Budget("linf", EPS))
    for options, message in (({"shift": -1}, "shift = -1"), ({"cells": 1}, "cells = 1")):
        with pytest.raises(InputError, match=message):
            colored(space, **options)
    with pytest.raises(InputError, match="images have 1 channels; a color map needs 3"):
        colored(space).init(KEY, oracles.tiny_scenario())
