"""Restarts and devices against plain python loops over the same keys."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import loops
from jaxpoison.types import Info, InputError

KEY = jax.random.key(0)
SHAPE, CLASSES = (8, 8, 1), 3


def walk():
    """state <- 0.9 state + noise + mean(data): cheap, and it reads key, state and data."""

    def init(key, data):
        return jax.random.normal(key, (4,)) + data

    def step(key, state, data):
        state = 0.9 * state + jax.random.normal(key, (4,)) + data
        loss = jnp.sum(state**2)
        return state, Info(loss, jnp.sqrt(loss), jnp.isfinite(loss))

    def poison(state, data):
        image = jnp.broadcast_to(state[:, None, None, None], (4, 1, 1, 1)) * data
        return jp.Dataset(image, jnp.arange(4, dtype=jnp.int32))

    return jp.Attack(init, step, poison)


@functools.cache
def conv_attack():
    """Error-maximizing noise on a small ConvNet, ten images."""
    victim = jp.models.small_cnn(SHAPE, CLASSES, widths=(2,))
    train = jp.data.synthetic.blobs(jax.random.key(1), 10, CLASSES, SHAPE)
    scenario = jp.Scenario(
        train, train, jnp.arange(10, dtype=jnp.int32), aux=victim.init(jax.random.key(2))
    )
    return jp.attacks.error_maximizing(victim, eps=0.1, num_classes=CLASSES, augment=None), scenario


def by_hand(process, key, data, num, steps):
    """(states, losses [T, R]) of `num` restarts in python; restart r folds r into every key."""
    init_key, steps_key = jax.random.split(key)
    init, step = jax.jit(process.init), jax.jit(process.step)
    states = [init(jax.random.fold_in(init_key, r), data) for r in range(num)]
    losses = np.zeros((steps, num))
    for t in range(steps):
        for r in range(num):
            step_key = jax.random.fold_in(jax.random.fold_in(steps_key, t), r)
            states[r], info = step(step_key, states[r], data)
            losses[t, r] = info.outer_loss
    return jax.tree.map(lambda *x: np.stack(x), *states), losses


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_restarts_are_a_python_loop_whatever_the_chunk(chunk):
    attack, data = walk(), jnp.float32(0.5)
    states, losses = by_hand(attack, KEY, data, 5, 3)
    repeated = jp.over_restarts(attack, 5, chunk=chunk)
    state, info = jp.run(repeated, KEY, data, num_steps=3)
    np.testing.assert_allclose(state, states, rtol=1e-5)
    np.testing.assert_allclose(info.outer_loss, losses, rtol=1e-5)
    assert repeated.single is attack and type(repeated) is jp.Attack
    poisoned = repeated.poison(state, data)
    assert poisoned.image.shape == (5, 4, 1, 1, 1) and poisoned.label.shape == (5, 4)
    for r in range(5):
        chex.assert_trees_all_equal(jp.tree.take(poisoned, r), attack.poison(state[r], data))


def test_the_number_of_devices_does_not_change_a_bit():
    attack, scenario = conv_attack()
    results = []
    for devices in (1, 2, 4):
        spread = jp.over_devices(attack, jp.device_mesh(devices), 4)
        state = jax.jit(spread.init)(KEY, scenario)
        assert len(jax.tree.leaves(state)[0].sharding.device_set) == devices
        results.append(jax.device_get(jax.jit(spread.step)(KEY, state, scenario)))
    chex.assert_trees_all_equal(*results)
    theta = results[0][0].theta
    assert not np.array_equal(theta[0], theta[1])  # restarts differ


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_devices_agree_with_a_python_loop_in_any_chunk(chunk):
    attack, data = walk(), jnp.float32(0.5)
    states, losses = by_hand(attack, KEY, data, 4, 3)
    spread = jp.over_devices(attack, jp.device_mesh(2), 4, chunk=chunk)
    state, info = jp.run(spread, KEY, data, num_steps=3)
    np.testing.assert_allclose(state, states, rtol=1e-5)
    np.testing.assert_allclose(info.outer_loss, losses, rtol=1e-5)
    poisoned = jax.jit(spread.poison)(state, data)
    np.testing.assert_allclose(poisoned.image[3], attack.poison(state[3], data).image, rtol=1e-6)


COLLECTIVE = re.compile(r"all-gather|all-reduce|all-to-all|collective|reduce-scatter")


def compiled_text(process, data):
    state = jax.eval_shape(process.init, KEY, data)
    return jax.jit(process.step).lower(KEY, state, data).compile().as_text()


def test_devices_do_not_talk_to_each_other():
    attack, scenario = conv_attack()
    text = compiled_text(jp.over_devices(attack, jp.device_mesh(4), 4), scenario)
    assert "convolution" in text or "custom-call" in text
    assert "num_partitions=4" in text
    assert not COLLECTIVE.search(text)

    mesh = jp.device_mesh(4)  # and the search can fail:
    mine = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("restart"))
    summed = jax.jit(jnp.sum).lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=mine))
    assert COLLECTIVE.search(summed.compile().as_text())


def test_chunks_run_over_devices_and_resume_without_compiling_again(tmp_path):
    attack, data = walk(), jnp.float32(0.5)
    spread = jp.over_devices(attack, jp.device_mesh(4), 4)
    options = {"save_every": 2, "directory": tmp_path}
    before = loops._chunk._cache_size()
    jp.run_chunks(spread, KEY, data, num_steps=3, **options)
    state, info, _ = jp.run_chunks(spread, KEY, data, num_steps=5, **options)
    assert loops._chunk._cache_size() == before + 1
    assert len(state.sharding.device_set) == 4
    whole, whole_info, _ = jp.run_chunks(spread, KEY, data, num_steps=5)
    on_one, _, _ = jp.run_chunks(jp.over_restarts(attack, 4), KEY, data, num_steps=5)
    np.testing.assert_array_equal(state, whole)
    np.testing.assert_array_equal(state, on_one)
    chex.assert_trees_all_equal(info, whole_info)
    assert info.outer_loss.shape == (5, 4)


def test_restarts_nest():
    attack, data = walk(), jnp.float32(0.5)
    nested = jp.over_restarts(jp.over_restarts(attack, 2), 3)
    state, info = jp.run(nested, KEY, data, num_steps=2)
    assert state.shape == (3, 2, 4) and info.outer_loss.shape == (2, 3, 2)
    init_key, steps_key = jax.random.split(KEY)
    for outer, inner in np.ndindex(3, 2):

        def own(key, outer=outer, inner=inner):
            return jax.random.fold_in(jax.random.fold_in(key, outer), inner)

        alone = attack.init(own(init_key), data)
        for t in range(2):
            alone, _ = attack.step(own(jax.random.fold_in(steps_key, t)), alone, data)
        np.testing.assert_allclose(state[outer, inner], alone, rtol=1e-5)
    devices = jp.over_devices(jp.over_restarts(attack, 2), jp.device_mesh(2), 4)
    state, _ = jp.run(devices, KEY, data, num_steps=1)
    assert state.shape == (4, 2, 4)


def test_a_restart_of_a_training_is_a_seed():
    victim = jp.models.mlp(SHAPE, CLASSES, hidden=(4,))
    recipe = jp.victims.Recipe(epochs=2, batch_size=6, learning_rate=0.1)
    sets = jp.data.synthetic.blobs(jax.random.key(1), 18, CLASSES, SHAPE)
    split = jp.Split(*(jp.tree.take(sets, jnp.arange(*part)) for part in ((0, 12), (12, 18))))
    single = jp.victims.victim_training(victim, recipe, 12)
    seeds = jp.over_restarts(single, 2)
    assert type(seeds) is jp.Training and seeds.single is single
    states, losses = by_hand(single, KEY, split, 2, 2)
    state, info = jp.run(seeds, KEY, split, num_steps=2)
    chex.assert_trees_all_close(state, states, atol=1e-5)
    np.testing.assert_allclose(info.outer_loss, losses, rtol=1e-4)
    assert info.test_accuracy.shape == (2, 2) and losses[0, 0] != losses[0, 1]
    best, best_state = jp.best_of(seeds, state, info)
    assert best is single
    winner = int(np.argmin(losses[-1]))
    chex.assert_trees_all_equal(best_state, jp.tree.take(state, winner))


def losses(*rows):
    return Info(jnp.asarray(rows, jnp.float32), None, None)


@pytest.mark.parametrize(
    ("last", "winner"),
    [([3, 1, 2], 1), ([np.nan, 5, 4], 2), ([np.inf, np.nan, 9], 2), ([np.nan, np.nan, 7], 2)],
)
def test_best_of_takes_the_lowest_last_loss_and_never_a_nan(last, winner):
    repeated = jp.over_restarts(walk(), 3)
    state = {"x": jnp.arange(6.0).reshape(3, 2)}
    single, best = jp.best_of(repeated, state, losses([0, 9, 9], last))
    assert single is repeated.single
    np.testing.assert_array_equal(best["x"], [2 * winner, 2 * winner + 1])


def test_best_of_nested_restarts_takes_the_outer_one_that_holds_the_lowest():
    nested = jp.over_restarts(jp.over_restarts(walk(), 2), 3)
    info = losses([[5, 4], [np.nan, 1], [2, 3]])
    single, best = jp.best_of(nested, jnp.arange(6).reshape(3, 2), info)
    assert single is nested.single
    np.testing.assert_array_equal(best, [2, 3])
    inner, best = jp.best_of(single, best, losses(info.outer_loss[0, 1]))
    assert inner is single.single and int(best) == 3


AT_THREE = jp.Scenario(None, None, None, aux=jnp.float32(3))  # type: ignore


def scored():
    """A walk that is chosen by its distance from what it ran on; a negative state has no score."""

    def score(state, data):
        return jnp.where(state[0] < 0, jnp.nan, jnp.abs(state[0] - data.aux))

    return walk()._replace(score=score)


@pytest.mark.parametrize(
    "repeat",
    [
        lambda a: jp.over_restarts(a, 4),
        lambda a: jp.over_restarts(a, 4, chunk=None),
        lambda a: jp.over_devices(a, jp.device_mesh(4), 4),
    ],
)
@pytest.mark.parametrize(("start", "winner"), [([9, 5, 4, 1], 2), ([-1, 5, -1, 9], 1)])
def test_an_attack_with_a_score_is_chosen_by_it(repeat, start, winner):
    repeated, state = repeat(scored()), jnp.asarray(start, jnp.float32)[:, None]
    single, best = jp.best_of(repeated, state, losses([0, 1, 2, 3]), AT_THREE)
    assert single is repeated.single and float(best[0]) == start[winner]
    with pytest.raises(InputError, match="^this attack chooses by its score: best_of needs the"):
        jp.best_of(repeated, state, losses([0, 1, 2, 3]))
    with pytest.raises(
        InputError, match="^best_of has nothing to choose: the score of every .* NaN"
    ):
        jp.best_of(repeated, -jnp.ones((4, 1)), losses([0, 1, 2, 3]), AT_THREE)


def test_nested_restarts_are_chosen_by_score_too():
    nested = jp.over_restarts(jp.over_restarts(scored(), 2), 2)
    state = jnp.asarray([[9.0, 8.0], [-1.0, 4.0]])[..., None]
    info = losses([[0, 1], [2, 3]])
    single, best = jp.best_of(nested, state, info, AT_THREE)
    assert single is nested.single and np.array_equal(best.ravel(), [-1, 4])
    last = losses([2, 3])
    assert float(jp.best_of(single, best, last, AT_THREE)[1][0]) == 4


def test_best_of_has_one_line_for_what_it_cannot_do():
    with pytest.raises(InputError, match="^best_of needs the result of over_restarts"):
        jp.best_of(walk(), (), losses([1.0]))
    with pytest.raises(InputError, match="^best_of has nothing to choose: .* NaN$"):
        jp.best_of(jp.over_restarts(walk(), 2), jnp.zeros(2), losses([np.nan, np.nan]))
    traced = jax.jit(lambda x: jp.best_of(jp.over_restarts(walk(), 2), x, losses([2.0, 1.0]))[1])
    assert float(traced(jnp.asarray([5.0, 6.0]))) == 6


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: jp.over_restarts(walk(), 0), "num = 0; it must be at least 1"),
        (lambda: jp.over_restarts(walk(), 2, chunk=0), "chunk = 0; it must be at least 1"),
        (
            lambda: jp.over_devices(walk(), jp.device_mesh(4), 6),
            "num = 6 restarts cannot be spread evenly over 4 devices of axis 'restart'",
        ),
        (
            lambda: jp.over_devices(walk(), jp.device_mesh(2, axis="member"), 2),
            "axis = 'restart' is not in the mesh; it has member",
        ),
        (lambda: jp.device_mesh(0), "num = 0 devices; there are 4"),
        (lambda: jp.device_mesh(5), "num = 5 devices; there are 4"),
    ],
)
def test_each_wrong_value_is_one_line(make, line):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_mesh_has_the_devices_asked_for():
    assert jp.device_mesh().shape == {"restart": 4}
    mesh = jp.device_mesh(3, axis="member")
    assert mesh.shape == {"member": 3} and list(mesh.devices) == jax.devices()[:3]
