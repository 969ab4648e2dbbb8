import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison
from jaxpoison import data
from jaxpoison.__main__ import main
from jaxpoison.data import poisoned as folder
from jaxpoison.perturb import Budget, per_sample, poison
from jaxpoison.types import Dataset, Scenario


def _poison(path, clean, name, **source):
    scenario = Scenario(clean, clean, jnp.arange(0, len(clean.label), 5, dtype=jnp.int32))
    space = per_sample(Budget("l2", 0.5), init="uniform")
    theta = space.init(jax.random.key(0), scenario)
    folder.write(
        path,
        poisoned=poison(space, theta, scenario),
        clean=clean,
        index=scenario.index,
        attack="random_noise",
        settings={"init": "uniform", "steps": 0},
        norm="l2",
        eps=0.5,
        source={"name": name, **source},
        key=jax.random.key(0),
        wall_time_s=1.25,
        extra={"note": "a test"},
    )


@pytest.fixture(scope="module")
def digits_poison(tmp_path_factory):
    path = tmp_path_factory.mktemp("main") / "poison"
    _poison(path, data.digits("train"), "digits")
    return path


def test_verify_reloads_digits_and_passes(digits_poison, capsys):
    assert main(["verify", str(digits_poison)]) == 0
    out = capsys.readouterr().out
    assert out.count("PASS") == len(out.splitlines()) - 1
    assert "1120 rows bit-equal to the source" in out
    assert "of 0.5" in out
    assert out.splitlines()[-1] == f"{digits_poison}: nothing failed"


def test_a_fresh_process_finds_a_changed_byte(digits_poison, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in os.listdir(digits_poison):
        (copy / name).write_bytes((digits_poison / name).read_bytes())
    array = np.load(copy / "images.npy")
    array[3, 0, 0, 0] ^= 1
    np.save(copy / "images.npy", array)
    command = [sys.executable, "-m", "jaxpoison", "verify", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: {copy} does not verify: images.npy: {copy / 'images.npy'} was damaged or changed: "
        "its SHA-256 is not the manifest's"
    )
    assert "FAIL         images.npy" in done.stdout
    assert "NOT CHECKED  budget" in done.stdout
    assert done.stdout.splitlines()[-1] == f"{copy}: FAILED (4 not checked)"


def test_show_prints_the_manifest(digits_poison, capsys):
    assert main(["show", str(digits_poison)]) == 0
    out = capsys.readouterr().out
    for text in ("POISONED", "random_noise", "l2 eps 0.5", "digits, split train", "1.2 s", "jax "):
        assert text in out
    assert "WARNING" not in out


def test_an_npz_source_is_found_by_its_name_the_flag_or_the_folder(tmp_path, capsys):
    rng = np.random.default_rng(0)
    clean = Dataset(
        jnp.asarray(rng.integers(0, 256, (10, 4, 4, 3)), jnp.uint8), jnp.arange(10, dtype=jnp.int32)
    )
    (tmp_path / "sets").mkdir()
    file = tmp_path / "sets" / "toy-train.npz"
    np.savez(file, image=np.asarray(clean.image), label=np.asarray(clean.label))
    _poison(tmp_path / "p", clean, "toy", split="train", data_dir=str(tmp_path / "sets"))
    assert main(["verify", str(tmp_path / "p")]) == 0
    assert "NOT CHECKED" not in capsys.readouterr().out
    file.rename(tmp_path / "moved.npz")
    assert main(["verify", str(tmp_path / "p")]) == 0
    assert "NOT CHECKED  budget           the source data set is not at" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "p"), "--source", str(tmp_path / "moved.npz")]) == 0
    assert "NOT CHECKED" not in capsys.readouterr().out
    (tmp_path / "new").mkdir()
    (tmp_path / "moved.npz").rename(tmp_path / "new" / "toy-train.npz")
    assert main(["verify", str(tmp_path / "p"), "--data-dir", str(tmp_path / "new")]) == 0
    assert "NOT CHECKED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "{}/nothing"], "nothing is no poison folder: it has no manifest.json"),
        (["show", "{}/nothing"], "nothing is no poison folder: it has no manifest.json"),
        (["verify", "{}/poison", "--source", "{}/no.npz"], "no file"),
        (["verify", "{}/poison", "--source", "a", "--data-dir", "b"], "exclude each other"),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_code_2(digits_poison, capsys, words, message):
    assert main([word.format(digits_poison.parent) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"attack": "\ud800"}, 0),
        ({"measured": {"norm_max": "x"}}, 2),
        ({"extra": {"a": float("inf")}}, 2),
        ({"eps": 10**400}, 2),
    ],
)
def test_a_forged_manifest_is_shown_or_refused_without_a_traceback(
    digits_poison, tmp_path, capsys, changes, code
):
    copy = shutil.copytree(digits_poison, tmp_path / "copy")
    content = json.loads((copy / "manifest.json").read_text()) | changes
    (copy / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")
    assert main(["show", str(copy)]) == code
    assert capsys.readouterr().err.count("\n") == (code == 2)
    assert main(["verify", str(copy)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_a_run_folder_is_told_from_its_poison_folders(digits_poison, tmp_path, capsys):
    for arm in ("em", "tap"):
        shutil.copytree(digits_poison, tmp_path / "run" / "poison" / arm)
    for command in (["verify"], ["show"], ["export", "--to", "npz"]):
        assert main([*command, str(tmp_path / "run")]) == 2
        line = capsys.readouterr().err
        names = [str(tmp_path / "run" / "poison" / arm) for arm in ("em", "tap")]
        assert line.endswith(f"it has no manifest.json; did you mean {' or '.join(names)}?\n")


def test_version_is_printed_and_offered_by_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxpoison {jaxpoison.__version__}\n"
    assert main(["--help"]) == 0
    assert "--version" in capsys.readouterr().out


def test_help_names_the_commands_and_wrong_words_are_code_2(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("verify", "show", "export", "apply", "report", "tensorboard"):
        assert command in out
    assert main(["verify", "--help"]) == 0
    assert "--data-dir" in capsys.readouterr().out
    assert main(["paint"]) == 2
    assert main([]) == 2
