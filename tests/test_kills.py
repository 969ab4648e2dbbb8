"""Twenty times `kill -9` at a random moment of crafting or training: twenty identical ends.

python -m pytest -m slow tests/test_kills.py -s
"""

import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import time

import jax
import pytest

from jaxpoison.lock import NAME

TRIALS, SEED = 20, 3
FOLDER = pathlib.Path("hosts") / "default"
PARTS = ("craft/surrogate", "craft/tap", "victims/clean", "victims/tap")
pytestmark = pytest.mark.slow


def work(runs, cache):
    """The study of `hosts_job`, longer, in a process of its own."""
    from tests.report import hosts_job

    log = os.open(runs / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["JAXPOISON_TEST_SLOW"] = "0.02"
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    hosts_job.STEPS, hosts_job.SAVE_EVERY = 24, 2
    hosts_job.save_often()
    hosts_job.main(hosts_job.Config(runs=runs))


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Start the study in a folder; every process is forked from one that has only imported."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.report.hosts_job"])
    cache = str(tmp_path_factory.mktemp("cache"))

    def start(runs):
        process = server.Process(target=work, args=(runs, cache))
        process.start()
        return process

    return start


def begun(runs, process):
    """Wait until the study holds its folder: from here on there is something to lose."""
    while not (runs / FOLDER / NAME).exists():
        assert process.is_alive()
        time.sleep(0.002)


def end(runs):
    """SHA-256 of the poison's arrays and of all that the record says of the victims."""
    folder = runs / FOLDER
    whole = hashlib.sha256()
    for path in sorted((folder / "poison" / "tap").glob("*.npy")):
        whole.update(path.read_bytes())
    record = json.loads((folder / "result.json").read_text())
    whole.update(json.dumps([record["arms"], record["poison"]], sort_keys=True).encode())
    for part in PARTS:
        whole.update((folder / part / "metrics.jsonl").read_bytes())
    return whole.hexdigest()


def reached(runs):
    """How far the killed study had come: the steps in each metrics.jsonl, and what was written."""
    folder = runs / FOLDER
    files = [folder / part / "metrics.jsonl" for part in PARTS]
    lines = [file.read_bytes().count(b"\n") if file.exists() else 0 for file in files]
    written = [p for p in ("poison/tap", "grid.png", "result.json") if (folder / p).exists()]
    return lines, written


def finished(runs, process):
    process.join(300)
    assert process.exitcode == 0, (runs / "log").read_text()[-2000:]


def test_twenty_kills_at_random_moments_are_twenty_identical_ends(launch, tmp_path):
    for name in ("cold", "warm"):  # the second with compiled programs at hand
        runs = tmp_path / name
        runs.mkdir()
        process = launch(runs)
        begun(runs, process)
        began = time.perf_counter()
        finished(runs, process)
    span, wanted = time.perf_counter() - began, end(runs)
    assert end(tmp_path / "cold") == wanted
    dice, kills, trial = random.Random(SEED), 0, 0
    while kills < TRIALS:
        trial += 1
        runs, after = tmp_path / f"trial{trial}", dice.uniform(0, span)
        runs.mkdir()
        process = launch(runs)
        begun(runs, process)
        process.join(after)
        killed = process.is_alive()
        process.kill()
        process.join()
        if not killed:
            assert end(runs) == wanted
            continue
        kills += 1
        steps, written = reached(runs)
        finished(runs, launch(runs))
        assert end(runs) == wanted
        print(f"kill {kills:2} after {after:5.2f} s, steps {steps}, {written}: {end(runs)[:16]}")
