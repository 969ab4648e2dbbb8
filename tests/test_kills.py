"""Twenty times `kill -9` at a random moment, and SIGTERM at each stage: always the same end.

python -m pytest -m slow tests/test_kills.py -s
"""

import hashlib
import importlib
import json
import multiprocessing
import os
import pathlib
import random
import signal
import threading
import time

import jax
import pytest

from jaxpoison.lock import NAME

TRIALS, SEED = 20, 3
FOLDER = pathlib.Path("hosts") / "default"
PARTS = ("craft/surrogate", "craft/tap", "victims/clean", "victims/tap")
pytestmark = pytest.mark.slow


STAGES = {  # where the code is, and what it works on then
    "before compiling": ("loops._init", ""),
    "while compiling": ("loops._chunk", ""),
    "while stepping": ("book.Book._append", "craft/tap"),
    "while saving": ("checkpoint.ocp.save", "craft/tap"),
    "before writing the poison": ("data.folder._fill", ""),
    "after writing the poison": ("data.folder.check_file", ""),
    "while judging": ("report.judging.judge", ""),
    "while drawing": ("report.figures._save", ""),
    "while writing the record": ("checkpoint.write_json", "result.json"),
    "while writing the page": ("report.page.write_run", ""),
}


def terminate_at(stage):
    """SIGTERM, when the code of the stage is reached; while compiling, a moment later."""
    path, part = STAGES[stage]
    *owner, name = f"jaxpoison.{path}".split(".")
    place = importlib.import_module("jaxpoison")
    for word in owner[1:]:
        place = getattr(place, word)
    function = getattr(place, name)

    def reached(*args, **options):
        if part in str(getattr(args[0], "folder", args[0])):
            delay = 0.02 if stage == "while compiling" else 0.0
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            if not delay:
                timer.join()
        return function(*args, **options)

    setattr(place, name, reached)


def work(runs, cache, stage=None):
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
    if stage is not None:
        terminate_at(stage)
    hosts_job.main(hosts_job.Config(runs=runs))


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Start the study in a folder; every process is forked from one that has only imported."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.report.hosts_job"])
    cache = str(tmp_path_factory.mktemp("cache"))

    def start(runs, stage=None):
        process = server.Process(target=work, args=(runs, cache, stage))
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


def test_sigterm_at_each_stage_stops_and_the_same_command_goes_on(launch, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    finished(tmp_path / "whole", launch(tmp_path / "whole"))
    runs = tmp_path / "stopped"
    for stage in STAGES:
        process = launch(runs, stage)
        process.join(300)
        assert process.exitcode == -signal.SIGTERM, (stage, (runs / "log").read_text()[-2000:])
        print(f"SIGTERM {stage}, steps {reached(runs)[0]}, {reached(runs)[1]}")
    finished(runs, launch(runs))
    assert end(runs) == end(tmp_path / "whole")
    log = (runs / "log").read_text()
    assert "stopped by SIGTERM after step" in log and "Traceback" not in log
