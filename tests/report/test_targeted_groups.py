"""Setups at once: groups of any size, killed or on two hosts, end as any other."""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.book import Book
from jaxpoison.data import poisoned
from jaxpoison.types import InputError
from tests.report import small_targeted, targeted_hosts
from tests.test_hosts import ROOT

FOLDER = "small/default"
ARMS = ("gradient-matching",)
pytestmark = pytest.mark.usefixtures("quick_module")  # what is compared is compiled alike


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(run folder, record) of groups of two, the last one half empty."""
    runs = tmp_path_factory.mktemp("pairs")
    return runs / FOLDER, targeted_hosts.run(runs, at_once=2)


def assert_same(here, pairs, record=None):
    folder, wanted = pairs
    for number in range(3):
        for arm in ARMS:
            for part in ("images.npy", "source_rows.npy", "delta.npy"):
                path = f"setups/s{number}/poison/{arm}/{part}"
                assert (here / path).read_bytes() == (folder / path).read_bytes()
            path = f"setups/s{number}/victims/{arm}/entry.json"
            assert (here / path).read_text() == (folder / path).read_text()
    if record is not None:
        for name, entry in wanted["arms"].items():
            assert record["arms"][name]["setups"] == entry["setups"]


def test_a_group_leaves_what_its_setups_need(pairs):
    folder, record = pairs
    assert sorted(p.name for p in (folder / "groups").iterdir()) == ["0000-0001", "0002-0002"]
    assert not list(folder.glob("groups/*/*/*/checkpoints"))
    for number in range(3):
        setup, home = small_targeted.setup(number), folder / f"setups/s{number}"
        assert (home / "result.json").exists() and not (home / "craft").exists()
        stored = poisoned.read(home / "poison/gradient-matching")
        assert stored.source_rows.tolist() == setup.poison_rows.tolist()
        assert stored.manifest.extra["number"] == number
    values = record["arms"]["gradient-matching"]["setups"]
    assert len({str(one["intended"]) for one in values}) == 3


@pytest.mark.slow  # tests/test_sweep.py has it of the processes alone
def test_four_at_once_end_as_two_at_once(pairs, tmp_path):
    four = targeted_hosts.run(tmp_path, at_once=None)
    assert_same(tmp_path / FOLDER, pairs, four)


@pytest.mark.slow
def test_setups_one_by_one_draw_the_same(pairs, tmp_path):
    folder, record = pairs
    alone = targeted_hosts.run(tmp_path / "one", at_once=1)
    for name, entry in record["arms"].items():
        for one, other in zip(entry["setups"], alone["arms"][name]["setups"], strict=True):
            np.testing.assert_allclose(one["intended"], other["intended"], atol=1e-4)
    for arm in ARMS:
        delta = [
            np.load(place / f"setups/s1/poison/{arm}/delta.npy")
            for place in (folder, tmp_path / "one" / FOLDER)
        ]
        np.testing.assert_allclose(*delta, atol=1e-4)


class Died(BaseException):
    """As if the process were killed."""


@pytest.mark.parametrize(
    "place",
    ["0000-0001/craft", pytest.param("0002-0002/victims", marks=pytest.mark.slow)],
)
def test_a_killed_group_goes_on(pairs, tmp_path, place, monkeypatch):
    here, before = tmp_path / FOLDER, Book.record
    chunks = functools.partial(jp.loops.run_chunks, save_every=1)
    monkeypatch.setattr(jp.loops, "run_chunks", chunks)
    started, alive = [], []

    def note(book, start, rows):
        before(book, start, rows)
        if place in book.folder.as_posix() and start == 1 and not alive:
            raise Died
        started.append((book.folder.relative_to(here).as_posix(), start))

    monkeypatch.setattr(Book, "record", note)
    with pytest.raises(Died):
        targeted_hosts.run(tmp_path, at_once=2)
    started, alive = [], [True]
    record = targeted_hosts.run(tmp_path, at_once=2)
    assert started[0][0].startswith(f"groups/{place}") and started[0][1] == 1
    assert_same(here, pairs, record)


@pytest.mark.slow
def test_two_hosts_share_the_setups(pairs, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    command = [sys.executable, "-m", "tests.report.targeted_hosts", str(tmp_path)]
    both = [
        subprocess.Popen(
            [*command, f"127.0.0.1:{port},2,{own}"],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
        )
        for own in (0, 1)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=280)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], errors
    assert_same(tmp_path / FOLDER, pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_once": 5}, "at_once = 5 setups; allowed are 1 to 4"),
        ({"at_once": 0}, "at_once = 0; it must be at least 1"),
        ({"at_once": 2, "fresh_surrogates": True}, "at_once = 2 setups share their surrogates; "),
        ({"at_once": 2, "mesh": "batch"}, "at_once = 2 setups take a device each; a mesh"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, options, message):
    if "mesh" in options:
        options = options | {"mesh": jp.device_mesh(2, axis="batch")}
    with pytest.raises(InputError, match=message) as caught:
        small_targeted.run(tmp_path, **options)
    assert "\n" not in str(caught.value) and not list(pathlib.Path(tmp_path).iterdir())
