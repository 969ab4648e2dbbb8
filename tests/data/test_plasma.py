"""Plasma fractals against a loop in numpy; what brightness and contrast make of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.data import plasma as plasmas
from jaxpoison.data.plasma import plasma, plasma_brightness, plasma_contrast

KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("quick_module")


def diamond_square(corners, roughness, levels, noise):
    """One map whose noise is everywhere the same number."""
    a = np.zeros((3, 3))
    a[::2, ::2] = corners
    a[1, 1] = corners.mean()
    for edge, (p, q) in {
        (0, 1): ((0, 0), (0, 2)),
        (2, 1): ((2, 0), (2, 2)),
        (1, 0): ((0, 0), (2, 0)),
        (1, 2): ((0, 2), (2, 2)),
    }.items():
        a[edge] = (a[p] + a[q] + a[1, 1]) / 3
    for level in range(1, levels):
        share, size = roughness**level, 2 * len(a) - 1
        b = np.zeros((size, size))
        b[::2, ::2] = a
        for odd in (True, False):
            for i in range(size):
                for j in range(size):
                    if (i % 2 and j % 2) if odd else (i + j) % 2:
                        steps = [(-1, -1), (-1, 1), (1, -1), (1, 1)] if odd else []
                        steps = steps or [(-1, 0), (1, 0), (0, -1), (0, 1)]
                        near = [(i + k, j + m) for k, m in steps]
                        near = [b[p] for p in near if min(p) >= 0 and max(p) < size]
                        b[i, j] = (1 - share) * np.mean(near) + share * noise
        a = b
    return a


def test_without_roughness_it_is_the_smooth_surface_over_its_corners():
    found = np.asarray(plasma(KEY, jnp.zeros(2), 17, 17, 3))
    for one in np.moveaxis(found, 3, 1).reshape(6, 17, 17):
        expected = diamond_square(one[::16, ::16], 0.0, 4, 0.0)
        np.testing.assert_allclose(one, expected, atol=1e-6)
    assert len({float(x) for x in found[:, ::16, ::16].ravel()}) == 24


def test_levels_mix_in_noise_by_powers_of_the_roughness(monkeypatch):
    draw, calls = jax.random.uniform, []

    def constant(key, shape, dtype):
        calls.append(shape)
        return draw(key, shape, dtype) if len(calls) == 1 else jnp.full(shape, 0.9, dtype)

    monkeypatch.setattr(plasmas.jax.random, "uniform", constant)
    rough = jnp.asarray([0.3, 0.7])
    found = np.asarray(plasma(KEY, rough, 9, 9, 1))
    for one, r in zip(found[..., 0], rough, strict=True):
        np.testing.assert_allclose(one, diamond_square(one[::8, ::8], r, 3, 0.9), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 20), (2, 3), (1, 1)])
def test_maps_are_cut_to_size_and_lie_in_the_box(height, width):
    found = np.asarray(plasma(KEY, jnp.linspace(0, 1, 5), height, width, 2))
    assert found.shape == (5, height, width, 2)
    assert found.min() >= 0 and found.max() <= 1


def test_the_mean_is_a_half():
    found = plasma(KEY, jnp.linspace(0.3, 0.7, 2000), 8, 8, 1)
    assert abs(float(jnp.mean(found)) - 0.5) < 0.02
    assert float(jnp.std(jnp.mean(found, axis=(1, 2, 3)))) > 0.05


def test_brightness_and_contrast_are_their_formulas(monkeypatch):
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 4, 4, 3)), jnp.float32)
    field = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 4, 4, 3)), jnp.float32)
    bounds = []

    def maps(key, image, roughness):
        bounds.append(roughness)
        return field

    monkeypatch.setattr(plasmas, "_maps", maps)
    found = plasma_brightness(roughness=(0.1, 0.2), intensity=(0.6, 0.6))(KEY, image)
    np.testing.assert_allclose(found, np.clip(image + 0.6 * (2 * field - 1), 0, 1), atol=1e-6)
    found = plasma_contrast()(KEY, image)
    expected = np.clip((np.asarray(image) - 0.5) * 4 * np.asarray(field) + 0.5, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert bounds == [(0.1, 0.2), (0.3, 0.7)]


def test_the_intensity_and_the_roughness_are_drawn_from_their_bounds():
    image = jnp.full((400, 3, 3, 1), 0.5)
    change = np.asarray(plasma_brightness(intensity=(0.2, 0.4))(KEY, image)) - 0.5
    assert abs(change).max() <= 0.4 + 1e-6 and abs(change).max() > 0.3


def test_bad_bounds_are_one_line():
    for bounds in ((0.7, 0.3), (-0.1, 0.5), (0.5, 1.5)):
        with pytest.raises(jp.InputError, match="^roughness = "):
            plasma_contrast(roughness=bounds)
    with pytest.raises(
        jp.InputError, match=r"^intensity = \(0.5, 2\); it must be \(least, largest"
    ):
        plasma_brightness(intensity=(0.5, 2))
