"""PGD in both norms against closed forms, and who hands it what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import jaxpoison as jp
from jaxpoison import victims
from jaxpoison.types import Dataset
from jaxpoison.victims import adversarial, recipes
from jaxpoison.victims.learner import cross_entropy
from jaxpoison.victims.train import _losses
from tests.oracles import smooth_victim
from tests.victims.test_adversarial import batch, log_softmax, rows

KEY = jax.random.key(0)


@pytest.mark.parametrize("start", ["uniform", "zero", "normal"])
def test_a_linear_loss_is_climbed_to_the_corner_of_ball_and_box(start, strict_dtypes):
    """argmax of <w, x + delta> is x + eps sign(w), clipped to the box."""
    rng = np.random.RandomState(0)
    image = jnp.asarray(rng.choice([0.0, 0.02, 0.5, 0.97, 1.0], (4, 3, 3, 1)), jnp.float32)
    weight = rng.randn(4, 3, 3, 1).astype(np.float32)

    @jax.jit
    def attacked(image, weight):
        loss = lambda x: jnp.sum(weight * x)  # noqa: E731
        return adversarial.pgd(KEY, loss, image, eps=0.1, start=start)

    delta = attacked(image, jnp.asarray(weight))
    expected = np.clip(image + 0.1 * np.sign(weight), 0, 1) - image
    np.testing.assert_allclose(delta, expected, atol=1e-6)
    assert delta.dtype == jnp.float32


@pytest.mark.parametrize("start", ["uniform", "zero", "normal", adversarial._trades_start])
def test_examples_stay_in_ball_and_box_and_are_constants(start):
    image = jax.random.uniform(KEY, (16, 3, 3, 1))

    @functools.partial(jax.jit, static_argnames="steps")
    def attacked(key, image, steps):
        loss = lambda x: jnp.sum(jnp.sin(9 * x))  # noqa: E731
        return adversarial.pgd(key, loss, image, eps=0.1, steps=steps, start=start)

    for steps in (1, 7):
        delta = np.asarray(attacked(KEY, image, steps))
        assert np.abs(delta).max() <= np.float32(0.1)
        assert (image + delta).min() >= 0 and (image + delta).max() <= 1
    assert np.abs(delta).max() == np.float32(0.1)
    other = attacked(jax.random.key(1), image, 7)
    assert np.array_equal(delta, other) == (start == "zero")
    _, tangent = jax.jvp(lambda x: attacked(KEY, x, 7), (image,), (jnp.ones_like(image),))
    assert not np.any(tangent)


def softmax_regression():
    """(loss of images, images, its gradient by hand) of a cross-entropy."""
    rng = np.random.RandomState(0)
    w, x, y = rng.randn(9, 3), 0.5 + 0.1 * rng.uniform(size=(4, 3, 3, 1)), np.array([0, 1, 2, 0])

    def loss(image):
        z = image.reshape(4, 9) @ w
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(y)))

    slope = (np.exp(log_softmax(rows(x) @ w)) - np.eye(3)[y]) @ w.T
    return loss, x, slope.reshape(x.shape)


def test_one_step_from_the_image_is_the_sign_of_the_gradient(x64):
    """Of a step_size as given, too."""
    loss, x, slope = softmax_regression()
    pgd = functools.partial(adversarial.pgd, eps=0.1, steps=1, start="zero")
    sign = np.sign(slope)
    np.testing.assert_allclose(pgd(KEY, loss, jnp.asarray(x)), 0.025 * sign, rtol=1e-12)
    given = pgd(KEY, loss, jnp.asarray(x), step_size=0.04)
    np.testing.assert_allclose(given, 0.04 * sign, rtol=1e-12)


@pytest.mark.parametrize("start", ["uniform", "zero", "normal", "step_normal"])
def test_a_linear_loss_is_climbed_to_the_end_of_its_slope_in_an_l2_ball(start, strict_dtypes):
    """argmax of <w, x + delta>, ||delta|| <= eps, is eps w / ||w|| where the box is far away."""
    rng = np.random.RandomState(0)
    image = jnp.asarray(rng.uniform(0.4, 0.6, (4, 3, 3, 1)), jnp.float32)
    weight = (
        rng.randn(4, 3, 3, 1).astype(np.float32)
        * np.float32([1, 1e-25, 1e12, 0])[:, None, None, None]
    )

    @jax.jit
    def attacked(image, weight):
        loss = lambda x: jnp.sum(weight * x)  # noqa: E731
        return adversarial.pgd(KEY, loss, image, eps=0.3, start=start, norm="l2", steps=60)

    delta = np.asarray(attacked(image, jnp.asarray(weight)))
    some = weight[:3] / np.abs(weight[:3]).max(axis=(1, 2, 3), keepdims=True)
    length = np.sqrt(np.sum(some**2, axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(delta[:3], 0.3 * some / length, atol=1e-5)
    assert np.linalg.norm(delta[3]) <= 0.3 and np.any(delta[3]) == (start != "zero")


def test_one_l2_step_is_the_gradient_at_its_length_and_the_box_is_kept(x64):
    loss, x, slope = softmax_regression()
    pgd = functools.partial(adversarial.pgd, KEY, loss, eps=0.4, norm="l2", start="zero")
    unit = slope / np.linalg.norm(rows(slope), axis=1).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(pgd(jnp.asarray(x), steps=1), 0.1 * unit, rtol=1e-10)
    given = pgd(jnp.asarray(x), steps=1, step_size=0.04)
    np.testing.assert_allclose(given, 0.04 * unit, rtol=1e-10)
    edge = jnp.asarray(np.random.RandomState(1).choice([0.0, 0.1, 0.9, 1.0], x.shape))
    delta = np.asarray(pgd(edge, steps=7))
    assert np.linalg.norm(rows(delta), axis=1).max() <= 0.4
    assert (edge + delta).min() >= 0 and (edge + delta).max() <= 1


def test_a_start_may_be_normal_at_the_size_of_a_step():
    """Of a flat loss it is all there is."""
    image = jnp.full((2, 40, 40, 1), 0.5)
    flat = lambda x: jnp.sum(0 * x)  # noqa: E731
    delta = adversarial.pgd(KEY, flat, image, eps=0.4, step_size=0.05, steps=1, start="step_normal")
    quantiles = np.quantile(np.asarray(delta) / 0.05, scipy.stats.norm.cdf([-2, -1, 0, 1, 2]))
    np.testing.assert_allclose(quantiles, [-2, -1, 0, 1, 2], atol=0.1)


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_a_recipe_and_a_defense_say_how_the_attack_starts_and_in_what_norm(method, monkeypatch):
    asked = []
    monkeypatch.setattr(adversarial, "pgd", lambda key, loss, x, **how: asked.append(how) or 0 * x)
    net, image = smooth_victim(), {"adversarial": method, "adversarial_eps": 1.5}
    how = {"eps": 1.5, "norm": "l2", "start": "step_normal"}
    recipe = recipes.small(epochs=1, batch_size=6)
    recipe = dataclasses.replace(recipe, adversarial_norm="l2", **image)
    defense = {"pgd": jp.defenses.adversarial, "trades": jp.defenses.trades}[method]
    data, phi = batch(), net.init(KEY)
    own = {"pgd": "uniform", "trades": adversarial._trades_start}[method]
    for losses, start in (
        (_losses(recipe), own),
        (_losses(dataclasses.replace(recipe, adversarial_start="step_normal")), "step_normal"),
        (defense(**how)(cross_entropy), "step_normal"),
        (defense(eps=1.5, norm="l2")(cross_entropy), own),
    ):
        losses(net, KEY, phi, data)
        assert asked.pop() == how | {"start": start, "step_size": None, "steps": 10}


def test_robust_accuracy_in_an_l2_ball_is_the_share_of_margins_beyond_it():
    """Of two linear classes the distance to the border is |<w, x> + b| / ||w||."""
    rng = np.random.RandomState(3)
    kernel, bias = rng.randn(64, 2).astype(np.float32), np.float32([0.2, 0.0])
    image = rng.uniform(0.4, 0.6, (40, 8, 8, 1)).astype(np.float32)
    net = jp.models.logistic_regression((8, 8, 1), 2)
    start = net.init(KEY)
    params = jax.tree.map(lambda x: jnp.asarray(kernel if x.ndim == 2 else bias), start.params)
    w, b = kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]
    b -= np.median(rows(image) @ w + b)
    params = jax.tree.map(lambda x: x if x.ndim == 2 else jnp.float32([0, b]), params)
    margin = (rows(image) @ w + b) / np.linalg.norm(w)
    label = jnp.asarray(margin > 0, jnp.int32)
    eps = float(np.median(np.abs(margin))) * 1.01
    found = victims.assess_robust(
        KEY, net, start._replace(params=params), Dataset(jnp.asarray(image), label), eps=eps,
        norm="l2", steps=40, batch_size=40,
    )  # fmt: skip
    assert found.accuracy.mean == pytest.approx(np.mean(np.abs(margin) > eps), abs=1e-9)
    assert 0.3 < found.accuracy.mean < 0.7
