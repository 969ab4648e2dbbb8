import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from sklearn.linear_model import RidgeClassifier

import jaxpoison as jp
from jaxpoison.attacks.unlearnable.one_pixel import shortcut_scores

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


def scenario(image, label, index=None):
    train = jp.Dataset(jnp.asarray(image, jnp.uint8), jnp.asarray(label, jnp.int32))
    index = np.arange(len(label)) if index is None else index
    return jp.Scenario(train, train, jnp.asarray(index, jnp.int32))


def poisoned_by(attack, data):
    """The stored images: uint8."""
    state, _ = jp.run(attack, KEY, data, num_steps=1)
    return np.rint(255 * np.asarray(attack.poison(state, data).image, np.float64)).astype(np.uint8)


@functools.cache
def toy(channels, num=200):
    """Images with a spread of their own at every pixel, and some pure black and white."""
    rng = np.random.RandomState(channels)
    level, width = rng.uniform(0, 255, (2, 6, 5, channels))
    image = np.clip(level + width * rng.randn(num, 6, 5, channels), 0, 255)
    return image.astype(np.uint8), rng.randint(0, 5, num)


def score(values, color, objective):
    """The published ratio for one pixel [n, C] and one color, in float64."""
    deviation = np.abs(values - color)
    if objective == "paper":
        total = deviation.sum(axis=1)
        return total.mean() / total.var()
    return deviation.mean() / deviation.std()


def brute_force(image, label, num_classes, num_pixels, objective):
    """[class][k] -> (row, column, color), by trying every candidate."""
    taken, chosen = set(), []
    pixels = list(itertools.product(*map(range, image.shape[1:3])))
    colors = list(itertools.product((0, 1), repeat=image.shape[3]))
    for c in range(num_classes):
        member = image[label == c] / 255.0
        ranked = sorted(
            itertools.product(pixels, colors),
            key=lambda one: -score(member[:, one[0][0], one[0][1]], one[1], objective),  # noqa: B023
        )
        best = []
        for pixel, color in ranked:
            if (pixel, color) not in taken and pixel not in [p for p, _ in best]:
                best.append((pixel, color))
        chosen.append(best[:num_pixels])
        taken |= set(best[:num_pixels])
    return chosen


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("objective", ["code", "paper"])
def test_moments_give_the_scores_of_every_candidate(channels, objective):
    image, label = toy(channels)
    member = jnp.asarray(label == 1, jnp.float32)
    scores = shortcut_scores(jnp.asarray(image / 255, jnp.float32), member, objective=objective)
    colors = list(itertools.product((0, 1), repeat=channels))
    assert scores.shape == (6, 5, len(colors))
    values = image[label == 1] / 255
    for i, j, v in np.ndindex(*scores.shape):
        expected = score(values[:, i, j], colors[v], objective)
        assert scores[i, j, v] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("objective", ["code", "paper"])
@pytest.mark.parametrize("num_pixels", [1, 3])
def test_brute_force_paints_the_same_images(channels, objective, num_pixels):
    image, label = toy(channels)
    expected = image.copy()
    choices = brute_force(image, label, 5, num_pixels, objective)
    for c, best in enumerate(choices):
        for (i, j), color in best:
            expected[label == c, i, j] = 255 * np.array(color)
    attack = jp.attacks.one_pixel(num_classes=5, num_pixels=num_pixels, objective=objective)
    np.testing.assert_array_equal(poisoned_by(attack, scenario(image, label)), expected)


def marks(poisoned, label, num):
    """The pixels (place, color) that all images of each class share and, outside it, few do."""
    flat = poisoned.reshape(*poisoned.shape[:1], -1, poisoned.shape[-1])
    found = []
    for c in range(num):
        member = flat[label == c]
        same = (member == member[:1]).all(axis=(0, 2)) & np.isin(member[0], (0, 255)).all(axis=1)
        found.append({(int(p), *member[0, p].tolist()) for p in np.flatnonzero(same)})
    return found


def test_one_pixel_per_image_one_mark_per_class():
    image, label = toy(3)
    index = np.arange(0, 200, 2)
    poisoned = poisoned_by(jp.attacks.one_pixel(num_classes=5), scenario(image, label, index))
    changed = (poisoned != image).any(axis=3).sum(axis=(1, 2))
    assert changed[1::2].max() == 0
    assert changed[index].max() == 1 and changed[index].mean() > 0.9
    found = marks(poisoned[index], label[index], 5)
    assert [len(one) for one in found] == [1] * 5
    assert len(set().union(*found)) == 5


def test_when_every_candidate_is_needed_each_is_used_once():
    rng = np.random.RandomState(0)
    image, label = rng.randint(1, 255, (80, 2, 2, 1)), np.arange(80) % 8
    data = scenario(image, label)
    found = marks(poisoned_by(jp.attacks.one_pixel(num_classes=8), data), label, 8)
    assert set().union(*found) == set(itertools.product(range(4), (0, 255)))
    assert [len(one) for one in found] == [1] * 8


@pytest.mark.parametrize(
    ("shape", "classes", "pixels"), [((2, 2, 1), 9, 1), ((3, 1, 1), 3, 2), ((2, 2, 3), 3, 5)]
)
def test_too_few_candidates_are_one_line(shape, classes, pixels):
    """3 classes x 2 of 3 pixels: six candidates, but the last class may find one pixel only."""
    attack = jp.attacks.one_pixel(num_classes=classes, num_pixels=pixels)
    with pytest.raises(jp.InputError, match=f"^{classes} classes x {pixels} pixels are too many"):
        jp.run(attack, KEY, scenario(np.zeros((12, *shape)), np.arange(12) % 3), num_steps=1)


def test_a_class_without_images_and_a_pixel_that_never_varies():
    image, label = toy(1)
    image = image.copy()
    image[:, 4, 2] = 0  # a color that is never there, at no spread: the best mark there is
    label = np.where(label == 2, 3, label)
    scores = shortcut_scores(
        jnp.asarray(image / 255, jnp.float32), jnp.asarray(label == 2, jnp.float32)
    )
    np.testing.assert_array_equal(scores, 0)
    poisoned = poisoned_by(jp.attacks.one_pixel(num_classes=5), scenario(image, label))
    assert np.all(poisoned[label == 0, 4, 2] == 255)
    assert (poisoned != image).any(axis=3).sum(axis=(1, 2)).max() == 1


def test_a_median_filter_removes_the_pixel():
    image = np.broadcast_to(np.arange(5, 250, 5)[:, None, None, None], (49, 9, 9, 3))
    image = image.astype(np.uint8)
    poisoned = poisoned_by(jp.attacks.one_pixel(num_classes=7), scenario(image, np.arange(49) % 7))
    assert (poisoned != image).any(axis=3).sum() == 49
    np.testing.assert_array_equal(scipy.ndimage.median_filter(poisoned, (1, 3, 3, 1)), image)


def test_random_labels_leak_into_the_images():
    digits = jp.data.digits()
    label = np.random.RandomState(0).randint(0, 10, 1400)
    poisoned = poisoned_by(jp.attacks.one_pixel(num_classes=10), scenario(digits.image, label))

    def probe(image):
        x = np.asarray(image, np.float32).reshape(1400, -1) / 255
        return RidgeClassifier().fit(x[:700], label[:700]).score(x[700:], label[700:])

    assert abs(probe(digits.image) - 0.1) < 0.04
    assert probe(poisoned) >= 0.8
