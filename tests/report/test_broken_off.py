"""A main job on a disk that fills up, or stopped, at each of its stages: one line, nothing lost."""

import contextlib
import gc
import json
import resource
import sys

import pytest

from jaxpoison import checkpoint
from jaxpoison.book import Book
from jaxpoison.data import folder as poison_files
from jaxpoison.report import StudyConfig, command_line, figures, page
from tests.report import small_job
from tests.report.test_study import files

pytestmark = pytest.mark.usefixtures("quick_module")
STAGES = {  # in the order of the job: where the code is, and of which file or part
    "settings": (checkpoint, "write_json", "config.json"),
    "checkpoint": (checkpoint.ocp, "save", "craft/surrogate"),
    "its digests": (checkpoint, "write_json", "meta.json"),
    "metrics": (Book, "_append", "craft/random-noise"),
    "seconds": (checkpoint, "write_json", "seconds.json"),
    "poison": (poison_files, "_fill", "random-noise"),
    "victims": (checkpoint.ocp, "save", "victims/random-noise"),
    "generator": (checkpoint.ocp, "save", ".generator."),
    "its card": (checkpoint, "write_json", "generator.json"),
    "its poison": (poison_files, "_fill", "drawn"),
    "grid": (figures, "save", "grid.png"),
    "curves": (figures, "save", "curves.png"),
    "record": (checkpoint, "write_json", "result.json"),
    "page": (page, "write_run", "default"),
}


@contextlib.contextmanager
def full_disk():
    """No file may grow, as on a full disk; the kernel refuses each write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def interrupted():
    """Ctrl-C once the stage has done its work, before anything is noted of it."""
    yield
    raise KeyboardInterrupt


def breaks_off(monkeypatch, stage, trouble):
    """The next time the job reaches the stage, it meets with `trouble`."""
    owner, name, part = STAGES[stage]
    function, met = getattr(owner, name), []

    def troubled(*args, **options):
        where = str(getattr(args[0], "folder", args[0])) + str(args[1:2])
        if part not in where or met:
            return function(*args, **options)
        met.append(where)
        with trouble():
            return function(*args, **options)

    monkeypatch.setattr(owner, name, troubled)
    return met


def job(runs, **options):
    return small_job.run(runs, arms={"drawn": small_job.untrained_generator()}, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    return runs, job(runs)


def command(runs, monkeypatch, capsys):
    """(exit code, last line on standard error) of the job as a command."""

    def main(config):
        job(runs, seed=config.seed)

    monkeypatch.setattr(sys, "argv", ["small"])
    code = 0
    try:
        command_line(main, StudyConfig, "A small job.")
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    return code, [line for line in lines if line.startswith("error: ")]


def assert_same_end(runs, undisturbed):
    wanted, record = undisturbed
    gc.collect()  # studies that ended in an error, and with them their locks
    found = json.loads((runs / "small" / "default" / "result.json").read_text())
    assert found["arms"] == record["arms"] and found["poison"] == record["poison"]
    ours, theirs = (
        {p: b for p, b in files(folder).items() if not {"checkpoints", "state"} & {*p.parts}}
        for folder in (runs, wanted)
    )
    assert ours.keys() == theirs.keys()  # and no rubbish
    for path in theirs:
        if path.suffix in (".npy", ".jsonl", ".png") or path.name == "config.json":
            assert ours[path] == theirs[path], path


@pytest.mark.parametrize("trouble", [full_disk, pytest.param(interrupted, marks=pytest.mark.slow)])
def test_each_stage_broken_off_in_turn(tmp_path, undisturbed, monkeypatch, capsys, trouble):
    """One job meets with all troubles one after the other, and ends as one that met with none."""
    for stage in STAGES:
        with monkeypatch.context() as patch:
            met = breaks_off(patch, stage, trouble)
            code, errors = command(tmp_path, monkeypatch, capsys)
        assert len(met) == 1, stage
        if trouble is interrupted:
            assert (code, errors) == (130, []), stage
        else:
            assert code == 2 and len(errors) == 1, errors
            named = STAGES[stage][2].replace("config.json", "run folder").strip(".")
            assert named.removesuffix(".json") in errors[0] and "File too large" in errors[0], (
                errors
            )
    code, errors = command(tmp_path, monkeypatch, capsys)
    assert (code, errors) == (0, [])
    assert_same_end(tmp_path, undisturbed)
