"""Two processes of two devices each run one study: the same bits, one folder, nothing twice."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import checkpoint, hosts, over
from jaxpoison.lock import NAME
from jaxpoison.report import StudyConfig
from jaxpoison.types import InputError
from tests.report import hosts_job
from tests.test_loops import DATA, KEY, walk

ROOT = pathlib.Path(jp.__file__).parents[1]
FOLDER = pathlib.Path("hosts") / "default"


def start(runs, own, port, *words, slow=0.0):
    """Host number `own` of two, with two devices."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAXPOISON_TEST_SLOW": str(slow),
    }
    command = [sys.executable, "-m", "tests.report.hosts_job", "--runs", str(runs)]
    command += ["--distributed", f"127.0.0.1:{port},2,{own}", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pair(runs, *words, **options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(runs, own, port, *words, **options) for own in (0, 1)]


def ends(processes):
    """[(code, standard output, standard error)]."""
    try:
        texts = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def run_here(runs, monkeypatch):
    monkeypatch.setattr(hosts_job.loops, "run_chunks", hosts_job.loops.run_chunks)
    monkeypatch.setattr(hosts_job.loops, "CHUNK_SECONDS", hosts_job.loops.CHUNK_SECONDS)
    hosts_job.save_often()
    record = hosts_job.main(hosts_job.Config(runs=runs))
    monkeypatch.undo()
    return record


def images(runs):
    return (runs / FOLDER / "poison" / "tap" / "images.npy").read_bytes()


def steps(runs, part):
    lines = (runs / FOLDER / part / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def assert_same_end(runs, wanted, record):
    assert images(runs) == images(wanted)
    found = json.loads((runs / FOLDER / "result.json").read_text())
    assert found["arms"] == record["arms"] and found["poison"] == record["poison"]
    for part in ("craft/surrogate", "craft/tap", "victims/clean", "victims/tap"):
        name = FOLDER / part / "metrics.jsonl"
        assert (runs / name).read_text() == (wanted / name).read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(runs, record) of one process on one device."""
    runs = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(over, "spread", over.over_restarts)
        patch.setattr(jp, "over_devices", lambda attack, mesh, num: jp.over_restarts(attack, num))
        return runs, run_here(runs, patch)


def test_two_hosts_end_as_one_and_write_one_folder(alone, tmp_path, monkeypatch):
    (first, out, errors), (second, silent, other) = ends(pair(tmp_path))
    assert (first, second) == (0, 0), errors + other
    wanted, record = alone
    assert_same_end(tmp_path, wanted, record)
    names = {p.name for p in (tmp_path / FOLDER).iterdir()}
    assert names == {p.name for p in (wanted / FOLDER).iterdir()} and NAME not in names
    assert steps(tmp_path, "craft/tap") == list(range(hosts_job.STEPS))
    assert "worse than [clean]" in out and "run folder: " in out
    assert "craft tap" in errors  # the bar; of the second host nothing is seen
    assert "worse" not in silent and "craft tap" not in other

    # One process with four devices reads what two have written, in the middle of the attack.
    again = tmp_path / "again"
    shutil.copytree(tmp_path / FOLDER, again / FOLDER)
    (again / FOLDER / "result.json").unlink()
    for part in ("poison", "victims", f"craft/tap/checkpoints/{hosts_job.STEPS:08d}"):
        shutil.rmtree(again / FOLDER / part)
    assert checkpoint.valid_steps(again / FOLDER / "craft/tap/checkpoints") == [8]
    assert run_here(again, monkeypatch)["arms"] == record["arms"]
    assert_same_end(again, wanted, record)


@pytest.mark.slow
def test_two_hosts_go_on_after_both_were_killed(alone, tmp_path):
    metrics = tmp_path / FOLDER / "craft" / "tap" / "metrics.jsonl"
    processes = pair(tmp_path, slow=0.5)
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 5):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    for process in processes:
        process.kill()
    assert [code for code, _, _ in ends(processes)] == [-signal.SIGKILL] * 2
    assert checkpoint.valid_steps(metrics.parent / "checkpoints") == [4]
    (first, _, errors), (second, _, other) = ends(pair(tmp_path))
    assert (first, second) == (0, 0), errors + other
    assert "craft tap: going on at step 4 of 10" in errors and "going on" not in other
    assert_same_end(tmp_path, *alone)


@pytest.mark.slow
@pytest.mark.parametrize("own", [0, 1])
def test_a_signal_to_one_host_stops_both_and_nothing_is_lost(alone, tmp_path, monkeypatch, own):
    metrics = tmp_path / FOLDER / "craft" / "tap" / "metrics.jsonl"
    processes = pair(tmp_path, slow=0.5)
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 1):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    processes[own].send_signal(signal.SIGTERM)
    (first, _, errors), (second, _, other) = ends(processes)
    assert (first, second) == (-signal.SIGTERM,) * 2, errors + other
    assert "stopped by SIGTERM after step" in errors and "stopped" not in other
    done = len(steps(tmp_path, "craft/tap"))
    assert checkpoint.valid_steps(metrics.parent / "checkpoints")[-1] == done < hosts_job.STEPS
    run_here(tmp_path, monkeypatch)  # and one process goes on
    assert_same_end(tmp_path, *alone)


@pytest.mark.slow
def test_a_folder_refused_to_the_first_host_ends_both_with_one_line(tmp_path):
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "thesis.txt").write_text("chapter 1")
    for code, _, errors in ends(pair(tmp_path)):
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1, errors
        assert "holds other files than a run" in lines[0]


@pytest.mark.slow
def test_victims_that_two_hosts_cannot_share_are_one_line(tmp_path):
    for code, _, errors in ends(pair(tmp_path, "--victims", "5")):
        assert code == 2 and "5 independent runs (victims) cannot be shared evenly by 2" in errors
    assert not list(tmp_path.iterdir())


# one process: settings and what they are made of


@pytest.mark.parametrize(
    "text",
    [
        "",
        "here",
        "a:1",
        "a:1,2",
        "a,2,0",
        ":1,2,0",
        "a:0,2,0",
        "a:70000,2,0",
        "a:1,2,0,0",
        "a:1,-2,0",
    ],
)
def test_a_distributed_setting_that_is_none_is_one_line(text):
    with pytest.raises(InputError) as error:
        StudyConfig(distributed=text)
    assert str(error.value) == (
        f"distributed = {text!r}; allowed are 'auto' and HOST:PORT,NUM,ID, as in 10.0.0.1:1234,2,0"
    )


def test_a_distributed_setting_names_its_host():
    assert hosts.parse_distributed("auto") == (None, None, None)
    assert hosts.parse_distributed("[::1]:1234,2,1") == ("[::1]:1234", 2, 1)
    with pytest.raises(InputError, match="'a:1,2,2'; ID must be from 0 to 1"):
        hosts.parse_distributed("a:1,2,2")


def test_a_start_that_comes_too_late_is_one_line():
    jnp.zeros(1).block_until_ready()
    with pytest.raises(InputError, match="^distributed start failed: .*must be called before"):
        hosts.start(distributed="127.0.0.1:1,1,0")
    with pytest.raises(InputError, match="distributed is set, but jax was started alone"):
        hosts.check_started(distributed=True, deterministic=False)


CHILD = """
import os, sys
import jax
from jaxpoison import hosts
from jaxpoison.types import InputError
try:
    hosts.start(distributed=eval(sys.argv[1]), deterministic=eval(sys.argv[2]))
    hosts.check_started(distributed=False, deterministic=eval(sys.argv[2]))
    print(os.environ.get("XLA_FLAGS"), jax.numpy.ones(3).sum())
except InputError as error:
    print(error)
"""


def said(distributed, deterministic, flags):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, repr(distributed), repr(deterministic)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_deterministic_sets_the_flag_before_jax_starts_and_xla_knows_it():
    """XLA ends a process that gives it a flag it does not know."""
    flag = "--xla_force_host_platform_device_count=2"
    assert said(None, True, flag) == f"{flag} --xla_gpu_deterministic_ops=true 3.0"


def test_auto_without_a_cluster_is_one_line():
    line = said("auto", False, "")
    assert line.startswith("distributed start failed: ") and "\n" not in line
    assert line.endswith(
        "'auto' needs SLURM, Open MPI, Kubernetes or a TPU pod, else HOST:PORT,NUM,ID"
    )


def test_deterministic_on_a_gpu_that_has_started_is_one_line(monkeypatch):
    jnp.zeros(1).block_until_ready()
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    hosts.start(deterministic=True)  # a CPU is so anyway
    hosts.check_started(distributed=False, deterministic=True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not hosts.is_deterministic()
    with pytest.raises(InputError, match="^deterministic = True comes too late: jax has started"):
        hosts.start(deterministic=True)
    with pytest.raises(InputError, match="deterministic = True, but jax was started without"):
        hosts.check_started(distributed=False, deterministic=True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    hosts.start(deterministic=True)
    hosts.check_started(distributed=False, deterministic=True)


@pytest.mark.parametrize("value", [None, 0, [1.5, "x"], {"a": "y" * 3000}])
def test_of_one_process_the_first_is_all(value):
    assert hosts.first(lambda: value) == value and hosts.is_first() and hosts.any_of(7) == 7


def test_spread_takes_as_many_devices_as_share_the_runs_evenly():
    process = walk()
    for num, devices in ((4, 4), (8, 4), (6, 3), (2, 2), (5, 1)):
        state, _ = jp.run(over.spread(process, num), KEY, DATA, num_steps=3)
        wanted, _ = jp.run(jp.over_restarts(process, num), KEY, DATA, num_steps=3)
        assert len(state["x"].sharding.device_set) == devices
        np.testing.assert_array_equal(state["x"], wanted["x"])
    state, _ = jp.run(over.spread(process, 4, chunk=None), KEY, DATA, num_steps=3)
    assert len(state["x"].sharding.device_set) == 1


def test_hosts_that_cannot_share_the_runs_are_one_line(monkeypatch):
    class Device:
        def __init__(self, host):
            self.process_index = host

    monkeypatch.setattr(jax, "devices", lambda: [Device(0), Device(0), Device(1), Device(1)])
    with pytest.raises(InputError) as error:
        over.spread(jp.Attack(None, None, None), 5)
    assert str(error.value) == (
        "5 independent runs (victims) cannot be shared evenly by 2 hosts; a multiple of 2 is needed"
    )
