"""The experiment of the leak probe: its smoke run, its committed record, the table made of that."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import cifar10_leak_probe as script
from experiments.tables import PAGES, RESULTS
from jaxpoison.data import synthetic

TOLERANCE = 0.06
MISSED = {("LSP, L2 1.304", "BDR-2"), ("OPS", "gray"), ("OPS", "JPEG-10")}
"""Cells of the specification that are not met; the page and the script say so."""


def check(record):
    """Every purifier on every poison, as often as there are draws."""
    assert record["experiment"] == script.NAME
    assert {"versions", "device", "date", "seconds"} <= set(record)
    poisons = ("no poison", *script.REFERENCE, "OPS, paper's objective")
    found = {(one["poison"], one["purifier"]): one["values"] for one in record["cells"]}
    assert set(found) == {(a, b) for a in poisons for b in script.PURIFIERS}
    seeds = record["config"]["seeds"]
    for values in (*found.values(), record["psnr"]):
        assert len(values) == seeds
    return {cell: np.mean(values) for cell, values in found.items()}


def test_smoke(tmp_path, quick_compile):
    image, label = synthetic.blobs(jax.random.key(0), 120, 10, (32, 32, 3))
    np.savez(tmp_path / "cifar10-train.npz", image=image, label=label)
    config = script.Config.smoke(runs=tmp_path, data_dir=tmp_path, images=100)
    record = script.main(config)
    check(record)
    run = tmp_path / script.NAME / "default"
    assert script.main(config) == record == json.loads((run / "result.json").read_text())
    with pytest.raises(ValueError, match="images = 121; the training set has 120"):
        script.main(dataclasses.replace(config, name="more", images=121))


def test_the_committed_record_and_its_table():
    record = json.loads((RESULTS / f"{script.NAME}.json").read_text())
    settings = dataclasses.asdict(script.Config(data_dir=RESULTS))
    assert record["config"] == {name: settings[name] for name in record["config"]}
    found = check(record)
    for cell in record["cells"]:
        place = cell["poison"], cell["purifier"]
        if cell["reference"] is not None:
            near = abs(found[place] - cell["reference"]) <= TOLERANCE
            assert near == (place not in MISSED), place
    for purifier in script.PURIFIERS[:5]:
        assert found["no poison", purifier] == pytest.approx(0.1, abs=0.03)
    for poison in script.REFERENCE:
        assert found[poison, "OP"] < 0.08 < 0.4 < found[poison, "OP, fitted apart"]
    assert found["OPS", "gray"] > 0.9 > 0.2 > found["OPS, paper's objective", "gray"]
    assert np.mean(record["psnr"]) == pytest.approx(22.7, abs=0.5)
    text = PAGES[1].read_text()
    assert f"python -m experiments.{script.NAME}" in text
    assert "\n".join(script.markdown(record)) in text


@pytest.mark.parametrize(
    ("options", "why"),
    [({"images": 99}, "images = 99"), ({"updates": 19}, "updates = 19"), ({"name": ".."}, "plain")],
)
def test_bad_settings(options, why, tmp_path):
    with pytest.raises(ValueError, match=why):
        script.Config(data_dir=tmp_path, **options)
