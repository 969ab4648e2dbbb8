"""Training from disk under a memory cap: the numbers of training in memory, and the cap is kept."""

import dataclasses
import functools
import inspect
import itertools
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import checkpoint, data, loops, victims
from jaxpoison.data import StreamSplit
from jaxpoison.types import Dataset, InputError, Split
from jaxpoison.victims import windows

KEY, SHAPE, CLASSES, NUM = jax.random.key(0), (8, 8, 1), 3, 22
RECIPE = victims.Recipe(epochs=3, batch_size=4, learning_rate=0.05, augmentation="crop")
PLAIN = dataclasses.replace(RECIPE, augmentation="none")
ROW = 8 * 8 + 8  # an image, its label, its number


@functools.cache
def victim():
    return jp.models.mlp(SHAPE, CLASSES, hidden=(6,))


@functools.cache
def linear():
    return jp.models.logistic_regression(SHAPE, CLASSES)


@functools.cache
def split():
    every = data.synthetic.blobs(jax.random.key(1), NUM + 10, CLASSES, SHAPE)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(NUM), slice(NUM, None))))


@functools.cache
def in_memory(seeds):
    process = victims.victim_training(victim(), RECIPE, NUM)
    process = process if seeds is None else jp.over_restarts(process, seeds)
    return process, jp.run_chunks(process, KEY, split(), num_steps=3)


@pytest.fixture
def stored(tmp_path):
    for name, part in zip(("train", "test"), split(), strict=True):
        np.savez(tmp_path / f"blobs-{name}.npz", image=part.image, label=part.label)
    return StreamSplit(*(data.stream("blobs", s, tmp_path) for s in ("train", "test")))


def streamed(batches, seeds=None, **options):
    cap = batches * RECIPE.batch_size * ROW
    return victims.streamed_training(victim(), RECIPE, NUM, max_bytes=cap, seeds=seeds, **options)


@pytest.mark.parametrize(("batches", "seeds"), [(1, None), (4, 2)])
def test_windows_train_as_the_whole_set_does(stored, batches, seeds):
    """Five batches of 4 and one of 2 in windows of one (in turn) and of two."""
    _, (expected, expected_info, _) = in_memory(seeds)
    state, info, _ = jp.run_chunks(streamed(batches, seeds), KEY, stored, num_steps=3)
    chex.assert_trees_all_close(state, expected, atol=1e-5)
    for field, got, wanted in zip(info._fields, info, expected_info, strict=True):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=field)


def test_the_last_partial_batch_may_be_dropped(stored):
    how = dataclasses.replace(PLAIN, drop_last=True)
    expected, _ = jp.run(victims.victim_training(linear(), how, NUM), KEY, split(), num_steps=1)
    process = victims.streamed_training(linear(), how, NUM, max_bytes=10**4)
    state, _, _ = jp.run_chunks(process, KEY, stored, num_steps=1)
    chex.assert_trees_all_close(state, expected, atol=1e-5)


def test_devices_share_a_window(stored):
    expected, _ = jp.run(victims.victim_training(linear(), PLAIN, NUM), KEY, split(), num_steps=2)
    mesh = jp.device_mesh(4, axis="batch")
    process = victims.streamed_training(linear(), PLAIN, NUM, max_bytes=4 * 4 * ROW, mesh=mesh)
    state, _, _ = jp.run_chunks(process, KEY, stored, num_steps=2)
    chex.assert_trees_all_close(state, expected, atol=1e-5)
    assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(state))


def test_the_cap_is_kept(stored, monkeypatch):
    """Counted by jax itself, whenever an array of a window has just been made."""

    def alive():
        arrays = [a for a in jax.live_arrays() if a.dtype in (np.uint8, np.int32) and a.ndim > 1]
        return sum(a.nbytes for a in arrays)

    sizes, put, before = [], jax.device_put, alive()

    def counting(*args, **options):
        out = put(*args, **options)
        sizes.append(alive() - before)
        return out

    monkeypatch.setattr(jax, "device_put", counting)
    jp.run_chunks(streamed(5), KEY, stored, num_steps=1)
    batch = RECIPE.batch_size * ROW
    assert max(sizes) == 4 * batch  # two windows of two batches, under a cap of five
    assert alive() == before


def test_a_stopped_run_goes_on_bit_for_bit(stored, tmp_path):
    folder = tmp_path / "run"
    whole, whole_info, _ = jp.run_chunks(streamed(2, 2), KEY, stored, num_steps=3)
    jp.run_chunks(streamed(2, 2), KEY, stored, num_steps=2, save_every=1, directory=folder)
    assert checkpoint.valid_steps(folder / "checkpoints") == [1, 2]
    state, info, _ = jp.run_chunks(streamed(2, 2), KEY, stored, num_steps=3, directory=folder)
    chex.assert_trees_all_equal(state, whole)
    chex.assert_trees_all_equal(tuple(info), tuple(whole_info))
    chex.assert_trees_all_close(state, in_memory(2)[1][0], atol=1e-5)


