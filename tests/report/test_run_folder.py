"""A run folder serves one run at a time, and says what was done to it."""

import fcntl
import os
import shutil

import pytest

from jaxpoison.lock import NAME, Lock
from jaxpoison.report import Study, StudyConfig
from jaxpoison.types import InputError
from tests.report import small_job
from tests.report.test_study import files


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("whole")
    small_job.run(runs)
    return runs


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "small" / "default"


@pytest.fixture
def busy(copied):
    """The folder, held by somebody else."""
    number = os.open(copied / NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(number, fcntl.LOCK_EX)
    os.write(number, b"process 7 on a-host")
    yield copied
    os.close(number)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_use_is_one_line_and_nothing_is_touched(busy, tmp_path, overwrite):
    if not overwrite:
        (busy / "result.json").unlink()
    before = files(tmp_path)
    with pytest.raises(InputError) as error:
        small_job.run(tmp_path, overwrite=overwrite)
    assert str(error.value) == (
        f"{busy} is in use by process 7 on a-host; wait for it to end, or choose another folder "
        "(--name)"
    )
    assert files(tmp_path) == before


def test_a_finished_run_is_printed_whoever_holds_it(busy, tmp_path):
    assert small_job.run(tmp_path)["experiment"] == "small"


def test_a_study_after_one_that_failed_takes_its_lock_over(tmp_path):
    config = StudyConfig(runs=tmp_path)
    first = Study("small", config)
    second = Study("small", config)
    with pytest.raises(InputError, match="in use"):
        Lock(second.folder)
    del first
    with pytest.raises(InputError, match="in use"):
        Lock(second.folder)
    folder = second.folder
    del second
    Lock(folder).release()


def test_a_study_that_is_refused_leaves_the_folder_free(copied, tmp_path):
    (copied / "result.json").unlink()
    with pytest.raises(InputError, match="seed = 0, now it is 1"):
        small_job.run(tmp_path, seed=1)
    small_job.run(tmp_path)
    assert not (copied / NAME).exists() and (copied / "result.json").exists()


def test_an_overwrite_that_was_killed_can_be_given_again(copied, tmp_path, monkeypatch):
    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    config = StudyConfig(runs=tmp_path, victims=2, share=0.5, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        Study("small", config)
    assert not (copied / "result.json").exists() and (copied / "config.json").exists()
    monkeypatch.undo()
    Study("small", config)
    assert {p.name for p in copied.iterdir()} <= {"config.json", NAME}


@pytest.mark.parametrize("name", ["images.npy", "manifest.json", "mask.npy"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_finished_run_whose_poison_was_damaged_says_so(copied, tmp_path, capsys, name, gone):
    path = copied / "poison" / "random-noise" / name
    if gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"a", b"b"))
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as error:
        small_job.run(tmp_path)
    assert "\n" not in str(error.value)
    assert "as [clean]" in capsys.readouterr().out  # the record itself is printed all the same
