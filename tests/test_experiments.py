"""Every experiment runs in seconds by its smoke preset, and leaves what it promises."""

import dataclasses
import importlib
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from jaxpoison.data import poisoned, synthetic
from jaxpoison.report import ImageConfig, tables

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py"))
RATE = {"mean", "low", "high", "values"}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Generated images in the place and shape of the first of Fashion-MNIST and CIFAR-10."""
    folder = tmp_path_factory.mktemp("npz")
    for name, shape in {"fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}.items():
        for seed, (split, num) in enumerate({"train": 200, "test": 100}.items()):
            image, label = synthetic.blobs(jax.random.key(seed), num, 10, shape)
            np.savez(folder / f"{name}-{split}.npz", image=image, label=label)
    return folder


@pytest.fixture
def quick_compile():
    """Compilation without optimization: here a script's wiring is tested, not its speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path, request, quick_compile):
    module, options = importlib.import_module(f"experiments.{name}"), {"runs": tmp_path}
    if issubclass(module.Config, ImageConfig):
        options["data_dir"] = request.getfixturevalue("images")
    check_run(module, module.Config.smoke(**options), name)


def test_smoke_with_a_convolutional_victim(tmp_path, images, quick_compile):
    module = importlib.import_module("experiments.fashion_mnist_tap")
    options = {"runs": tmp_path, "data_dir": images, "network": "small_cnn"}
    check_run(module, module.Config.smoke(**options), "fashion_mnist_tap")


def check_run(module, config, name):
    """The main job leaves its record, pictures and verified poisons."""
    record = module.main(config)
    run = config.runs / name / "default"
    assert json.loads((run / "result.json").read_text()) == record
    check_record(record, name, config)
    for picture in ("grid.png", "curves.png"):
        assert (run / picture).stat().st_size > 1000
    for arm in sorted(set(record["arms"]) - {"clean"}):
        assert poisoned.verify(run / "poison" / arm).passed


def check_record(record, name, config):
    """The shape that all result.json share."""
    assert set(record) == {
        "experiment", "config", "versions", "device", "date", "seconds", "arms", "poison",
        "published",
    }  # fmt: skip
    assert record["experiment"] == name and record["config"]["seed"] == config.seed
    assert {"compile", "total"} <= set(record["seconds"])
    assert "clean" in record["arms"]
    for entry in record["arms"].values():
        if entry["poison"]:
            assert tables.control(record["arms"], entry) is not None
    for arm, entry in record["arms"].items():
        for field in ("final_accuracy", "peak_accuracy"):
            assert set(entry[field]) == RATE
            values = entry[field]["values"]
            assert len(values) == config.victims and np.all(0 <= np.array(values))
            assert np.all(np.array(values) <= 1)
            assert entry[field]["mean"] == pytest.approx(np.mean(values))
        assert entry["expect"]
        assert (entry["poison"] is None) == (arm == "clean")
    assert set(record["poison"]) == {"norm", "eps", "measured", "psnr", "ssim"}
    assert record["poison"]["measured"] <= record["poison"]["eps"] + 1e-6
    for number in record["published"]:
        assert set(number) == {"what", "value", "source"} and 0 <= number["value"] <= 1


def settings_of(record, config):
    """The part of a record's settings that the script's configuration has, as its fields are."""
    known = {field.name for field in dataclasses.fields(config)}
    settings = {k: v for k, v in record["config"].items() if k in known}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def test_the_tables_are_the_committed_records_and_nothing_else():
    """NAME.json is of the default settings; NAME.small.json, of a paper's script, of --scale small.

    A script without NAME.json stands in the list of claims as not yet run at its size.
    """
    rows, whole = [], set()
    for path in sorted((FOLDER / "results").glob("*.json")):
        name, _, scale = path.stem.partition(".")
        record = json.loads(path.read_text())
        config = importlib.import_module(f"experiments.{name}").Config
        expected = config.presets()[scale] if scale else config()
        assert config(**settings_of(record, config)) == expected, path
        assert scale in ("", "small") and name in NAMES
        check_record(record, name, expected)
        rows += tables.markdown(record)
        assert all(("small run" in row) == bool(scale) for row in tables.markdown(record))
        whole |= set() if scale else {name}
    for page in (FOLDER / "README.md", FOLDER.parent / "README.md"):
        head = "| experiment | attack, budget |"
        _, _, table = page.read_text().partition(head)
        lines = itertools.takewhile(lambda line: line.startswith("|"), table.splitlines()[1:])
        assert sorted(lines) == sorted([*rows, "|---|---|---|---|---|---|---|"]), page
    claims = {name: line for line in (FOLDER / "README.md").read_text().splitlines()
              for name in NAMES if line.startswith(f"| `{name}` |")}  # fmt: skip
    assert set(claims) == set(NAMES)
    for name, line in claims.items():
        assert f"python -m experiments.{name}" in line
        assert ("not yet run at this size" in line) == (name not in whole), name
