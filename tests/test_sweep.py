"""Sweeps of setups: each its own numbers' draws, whatever the grouping, devices or hosts."""

import functools
import inspect
import os
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.types import InputError
from tests import sweep_hosts
from tests.sweep_hosts import PER, SEED, STEPS, crafted, scenarios, study, trained
from tests.test_hosts import ROOT

KEY = jax.random.key(SEED)
NUMBERS = (3, 0, 7, 5)


@functools.cache
def mapped():
    """State and info of all four setups on one device."""
    return jax.device_get(jp.run(crafted(), KEY, scenarios(NUMBERS), num_steps=STEPS))


def rows_of(state, info, *places):
    """Some setups of a state [S, ...] and an info [T, S, ...]."""
    at = np.asarray(places)
    return jax.tree.map(lambda x: x[at], state), jax.tree.map(lambda x: x[:, at], info)


def test_a_setup_does_what_its_attack_does_with_its_number_in_the_keys():
    _, attack, split, setups = study()
    restarts = jp.over_restarts(attack, PER)
    state, info = mapped()
    init_key, steps_key = jax.random.split(KEY)
    init, step = jax.jit(restarts.init), jax.jit(restarts.step)
    for place in (0, 2):
        number = NUMBERS[place]
        scenario = setups[number].scenario(split, study()[0])
        alone = init(jax.random.fold_in(init_key, number), scenario)
        for t in range(STEPS):
            key = jax.random.fold_in(jax.random.fold_in(steps_key, t), number)
            alone, last = step(key, alone, scenario)
        chex.assert_trees_all_close(rows_of(state, info, place)[0].theta[0], alone.theta, rtol=1e-5)
        np.testing.assert_allclose(info.outer_loss[-1, place], last.outer_loss, rtol=1e-5)
    assert len(np.unique(info.outer_loss)) == STEPS * 4 * PER


def test_neither_grouping_nor_devices_change_a_bit():
    state, info = mapped()
    for places in ((2, 3), (1,)):
        some = scenarios([NUMBERS[i] for i in places])
        found = jax.device_get(jp.run(crafted(), KEY, some, num_steps=STEPS))
        chex.assert_trees_all_equal(found, rows_of(state, info, *places))
    found = jp.run(
        crafted(jp.device_mesh(4, axis="setup")), KEY, scenarios(NUMBERS), num_steps=STEPS
    )
    assert len(found[0].theta.sharding.device_set) == 4
    chex.assert_trees_all_equal(jax.device_get(found), (state, info))


def test_poison_gives_the_rows_of_each_setup_and_the_best_restart_is_found_by_setup():
    aux, attack, split, setups = study()
    state, info = mapped()
    sweep = scenarios(NUMBERS)
    rows = jax.jit(crafted().poison)(state, sweep)
    spread = jax.jit(crafted(jp.device_mesh(4, axis="setup")).poison)(state, sweep)
    chex.assert_trees_all_equal(rows, jax.device_get(spread))
    assert rows.image.shape == (4, PER, 6, *sweep_hosts.SHAPE) and rows.label.shape == (4, PER, 6)
    restarts = jp.over_restarts(attack, PER)
    for place, number in enumerate(NUMBERS):
        own = setups[number]
        inner, own_info = rows_of(state, info, place)
        inner, own_info = jp.tree.take(inner, 0), jax.tree.map(lambda x: x[:, 0], own_info)
        whole = restarts.poison(inner, own.scenario(split, aux))
        np.testing.assert_array_equal(rows.image[place], whole.image[:, own.poison_rows])
        np.testing.assert_array_equal(rows.label[place], whole.label[:, own.poison_rows])
        single, best = jp.best_of(restarts, inner, own_info)
        winner = int(np.argmin(own_info.outer_loss[-1]))
        assert single is attack
        chex.assert_trees_all_equal(best, jp.tree.take(inner, winner))
    with pytest.raises(InputError, match="best_of needs the result of over_restarts"):
        jp.best_of(crafted(), state, info)


def test_chunks_resume_bit_for_bit_without_compiling_again(tmp_path):
    state, info = mapped()
    process = crafted(jp.device_mesh(4, axis="setup"))
    before = jp.loops._chunk._cache_size()
    options = {"directory": tmp_path, "save_every": 1}
    jp.run_chunks(process, KEY, scenarios(NUMBERS), num_steps=1, **options)
    found, found_info, _ = jp.run_chunks(
        process, KEY, scenarios(NUMBERS), num_steps=STEPS, **options
    )
    assert jp.loops._chunk._cache_size() == before + 1
    chex.assert_trees_all_equal(jax.device_get((found, found_info)), (state, info))


def test_one_setup_by_itself_draws_what_it_draws_in_a_sweep():
    aux, attack, split, setups = study()
    state, info = mapped()
    process = jp.sweep.numbered(jp.over_restarts(attack, PER))
    assert process.single is attack
    one = jp.Sweep(jnp.int32(NUMBERS[1]), setups[NUMBERS[1]].scenario(split, aux))
    alone, own = jp.run(process, KEY, one, num_steps=STEPS)
    np.testing.assert_allclose(own.outer_loss, info.outer_loss[:, 1], rtol=1e-5)
    chex.assert_trees_all_close(alone.theta, state.theta[1], atol=1e-5)
    rows = setups[NUMBERS[1]].poison_rows
    assert process.poison(alone, one).image[:, rows].shape == (PER, 6, *sweep_hosts.SHAPE)


