"""Orthogonal projection: its fit against numpy, its span against scipy, a leak: test_leak.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, special

import jaxpoison as jp

CLASSES, NUM, SHAPE = 3, 50, (5, 4, 2)
KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("quick_module")


def pictures():
    """Images with a faint pattern of the class, labels that say nothing else about them."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, NUM).astype(np.int32)
    image = 100 + 40 * rng.normal(size=(NUM, *SHAPE)) + 25 * rng.normal(size=(3, *SHAPE))[label]
    return jp.Dataset(jnp.asarray(np.clip(image, 0, 255).astype(np.uint8)), jnp.asarray(label))


@pytest.fixture(scope="module")
def fitted():
    """The dataset, the state after the fit, its info, and what it makes of the dataset."""
    settings = {"num_classes": CLASSES, "num_steps": 8, "batch_size": 20}
    purifier, dataset = jp.defenses.orthogonal_projection(**settings), pictures()
    state, info = jp.run(purifier, KEY, dataset, num_steps=purifier.num_steps)
    return purifier, dataset, state, info, purifier.apply(KEY, state, dataset)


def weights(state):
    (kernel,) = jax.tree.leaves(state.variables.params)
    return np.asarray(kernel, np.float64)


def test_the_fit_is_plain_sgd_in_the_order_of_the_rows(fitted):
    purifier, dataset, state, info, _ = fitted
    x = np.asarray(dataset.image, np.float64).reshape(NUM, -1) / 255
    y, losses = np.eye(CLASSES)[np.asarray(dataset.label)], []
    w = weights(purifier.init(jax.random.split(KEY)[0], dataset))
    for epoch in range(8):
        rate, total = 0.1 * 0.1 ** ((epoch >= 4) + (epoch >= 6)), 0.0
        for rows in (slice(0, 20), slice(20, 40), slice(40, 50)):
            p = special.softmax(x[rows] @ w, axis=1)
            total -= np.sum(y[rows] * np.log(p))
            w = w - rate * x[rows].T @ (p - y[rows]) / len(p)
        losses.append(total / NUM)
    np.testing.assert_allclose(weights(state), w, atol=1e-5)
    np.testing.assert_allclose(info.outer_loss, losses, rtol=1e-5)
    assert info.finite.all()


def test_what_the_model_sees_is_gone_and_nothing_else(fitted):
    _, dataset, state, _, result = fitted
    before = np.asarray(dataset.image, np.float64).reshape(NUM, -1) / 255
    after, w = np.asarray(result.image, np.float64).reshape(NUM, -1), weights(state)
    assert np.abs(after @ w).max() < 1e-4
    basis = linalg.orth(w)
    assert basis.shape == (np.prod(SHAPE), CLASSES)
    np.testing.assert_allclose(after, before - before @ basis @ basis.T, atol=1e-5)
    assert result.image.dtype == jnp.float32 and result.image.shape == dataset.image.shape
    np.testing.assert_array_equal(result.label, dataset.label)


def test_clipping_is_the_only_thing_clip_does(fitted):
    _, dataset, state, _, result = fitted
    clipped = jp.defenses.orthogonal_projection(num_classes=CLASSES, clip=True)
    found = np.asarray(clipped.apply(KEY, state, dataset).image)
    bright = dataset._replace(image=jnp.where(dataset.image > 100, 255, 0).astype(jnp.uint8))
    np.testing.assert_array_equal(found, np.clip(result.image, 0, 1))
    wild = jp.defenses.lfu(num_classes=CLASSES).apply(KEY, state, bright).image
    tame = clipped.apply(KEY, state, bright).image
    assert wild.min() < 0 and wild.max() > 1 and tame.min() == 0 and tame.max() == 1


def test_what_is_refused():
    for options, why in (
        ({"num_classes": 1}, "^num_classes = 1; it must be at least 2"),
        ({"num_classes": 3, "num_steps": 1}, "^num_steps = 1; it must be at least 2"),
        ({"num_classes": 3, "batch_size": 0}, "^batch_size = 0"),
        ({"num_classes": 3, "learning_rate": 0.0}, "^learning_rate = 0"),
    ):
        with pytest.raises(jp.InputError, match=why):
            jp.defenses.orthogonal_projection(**options)
