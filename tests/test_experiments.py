"""Every experiment runs in seconds by its smoke preset, and leaves what it promises."""

import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxpoison.data import poisoned

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments"
NAMES = sorted(p.stem for p in FOLDER.glob("*.py"))
RATE = {"mean", "low", "high", "values"}


@pytest.fixture(scope="session")
def prepared(shared_data, tmp_path_factory):
    """Fashion-MNIST as a TFDS set."""
    folder = tmp_path_factory.mktemp("tfds")
    command = [sys.executable, str(shared_data / "prepare.py"), "--tfds", str(folder)]
    subprocess.run([*command, "fashion_mnist"], check=True, capture_output=True)
    return folder


@pytest.fixture
def quick_compile():
    """Compilation without optimization: here a script's wiring is tested, not its speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path, request, quick_compile):
    module = importlib.import_module(f"experiments.{name}")
    options = {"runs": tmp_path}
    if any(field.name == "data_dir" for field in dataclasses.fields(module.Config)):
        options["data_dir"] = request.getfixturevalue("prepared")
    config = module.Config.smoke(**options)
    record = module.main(config)
    run = tmp_path / name / "default"
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
    assert {"clean", "random-noise"} < set(record["arms"])
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


@pytest.mark.parametrize("path", sorted((FOLDER / "results").glob("*.json")), ids=lambda p: p.stem)
def test_committed_records_are_whole_and_stand_in_the_tables(path):
    from jaxpoison.report import tables

    record = json.loads(path.read_text())
    module = importlib.import_module(f"experiments.{record['experiment']}")
    check_record(record, path.stem, module.Config(**_known(module.Config, record["config"])))
    for page in (FOLDER / "README.md", FOLDER.parent / "README.md"):
        for row in tables.markdown(record):
            assert row in page.read_text(), f"{page.name} lacks the row\n{row}"


def _known(config, settings):
    names = {field.name for field in dataclasses.fields(config)}
    assert set(settings) <= names
    return settings
