import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison import checkpoint, loops, victims
from jaxpoison.types import Batch, Dataset, InputError, Learner, Split, TrainState, Victim, as_float
from jaxpoison.victims import Recipe, recipes
from jaxpoison.victims.learner import StepInfo

pytestmark = pytest.mark.usefixtures("quick_module")
KEY, SHAPE, CLASSES = jax.random.key(0), (8, 8, 1), 3


@functools.cache
def split(num=22, num_test=10):
    """The first rows of one draw for training, the others for testing."""
    every = jp.data.synthetic.blobs(jax.random.key(1), num + num_test, CLASSES, SHAPE)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(num), slice(num, None))))


@functools.cache
def victim():
    return jp.models.mlp(SHAPE, CLASSES, hidden=(6,))


def recipe(**settings):
    return Recipe(**({"epochs": 4, "batch_size": 8, "learning_rate": 0.1} | settings))


@functools.cache
def still():
    """A learner whose weights stand still."""
    return victims.learner(victim(), optax.sgd(0.0))


@functools.cache
def compiled(learner, recipe):
    process = victims.training(learner, recipe)
    return jax.jit(process.init), jax.jit(process.step)


def one_epoch(learner, recipe, data, key=KEY):
    init, step = compiled(learner, recipe)
    return step(key, init(jax.random.key(5), data), data)


@functools.cache
def recorder(num):
    """A learner that only notes the batches it is given, in `params`."""

    def init(key):
        del key
        log = {
            "index": jnp.full(num, -1, jnp.int32),
            "label": jnp.full(num, -1, jnp.int32),
            "image": jnp.zeros((num, *SHAPE)),
            "weight": jnp.zeros(num),
            "start": jnp.zeros(num, jnp.int32),
        }
        return TrainState(log, {}, (jnp.int32(0), jnp.int32(0)))

    def step(key, phi, batch):
        del key
        (seen, number), log = phi.opt_state, phi.params
        size = batch.label.shape[0]
        values = batch._asdict() | {"start": jnp.full(size, number, jnp.int32)}
        log = {k: jax.lax.dynamic_update_slice_in_dim(log[k], values[k], seen, 0) for k in log}
        zero = jnp.float32(0)
        info = StepInfo(zero, zero, jnp.array(True), zero)
        return TrainState(log, {}, (seen + size, number + 1)), info

    def apply(variables, image, *, train, key=None):
        del train, key
        return jnp.zeros((len(image), CLASSES)), variables.stats

    return Learner(Victim(init, apply, apply), init, apply, step)


def recorded(recipe, data, key=KEY):
    """What `recorder` noted in one epoch: {field: [N, ...]}, unseen rows have index -1."""
    phi, _ = one_epoch(recorder(len(data.train.label)), recipe, data, key)
    return jax.tree.map(np.asarray, phi.params)


@pytest.mark.parametrize(
    ("num", "drop_last", "sizes"),
    [(22, False, [8, 8, 6]), (22, True, [8, 8]), (16, False, [8, 8]), (8, True, [8])],
)
def test_an_epoch_sees_each_row_once_in_new_order(num, drop_last, sizes):
    data = split(num)
    seen = recorded(recipe(drop_last=drop_last), data)
    used = seen["index"][seen["index"] >= 0]
    assert len(used) == sum(sizes) == len(np.unique(used))
    np.testing.assert_array_equal(np.bincount(seen["start"][: len(used)]), sizes)
    np.testing.assert_array_equal(seen["label"][: len(used)], np.asarray(data.train.label)[used])
    np.testing.assert_allclose(
        seen["image"][: len(used)], np.asarray(data.train.image)[used] / 255, atol=1e-6
    )
    assert (seen["weight"][: len(used)] == 1).all()
    other = recorded(recipe(drop_last=drop_last), data, jax.random.key(9))
    assert not np.array_equal(other["index"], seen["index"])


def test_every_batch_is_augmented_anew_and_the_test_set_is_not():
    data = split(16)
    twins = Dataset(jnp.tile(data.train.image[:1], (16, 1, 1, 1)), data.train.label)
    seen = recorded(recipe(augmentation="crop"), Split(twins, data.test))["image"]
    assert len(np.unique(seen, axis=0)) > 8  # one image, moved by 16 draws out of 81
    _, plain = one_epoch(still(), recipe(), data)
    phi, moved = one_epoch(still(), recipe(augmentation="crop"), data)
    assert moved.outer_loss != plain.outer_loss
    right = victim().apply(phi.variables, as_float(data.test.image), train=False)[0].argmax(1)
    np.testing.assert_allclose(moved.test_accuracy, np.mean(right == data.test.label))


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_a_loop_over_its_batches(drop_last):
    data, how = split(), recipe(drop_last=drop_last)
    learner = victims.learner(victim(), optax.sgd(0.1, momentum=0.9))
    state, info = one_epoch(learner, how, data)
    seen = recorded(how, data)
    phi = compiled(learner, how)[0](jax.random.key(5), data)
    losses, accuracies, sizes = [], [], []
    step = jax.jit(learner.step)
    for number in range(2 if drop_last else 3):
        rows = jnp.asarray(seen["index"][(seen["start"] == number) & (seen["index"] >= 0)])
        image = as_float(data.train.image[rows])
        phi, one = step(KEY, phi, Batch(image, data.train.label[rows], jnp.ones(len(rows)), rows))
        losses, accuracies = [*losses, one.outer_loss], [*accuracies, one.accuracy]
        sizes.append(len(rows))
    chex.assert_trees_all_close(state, phi, atol=1e-5)
    np.testing.assert_allclose(info.outer_loss, np.average(losses, weights=sizes), rtol=1e-5)
    np.testing.assert_allclose(
        info.train_accuracy, np.average(accuracies, weights=sizes), rtol=1e-6
    )
    assert info.finite


