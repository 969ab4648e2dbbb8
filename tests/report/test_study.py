import json
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxpoison as jp
from jaxpoison import checkpoint, loops
from jaxpoison.lock import NAME
from jaxpoison.report import Study, StudyConfig, figures, tables
from jaxpoison.report.judging import Exam
from jaxpoison.types import Dataset, InputError, Scenario
from tests.report import small_job

ROOT = pathlib.Path(__file__).resolve().parents[2]
ACCURACIES = {"final_accuracy", "peak_accuracy", "train_accuracy"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(runs, record) of a job that nothing disturbed."""
    runs = tmp_path_factory.mktemp("whole")
    return runs, small_job.run(runs)


def files(folder):
    """Every file and its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def check_rates(value, seeds):
    assert set(value) == {"mean", "low", "high", "values"}
    assert len(value["values"]) == seeds and all(0 <= v <= 1 for v in value["values"])
    assert math.isclose(value["mean"], sum(value["values"]) / seeds, abs_tol=1e-9)
    if seeds == 1:
        assert value["low"] is value["high"] is None
    else:
        assert value["low"] <= value["mean"] <= value["high"]


def check_poison(value):
    assert set(value) == {"norm", "eps", "measured", "psnr", "ssim"}
    assert value["norm"] in ("linf", "l2", "l0", None) and value["measured"] <= value["eps"] + 1e-9
    assert value["psnr"] > 0 and -1 <= value["ssim"] <= 1


def check_arm(value, seeds):
    targeted = {"success_rate", "intended_probability"}
    assert set(value) - targeted == ACCURACIES | {
        "per_class", "confusion", "curve", "expect", "poison",
    }  # fmt: skip
    for name in (ACCURACIES | targeted) & set(value):
        check_rates(value[name], seeds)
    classes = len(value["per_class"])
    assert np.shape(value["confusion"]) == (classes, classes)
    assert all(isinstance(n, int) and n >= 0 for row in value["confusion"] for n in row)
    assert all(0 <= v <= 1 for v in value["curve"]) and isinstance(value["expect"], str)
    if value["poison"] is not None:
        check_poison(value["poison"])


def check_record(value, seeds):
    """Exactly the shape that the docstring of report/record.py gives."""
    assert set(value) == {
        "experiment", "config", "versions", "device", "date", "seconds", "arms", "poison",
        "published",
    }  # fmt: skip
    assert {"python", "jax", "jaxlib", "jaxpoison"} <= set(value["versions"])
    assert set(value["device"]) == {"platform", "kind", "count", "host", "host_cores"}
    assert {"compile", "total"} <= set(value["seconds"])
    assert all(v >= 0 for v in value["seconds"].values())
    for arm in value["arms"].values():
        check_arm(arm, seeds)
    check_poison(value["poison"])
    for number in value["published"]:
        assert set(number) == {"what", "value", "source"}


def test_the_record_has_its_shape_and_is_strict_json(finished):
    runs, record = finished
    folder = runs / "small" / "default"
    stored = json.loads((folder / "result.json").read_text(), parse_constant=no_constants)
    assert stored == record
    check_record(record, seeds=2)
    settings = StudyConfig(victims=2, share=0.5).settings()
    assert record["config"].items() >= settings.items()
    facts = {"data", "parameters", "recipe", "accumulate", "surrogate_recipe", "attacks"}
    assert record["config"].keys() - settings.keys() == facts
    assert not {"name", "runs", "overwrite"} & set(record["config"])
    assert list(record["arms"]) == ["clean", "random-noise"]
    assert record["arms"]["clean"]["poison"] is None
    assert record["arms"]["random-noise"]["poison"] == record["poison"]
    assert len(record["arms"]["clean"]["curve"]) == small_job.EPOCHS
    assert sum(map(sum, record["arms"]["clean"]["confusion"])) == 2 * 24
    assert {"craft surrogate", "craft random-noise", "victims clean"} <= set(record["seconds"])
    assert record["poison"]["eps"] == small_job.EPS > record["poison"]["measured"] > 0.09


def test_the_run_folder_holds_what_the_module_says(finished):
    folder = finished[0] / "small" / "default"
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "craft", "poison", "victims", "grid.png", "curves.png", "result.json",
        "seconds.json", "report.html",
    }  # fmt: skip
    for part in ("craft/surrogate", "craft/random-noise", "victims/clean", "victims/random-noise"):
        lines = (folder / part / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == (4 if part.startswith("victims") else 1)
    report = jp.data.poisoned.verify(folder / "poison" / "random-noise", small_job.split().train)
    assert report.passed
    assert report.manifest.num_changed == 24  # half of the rows
    settings = report.manifest.settings
    assert settings["attack"] == "random_noise" and settings["norm"] == "linf"
    assert settings["eps"] == small_job.EPS and settings["num_steps"] == 1
    for picture in ("grid.png", "curves.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_printed_and_not_computed_again(finished, monkeypatch, capsys):
    runs, record = finished
    before = files(runs)
    monkeypatch.setattr(loops, "run_chunks", None)
    (runs / "small" / "default" / "report.html").unlink()  # a missing page is made again
    assert small_job.run(runs) == record
    assert files(runs) == before
    out = capsys.readouterr().out
    assert "random-noise" in out and "as [clean]" in out and "finished before: " in out


def test_overwrite_starts_again(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    config = StudyConfig(runs=tmp_path, victims=2, share=0.5, overwrite=True)
    study = Study("small", config)
    assert study.finished() is None
    kept = {p.name for p in files(tmp_path)}
    assert kept == {"config.json", NAME}  # the lock of the study that goes on


def test_a_killed_job_goes_on_and_ends_the_same(finished, tmp_path):
    cache = jax.config.jax_compilation_cache_dir
    done = subprocess.run(
        [sys.executable, "-m", "tests.report.small_job", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "small" / "default"
    assert not (folder / "result.json").exists()
    victims = folder / "victims"
    assert checkpoint.valid_steps(victims / "random-noise" / "checkpoints")[-1] == 2
    clean = files(victims / "clean")
    record = small_job.run(tmp_path)
    check_record(record, seeds=2)
    assert record["arms"] == finished[1]["arms"]
    assert record["poison"] == finished[1]["poison"]
    assert files(victims / "clean") == clean  # loaded, not trained again


def test_a_stored_poison_that_was_changed_is_refused(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "small" / "default"
    (folder / "result.json").unlink()
    images = folder / "poison" / "random-noise" / "images.npy"
    images.write_bytes(images.read_bytes()[:-1] + b"\x00")
    with pytest.raises(InputError, match="images.npy"):
        small_job.run(tmp_path)


def test_only_rows_that_may_change_are_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "grid", lambda *args: drawn.append(args))
    monkeypatch.setattr(figures, "curves", lambda *args: None)
    monkeypatch.setattr(tables, "print_record", lambda *args: None)
    train = small_job.split().train
    scenario = Scenario(train, train, jnp.array([40, 3], jnp.int32))
    study = Study("some", StudyConfig(runs=tmp_path), console=Console(quiet=True))
    stored = study.poisons.craft(
        "noise",
        jp.over_restarts(jp.attacks.random_noise(eps=0.1), 2),
        jax.random.key(0),
        scenario,
        num_steps=1,
        budget=jp.perturb.Budget("linf", 0.1),
        source={"name": "blobs"},
    )
    record = study.finish(main="noise", published=[])
    assert record["poison"]["norm"] == "linf" and record["arms"] == {}
    ((path, clean, images),) = drawn
    assert path == tmp_path / "some" / "default" / "grid.png"
    np.testing.assert_array_equal(clean, train.image[jnp.array([40, 3])])
    np.testing.assert_array_equal(images["noise"], stored.image[jnp.array([40, 3])])
    changed = np.flatnonzero((stored.image != train.image).any(axis=(1, 2, 3)))
    assert changed.tolist() == [3, 40]


def test_targets_are_judged_victim_by_victim(tmp_path):
    data, net = small_job.split(), jp.models.logistic_regression(small_job.SHAPE, small_job.CLASSES)
    how = jp.victims.recipes.small(epochs=1, batch_size=16)
    seeds = jp.over_restarts(jp.victims.victim_training(net, how, 48), 3)
    study = Study("some", StudyConfig(runs=tmp_path, victims=3), console=Console(quiet=True))
    key = jax.random.key(0)
    wanted = Dataset(data.test.image[:5], (data.test.label[:5] + 1) % small_job.CLASSES)
    study.judging.retrain("clean", Exam(data, "-", targets=wanted), net, seeds, key, epochs=1)
    check_arm(study.judging.arms["clean"], seeds=3)
    state, _, _ = loops.run_chunks(seeds, key, data, num_steps=1)
    kernel, bias = (np.asarray(state.params["Dense_0"][k]) for k in ("kernel", "bias"))
    x = np.asarray(wanted.image).reshape(1, 5, -1) / 255
    z = x @ kernel + bias[:, None]
    p = np.exp(z) / np.exp(z).sum(axis=2, keepdims=True)
    label = np.asarray(wanted.label)
    rate = np.mean(z.argmax(axis=2) == label, axis=1)
    arm = study.judging.arms["clean"]
    np.testing.assert_allclose(arm["success_rate"]["values"], rate, rtol=1e-6)
    intended = p[:, np.arange(5), label].mean(axis=1)
    np.testing.assert_allclose(arm["intended_probability"]["values"], intended, rtol=1e-5)


def test_victims_whose_sets_stay_on_disk_are_judged_alike(tmp_path):
    data, net = small_job.split(), jp.models.logistic_regression(small_job.SHAPE, small_job.CLASSES)
    how = jp.victims.recipes.small(epochs=1, batch_size=16)
    seeds = jp.over_restarts(jp.victims.victim_training(net, how, 48), 2)
    disk = jp.victims.streamed_training(net, how, 48, max_bytes=4000, seeds=2)
    parts = jp.data.StreamSplit(*(jp.data.hold(part) for part in data))
    study = Study("some", StudyConfig(runs=tmp_path, victims=2), console=Console(quiet=True))
    for name, training, split in (("clean", seeds, data), ("again", disk, parts)):
        study.judging.retrain(name, Exam(split, "-"), net, training, jax.random.key(0), epochs=1)
    clean, again = study.judging.arms["clean"], study.judging.arms["again"]
    for field in ("final_accuracy", "train_accuracy", "per_class", "confusion"):
        assert again[field] == clean[field]
    np.testing.assert_allclose(again["curve"], clean["curve"], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"victims": 0}, "victims = 0; it must be at least 1"),
        ({"share": 0.0}, "share = 0.0; it must be a number above 0 and at most 1"),
        ({"share": 1.5}, "share = 1.5; it must be a number above 0 and at most 1"),
        ({"seed": -1}, "seed = -1; it must be from 0 to 4294967295"),
        ({"seed": 2**32}, "seed = 4294967296; it must be from 0 to 4294967295"),
        ({"name": ""}, "name = ''; a plain folder name is needed"),
        ({"name": "."}, "name = '.'; a plain folder name is needed"),
        ({"name": ".."}, "name = '..'; a plain folder name is needed"),
        ({"name": "a/b"}, "name = 'a/b'; a plain folder name is needed"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(InputError) as error:
        StudyConfig(**settings)
    assert str(error.value) == message


def test_other_settings_are_refused_and_nothing_is_touched(finished):
    runs, _ = finished
    before = files(runs)
    with pytest.raises(InputError) as error:
        small_job.run(runs, seed=1)
    assert str(error.value) == (
        f"run folder {runs / 'small' / 'default'} was made with seed = 0, now it is 1; choose "
        "another --name, or --overwrite"
    )
    assert files(runs) == before
    Study("small", StudyConfig(runs=runs, seed=1, name="other"))
    shutil.rmtree(runs / "small" / "other")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_unwritable_folder_is_one_line(tmp_path, overwrite):
    (tmp_path / "file").write_text("in the way")
    runs = tmp_path / "file" / "runs"
    with pytest.raises(InputError) as error:
        Study("small", StudyConfig(runs=runs, overwrite=overwrite))
    folder = runs / "small" / "default"
    assert str(error.value) == f"cannot write run folder {folder}: Not a directory"
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_error_without_a_system_message_still_says_why(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "default").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="default: it is a symbolic link, which --overwrite"):
        Study("small", StudyConfig(runs=tmp_path, overwrite=True))
    assert (tmp_path / "elsewhere" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.json", b"{", "Expecting property name"),
        ("config.json", b"[1]", "no JSON object"),
        ("config.json", b"null", "no JSON object"),
        ("config.json", b"\xff\xfe{}", "'utf-8' codec"),
        ("seconds.json", b"", "Expecting value"),
        ("seconds.json", b'{"parts": {}}', "no wall"),
        ("result.json", b"{}", "no experiment"),
        ("result.json", b'{"experiment": "small"', "Expecting"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, text, reason):
    config = StudyConfig(runs=tmp_path)
    Study("small", config)
    path = tmp_path / "small" / "default" / name
    path.write_bytes(text)
    with pytest.raises(InputError) as error:
        Study("small", config).finished()
    message = str(error.value)
    assert message.startswith(f"{path} is damaged ({reason}") and "\n" not in message
    assert message.endswith("); remove it or use --overwrite")
    assert Study("small", StudyConfig(runs=tmp_path, overwrite=True)).finished() is None