def replaced(numbers):
    """The sweep of victims whose training sets have grey images in the rows of each setup."""
    _, _, split, setups = study()
    rows = jnp.asarray(np.stack([setups[i].poison_rows for i in numbers]), jnp.int32)
    grey = np.stack([np.full((6, *sweep_hosts.SHAPE), 9 * i, np.uint8) for i in numbers])
    return jp.Sweep(jnp.asarray(numbers, jnp.int32), jp.Replaced(split, rows, jnp.asarray(grey)))


def test_victims_see_their_own_rows_and_no_bit_depends_on_the_devices():
    _, _, split, setups = study()
    sweep = replaced(NUMBERS)
    state, info = jax.device_get(jp.run(trained(), KEY, sweep, num_steps=1))
    mesh = jp.device_mesh(4, axis="setup")
    spread = jp.run(trained(mesh), KEY, sweep, num_steps=1)
    chex.assert_trees_all_equal(jax.device_get(spread), (state, info))
    some = jax.device_get(jp.run(trained(), KEY, replaced(NUMBERS[2:]), num_steps=1))
    chex.assert_trees_all_equal(some, rows_of(state, info, 2, 3))
    single = sweep_hosts.seeds()
    init_key, steps_key = jax.random.split(KEY)
    for place, number in enumerate(NUMBERS[:2]):
        image = np.array(split.train.image)
        image[setups[number].poison_rows] = 9 * number
        data = split._replace(train=jp.Dataset(jnp.asarray(image), split.train.label))
        own = functools.partial(jax.random.fold_in, data=number)
        step_key = own(jax.random.fold_in(steps_key, 0))
        alone, _ = jax.jit(single.step)(step_key, single.init(own(init_key), data), data)
        found = jp.tree.take(state, place)
        chex.assert_trees_all_close(found.params, alone.params, atol=1e-5)


def test_the_training_sets_are_made_on_the_device_and_no_host_sends_them():
    sweep = replaced(NUMBERS)
    train = sweep.data.split.train.image
    assert sweep.data.image.nbytes < train.nbytes  # four whole sets would be four times that
    lowered = jax.jit(trained().step).lower(KEY, jax.eval_shape(trained().init, KEY, sweep), sweep)
    assert f"tensor<4x{'x'.join(map(str, train.shape))}xui8>" not in lowered.as_text()
    assert f"tensor<{'x'.join(map(str, train.shape))}xui8>" in lowered.as_text()


def test_two_hosts_give_the_bits_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-m", "tests.sweep_hosts", str(tmp_path / "out.npz")]
    both = [
        subprocess.Popen(
            [*command, f"127.0.0.1:{port},2,{own}"],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        )
        for own in (0, 1)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=240)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors
    with np.load(tmp_path / "out.npz") as file:
        leaves = jax.tree.leaves(mapped())
        assert len(file.files) == len(leaves)
        for i, leaf in enumerate(leaves):
            np.testing.assert_array_equal(file[f"arr_{i}"], leaf)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: jp.tree.take(s.data.goal, 0), r"data is a Dataset; .* \(over_setups: a Sweep\)"),
        (lambda s: s._replace(data=s.data.train), "sweep.data is a Dataset; it must be a Scenario"),
        (lambda s: s._replace(number=s.number[:2]), r"index has shape \(4, 6\); 2 setups ask"),
        (lambda s: s._replace(number=-s.number), "sweep.number must be whole numbers from 0"),
        (lambda s: s._replace(data=s.data._replace(index=s.data.index * 0)),
         "index of setup 3 names a row twice"),
        (lambda s: s._replace(data=s.data._replace(index=s.data.index + 60)),
         "index of setup 3 runs from"),
        (lambda s: s._replace(data=s.data._replace(goal=jp.tree.take(s.data.goal, 0))),
         "leaves of"),
        (lambda s: s._replace(data=jp.Replaced(study()[2], s.data.index, jnp.zeros((4, 6)))),
         "sweep.data.image is float32; the training set is uint8"),
    ],
)  # fmt: skip
def test_a_sweep_of_other_data_is_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        jp.run(crafted(), KEY, change(scenarios(NUMBERS)), num_steps=1)
    assert "\n" not in str(caught.value)


def test_each_wrong_value_is_one_line():
    _, attack, split, setups = study()
    three = scenarios(NUMBERS[:3])
    cases = [
        (lambda: jp.over_setups(attack, chunk=0), "chunk = 0; it must be at least 1"),
        (lambda: jp.over_setups(attack, jp.device_mesh(2)), "axis = 'setup' is not in the mesh"),
        (lambda: jp.run(crafted(jp.device_mesh(2, axis="setup")), KEY, three, num_steps=1),
         "3 setups cannot be spread evenly over 2 devices of axis 'setup'"),
        (lambda: jp.data.stack_setups([], split), "there are no setups to stack"),
        (lambda: jp.data.stack_setups(setups[:2], split, numbers=[1]), "1 numbers for 2 setups"),
        (lambda: jp.data.stack_setups(
            [setups[0], setups[1]._replace(poison_rows=np.arange(5))], split
        ), "has 5 poison_rows, key-0 has 6; a sweep takes setups of one shape"),
        (lambda: inspect.unwrap(jp.over_setups)(  # the type checker would be first
            jp.types.Streaming(None, None, None, 0)  # type: ignore
        ), "a streamed training cannot go through a sweep"),
    ]  # fmt: skip
    for make, message in cases:
        with pytest.raises(InputError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)
