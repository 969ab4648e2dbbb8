"""Tables of filters, purifiers and training-time defenses; all must keep a table's promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.victims.learner import cross_entropy

CLASSES, NUM, WIDTH = 3, 60, 5
KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("quick_module")


@functools.cache
def head():
    return jp.models.logistic_regression((1, 1, WIDTH), CLASSES)


def features(dtype=np.float32):
    """Three Gaussian classes, four rows far off and mislabeled; all rows trusted."""
    rng = np.random.default_rng(0)
    label = np.arange(NUM) % CLASSES
    image = rng.normal(size=(NUM, WIDTH)) + 3 * np.eye(CLASSES, WIDTH)[label]
    image[:4] = 4 * rng.normal(size=(4, WIDTH))
    label[:4] = (label[:4] + 1) % CLASSES
    image = jnp.asarray(image.reshape(NUM, 1, 1, WIDTH), dtype)
    dataset = jp.Dataset(image, jnp.asarray(label, jnp.int32))
    kernel = jnp.asarray(np.eye(WIDTH, CLASSES) * 2, dtype)
    variables = jax.tree.map(
        lambda x: kernel if x.ndim == 2 else jnp.full(x.shape, 0.1, dtype),
        head().init(KEY),
    )
    return dataset, jp.defenses.Known(variables, dataset)


def descend(key, dataset, keep):
    """Twenty steps of gradient descent on the kept rows: cheap to compile."""

    def loss(params):
        z, _ = head().apply(jp.Variables(params, {}), dataset.image, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(z, dataset.label)
        return jnp.sum(losses * keep) / jnp.sum(keep)

    def step(params, _):
        return jp.tree.axpy(-0.3, jax.grad(loss)(params), params), None

    start = jax.tree.map(jnp.zeros_like, head().init(key).params)
    return jp.Variables(jax.lax.scan(step, start, length=20)[0], {})


def sever(share):
    settings = jp.defenses.SeverSettings(share, rounds=2)
    return jp.defenses.sever(head(), descend, settings, num_classes=CLASSES, iterations=15)


FILTERS = {  # name: factory of the share that goes
    "random_filter": lambda p: jp.defenses.random_filter(share=p),
    "largest_loss": lambda p: jp.defenses.largest_loss(head(), share=p, num_classes=CLASSES),
    "largest_gradient": lambda p: jp.defenses.largest_gradient(head(), share=p),
    "sphere": lambda p: jp.defenses.sphere(share=p, num_classes=CLASSES),
    "sphere_gradients": lambda p: jp.defenses.sphere(
        share=p, num_classes=CLASSES, space="gradients", victim=head(), center="trusted"
    ),
    "slab": lambda p: jp.defenses.slab(CLASSES, share=p, space="features", victim=head()),
    "deep_knn": lambda p: jp.defenses.deep_knn(5, victim=head(), num_classes=CLASSES),
    "knn_distance": lambda p: jp.defenses.knn_distance(3, share=p, space="data", batch_size=16),
    "influence": lambda p: jp.defenses.influence(head(), share=p, batch_size=25),
    "sever": sever,
    "norm_filter": lambda p: jp.defenses.norm_filter(level=1 - p),
    "norm_filter_features": lambda p: jp.defenses.norm_filter(
        level=1 - p, space="features", victim=head()
    ),
    "range_filter": lambda p: jp.defenses.range_filter(per_coordinate=True, tolerance=1 - p),
}
REMOVES_NONE_OF_THE_TRUSTED = ("range_filter",)
DRAWS = ("random_filter",)  # from its key, a row number at a time
DISTINCT = pytest.mark.parametrize("name", ("sever", "deep_knn"))
"""For the promises about how a filter is run; the other rows are of the same blocks."""
EVERY = pytest.mark.parametrize("name", FILTERS)


@functools.cache
def build(name, share=0.1):
    return FILTERS[name](share)


@functools.partial(jax.jit, static_argnums=0)
def screen(filter, key, dataset, aux):
    return filter.screen(key, dataset, aux)


@EVERY
def test_a_screening_has_the_shape_of_the_set_and_removes_some_of_it(name):
    dataset, aux = features()
    keep, score = screen(build(name), KEY, dataset, aux)
    assert keep.shape == (NUM,) and keep.dtype == bool
    assert score.shape == (NUM,) and score.dtype == jnp.float32
    assert np.isfinite(score).all()
    removed = int(NUM - keep.sum())
    assert removed == 0 if name in REMOVES_NONE_OF_THE_TRUSTED else 1 <= removed <= NUM // 2


@pytest.mark.parametrize("name", ("slab", "deep_knn"))
def test_jit_equals_eager(name):
    dataset, aux = features()
    eager = build(name).screen(KEY, dataset, aux)
    jitted = screen(build(name), KEY, dataset, aux)
    np.testing.assert_array_equal(eager.keep, jitted.keep)
    np.testing.assert_allclose(eager.score, jitted.score, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FILTERS if name not in DRAWS])
def test_the_order_of_the_rows_does_not_matter(name):
    dataset, aux = features()
    order = np.random.default_rng(1).permutation(NUM)
    first = screen(build(name), KEY, dataset, aux)
    second = screen(build(name), KEY, jax.tree.map(lambda x: x[order], dataset), aux)
    np.testing.assert_array_equal(second.keep, first.keep[order])
    np.testing.assert_allclose(second.score, first.score[order], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ("sever", "sphere", "norm_filter"))
def test_no_share_is_a_no_op(name):
    dataset, aux = features()
    assert screen(build(name, 0.0), KEY, dataset, aux).keep.all()


@EVERY
def test_the_same_key_gives_the_same_bits_and_nothing_is_compiled_twice(name):
    dataset, aux = features()
    first = screen(build(name), KEY, dataset, aux)
    before = screen._cache_size()
    second = screen(build(name), KEY, dataset, aux)
    assert screen._cache_size() == before
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@DISTINCT
def test_float64_and_float32_agree(name):
    small = screen(build(name), KEY, *features())
    with jax.enable_x64(True):
        wide = screen(build(name), KEY, *features(np.float64))
    np.testing.assert_array_equal(wide.keep, small.keep)
    np.testing.assert_allclose(wide.score, small.score, rtol=2e-3, atol=1e-4)


SHAPE, ROWS = (8, 8, 3), 8
AUGMENTATIONS = {  # name: factory of a training-time defense
    "mixup": jp.defenses.mixup,
    "cutmix": jp.defenses.cutmix,
    "cutout": lambda: jp.defenses.cutout(size=4),
}
TRAINING = {
    **AUGMENTATIONS,
    "randaugment": jp.defenses.randaugment,
    "ueraser": lambda: jp.defenses.ueraser(copies=2, epochs=1),
    "adversarial": lambda: jp.defenses.adversarial(steps=2),
    "adversarial, l2": lambda: jp.defenses.adversarial(
        eps=0.5, norm="l2", start="step_normal", steps=2
    ),
    "trades": lambda: jp.defenses.trades(steps=2),
    "mixup, then adversarial": lambda: jp.defenses.compose(
        jp.defenses.mixup(), jp.defenses.adversarial(steps=2)
    ),
}
IDENTITIES = {
    "compose": jp.defenses.compose(),
    "mixup": jp.defenses.mixup(probability=0.0),
    "cutmix": jp.defenses.cutmix(probability=0.0),
    "adversarial": jp.defenses.adversarial(eps=0.0, step_size=0.1, steps=1),
    "trades": jp.defenses.trades(beta=0.0, steps=1),
}
EVERY_TRAINING = pytest.mark.parametrize("name", TRAINING)


def pictures(dtype=np.float32, weight=None):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(size=(ROWS, *SHAPE)), dtype)
    label = jnp.asarray(np.arange(ROWS) % CLASSES, jnp.int32)
    weight = jnp.ones(ROWS, dtype) if weight is None else jnp.asarray(weight, dtype)
    return jp.Batch(image, label, weight, jnp.arange(ROWS, dtype=jnp.int32))


@functools.cache
def linear():
    return jp.models.logistic_regression(SHAPE, CLASSES)


@functools.cache
def defended(name):
    """A learner of two updates an epoch, and its jitted step."""
    losses = TRAINING[name]()(cross_entropy)
    learner = jp.victims.learner(linear(), optax.sgd(0.3), losses=losses, steps_per_epoch=2)
    return learner, jax.jit(learner.step)


def start(learner):
    phi = jax.jit(learner.init)(KEY)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), phi.params)
    return phi._replace(params=params)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_defended_step_in_jit_equals_eager(name):
    learner, step = defended(name)
    phi = start(learner)
    for a, b in zip(
        jax.tree.leaves(step(KEY, phi, pictures())),
        jax.tree.leaves(learner.step(KEY, phi, pictures())),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@EVERY_TRAINING
def test_a_defended_step_repeats_its_bits_and_compiles_once(name):
    learner, step = defended(name)
    phi = start(learner)
    first, info = step(KEY, phi, pictures())
    assert info.finite and not np.array_equal(*(jax.tree.leaves(x.params)[0] for x in (phi, first)))
    size = step._cache_size()
    again, _ = step(KEY, phi, pictures())
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    step(jax.random.key(1), first, pictures())
    assert step._cache_size() == size
    assert int(first.opt_state.updates) == 1
    for a, b in zip(jax.tree.leaves(phi), jax.tree.leaves(first), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape


@EVERY_TRAINING
def test_what_stands_in_rows_without_weight_does_not_matter(name):
    learner, step = defended(name)
    phi, data = start(learner), pictures(weight=[1, 0.5, 2, 1, 1, 0, 0, 1])
    other = data._replace(image=data.image.at[5:7].set(0.25), label=data.label.at[5:7].set(0))
    for a, b in zip(
        jax.tree.leaves(step(KEY, phi, data)), jax.tree.leaves(step(KEY, phi, other)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@EVERY_TRAINING
def test_micro_batches_are_defended_too(name):
    losses = TRAINING[name]()(cross_entropy)
    settings = {"losses": losses, "steps_per_epoch": 1, "accumulate": 3}
    learner = jp.victims.learner(linear(), optax.sgd(0.3), **settings)
    phi, info = jax.eval_shape(learner.step, KEY, start(learner), pictures())
    assert phi.opt_state.updates.shape == info.outer_loss.shape == ()


@pytest.mark.parametrize("name", IDENTITIES)
def test_a_defense_of_no_strength_is_none(name):
    plain = jp.victims.learner(linear(), optax.sgd(0.3))
    losses = IDENTITIES[name](cross_entropy)
    learner = jp.victims.learner(linear(), optax.sgd(0.3), losses=losses)
    expected, _ = jax.jit(plain.step)(KEY, start(plain), pictures())
    found, _ = jax.jit(learner.step)(KEY, start(plain), pictures())
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


SIDES = (9, 6)  # an odd one, and none that 4 or 8 divides


def stored(channels=3, dtype=np.uint8, num=13):
    """Stored images, or the same as floats in [0, 1]; a set of odd size."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (num, *SIDES, channels), np.uint8)
    image = image if dtype == np.uint8 else (image / 255).astype(dtype)
    return jp.Dataset(jnp.asarray(image), jnp.asarray(np.arange(num) % CLASSES, jnp.int32))


