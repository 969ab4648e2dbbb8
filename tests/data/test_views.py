"""Crops against PIL, colors against PIL and colorsys, blur against numpy, draws by their laws."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxpoison.data import Views, colors, crops
from jaxpoison.types import InputError

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


def images(num=4, shape=(7, 9, 3), seed=0):
    return np.random.default_rng(seed).uniform(size=(num, *shape)).astype(np.float32)


def test_a_crop_is_that_of_pil():
    """Bilinear, half a pixel convention, nothing from outside the box."""
    image = images()
    boxes = np.array([[0, 0, 7, 9], [2, 3, 4, 5], [6, 8, 1, 1], [1, 0, 3, 9]], np.float32)
    found = crops.enlarge(jnp.asarray(image), *jnp.asarray(boxes.T))
    for ours, theirs, (top, left, rows, columns) in zip(found, image, boxes, strict=True):
        for c in range(3):
            plane = Image.fromarray(theirs[:, :, c], mode="F")
            box = plane.crop((left, top, left + columns, top + rows))
            want = np.asarray(box.resize((9, 7), Image.Resampling.BILINEAR))
            np.testing.assert_allclose(ours[:, :, c], want, atol=1e-5)


def test_boxes_are_whole_inside_and_of_the_area_and_ratio():
    num, size, area, ratio = 4000, 32, (0.08, 1.0), (3 / 4, 4 / 3)
    top, left, rows, columns = (
        np.asarray(x)
        for x in jax.jit(
            lambda key: crops.crop_boxes(key, num, size, size, area=area, ratio=ratio)
        )(KEY)
    )
    for x in (top, left, rows, columns):
        np.testing.assert_array_equal(x, np.round(x))
    assert min(top.min(), left.min()) == 0 and min(rows.min(), columns.min()) >= 1
    assert (top + rows).max() == (left + columns).max() == size
    share, aspect = rows * columns / size**2, columns / rows
    assert 0.07 < share.min() < 0.1 and share.max() > 0.95
    assert 0.49 < share.mean() < 0.56  # uniform on the area would be 0.54; draws that fit are fewer
    assert 0.68 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.5
    np.testing.assert_allclose(np.mean(np.log(aspect)), 0, atol=0.02)
    free = rows < size
    place = top[free] / (size - rows[free])
    assert 0.47 < place.mean() < 0.53 and (place == 1).any()


def test_a_box_that_never_fits_is_the_whole_image():
    box = crops.crop_boxes(KEY, 3, 8, 8, area=(1.0, 1.0), ratio=(0.5, 0.5))
    np.testing.assert_array_equal(np.stack(box, axis=1), [[0, 0, 8, 8]] * 3)


def jittered(image, order, amount):
    """One image, pixel by pixel."""
    x = image.astype(np.float64)
    for kind in order:
        f, grey = amount[kind], x @ [0.299, 0.587, 0.114]
        if kind == 3:
            for pixel in np.ndindex(x.shape[:2]):
                h, s, v = colorsys.rgb_to_hsv(*x[pixel])
                x[pixel] = colorsys.hsv_to_rgb((h + f) % 1, s, v)
        else:
            other = [0, grey.mean(), grey[..., None]][kind]
            x = np.clip(f * x + (1 - f) * other, 0, 1)
    return x


def test_jitter_is_the_plain_loop_in_each_order():
    image = images(4, (3, 4, 3))
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]])
    amount = np.array([[1.3, 0.6, 1.4, 0.1], [0.7, 1.2, 0.3, -0.1], [1.1, 0.9, 0, 0.5], [1] * 4])
    amount[3, 3] = 0  # factors of one and no turn: the image
    amount = amount.astype(np.float32)
    found = colors.jitter(jnp.asarray(image), jnp.asarray(order), jnp.asarray(amount))
    want = [jittered(*row) for row in zip(image, order, amount, strict=True)]
    np.testing.assert_allclose(found, want, atol=2e-5)
    np.testing.assert_allclose(found[3], image[3], atol=2e-5)


def test_jitter_draws_order_and_factors_per_image():
    image = jnp.broadcast_to(jnp.asarray(images(1, (3, 3, 3))), (400, 3, 3, 3))
    augmentation = colors.color_jitter(brightness=0.5, contrast=0.0, saturation=0.0, hue=0.0)
    found = np.asarray(augmentation(KEY, image * 0.5)) / (0.5 * np.asarray(image))
    factor = found.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found, factor[:, None, None, None] * np.ones((3, 3, 3)), atol=1e-3)
    assert factor.min() < 0.52 and factor.max() > 1.48 and abs(factor.mean() - 1) < 0.05


def test_grey_solarize_and_blur():
    image = images(2, (5, 6, 3))
    grey = np.asarray(colors.grayscale()(KEY, jnp.asarray(image)))
    np.testing.assert_allclose(
        grey, np.repeat(image @ [[0.299], [0.587], [0.114]], 3, 3), atol=1e-6
    )
    levels = np.round(255 * image).astype(np.uint8)
    theirs = [np.asarray(ImageOps.solarize(Image.fromarray(x))) for x in levels]
    ours = colors.solarize()(KEY, jnp.asarray(levels, jnp.float32) / 255)
    np.testing.assert_allclose(255 * np.asarray(ours), theirs, atol=1e-3)
    ours = colors.blur(sigma=(1.5, 1.5), reach=0.4)(KEY, jnp.asarray(image))
    want = np.zeros_like(image, np.float64)
    for i, j in np.ndindex(5, 6):
        total = 0.0
        for k, m in np.ndindex(5, 6):
            if abs(i - k) <= 2 and abs(j - m) <= 2:
                weight = np.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * 1.5**2))
                want[:, i, j] += weight * image[:, k, m]
                total += weight
        want[:, i, j] /= total
    np.testing.assert_allclose(ours, want, atol=1e-5)


def test_sometimes_is_a_draw_per_image():
    image = jnp.zeros((2000, 1, 1, 1))
    found = colors.sometimes(lambda key, x: x + 1, 0.3)(KEY, image)
    assert abs(float(found.mean()) - 0.3) < 0.03 and set(np.unique(found)) == {0.0, 1.0}


def test_colors_of_a_grey_image_are_its_brightness_and_contrast():
    image = jnp.asarray(images(3, (4, 4, 1)))
    amount = jnp.asarray([[1.0, 1.0, 0.2, 0.4]] * 3)
    order = jnp.asarray([[2, 3, 0, 1]] * 3)
    np.testing.assert_allclose(colors.jitter(image, order, amount), image, atol=1e-6)
    np.testing.assert_array_equal(colors.grayscale()(KEY, image), image)
    with pytest.raises(InputError, match=r"colors are those of 1 or 3 channels"):
        colors.grayscale()(KEY, jnp.zeros((1, 4, 4, 2)))


def test_two_views_differ_and_stay_images():
    views = Views(blur=(1.0, 0.0), solarize=(0.0, 1.0))
    first, second = (jax.jit(x) for x in views.augmentations())
    image = jnp.asarray(images(3, (8, 8, 3)))
    a, b = first(KEY, image), second(KEY, image)
    assert a.shape == b.shape == image.shape and float(jnp.abs(a - b).max()) > 0.05
    assert min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1
    np.testing.assert_array_equal(first(KEY, image), a)
    plain = Views(area=(1, 1), ratio=(1, 1), jitter_probability=0, grayscale=0, flip=0)
    np.testing.assert_allclose(plain.augmentations()[0](KEY, image), image, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.5, 0.1)}, r"area = \(0.5, 0.1\); it must be \(least, largest\)"),
        ({"area": (0.5, 1.5)}, "at most 1"),
        ({"ratio": (0, 1)}, r"ratio = \(0, 1\)"),
        ({"jitter": (1, 1, 1)}, r"jitter = \(1, 1, 1\); it must be brightness"),
        ({"jitter": (1, 1, 1, 0.6)}, "hue = 0.6"),
        ({"grayscale": 1.2}, "grayscale = 1.2"),
        ({"blur": (0.1,)}, r"blur = \(0.1,\); it must be a probability for each"),
        ({"solarize": (0.1, 2.0)}, "solarize = 2.0"),
        ({"blur_sigma": (2.0, 1.0)}, r"sigma = \(2.0, 1.0\)"),
        ({"flip": -1.0}, "probability = -1.0"),
    ],
)
def test_what_cannot_be_drawn(options, message):
    with pytest.raises(InputError, match=message):
        Views(**options)
