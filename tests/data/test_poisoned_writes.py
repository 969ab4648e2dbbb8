"""Writes of a poison folder that are refused, fail or are killed leave nothing behind."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxpoison.data import poisoned as folder
from jaxpoison.types import InputError
from tests.data.test_poisoned import _sets, _write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": [0, 2]}, "row 3 differs from the clean one but is not in index"),
        ({"index": [5]}, "index runs from 5 to 5; allowed are 0 to 4"),
        ({"index": [0.5]}, "index is float64"),
        ({"index": [True]}, r"the mask has shape \(1,\)"),
        ({"source_rows": [0, 1, 2, 3, 5]}, "source_rows run from 0 to 5"),
        ({"source_rows": [0]}, r"source_rows is int64 \(1,\)"),
        ({"domain": "audio"}, "domain = 'audio'; allowed are uint8, float, unbounded, features"),
        ({"rows": "some"}, "rows = 'some'; allowed are changed, added"),
        ({"source": {"split": "train"}}, "allowed are name"),
        ({"source": {"name": "x", "url": "y"}}, "allowed are name"),
        ({"source": {"name": 3}}, "'source.name' is 3; allowed is text"),
        ({"settings": {"lr": float("nan")}}, "settings.lr = nan is not finite"),
        ({"settings": {"a": [{"b": object()}]}}, r"settings.a\[0\].b is a object"),
        ({"key": "seed"}, "key is a str"),
        ({"eps": 0.001}, "poisoned row 0 differs by"),
        ({"eps": 8}, "looks like grey levels"),
        ({"domain": "float"}, "poisoned values are uint8; domain 'float' needs float"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, changes, message):
    if changes.get("domain") == "float":
        changes = {**changes, "poisoned": _sets()[1]}
    if "eps" in changes:
        changes = {**changes, "poisoned": _sets()[0]}
    with pytest.raises(InputError, match=message) as caught:
        _write(tmp_path / "p", **changes)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_an_existing_path_is_kept_unless_told_otherwise(tmp_path):
    _write(tmp_path / "p")
    before = (tmp_path / "p" / "images.npy").read_bytes()
    with pytest.raises(InputError, match="p exists; pass overwrite=True"):
        _write(tmp_path / "p", seed=1)
    assert (tmp_path / "p" / "images.npy").read_bytes() == before
    _write(tmp_path / "p", seed=1, overwrite=True)
    assert (tmp_path / "p" / "images.npy").read_bytes() != before
    assert os.listdir(tmp_path) == ["p"]
    folder.read(tmp_path / "p")


def test_only_a_poison_folder_is_ever_replaced(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for name in ("home", "file", "link"):
        with pytest.raises(InputError, match=f"{name} exists and is no poison folder"):
            _write(tmp_path / name, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "home", "link"]
    assert os.listdir(tmp_path / "home") == ["thesis.txt"]


def test_an_unwritable_path_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "p", tmp_path / "file" / "a" / "p", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot write the poison to") as caught:
            _write(path)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("target", ["numpy.save", "os.fsync", "pathlib.Path.rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_leaves_nothing_and_keeps_the_old_poison(tmp_path, monkeypatch, target, error):
    _write(tmp_path / "old")
    calls = []

    def fail(*arguments, **options):
        calls.append(arguments)
        if len(calls) < 2 and target != "pathlib.Path.rename":
            return None
        raise error

    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        with pytest.raises(expected, match="No space left|"):
            _write(tmp_path / "deep" / "er" / "new")
        calls.clear()
        with pytest.raises(expected):
            _write(tmp_path / "old", seed=1, overwrite=True)
    assert os.listdir(tmp_path) == ["old"]
    folder.read(tmp_path / "old")
    assert folder.verify(tmp_path / "old", _sets()[1]).passed


KILLED = """
import os, pathlib, signal, sys
import numpy as np
from jaxpoison.data import poisoned
from jaxpoison.types import Dataset

rename = pathlib.Path.rename
def dies(self, target):
    if self.name.endswith(".new"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

pathlib.Path.rename = dies
clean = Dataset(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32))
poisoned.write(
    sys.argv[1], poisoned=clean, clean=clean, index=[0], attack="a", settings={}, norm=None,
    eps=None, source={"name": "x"}, overwrite=True,
)
"""


def _killed(path):
    """A writer that dies by SIGKILL just before the new folder takes its place."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -9


def test_what_a_killed_write_left_goes_with_the_next_one(tmp_path):
    (tmp_path / ".p.mine.new").mkdir()
    _killed(tmp_path / "p")
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".p.0123abcd.old").symlink_to(tmp_path / ".p.mine.new")
    _write(tmp_path / "p")
    assert sorted(os.listdir(tmp_path)) == [".p.0123abcd.old", ".p.mine.new", "p"]
    assert folder.verify(tmp_path / "p", _sets()[1]).passed


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_poison_killed_between_the_two_renames_is_named_and_comes_back(tmp_path, overwrite):
    _write(tmp_path / "p")
    _killed(tmp_path / "p")
    (old,) = tmp_path.glob(".p.*.old")
    for function in (folder.read, folder.verify):
        with pytest.raises(InputError, match="no poison folder.*died midway") as caught:
            function(tmp_path / "p")
        assert str(old) in str(caught.value) and "\n" not in str(caught.value)
    if overwrite:
        _write(tmp_path / "p", seed=1, overwrite=True)
        assert os.listdir(tmp_path) == ["p"]
    else:
        with pytest.raises(InputError, match="p exists; pass overwrite=True"):
            _write(tmp_path / "p")
    assert folder.verify(tmp_path / "p", _sets(seed=int(overwrite))[1]).passed


def test_if_the_new_folder_cannot_take_the_place_the_old_one_comes_back(tmp_path, monkeypatch):
    _write(tmp_path / "p")
    rename = pathlib.Path.rename

    def fail_on_new(self, target):
        if self.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", fail_on_new)
        with pytest.raises(InputError, match="Input/output error"):
            _write(tmp_path / "p", seed=1, overwrite=True)
    assert os.listdir(tmp_path) == ["p"]
    assert folder.verify(tmp_path / "p", _sets()[1]).passed