def test_the_same_judgment_as_in_memory(stored):
    _, (state, info, _) = in_memory(2)
    expected = victims.judge(victim(), state, info, *split())
    for cap in (ROW, 10**6):  # row by row, and all at once
        assert victims.judge_streamed(victim(), state, info, *stored, max_bytes=cap) == expected


def test_what_cannot_be_streamed_is_one_line(stored, tmp_path):
    too_small = RECIPE.batch_size * ROW - 1
    process = victims.streamed_training(victim(), RECIPE, NUM, max_bytes=too_small)
    with pytest.raises(InputError, match=f"^max_bytes = {too_small} does not hold a batch of 4 "
                       f"rows of {ROW} bytes; it must be at least {too_small + 1}"):  # fmt: skip
        jp.run_chunks(process, KEY, stored, num_steps=1, directory=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="^the training set has 10 rows; num_train = 22"):
        jp.run_chunks(streamed(1), KEY, StreamSplit(stored.test, stored.test), num_steps=1)
    with pytest.raises(InputError, match="^seeds = 0; it must be at least 1$"):
        streamed(1, seeds=0)
    with pytest.raises(InputError, match="^max_bytes = 0; it must be at least 1$"):
        streamed(0)
    judged = dataclasses.replace(RECIPE, statistics="batch")
    with pytest.raises(
        InputError, match="^statistics = 'batch'; of a set that is streamed they mu"
    ):
        victims.streamed_training(victim(), judged, NUM, max_bytes=4 * ROW)
    with pytest.raises(InputError, match="^a streamed training cannot be one program"):
        jp.run(streamed(1), KEY, stored, num_steps=1)
    with pytest.raises(InputError, match="^a streamed training repeats itself"):
        inspect.unwrap(jp.over_restarts)(streamed(1), 2)  # the type checker would be first


def test_readers_keep_the_order(stored, monkeypatch):
    """Blocks of two rows, read by several threads, the later ones faster."""
    _, (expected, _, _) = in_memory(None)
    monkeypatch.setattr(windows, "BLOCK", 2)
    monkeypatch.setattr(windows, "READERS", 4)
    fetch, turn = stored.train.fetch, itertools.count()

    def slow(index):
        time.sleep(0.002 * (3 - next(turn) % 4))
        return fetch(index)

    parts = StreamSplit(dataclasses.replace(stored.train, fetch=slow), stored.test)
    state, _, _ = jp.run_chunks(streamed(4), KEY, parts, num_steps=3)
    chex.assert_trees_all_close(state, expected, atol=1e-5)


def test_a_file_damaged_on_the_way_stops_the_run(stored):
    def fetch(index):
        raise InputError("blobs: a stored file is missing or damaged: gone")

    broken = StreamSplit(dataclasses.replace(stored.train, fetch=fetch), stored.test)
    with pytest.raises(InputError, match="^blobs: a stored file is missing or damaged: gone$"):
        jp.run_chunks(streamed(2), KEY, broken, num_steps=1)


def test_a_loss_that_is_not_finite_stops_the_run(stored):
    how = dataclasses.replace(PLAIN, learning_rate=1e38)
    process = victims.streamed_training(linear(), how, NUM, max_bytes=10**4)
    with pytest.raises(loops.NonFiniteError, match="^step 0 is not finite"):
        jp.run_chunks(process, KEY, stored, num_steps=3)


def test_eurosat_under_a_cap_that_holds_a_tenth_of_it(shared_data, tmp_path):
    """Real images read from array_record: same parameters and accuracy as in memory."""
    name = "eurosat64_subset"
    command = [sys.executable, shared_data / "prepare.py", "--tfds", tmp_path, name]
    subprocess.run(command, check=True, capture_output=True)
    whole = Split(*(data.load(name, s, tmp_path) for s in ("train", "test")))
    parts = StreamSplit(*(data.stream(name, s, tmp_path) for s in ("train", "test")))
    np.testing.assert_array_equal(parts.train.label, whole.train.label)
    net = jp.models.logistic_regression((64, 64, 3), 10)
    how = victims.recipes.small(epochs=3, learning_rate=1e-4, batch_size=20)
    cap = whole.train.image.nbytes // 10
    expected, expected_info, _ = jp.run_chunks(
        victims.victim_training(net, how, 500), KEY, whole, num_steps=3
    )
    process = victims.streamed_training(net, how, 500, max_bytes=cap)
    state, info, _ = jp.run_chunks(process, KEY, parts, num_steps=3)
    chex.assert_trees_all_close(state, expected, atol=1e-5)
    np.testing.assert_allclose(info.test_accuracy, expected_info.test_accuracy, atol=1e-6)
    assert info.test_accuracy[-1] > 0.15  # one in ten by chance
