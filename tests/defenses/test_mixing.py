"""Mixup and CutMix of single rows against loops in numpy; cutout; the loss of mixed labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.victims.learner import cross_entropy

KEY = jax.random.key(0)
MIXINGS = {"mixup": jp.defenses.mixup, "cutmix": jp.defenses.cutmix}
pytestmark = pytest.mark.usefixtures("quick_module")
BOTH = pytest.mark.parametrize("name", MIXINGS)


def batch(num, shape=(4, 5, 2), weight=None, dtype=np.float32):
    """Row i has label i, so that labels tell the rows of a mixture."""
    image = np.random.default_rng(0).uniform(size=(num, *shape))
    weight = np.ones(num) if weight is None else np.asarray(weight)
    rows = jnp.arange(num, dtype=jnp.int32)
    return jp.Batch(jnp.asarray(image, dtype), rows, jnp.asarray(weight, dtype), rows)


@functools.partial(jax.jit, static_argnums=0)
def seen(defense, key, batch):
    """What the loss gets."""
    return defense(lambda victim, key, variables, batch: batch)(None, key, None, batch)


@functools.cache
def build(name, **settings):
    return MIXINGS[name](**settings)


@pytest.mark.parametrize("num_mix", [1, 3])
def test_mixup_is_the_sum_that_its_labels_state(num_mix):
    data = batch(40)
    out = seen(build("mixup", num_mix=num_mix, probability=1.0), KEY, data)
    label, weight = np.asarray(out.mixture.label), np.asarray(out.mixture.weight)
    assert label.shape == weight.shape == (40, 1 + num_mix)
    np.testing.assert_array_equal(label[:, 0], np.arange(40))
    image = np.asarray(data.image)
    for i in range(40):
        expected = sum(w * image[j] for w, j in zip(weight[i], label[i], strict=True))
        np.testing.assert_allclose(out.image[i], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weight.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(out.weight, data.weight)
    np.testing.assert_array_equal(out.label, data.label)


def test_cutmix_pastes_a_box_and_its_weight_is_its_share_of_the_pixels():
    data = batch(60, (7, 9, 2))
    out = seen(build("cutmix", num_mix=1, probability=1.0), KEY, data)
    image, mixed = np.asarray(data.image), np.asarray(out.image)
    sizes = set()
    for i in range(60):
        j = int(out.mixture.label[i, 1])
        pasted = np.all(mixed[i] == image[j], axis=-1)
        assert np.array_equal(np.where(pasted[..., None], image[j], image[i]), mixed[i])
        if j != i:
            rows, columns = pasted.any(axis=1), pasted.any(axis=0)
            np.testing.assert_array_equal(pasted, rows[:, None] & columns[None])
            assert not rows.any() or np.ptp(np.flatnonzero(rows)) + 1 == rows.sum()
            np.testing.assert_allclose(out.mixture.weight[i, 1], pasted.mean(), atol=1e-6)
            sizes.add((rows.sum(), columns.sum()))
    assert len(sizes) > 10
    np.testing.assert_allclose(out.mixture.weight.sum(axis=1), 1, rtol=1e-6)


@BOTH
def test_a_mixture_is_mixed_further(name):
    """Two mixings one after the other: labels still state the images, or their pixels."""
    once = functools.partial(MIXINGS[name], num_mix=1, probability=1.0)
    data = batch(30, (6, 6, 1))
    out = seen(jp.defenses.compose(once(), once()), KEY, data)
    assert out.mixture.label.shape == (30, 4)
    np.testing.assert_allclose(out.mixture.weight.sum(axis=1), 1, rtol=1e-6)
    if name == "mixup":
        terms = np.asarray(data.image)[out.mixture.label]
        expected = np.einsum("bk,bkhwc->bhwc", out.mixture.weight, terms)
        np.testing.assert_allclose(out.image, expected, rtol=1e-5, atol=1e-6)


def test_draws_of_rows_are_as_stated():
    num = 4000
    data = batch(num, (1, 1, 1))
    mixture = seen(build("mixup", alpha=0.5, num_mix=1, probability=0.3), KEY, data).mixture
    keep, partner = np.asarray(mixture.weight[:, 0]), np.asarray(mixture.label[:, 1])
    chosen = keep < 1
    assert abs(chosen.mean() - 0.3) < 4 * np.sqrt(0.21 / num)
    drawn = keep[chosen]  # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert abs(drawn.mean() - 0.5) < 4 * np.sqrt(1 / 8 / len(drawn))
    assert abs(drawn.var() - 1 / 8) < 0.01
    counts = np.bincount(partner // 400, minlength=10)
    assert abs(counts - num / 10).max() < 4 * np.sqrt(num * 0.09)
    assert abs(np.corrcoef(np.arange(num), partner)[0, 1]) < 4 / np.sqrt(num)


@BOTH
def test_a_row_without_weight_is_mixed_into_no_other(name):
    weight = np.ones(50)
    weight[10:] = 0
    out = seen(build(name), KEY, batch(50, (2, 2, 1), weight))
    assert out.mixture.label[:, 1:].max() < 10
    np.testing.assert_array_equal(out.weight, weight)


@BOTH
def test_probability_zero_is_no_mixing(name):
    data = batch(8)
    out = seen(build(name, probability=0.0), KEY, data)
    np.testing.assert_array_equal(out.image, data.image)
    np.testing.assert_array_equal(out.mixture.weight[:, 0], 1)
    np.testing.assert_array_equal(out.mixture.weight[:, 1:], 0)


def test_the_loss_of_a_mixture_is_the_cross_entropy_to_its_soft_label(x64):
    rng = np.random.default_rng(1)
    victim = jp.models.logistic_regression((2, 2, 1), 4)
    image = jnp.asarray(rng.uniform(size=(6, 2, 2, 1)))
    label = jnp.asarray(rng.integers(0, 4, (6, 3)), jnp.int32)
    weight = jnp.asarray(rng.dirichlet(np.ones(3), 6))
    rows = jnp.arange(6, dtype=jnp.int32)
    mixture = jp.Mixture(label, weight)
    mixed = jp.Batch(image, label[:, 0], jnp.ones(6), rows, mixture)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), victim.init(KEY).params)
    soft = np.zeros((6, 4))
    for i in range(6):
        for k in range(3):
            soft[i, label[i, k]] += weight[i, k]

    def found(params):
        return jnp.sum(cross_entropy(victim, KEY, jp.Variables(params, {}), mixed)[0])

    def expected(params):
        logits, _ = victim.apply(jp.Variables(params, {}), image, train=False)
        return jnp.sum(optax.softmax_cross_entropy(logits, jnp.asarray(soft)))

    for one, other in zip(
        jax.tree.leaves(jax.value_and_grad(found)(params)),
        jax.tree.leaves(jax.value_and_grad(expected)(params)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_cutout_paints_a_square_of_every_image():
    data = batch(50, (9, 9, 3))
    out = np.asarray(seen(jp.defenses.cutout(size=4), KEY, data).image)
    gone = np.all(out == 0, axis=-1)
    np.testing.assert_array_equal(np.where(gone[..., None], 0, data.image), out)
    for one in gone:
        rows, columns = one.any(axis=1), one.any(axis=0)
        np.testing.assert_array_equal(one, rows[:, None] & columns[None])
        assert 2 <= rows.sum() <= 4 and 2 <= columns.sum() <= 4
    assert (gone.sum(axis=(1, 2)) == 16).any() and (gone.sum(axis=(1, 2)) < 16).any()
    assert len({one.tobytes() for one in gone}) > 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jp.defenses.mixup(alpha=0.0), "^alpha = 0"),
        (lambda: jp.defenses.cutmix(num_mix=0), "^num_mix = 0; it must be at least 1"),
        (lambda: jp.defenses.mixup(probability=1.5), "^probability = 1.5"),
        (lambda: jp.defenses.cutout(size=0), "^size = 0; it must be at least 1"),
    ],
)
def test_bad_settings_are_one_line(make, message):
    with pytest.raises(jp.InputError, match=message):
        make()
