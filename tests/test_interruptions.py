"""Runs that are killed or told to stop go on and end bit for bit as undisturbed ones."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

import jaxpoison as jp
from jaxpoison import checkpoint, loops, signals
from tests.test_loops import KEY, go, one_line, walk


def test_a_disk_that_fills_up_is_one_line_and_the_run_can_go_on(tmp_path, monkeypatch):
    process = walk()
    whole, _, _ = go(process)

    def full(path, tree):
        if "00000006" in path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(path, tree)

    save = checkpoint.ocp.save
    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with pytest.raises(OSError, match="00000006 not written, older ones are kept") as error:
        go(process, tmp_path, save_every=3)
    assert "No space left on device" in one_line(error)
    monkeypatch.undo()
    assert checkpoint.valid_steps(tmp_path / "checkpoints") == [3]
    state, _, _ = go(process, tmp_path, save_every=3)
    chex.assert_trees_all_equal(state, whole)


STEPS, SAVE_EVERY = 400, 20
WORKER = """
import json, os, pathlib, signal, sys, time
import jax, jax.numpy as jnp, numpy as np
import jaxpoison as jp
from jaxpoison import checkpoint, loops
from jaxpoison.book import Book

folder, die_at, slow = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
loops.CHUNK_SECONDS = 0.01
if die_at:
    write = checkpoint.write_json
    def dies(path, value):
        if f"{die_at:08d}" in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, value)
    checkpoint.write_json = dies
if slow:
    record = Book.record
    def slowly(self, start, rows):
        record(self, start, rows)
        time.sleep(slow)
    Book.record = slowly