def test_running_statistics_are_those_of_the_updates():
    data = split()
    state, _ = one_epoch(still(), recipe(), data)
    seen = recorded(recipe(), data)
    dense = jax.tree.map(np.asarray, state.params)["Dense_0"]
    hidden = seen["image"].reshape(22, -1) @ dense["kernel"] + dense["bias"]
    mean, variance = np.zeros(6), np.ones(6)
    for number in range(3):
        rows = hidden[seen["start"] == number]
        mean = 0.9 * mean + 0.1 * rows.mean(axis=0)
        variance = 0.9 * variance + 0.1 * rows.var(axis=0)
    np.testing.assert_allclose(state.stats["BatchNorm_0"]["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(state.stats["BatchNorm_0"]["var"], variance, atol=1e-6)


@functools.cache
def augmented():
    """Nesterov SGD with a schedule, decay and augmentation; 22 rows."""
    brew = recipes.witches_brew(epochs=4, data=None)
    how = dataclasses.replace(brew, learning_rate=0.05)
    return victims.victim_training(victim(), dataclasses.replace(how, batch_size=8), 22)


def test_the_test_set_never_reaches_the_state():
    data = split()
    other = Dataset(255 - data.test.image, data.test.label)
    state, info = jp.run(augmented(), KEY, data, num_steps=4)
    again, other_info = jp.run(augmented(), KEY, Split(data.train, other), num_steps=4)
    chex.assert_trees_all_equal(state, again)
    chex.assert_trees_all_equal(info.outer_loss, other_info.outer_loss)
    assert not np.array_equal(info.test_accuracy, other_info.test_accuracy)


def test_a_second_set_of_the_same_shape_compiles_nothing():
    data = split()
    jp.run(augmented(), KEY, data, num_steps=4)
    before = loops._run._cache_size()
    poisoned = Dataset(data.train.image // 2, data.train.label[::-1])
    state, _ = jp.run(augmented(), jax.random.key(3), Split(poisoned, data.test), num_steps=4)
    assert loops._run._cache_size() == before
    chex.assert_tree_all_finite(state)


def test_arms_one_after_the_other_compile_nothing_after_the_first():
    process, compiled = jp.over_restarts(augmented(), 2), []

    def arm(data):
        state, info, _ = jp.run_chunks(process, KEY, data, num_steps=2)
        return victims.judge(victim(), state, info, *data)

    def listen(event, seconds, **context):
        del seconds, context
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first = arm(split())
        assert compiled  # the listener hears
        compiled.clear()
        second = arm(Split(Dataset(split().train.image, split().train.label[::-1]), split().test))
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert first != second


def test_grey_levels_and_floats_train_alike():
    data = split()
    floats = Dataset(jax.jit(as_float)(data.train.image), data.train.label)
    state, _ = jp.run(augmented(), KEY, data, num_steps=4)
    other, _ = jp.run(augmented(), KEY, Split(floats, data.test), num_steps=4)
    chex.assert_trees_all_close(state, other, atol=1e-5)


def test_seeds_are_single_runs_with_folded_keys():
    data = split()
    three, info = jp.run(jp.over_restarts(augmented(), 3), KEY, data, num_steps=2)
    init_key, steps_key = jax.random.split(KEY)
    step = jax.jit(augmented().step)
    phi = jax.jit(augmented().init)(jax.random.fold_in(init_key, 2), data)
    for t in range(2):
        key = jax.random.fold_in(jax.random.fold_in(steps_key, t), 2)
        phi, one = step(key, phi, data)
        np.testing.assert_allclose(info.outer_loss[t, 2], one.outer_loss, rtol=1e-5)
    chex.assert_trees_all_close(jp.tree.take(three, 2), phi, atol=1e-5)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path):
    process = jp.over_restarts(augmented(), 2)
    whole, info, _ = jp.run_chunks(process, KEY, split(), num_steps=4)
    jp.run_chunks(process, KEY, split(), num_steps=3, save_every=1, directory=tmp_path)
    newest = (
        tmp_path / "checkpoints" / f"{checkpoint.valid_steps(tmp_path / 'checkpoints')[-1]:08d}"
    )
    (newest / "meta.json").unlink()  # as if it had been killed while it saved
    resumed, resumed_info, _ = jp.run_chunks(process, KEY, split(), num_steps=4, directory=tmp_path)
    chex.assert_trees_all_equal(resumed, whole)
    chex.assert_trees_all_equal(resumed_info, info)
    curve = [float(x) for x in info.test_accuracy[:, 0]]
    assert np.shape(info.test_accuracy) == (4, 2) and all(0 <= x <= 1 for x in curve)


def test_the_schedule_follows_the_epochs_of_the_run():
    data = split()
    how = recipe(schedule="step", milestones=(1, 2), momentum=0.0, learning_rate=1e-3, epochs=3)
    linear = jp.models.logistic_regression(SHAPE, CLASSES)
    process = victims.victim_training(linear, how, 22)
    phi, sizes = jax.jit(process.init)(KEY, data), []
    step = jax.jit(process.step)
    for t in range(3):
        after, _ = step(jax.random.key(t), phi, data)
        sizes.append(optax.tree.norm(optax.tree.sub(after.params, phi.params)))
        phi = after
    np.testing.assert_allclose(np.array(sizes[1:]) / sizes[:-1], 0.1, rtol=0.1)


def test_bfloat16_computes_and_float32_remembers():
    every = jp.data.synthetic.blobs(jax.random.key(4), 160, CLASSES, SHAPE)
    data = Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(96), slice(96, None))))
    how = recipes.small(epochs=10, batch_size=32, learning_rate=0.03)
    accuracies = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        net = jp.models.small_cnn(SHAPE, CLASSES, widths=(8,), dtype=dtype)
        state, info = jp.run(victims.victim_training(net, how, 96), KEY, data, num_steps=10)
        chex.assert_tree_all_finite(state)
        floats = [
            x for x in jax.tree.leaves((state, info)) if jnp.issubdtype(x.dtype, jnp.floating)
        ]
        assert {x.dtype for x in floats} == {jnp.dtype("float32")}
        accuracies[dtype] = info.test_accuracy[-1]
    assert accuracies[jnp.float32] > 0.9
    assert abs(accuracies[jnp.bfloat16] - accuracies[jnp.float32]) < 0.05


