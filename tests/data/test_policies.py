"""Operations of automatic augmentation against pillow, and how RandAugment draws them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import jaxpoison as jp
from jaxpoison.data import policies, tones
from jaxpoison.data.affine import matrices, random_affine, warp
from jaxpoison.data.policies import OPERATIONS, rand_augment, rand_augment_at, trivial_augment

KEY, SIZE = jax.random.key(0), (16, 20)
T = 9 / 30  # share of the strengths at magnitude 9

pytestmark = pytest.mark.usefixtures("quick_module")


@functools.cache
def pictures(num=3):
    """Smooth levels, some clipped: natural enough for histograms."""
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(num, 3, 4, 5)).repeat(4, axis=2).repeat(4, axis=3)
    levels = 128 + 50 * waves + rng.normal(size=waves.shape) * 12
    return np.clip(np.moveaxis(levels, 1, 3), 0, 255).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=3)
def at(image, number, sign, magnitude):
    return rand_augment_at(image, number, sign, magnitude=magnitude)


def applied(name, sign=1, magnitude=9):
    image = jnp.asarray(pictures(), jnp.float32) / 255
    number = jnp.full(3, OPERATIONS.index(name))
    return np.asarray(at(image, number, jnp.full(3, float(sign)), magnitude)) * 255


def affine(image, *numbers):
    return image.transform(image.size, Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST)


PILLOW = {  # name: (change of a picture by a sign, levels that may differ, share of others)
    "identity": (lambda p, s: p, 0, 0),
    "shear_x": (lambda p, s: affine(p, 1, 0.3 * T * s, 0, 0, 1, 0), 0, 0.005),
    "shear_y": (lambda p, s: affine(p, 1, 0, 0, 0.3 * T * s, 1, 0), 0, 0.005),
    "translate_x": (lambda p, s: affine(p, 1, 0, -s * int(150 / 331 * 20 * T), 0, 1, 0), 0, 0),
    "translate_y": (lambda p, s: affine(p, 1, 0, 0, 0, 1, -s * int(150 / 331 * 16 * T)), 0, 0),
    "rotate": (lambda p, s: p.rotate(30 * T * s), 0, 0.005),
    "brightness": (lambda p, s: ImageEnhance.Brightness(p).enhance(1 + 0.9 * T * s), 1, 0),
    "color": (lambda p, s: ImageEnhance.Color(p).enhance(1 + 0.9 * T * s), 1.6, 0),
    "contrast": (lambda p, s: ImageEnhance.Contrast(p).enhance(1 + 0.9 * T * s), 1.6, 0),
    "sharpness": (lambda p, s: ImageEnhance.Sharpness(p).enhance(1 + 0.9 * T * s), 1.6, 0),
    "posterize": (lambda p, s: ImageOps.posterize(p, 7), 0, 0),
    "solarize": (lambda p, s: ImageOps.solarize(p, 255 * (1 - T)), 0, 0),
    "autocontrast": (lambda p, s: ImageOps.autocontrast(p), 1, 0),
    "equalize": (lambda p, s: ImageOps.equalize(p), 0, 0),
}


def test_every_operation_has_an_oracle():
    assert set(PILLOW) == set(OPERATIONS)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pillows(name, sign):
    change, levels, share = PILLOW[name]
    expected = [np.asarray(change(Image.fromarray(x), sign)) for x in pictures()]
    gap = np.abs(applied(name, sign) - np.stack(expected))
    assert (gap > levels + 1e-3).mean() <= share
    if name not in ("identity", "posterize"):
        assert np.abs(np.stack(expected).astype(float) - pictures()).mean() > 0.5


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_is_pillows_for_every_number_of_bits(bits):
    image = jnp.asarray(pictures(), jnp.float32) / 255
    expected = [np.asarray(ImageOps.posterize(Image.fromarray(x), bits)) for x in pictures()]
    found = tones.posterize(image, jnp.full(3, bits)) * 255
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-3)


def test_no_bits_are_black_and_constant_channels_stay():
    image = jnp.full((1, 4, 4, 3), 0.4)
    assert not np.any(tones.posterize(image, jnp.zeros(1, jnp.int32)))
    np.testing.assert_array_equal(tones.autocontrast(image), image)
    np.testing.assert_allclose(tones.equalize(image), image)


def test_strengths_follow_the_magnitude():
    np.testing.assert_array_equal(applied("brightness", magnitude=0), applied("identity"))
    expected = [
        np.asarray(ImageEnhance.Brightness(Image.fromarray(x)).enhance(1.9)) for x in pictures()
    ]
    assert np.abs(applied("brightness", magnitude=30) - np.stack(expected)).max() <= 1 + 1e-3


def test_a_bilinear_move_equals_scipy():
    from scipy import ndimage

    image = pictures()[:1].astype(np.float32) / 255
    options = {"angle": jnp.array([0.4]), "shear": jnp.array([[0.1, -0.2]])}
    matrix = matrices(*SIZE, **options, shift=jnp.array([[1.3, -2.6]]))
    a = np.asarray(matrix[0], np.float64)
    columns, rows = np.meshgrid(np.arange(20) + 0.5, np.arange(16) + 0.5)
    x, y = np.einsum("ij,jhw->ihw", a, np.stack([columns, rows, np.ones_like(rows)])) - 0.5
    found = warp(jnp.asarray(image), matrix, smooth=True)
    for c in range(3):
        expected = ndimage.map_coordinates(
            np.pad(image[0, ..., c], 2), [y + 2, x + 2], order=1, mode="constant"
        )
        np.testing.assert_allclose(found[0, ..., c], expected, atol=1e-4)


def test_rand_augment_draws_operations_and_signs_for_every_image(monkeypatch):
    seen = []

    def note(image, number, sign, *, magnitude):
        seen.append((number, sign, magnitude))
        return image + number[:, None, None, None]

    monkeypatch.setattr(policies, "rand_augment_at", note)
    with jax.disable_jit():
        total = rand_augment(num_ops=3, magnitude=7)(KEY, jnp.zeros((700, 1, 1, 1)))
    numbers, signs = (np.stack([x[k] for x in seen]) for k in (0, 1))
    assert numbers.shape == (3, 700) and [x[2] for x in seen] == [7] * 3
    np.testing.assert_array_equal(total[:, 0, 0, 0], numbers.sum(axis=0))
    assert abs(np.bincount(numbers.ravel(), minlength=14) - 150).max() < 60
    assert set(np.unique(signs)) == {-1, 1} and abs(signs.mean()) < 0.1
    assert len({tuple(x) for x in numbers.T}) > 300


def test_trivial_augment_makes_images_of_every_kind():
    image = jnp.asarray(pictures(), jnp.float32) / 255
    apply = jax.jit(trivial_augment())
    found = np.stack([apply(jax.random.fold_in(KEY, k), image) for k in range(40)])
    assert found.shape == (40, 3, *SIZE, 3)
    assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
    changes = np.abs(found - np.asarray(image)[None]).mean(axis=(2, 3, 4))
    assert (changes.max(axis=1) > 0.01).all()
    np.testing.assert_array_equal(found[0], apply(jax.random.fold_in(KEY, 0), image))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_ops": 0}, "^num_ops = 0; it must be at least 1"),
        ({"magnitude": 31}, "^magnitude = 31; it must be a number at most 30"),
        ({"magnitude": -1}, "^magnitude = -1; it must be at least 0"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(jp.InputError, match=message):
        rand_augment(**settings)


@pytest.mark.parametrize(
    ("options", "angle", "slope", "scale"),
    [
        ({"degrees": 10}, 10, 0, (1, 1)),
        ({"shear": 10, "scale": (0.8, 1.2)}, 0, np.tan(np.radians(10)), (0.8, 1.2)),
    ],
)
def test_a_random_affine_move_is_of_the_strengths_it_was_given(options, angle, slope, scale):
    """Where each pixel was read, seen on images of their own coordinates: p -> A (p - c) + c."""
    num, size = 64, 33
    y, x = np.mgrid[:size, :size] - 16.0
    ramp = jnp.asarray(np.stack([x, y], axis=2) + 100, jnp.float32)
    read = random_affine(**options)(KEY, jnp.broadcast_to(ramp[None], (num, size, size, 2)))
    found = []
    for one in np.asarray(read).reshape(num, -1, 2):
        inside = one[:, 0] > 0  # zero outside
        at = np.stack([x.ravel(), y.ravel()], axis=1)
        found.append(np.linalg.lstsq(at[inside], one[inside] - 100, rcond=None)[0].T)
    (a, b), (c, d) = np.moveaxis(np.stack(found), 0, 2)
    turn, factor = np.degrees(np.arctan2(c, a)), 1 / np.hypot(a, c)
    lean = (a * b + c * d) / (a * a + c * c)
    for value, low, high in [(turn, -angle, angle), (lean, -slope, slope), (factor, *scale)]:
        error = 0.03 * (1 + high)  # of whole pixels
        assert low - error < value.min() and value.max() < high + error
    for value, width in [(turn, 2 * angle), (lean, 2 * slope), (factor, scale[1] - scale[0])]:
        np.testing.assert_allclose(np.std(value), width / np.sqrt(12), rtol=0.2, atol=0.01)
    np.testing.assert_allclose(d * a - b * c, 1 / factor**2, rtol=0.06)


def test_bad_strengths_of_a_move_are_one_line():
    with pytest.raises(jp.types.InputError, match="^degrees = 90; it must be a number at least 0"):
        random_affine(degrees=90)
    with pytest.raises(jp.types.InputError, match="the lowest factor must come first$"):
        random_affine(scale=(1.2, 0.8))