def linear_dvae(channels):
    """x^ = sigmoid(W x + noise), p^ a color per class: a network that is cheap to compile."""
    shape = (*SIDES, channels)

    def init(key):
        zero = jnp.zeros((CLASSES, channels))
        return jp.Variables({"mix": jnp.eye(channels), "color": zero + 0.05}, {})

    def apply(variables, image, label, noise, *, train):
        del train
        image = image @ variables.params["mix"]
        mean = jnp.mean(image, axis=(1, 2, 3)).reshape(-1, 1, 1, 1)
        moved = image if noise is None else image + noise
        color = variables.params["color"][label][:, None, None]
        made = jp.Disentangled(
            jax.nn.sigmoid(moved), jnp.broadcast_to(color, image.shape), mean, 0 * mean
        )
        return made, {}

    network = jp.Disentangler(init, apply, shape, (1, 1, 1), CLASSES)
    return jp.defenses.dvae(network, jp.defenses.DVAESettings(epochs=1, batch_size=5))


PURIFIERS = {
    "grayscale": jp.defenses.grayscale,
    "bit_depth": jp.defenses.bit_depth,
    "jpeg": jp.defenses.jpeg,
    "mean": jp.defenses.mean,
    "median": jp.defenses.median,
    "gaussian": jp.defenses.gaussian,
    "gaussian_iss": jp.defenses.gaussian_iss,
    "bilateral": jp.defenses.bilateral,
    "orthogonal_projection": lambda: jp.defenses.orthogonal_projection(
        num_classes=CLASSES, num_steps=2
    ),
    "dvae": linear_dvae,
}
OF_ONE_SHAPE = ("dvae",)  # built for images of so many channels
FITTED = ("orthogonal_projection", "dvae")
ROW_BY_ROW = [name for name in PURIFIERS if name not in FITTED]
OF_FLOATS = ("orthogonal_projection",)  # takes any images in [0, 1], gives float32
GRAY_ALREADY = ("grayscale", "gaussian_iss")  # change no image of one channel
EVERY_PURIFIER = pytest.mark.parametrize("name", PURIFIERS)
ROW_BY_ROW_PURIFIER = pytest.mark.parametrize("name", ROW_BY_ROW)


