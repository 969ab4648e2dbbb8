"""The leak probe against scikit-learn's ridge classifier; chance, planted leaks, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

import jaxpoison as jp
from tests.oracles import natural_images

CLASSES = 4

pytestmark = pytest.mark.usefixtures("quick_module")


def pictures(num, shape, strength):
    """Noise, and a pattern of the class on top of it."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, num).astype(np.int32)
    pattern = rng.normal(size=(CLASSES, *shape))
    image = 0.5 + 0.1 * (rng.normal(size=(num, *shape)) + strength * pattern[label])
    return np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), label


@pytest.mark.parametrize("shape", ((8, 8, 3), (3, 3, 1)))  # fewer rows than pixels, and more
@pytest.mark.parametrize("ridge", (0.3, 30.0))
def test_it_is_ridge_regression_on_one_half_scored_on_the_other(shape, ridge):
    image, label = pictures(161, shape, 0.3)
    flat = image.reshape(161, -1) / 255
    sklearn = RidgeClassifier(alpha=ridge).fit(flat[:80], label[:80])
    found = jp.defenses.leak_probe(image, label, num_classes=CLASSES, ridges=(ridge,))
    assert found.accuracy == pytest.approx(sklearn.score(flat[80:], label[80:]))
    assert found.gap == pytest.approx(abs(found.accuracy - 0.25)) and found.ridge == ridge


def test_the_best_constant_is_taken():
    image, label = pictures(160, (8, 8, 3), 0.3)
    ridges = (1e-3, 1.0, 1e6)
    each = [jp.defenses.leak_probe(image, label, num_classes=4, ridges=(r,)) for r in ridges]
    assert len({one.accuracy for one in each}) > 1
    best = jp.defenses.leak_probe(image, label, num_classes=4, ridges=ridges)
    assert best == max(each, key=lambda one: one.accuracy)


def test_chance_and_a_leak_on_either_kind_of_array():
    image, label = pictures(600, (6, 6, 1), 0.0)
    assert jp.defenses.leak_probe(image, label, num_classes=CLASSES).gap < 0.08
    image, label = pictures(600, (6, 6, 1), 1.0)
    stored = jp.defenses.leak_probe(image, label, num_classes=CLASSES)
    floats = jp.defenses.leak_probe(jnp.asarray(image) / 255.0, jnp.asarray(label), num_classes=4)
    assert stored.accuracy > 0.95 and floats.accuracy == pytest.approx(stored.accuracy)


def test_what_is_refused():
    image, label = pictures(20, (3, 3, 1), 0.0)
    for options, why in (
        ({"num_classes": 3}, "^labels run from 0 to 3; num_classes = 3 allows 0 to 2"),
        ({"num_classes": 4, "ridges": ()}, "^ridges is empty"),
        ({"num_classes": 4, "ridges": (1.0, 0.0)}, r"^ridges\[1\] = 0"),
    ):
        with pytest.raises(jp.InputError, match=why):
            jp.defenses.leak_probe(image, label, **options)
    with pytest.raises(jp.InputError, match="^rows = 3; it must be at least 4"):
        jp.defenses.leak_probe(image[:3], label[:3], num_classes=4)


@functools.cache
def lsp():
    """LSP at the paper's budget on images with random labels, which therefore tell nothing else."""
    clean = natural_images(600)
    label = np.random.default_rng(1).integers(0, CLASSES, len(clean)).astype(np.int32)
    dataset = jp.Dataset(jnp.asarray(clean), jnp.asarray(label))
    scenario = jp.Scenario(dataset, dataset, jnp.arange(len(clean)))
    attack = jp.attacks.lsp(eps=1.304, num_classes=CLASSES)
    state, _ = jp.run(attack, jax.random.key(0), scenario, num_steps=1)
    image = np.rint(255 * np.asarray(attack.poison(state, scenario).image)).astype(np.uint8)
    return jp.Dataset(jnp.asarray(image), dataset.label)


def read(image):
    return jp.defenses.leak_probe(image, lsp().label, num_classes=CLASSES).accuracy


def test_lsp_is_read_from_its_images():
    assert read(lsp().image) > 0.9


@pytest.mark.parametrize("purifier", (jp.defenses.grayscale(), jp.defenses.jpeg()))
def test_gray_and_jpeg_hide_lsp_where_noise_of_the_same_size_does_not(purifier):
    before = np.asarray(lsp().image, float)
    purified, _ = jp.defenses.fit_purify(purifier, jax.random.key(0), lsp())
    rms = np.sqrt(np.mean((purified.image - before) ** 2, axis=(1, 2, 3), keepdims=True))
    noisy = before + rms * np.random.default_rng(2).normal(size=before.shape)
    noisy = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    assert read(purified.image) < read(noisy) - 0.15
