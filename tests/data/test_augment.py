"""Augmentations against loops in numpy, scipy's interpolation, slices of padded images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxpoison.data import augment
from jaxpoison.types import InputError

pytestmark = pytest.mark.usefixtures("quick_module")
SHAPES = [(32, 32, 3), (8, 8, 1), (6, 11, 2)]


def _images(shape, num=5, seed=0):
    return np.random.default_rng(seed).uniform(size=(num, *shape)).astype(np.float32)


def _uniforms(num, seed=1):
    return np.random.default_rng(seed).uniform(size=(3, num)).astype(np.float32)


def _published_shift(image, u0, u1, u2):
    """Section 6 of the reference, in grid units, one pixel and one neighbor at a time."""
    height, width, _ = image.shape
    out = np.zeros(image.shape)
    for i in range(height):
        for j in range(width):
            gx = -1 + 2 * j / (width - 1) + (2 * u0 - 1) * (width / 4) / (width - 1)
            gy = -1 + 2 * i / (height - 1) + (2 * u1 - 1) * (height / 4) / (height - 1)
            gx = -gx if u2 > 0.5 else gx
            column, row = (gx + 1) * (width - 1) / 2, (gy + 1) * (height - 1) / 2
            for r in (int(np.floor(row)), int(np.floor(row)) + 1):
                for c in (int(np.floor(column)), int(np.floor(column)) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[i, j] += image[r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return out


@pytest.mark.parametrize("shape", SHAPES)
def test_shift_is_the_published_one(shape):
    image, u = _images(shape), _uniforms(5)
    got = augment.shift_flip_at(jnp.asarray(image), *jnp.asarray(u))
    want = [_published_shift(im, *each) for im, each in zip(image, u.T, strict=True)]
    # float32 positions near 31 are spaced by 2e-6, and each is a sum of three.
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_move_is_bilinear_interpolation(shape):
    image = _images(shape)
    row, column = 6 * _uniforms(5)[:2] - 3
    got = augment.move(jnp.asarray(image), jnp.asarray(row), jnp.asarray(column))
    for one, out, r, c in zip(image, got, row, column, strict=True):
        # grid-constant: beyond the border zeros are interpolated with, as zero padding does.
        want = scipy.ndimage.shift(one, (-r, -c, 0), order=1, mode="grid-constant", cval=0)
        np.testing.assert_allclose(out, want, atol=1e-5)


def test_shift_landmarks():
    image = jnp.asarray(_images((32, 32, 3), num=1))
    half, one, zero = jnp.full(1, 0.5), jnp.ones(1), jnp.zeros(1)
    np.testing.assert_array_equal(augment.shift_flip_at(image, half, half, zero), image)
    left = augment.shift_flip_at(image, one, half, half)  # u2 = 1/2 does not mirror yet
    np.testing.assert_array_equal(left[:, :, :28], image[:, :, 4:])
    assert not np.any(left[:, :, 28:])
    mirrored = augment.shift_flip_at(image, one, half, one)
    np.testing.assert_array_equal(mirrored[:, :, :28], image[:, :, 27::-1])
    assert not np.any(mirrored[:, :, 28:])
    up = augment.shift_flip_at(image, half, one, zero, max_pixels=2.0, fill=(0.1, 0.2, 0.3))
    np.testing.assert_allclose(up[:, :30], image[:, 2:], atol=1e-7)
    np.testing.assert_allclose(up[0, 30:], np.broadcast_to([0.1, 0.2, 0.3], (2, 32, 3)), atol=1e-7)


@pytest.mark.parametrize("fill", [0.0, 0.4])
def test_crop_is_a_slice_of_the_padded_image(fill):
    image = _images((6, 11, 2), num=200)
    got = augment.crop(2, fill=fill)(jax.random.key(3), jnp.asarray(image))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=fill)
    places = []
    for whole, out in zip(padded, np.asarray(got), strict=True):
        fits = [
            (r, c)
            for r in range(5)
            for c in range(5)
            if np.abs(whole[r : r + 6, c : c + 11] - out).max() < 1e-6
        ]
        assert len(fits) == 1
        places += fits
    assert len(set(places)) == 25  # 200 draws miss one of 25 places once in 140


def test_flip_mirrors_about_half():
    image = _images((4, 5, 1), num=400)
    got = np.asarray(augment.flip()(jax.random.key(0), jnp.asarray(image)))
    mirrored = (got == image[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (got == image).all((1, 2, 3))).all()
    assert 160 < mirrored.sum() < 240  # four standard deviations
    always = augment.flip(probability=1.0)(jax.random.key(0), jnp.asarray(image))
    np.testing.assert_array_equal(always, image[:, :, ::-1])


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_paints_one_square(size):
    image = 1 + jnp.asarray(_images((7, 9, 3), num=300))
    got = np.asarray(augment.cutout(size, fill=0.5)(jax.random.key(1), image))
    centers = set()
    for before, after in zip(np.asarray(image), got, strict=True):
        hole = (after == 0.5).all(-1)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        fits = []
        for y in range(7):
            for x in range(9):
                square = np.zeros((7, 9), bool)
                top, left = y - size // 2, x - size // 2
                square[max(top, 0) : top + size, max(left, 0) : left + size] = True
                fits += [(y, x)] * np.array_equal(square, hole)
        assert len(fits) == 1
        centers.update(fits)
    assert {y for y, _ in centers} == set(range(7)) and {x for _, x in centers} == set(range(9))


def _all():
    return {
        "none": augment.compose(),
        "crop_flip": augment.compose(augment.crop(), augment.flip()),
        "shift": augment.shift(),
        "shift_flip": augment.shift_flip(fill=(0.5, 0.4, 0.3)),
        "cutout": augment.cutout(5),
    }


@pytest.mark.parametrize("name", _all())
def test_pure_traceable_and_in_range(name):
    fn, image, key = _all()[name], jnp.asarray(_images((12, 10, 3))), jax.random.key(5)
    eager = fn(key, image)
    assert eager.shape == image.shape and eager.dtype == image.dtype
    assert 0 <= eager.min() and eager.max() <= 1 + 1e-6
    np.testing.assert_allclose(jax.jit(fn)(key, image), eager, atol=1e-6)
    keys = jax.random.split(key, 2)
    both = jax.vmap(fn, in_axes=(0, None))(keys, image)
    for k, each in zip(keys, both, strict=True):
        np.testing.assert_allclose(each, fn(k, image), atol=1e-6)
    if name != "none":
        assert not np.array_equal(both[0], both[1])
        same = jnp.broadcast_to(image[:1], image.shape)
        assert len(np.unique(np.asarray(fn(key, same)).reshape(5, -1), axis=0)) > 1


@pytest.mark.parametrize("name", _all())
def test_gradient_is_the_central_difference(name, x64):
    fn, key = _all()[name], jax.random.key(2)
    rng = np.random.default_rng(0)
    image, way, weight = (jnp.asarray(rng.uniform(size=(3, 7, 6, 3))) for _ in range(3))
    assert image.dtype == jnp.float64

    def loss(x):
        return jnp.sum(weight * fn(key, x) ** 2)

    step = 1e-5
    slope = (loss(image + step * way) - loss(image - step * way)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(loss)(image) * way), slope, rtol=1e-8)
    _, forward = jax.jvp(loss, (image,), (way,))
    np.testing.assert_allclose(forward, slope, rtol=1e-8)


@pytest.mark.parametrize(
    ("factory", "value"),
    [
        (lambda: augment.crop(-1), "-1"),
        (lambda: augment.flip(probability=1.5), "1.5"),
        (lambda: augment.shift(max_pixels=-2.0), "-2.0"),
        (lambda: augment.shift_flip(max_pixels=-2.0), "-2.0"),
        (lambda: augment.cutout(0), "0"),
    ],
)
def test_factories_name_the_bad_value(factory, value):
    with pytest.raises(InputError, match=f" = {value}; it must be"):
        factory()
