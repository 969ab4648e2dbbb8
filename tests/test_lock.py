"""Two runs in one folder are refused; what a killed one left does not block."""

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

import jaxpoison as jp
from jaxpoison.lock import NAME, Lock
from jaxpoison.types import InputError
from tests.test_loops import DATA, KEY, QUIET, go, one_line, walk

HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("process", os.getpid(), "on host", file=file, flush=True)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / NAME)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_one_line_until_its_holder_is_killed(tmp_path, holder):
    with pytest.raises(InputError) as error:
        go(walk(), tmp_path)
    assert one_line(error).startswith(f"{tmp_path} is in use by process {holder.pid} on host; ")
    assert {p.name for p in tmp_path.iterdir()} == {NAME}  # and nothing was written
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / NAME).exists()
    state, _, _ = go(walk(), tmp_path)
    assert int(state["t"]) == 10 and not (tmp_path / NAME).exists()


def test_a_second_run_of_the_same_process_is_refused_and_the_first_is_not_harmed(tmp_path):
    process, heard = walk(), []

    def step(key, state, data):
        return process.step(key, state, data)

    class Nosy(type(QUIET)):
        def print(self, *args, **options):
            with pytest.raises(InputError, match=f"in use by process {os.getpid()}") as error:
                go(process, tmp_path)
            heard.append(error)

    whole, _, _ = go(process)
    go(process, tmp_path, num_steps=4)
    state, _, _ = go(process._replace(step=step), tmp_path, console=Nosy(quiet=True))
    assert heard
    assert state["x"].tolist() == whole["x"].tolist()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 10


def test_the_lock_is_released_when_a_run_fails(tmp_path):
    with pytest.raises(jp.NonFiniteError):
        go(walk(nan_at=3), tmp_path)
    assert not (tmp_path / NAME).exists()
    Lock(tmp_path).release()


def test_of_many_takers_one_holds_whatever_their_order(tmp_path):
    """A file that was removed by its holder is no lock any more."""
    inside, most, taken = [], [], []

    def take():
        while len(taken) < 200:
            try:
                with Lock(tmp_path):
                    inside.append(None)
                    most.append(len(inside))
                    taken.append(None)
                    inside.pop()
            except InputError:
                pass

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(taken) >= 200 and not (tmp_path / NAME).exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(number, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked .Function not implemented.; see that"):
        state, _, _ = jp.run_chunks(
            walk(), KEY, DATA, num_steps=2, directory=tmp_path, console=QUIET
        )
    assert int(state["t"]) == 2
