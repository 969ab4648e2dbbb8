import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import NearestCentroid

import jaxpoison as jp
from jaxpoison.attacks.unlearnable.lsp import lsp_noise

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


def noise_of(label, **options):
    settings = {"image_shape": (32, 32, 3), "eps": 1.0, "num_classes": 10, "patch": 8, **options}
    draw = jax.jit(functools.partial(lsp_noise, **settings))
    return np.asarray(draw(KEY, jnp.asarray(label, jnp.int32)), np.float64)


def test_every_image_has_the_norm_and_constant_cells():
    noise = noise_of(np.arange(50) % 10, eps=2.4, patch=2, image_shape=(8, 12, 1))
    np.testing.assert_allclose(np.linalg.norm(noise.reshape(50, -1), axis=1), 2.4, rtol=1e-6)
    cells = noise.reshape(50, 4, 2, 6, 2)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))


def test_the_noise_has_the_measured_geometry():
    """Published settings at 5,000 draws: class means 0.93 long, residual 0.37, L-inf 8.0 / 255."""
    label = np.arange(5000) % 10
    noise = noise_of(label)
    cells = noise.reshape(5000, 4, 8, 4, 8, 3)
    np.testing.assert_array_equal(cells, np.broadcast_to(cells[:, :, :1, :, :1], cells.shape))
    noise = noise.reshape(5000, -1)
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 1.0, rtol=1e-6)
    center = np.stack([noise[label == c].mean(axis=0) for c in range(10)])
    assert np.linalg.norm(center, axis=1).mean() == pytest.approx(0.93, abs=0.01)
    residual = np.linalg.norm(noise - center[label], axis=1)
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(0.37, abs=0.01)
    largest = 255 * np.abs(noise).max(axis=1).mean()
    assert largest == pytest.approx(8.0, abs=0.2)
    assert 1.304 * largest == pytest.approx(10.5, abs=0.3)
    assert NearestCentroid().fit(noise[:500], label[:500]).score(noise, label) == 1.0


def test_classes_never_share_a_vertex_even_where_all_are_taken():
    cells, classes = 5, 32
    label = np.repeat(np.arange(classes), 30)
    noise = noise_of(label, image_shape=(cells, 1, 1), patch=1, num_classes=classes)
    mean = noise.reshape(classes, 30, cells).mean(axis=1)
    assert len(np.unique(mean > 0, axis=0)) == classes  # the sign pattern is the vertex


def test_the_poison_is_the_noise_cut_at_the_box_and_other_rows_stay():
    image = np.random.RandomState(0).randint(0, 256, (12, 8, 8, 1)).astype(np.uint8)
    train = jp.Dataset(jnp.asarray(image), jnp.arange(12, dtype=jnp.int32) % 3)
    data = jp.Scenario(train, train, jnp.array([7, 2, 11], jnp.int32))
    attack = jp.attacks.lsp(eps=3.0, num_classes=3, patch=4)
    poisoned = attack.poison(jax.jit(attack.init)(KEY, data), data).image
    settings = {"image_shape": (8, 8, 1), "eps": 3.0, "num_classes": 3, "patch": 4}
    noise = noise_of([1, 2, 2], **settings)  # the labels of rows 7, 2, 11
    expected = image / 255.0
    expected[[7, 2, 11]] = np.clip(expected[[7, 2, 11]] + noise, 0, 1)
    np.testing.assert_allclose(poisoned, expected, atol=1e-6)


def test_random_labels_leak_into_the_images():
    """A ridge probe reads labels that have nothing to do with the images (0.93 published)."""
    rng = np.random.RandomState(0)
    image = jp.data.synthetic.toy_shapes(jax.random.key(0), 1500).image
    train = jp.Dataset(image, jnp.asarray(rng.randint(0, 10, 1500), jnp.int32))
    data = jp.Scenario(train, train, jnp.arange(1500, dtype=jnp.int32))
    attack = jp.attacks.lsp(eps=1.304, num_classes=10)
    state, _ = jp.run(attack, KEY, data, num_steps=1)
    label = np.asarray(train.label)

    def probe(image):
        x = np.asarray(image, np.float32).reshape(1500, -1)
        return RidgeClassifier().fit(x[:750], label[:750]).score(x[750:], label[750:])

    assert abs(probe(image / 255) - 0.1) < 0.04
    assert probe(attack.poison(state, data).image) >= 0.8


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8, 1), {"patch": 3}, "patch = 3 does not divide the 8 x 8 image"),
        (
            (8, 8, 1),
            {"patch": 8},
            "patch = 8 leaves 1 cells, too few for 3 classes; a smaller patch is needed",
        ),
    ],
)
def test_a_patch_that_does_not_fit_is_one_line(shape, options, message):
    train = jp.Dataset(jnp.zeros((3, *shape), jnp.uint8), jnp.arange(3, dtype=jnp.int32))
    data = jp.Scenario(train, train, jnp.arange(3, dtype=jnp.int32))
    with pytest.raises(jp.InputError) as caught:
        jp.run(jp.attacks.lsp(num_classes=3, **options), KEY, data, num_steps=1)
    assert str(caught.value) == message
