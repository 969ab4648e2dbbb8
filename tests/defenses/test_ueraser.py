"""UEraser: the maximum over its copies, whose gradient it takes, and when it compares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.defenses.train import ueraser as module
from jaxpoison.victims.learner import cross_entropy
from tests.oracles import photographs

KEY, SHAPE, CLASSES, ROWS, COPIES = jax.random.key(3), (3, 3, 3), 4, 6, 5

pytestmark = pytest.mark.usefixtures("quick_module")


@functools.cache
def linear():
    return jp.models.logistic_regression(SHAPE, CLASSES)


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(size=(ROWS, *SHAPE)), jnp.float32)
    label = jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), linear().init(KEY).params
    )
    batch = jp.Batch(image, label, jnp.ones(ROWS), jnp.arange(ROWS, dtype=jnp.int32))
    return params, batch


@pytest.fixture
def dimming(monkeypatch):
    """Another augmentation: every image times a number of its own, so that copies are known."""

    def scales(key):
        return jax.random.uniform(key, (ROWS, 1, 1, 1))

    monkeypatch.setattr(module, "erasing", lambda probability, jpeg: lambda k, x: scales(k) * x)
    own_key, _ = jax.random.split(KEY)
    return np.stack([scales(jax.random.fold_in(own_key, j)) for j in range(COPIES)])


def loss(defense, params, batch):
    return defense(cross_entropy)(linear(), KEY, jp.Variables(params, {}), batch)[0]


def plain(params, image, label):
    logits, _ = linear().apply(jp.Variables(params, {}), image, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def test_the_loss_is_the_largest_of_the_copies_and_one_copy_is_plain(dimming):
    params, batch = problem()
    copies = np.stack([plain(params, s * batch.image, batch.label) for s in dimming])
    found = loss(jp.defenses.ueraser("max", copies=COPIES), params, batch)
    np.testing.assert_allclose(found, copies.max(axis=0), rtol=1e-5)
    assert len(set(copies.argmax(axis=0))) > 1
    for defense in (jp.defenses.ueraser("lite"), jp.defenses.ueraser("max", copies=1)):
        np.testing.assert_allclose(loss(defense, params, batch), copies[0], rtol=1e-5)
        assert (np.asarray(found) >= loss(defense, params, batch) - 1e-6).all()


def test_the_gradient_is_of_the_worst_copy_alone(dimming):
    params, batch = problem()
    defense = jp.defenses.ueraser("max", copies=COPIES)
    copies = np.stack([plain(params, s * batch.image, batch.label) for s in dimming])
    scale = jnp.asarray(dimming[copies.argmax(axis=0), np.arange(ROWS)])

    def total(params, image):
        return jnp.sum(loss(defense, params, batch._replace(image=image)))

    def expected(params, image):
        return jnp.sum(plain(params, scale * image, batch.label))

    for a, b in zip(
        jax.tree.leaves(jax.grad(total, (0, 1))(params, batch.image)),
        jax.tree.leaves(jax.grad(expected, (0, 1))(params, batch.image)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_standard_compares_in_the_first_epochs_without_a_second_program(dimming):
    params, batch = problem()
    defense = jp.defenses.ueraser(copies=COPIES, epochs=2)
    step = jax.jit(lambda epoch: loss(defense, params, batch._replace(epoch=epoch)))
    worst = loss(jp.defenses.ueraser("max", copies=COPIES), params, batch)
    first = loss(jp.defenses.ueraser("lite"), params, batch)
    for epoch, expected in enumerate((worst, worst, first, first)):
        np.testing.assert_allclose(step(jnp.int32(epoch)), expected, rtol=1e-5)
    assert step._cache_size() == 1


def test_ueraser_jpeg_trains_on_compressed_copies():
    """Without the other parts: levels of pillow at that quality, whatever the key."""
    image = jnp.asarray(photographs(4), jnp.float32) / 255
    data = jp.Dataset(jnp.asarray(photographs(4)), jnp.zeros(4, jnp.int32))
    wanted, _ = jp.defenses.fit_purify(jp.defenses.jpeg(), KEY, data)
    batch = jp.Batch(image, data.label, jnp.ones(4), jnp.arange(4, dtype=jnp.int32))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("channel_shuffle", "trivial_augment"):
            patch.setattr(module, name, lambda: lambda key, image: image)
        defense = jp.defenses.ueraser("lite", probability=0.0, jpeg=10)
        seen = defense(lambda victim, key, variables, batch: batch)(None, KEY, None, batch)
    assert np.mean(np.rint(255 * np.asarray(seen.image)) == np.asarray(wanted.image)) > 0.95


def test_erasing_is_its_four_parts_in_order():
    """Probability 0 leaves channels and TrivialAugment; colors are permuted, not mixed."""
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(200, 1, 1, 3)), jnp.float32)
    names = ("plasma_brightness", "plasma_contrast", "channel_shuffle", "trivial_augment")
    seen = []

    def note(name):
        def factory(**settings):
            def apply(key, image):
                seen.append(name)
                return image

            return apply

        return factory

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(module, name, note(name))
        patch.setattr(module, "compressed", lambda quality: note(quality)())
        jp.defenses.erasing()(KEY, image)
        jp.defenses.erasing(jpeg=(10, 99))(KEY, image)
    assert tuple(seen) == (*names, *names, (10, 99))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "trivial_augment", lambda: lambda key, image: image)
        shuffled = jp.defenses.erasing(probability=0.0)
        out = np.asarray(shuffled(KEY, image)).reshape(200, 3)
    values = np.asarray(image).reshape(200, 3)
    np.testing.assert_array_equal(np.sort(out, axis=1), np.sort(values, axis=1))
    moved = (out != values).any(axis=1).mean()  # half are shuffled, a sixth of these in vain
    assert abs(moved - 5 / 12) < 0.12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jp.defenses.ueraser("fast"), "^mode = 'fast'; allowed are lite, standard, max"),
        (lambda: jp.defenses.ueraser(copies=0), "^copies = 0; it must be at least 1"),
        (lambda: jp.defenses.ueraser(epochs=-1), "^epochs = -1; it must be at least 0"),
        (lambda: jp.defenses.ueraser(probability=2), "^probability = 2"),
        (lambda: jp.defenses.ueraser(jpeg=0), "^quality = 0; it must be at least 1"),
        (lambda: loss(jp.defenses.ueraser(), *problem()), "^the epoch is not known: UEraser's"),
    ],
)
def test_what_cannot_be_is_one_line(make, message):
    with pytest.raises(jp.InputError, match=message):
        make()