victim = jp.models.mlp((4, 4, 1), 3, hidden=(5,))
train = jp.data.synthetic.blobs(jax.random.key(1), 12, 3, (4, 4, 1))
data = jp.Scenario(train, train, jnp.arange(12, dtype=jnp.int32), victim.init(jax.random.key(2)))
attack = jp.attacks.error_maximizing(
    victim, eps=0.1, num_classes=3,
    augment=lambda key, image: image + 0.1 * jax.random.normal(key, image.shape),
)
state, info, _ = jp.run_chunks(
    attack, jax.random.key(0), data, num_steps=STEPS, save_every=SAVE_EVERY, directory=folder
)
poisoned = jax.jit(attack.poison)(state, data)
jp.data.poisoned.write(
    folder / "poison", poisoned=poisoned, clean=train, index=data.index, attack="error_maximizing",
    settings={}, norm="linf", eps=0.1, source={"name": "blobs"},
)
leaves = jax.tree.leaves(state)
np.savez(folder / "state.npz", *[np.asarray(x) for x in leaves], loss=info.outer_loss)
"""


def start(folder, *, die_at=0, slow=0.0):
    code = WORKER.replace("STEPS", str(STEPS)).replace("SAVE_EVERY", str(SAVE_EVERY))
    root = pathlib.Path(jp.__file__).parents[1]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": "",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", code, str(folder), str(die_at), str(slow)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return errors


def lines_in(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def hit(folder, number, more):
    """Start the command, slowed; signal it `more` lines later; (return code, standard error)."""
    lines = lines_in(folder) + more
    process = start(folder, slow=0.1)
    while lines_in(folder) < lines and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(folder))
    return folder


def assert_same_end(folder, wanted):
    with np.load(folder / "state.npz") as ours, np.load(wanted / "state.npz") as theirs:
        assert ours.files == theirs.files
        for name in theirs.files:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])
    for name in ("images.npy", "delta.npy", "labels.npy", "mask.npy"):
        path = wanted / "poison" / name
        assert (folder / "poison" / name).read_bytes() == path.read_bytes()
    assert (folder / "metrics.jsonl").read_bytes() == (wanted / "metrics.jsonl").read_bytes()


def assert_little_is_lost(folder):
    steps = checkpoint.valid_steps(folder / "checkpoints")
    assert steps and 0 <= lines_in(folder) - steps[-1] <= SAVE_EVERY


def test_killed_twice_at_any_moment_and_once_in_a_save(tmp_path, undisturbed):
    code, _ = hit(tmp_path, signal.SIGKILL, 3 * SAVE_EVERY + 5)
    assert code == -signal.SIGKILL and lines_in(tmp_path) < STEPS
    assert_little_is_lost(tmp_path)
    done = checkpoint.valid_steps(tmp_path / "checkpoints")[-1]
    at = done + 3 * SAVE_EVERY  # arrays on disk, digests not
    finish(start(tmp_path, die_at=at), -signal.SIGKILL)
    assert (tmp_path / "checkpoints" / f"{at:08d}" / "state").is_dir()
    assert checkpoint.valid_steps(tmp_path / "checkpoints")[-1] == at - SAVE_EVERY
    assert_little_is_lost(tmp_path)
    code, _ = hit(tmp_path, signal.SIGKILL, 2 * SAVE_EVERY - 2)
    assert code == -signal.SIGKILL and lines_in(tmp_path) < STEPS
    assert_little_is_lost(tmp_path)
    finish(start(tmp_path))
    assert_same_end(tmp_path, undisturbed)


def test_sigterm_and_sigint_save_and_exit(tmp_path, undisturbed):
    for number, more in ((signal.SIGTERM, 30), (signal.SIGINT, 45)):
        lines = lines_in(tmp_path) + more
        code, errors = hit(tmp_path, number, more)
        done = checkpoint.valid_steps(tmp_path / "checkpoints")[-1]
        said = f"stopped by {number.name} after step {done}: saved in {tmp_path}"
        assert said in errors and "run the same command to go on" in errors
        assert lines <= done < STEPS and lines_in(tmp_path) == done  # nothing is lost
        assert code == -number
        assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    finish(start(tmp_path))
    assert_same_end(tmp_path, undisturbed)


def test_an_interrupt_that_is_lost_in_a_callback_is_raised_again(monkeypatch):
    monkeypatch.setattr(signal, "raise_signal", lambda number: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signals.die(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_handlers_from_before_act_and_come_back(tmp_path, monkeypatch, capsys, number):
    heard, chunk = [], loops._chunk

    def interrupted(*args):
        if int(args[4]) == 2 and int(args[5]) > 2:
            os.kill(os.getpid(), number)
        return chunk(*args)

    def handler(number, frame):
        heard.append(number)

    before = signal.signal(number, handler)
    try:
        monkeypatch.setattr(loops, "CHUNK_SECONDS", 0.0)
        monkeypatch.setattr(loops, "_chunk", interrupted)
        process = walk()
        state, info, _ = go(process, tmp_path)
        assert heard == [number] and signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert f"stopped by {signal.Signals(number).name} after step 3" in capsys.readouterr().err
    assert int(state["t"]) == 3 and info.outer_loss.shape == (3,)
    assert checkpoint.valid_steps(tmp_path / "checkpoints") == [3]


def test_a_watched_generator_stopped_inside_two_of_its_judgments_ends_the_same(
    tmp_path, monkeypatch
):
    """Rounds of two steps and two epochs of the monitor; SIGTERM after its first, twice."""
    shape, steps = (4, 4, 1), 12
    network = jp.models.create_generator("mlp_generator", shape, hidden=(6,))
    attack = jp.attacks.deepconfuse(
        jp.models.mlp(shape, 3, hidden=(5,)), network, eps=0.3, trial_steps=2, batch_size=6,
        generator_rate=0.05, select_epochs=2, holdout=0.25,
    )  # fmt: skip
    attack = jp.over_devices(attack, jp.device_mesh(2), 2)
    train = jp.data.synthetic.blobs(jax.random.key(1), 16, 3, shape)
    data = jp.Scenario(train, train, np.arange(16, dtype=np.int32))
    monkeypatch.setattr(loops, "CHUNK_SECONDS", 0.0)
    chunk, stops = loops._chunk, []

    def interrupted(*args):
        if int(args[5]) in stops:
            stops.remove(int(args[5]))
            os.kill(os.getpid(), signal.SIGTERM)
        return chunk(*args)

    def run(folder):
        options = {"num_steps": steps, "directory": folder, "console": Console(quiet=True)}
        return jp.run_chunks(attack, KEY, data, **options)[:2]

    monkeypatch.setattr(loops, "_chunk", interrupted)
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        whole = run(tmp_path / "whole")
        for stop in (3, 7):
            stops.append(stop)
            state, _ = run(tmp_path / "stopped")
            assert state.phase.tolist() == [3, 3]  # one epoch of two is done
            assert checkpoint.valid_steps(tmp_path / "stopped" / "checkpoints")[-1] == stop
        ended = run(tmp_path / "stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
    chex.assert_trees_all_equal(ended, whole)
    one, two = (tmp_path / name / "metrics.jsonl" for name in ("whole", "stopped"))
    assert one.read_bytes() == two.read_bytes()
    assert whole[1].best.shape == (steps, 2) and whole[1].held_out[3].max() <= 1