def test_bfloat16_keeps_statistics_in_float32():
    net = jp.models.mlp(SHAPE, CLASSES, hidden=(4,), dtype=jnp.bfloat16)
    process = victims.victim_training(net, recipe(), 22)
    state = jax.eval_shape(process.init, KEY, split())
    after, info = jax.eval_shape(process.step, KEY, state, split())
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {x.dtype for x in jax.tree.leaves(after.stats)} == {jnp.dtype("float32")}
    assert info.outer_loss.dtype == info.test_accuracy.dtype == jnp.float32


def test_sets_that_cannot_be_used_are_one_line():
    data = split()
    empty = Dataset(data.train.image[:0], data.train.label[:0])
    process = victims.training(victims.learner(victim(), optax.sgd(0.1)), recipe())
    with pytest.raises(InputError, match="^the training set is empty"):
        jp.run(process, KEY, Split(empty, data.test), num_steps=1)
    with pytest.raises(InputError, match="^there are no images to classify"):
        jp.run(process, KEY, Split(data.train, empty), num_steps=1)
    with pytest.raises(InputError, match="^the training set has 10 rows; num_train = 22"):
        jp.run(augmented(), KEY, Split(data.test, data.test), num_steps=1)


@pytest.mark.parametrize(
    ("num_train", "accumulate", "message"),
    [
        (7, 1, "batch_size = 8 is larger than the training set of 7 rows; it must be from 1 to 7"),
        (0, 1, "the training set is empty"),
        (-3, 1, "num_train = -3; it must be at least 1"),
        (22, 0, "accumulate = 0; it must be at least 1"),
        (22, 9, "accumulate = 9 micro-batches of a batch of 8 rows; it must be from 1 to 8"),
    ],
)
def test_a_batch_that_cannot_be_is_one_line(num_train, accumulate, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        victims.victim_training(victim(), recipe(), num_train, accumulate=accumulate)


def test_a_set_smaller_than_a_batch_is_not_trained_on():
    data, process = split(), victims.training(still(), recipe(batch_size=23))
    with pytest.raises(InputError, match="^batch_size = 23 is larger than the training set of 22"):
        jp.run(process, KEY, data, num_steps=1)


def test_micro_batches_train_as_whole_batches_do():
    data, linear = split(), jp.models.logistic_regression(SHAPE, CLASSES)
    how = recipe(augmentation="crop")
    whole, info = jp.run(victims.victim_training(linear, how, 22), KEY, data, num_steps=3)
    process = victims.victim_training(linear, how, 22, accumulate=3)  # of 8: 3, 3, 2; of 6: 2, 2, 2
    state, other = jp.run(process, KEY, data, num_steps=3)
    chex.assert_trees_all_close((state, other), (whole, info), atol=1e-5)
