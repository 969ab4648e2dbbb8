"""Event files, read again by TensorBoard's own reader."""

import json
import math
import os
import pathlib
import sys

import numpy as np
import pytest

from jaxpoison.__main__ import main

ROWS = {
    "craft/tap": [{"step": i, "outer_loss": 0.5 / (i + 1), "finite": True} for i in range(4)],
    "victims/resnet18/tap": [
        {"step": i, "outer_loss": [1.0 / (i + 1), 2.0], "test_accuracy": [0.25, None if i else 0.5]}
        for i in range(3)
    ],
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for part, rows in ROWS.items():
        (folder / part).mkdir(parents=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / part / "metrics.jsonl").write_text(text)
    (folder / "config.json").write_text("{}")
    return folder


def test_events_hold_what_metrics_hold(run, capsys):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with (run / "craft/tap/metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "outer')  # a running experiment is writing this line
    for _ in range(2):  # the second call makes them anew
        assert main(["tensorboard", str(run)]) == 0
        assert capsys.readouterr().out == f"{run / 'tensorboard'}\n"
        for part, rows in ROWS.items():
            assert len(os.listdir(run / "tensorboard" / part)) == 1
            events = EventAccumulator(str(run / "tensorboard" / part))
            events.Reload()
            assert set(events.Tags()["scalars"]) == set(rows[0]) - {"step"}
            for tag in set(rows[0]) - {"step"}:
                found = events.Scalars(tag)
                assert [event.step for event in found] == [row["step"] for row in rows]
                wanted = [np.mean(np.array(row[tag], float)) for row in rows]
                np.testing.assert_allclose([e.value for e in found], wanted, rtol=1e-6)
            if part == "victims/resnet18/tap":
                values = [e.value for e in events.Scalars("test_accuracy")]
                assert values[0] == 0.375 and math.isnan(values[1])


def test_other_files_stay_and_bad_runs_are_one_line(run, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    cases = [
        ([str(tmp_path / "no")], "is no run folder: it has no config.json"),
        (["\0"], "no run"),
        ([str(empty)], "has no metrics.jsonl yet"),
        ([str(run), "--out", str(tmp_path / "home")], "holds other files than event files of ours"),
        ([str(run), "--out", str(tmp_path / "home/thesis.txt")], "holds other files"),
        ([str(run), "--out", str(tmp_path / "home/thesis.txt/x")], "cannot write"),
    ]
    for words, message in cases:
        assert main(["tensorboard", *words]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert message in captured.err
    for line in ("{\n", "[1]\n", '{"a": 1}\n', '{"step": 0, "a": "x"}\n'):
        (run / "craft/tap/metrics.jsonl").write_text(line)
        assert main(["tensorboard", str(run)]) == 2
        assert "metrics.jsonl is damaged" in capsys.readouterr().err
    assert os.listdir(tmp_path / "home") == ["thesis.txt"] and not (run / "tensorboard").exists()


def test_a_full_disk_keeps_the_files_from_before(run, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    assert main(["tensorboard", str(run)]) == 0
    files = {p: p.read_bytes() for p in run.rglob("*tfevents*")}

    def full(self, *arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", full)
        assert main(["tensorboard", str(run)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in run.rglob("*tfevents*")} == files


def test_without_the_package_one_line_says_what_to_install(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert main(["tensorboard", str(run)]) == 2
    line = "error: TensorBoard is not installed; run: pip install 'jaxpoison[tensorboard]'\n"
    assert capsys.readouterr().err == line