@functools.cache
def purifier(name, channels=3):
    return PURIFIERS[name](*((channels,) if name in OF_ONE_SHAPE else ()))


@functools.cache
def purified(name, channels=3):
    return jp.defenses.fit_purify(purifier(name, channels), KEY, stored(channels))


@EVERY_PURIFIER
@pytest.mark.parametrize("channels", (1, 3))
def test_a_purifier_keeps_rows_and_labels_and_changes_images(name, channels):
    before = stored(channels)
    result, info = purified(name, channels)
    assert result.image.shape == before.image.shape
    assert result.image.dtype == (jnp.float32 if name in OF_FLOATS else jnp.uint8)
    np.testing.assert_array_equal(result.label, before.label)
    assert result.label.dtype == jnp.int32
    same = bool(jnp.all(result.image == before.image))
    assert same is (name == "gaussian_iss" or (channels == 1 and name in GRAY_ALREADY))
    if purifier(name).num_steps:
        assert info.outer_loss.shape == (purifier(name).num_steps,) and info.finite.all()
    else:
        assert info == ()


@EVERY_PURIFIER
def test_a_purifier_gives_the_same_bits_for_the_same_key_and_leaves_its_input(name):
    before = stored()
    kept = np.array(before.image)
    again, _ = jp.defenses.fit_purify(purifier(name), KEY, before)
    np.testing.assert_array_equal(again.image, purified(name)[0].image)
    np.testing.assert_array_equal(before.image, kept)


@ROW_BY_ROW_PURIFIER
def test_a_purifier_without_a_fit_takes_each_image_by_itself(name):
    few = jax.tree.map(lambda x: x[4:9][::-1], stored())
    alone, _ = jp.defenses.fit_purify(purifier(name), jax.random.key(1), few)
    np.testing.assert_array_equal(alone.image, purified(name)[0].image[4:9][::-1])


@ROW_BY_ROW_PURIFIER
def test_a_purifier_of_grey_levels_refuses_floats(name):
    with pytest.raises(jp.InputError, match="^images are float32; this purifier takes uint8"):
        jp.defenses.fit_purify(purifier(name), KEY, stored(dtype=np.float32))


@pytest.mark.parametrize("name", OF_FLOATS)
def test_a_purifier_of_floats_takes_stored_images_as_pixels(name):
    floats, _ = jp.defenses.fit_purify(purifier(name), KEY, stored(dtype=np.float32))
    np.testing.assert_allclose(floats.image, purified(name)[0].image, atol=1e-5)
