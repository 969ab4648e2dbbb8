"""The experiment on tau: its smoke run, its committed record, and the table made of that."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import gaussian_phase_transition as script
from experiments.tables import PAGES, RESULTS


def check(record, config):
    """Residuals on the line of the theory, the kink at tau, and victims on both sides."""
    assert record["experiment"] == script.NAME
    assert {"versions", "device", "date", "seconds"} <= set(record)
    for curve in record["curves"]:
        assert curve["kink"] == pytest.approx(1, abs=0.05)
        assert tuple(curve["ratio"]) == tuple(config.ratios)
        floor, residual = np.array(curve["floor"]) / curve["none"], np.array(curve["residual"])
        measured, below = residual / curve["none"], np.array(curve["ratio"]) < 1
        assert np.all(floor[below] > 0) and not np.any(floor[~below])
        np.testing.assert_allclose(measured, floor, atol=0.01)
        assert np.all(measured >= floor - 1e-6)
    for row in record["retrained"]:
        assert row["reachable"] is (row["ratio"] >= 1)
        assert row["grad_norm"] < 1e-6
        if row["reachable"]:
            assert row["distance"] < 1e-4
            assert row["accuracy"] == pytest.approx(row["target_accuracy"], abs=1e-3)
    first = [r for r in record["retrained"] if r["seed"] == 0 and r["data"] == "two Gaussians"]
    smallest = [row for row in first if row["scale"] == 0.01]
    assert smallest[0]["clean_accuracy"] == pytest.approx(0.8744)
    assert smallest[0]["tau"] == pytest.approx(0.0461328686, rel=1e-6)
    (above,) = (row for row in smallest if row["ratio"] == 1.02)
    assert above["accuracy"] == pytest.approx(0.1256) and above["share"] < 0.0471
    assert above["point_norm"] == pytest.approx(47, abs=0.5)


def test_smoke(tmp_path, quick_compile):
    config = script.Config.smoke(runs=tmp_path)
    record = script.main(config)
    check(record, config)
    run = tmp_path / script.NAME / "default"
    assert (run / "phase_transition.png").stat().st_size > 1000
    assert script.main(config) == record == json.loads((run / "result.json").read_text())


def test_the_committed_record_and_its_table():
    record = json.loads((RESULTS / f"{script.NAME}.json").read_text())
    config = script.Config()
    settings = json.loads(json.dumps(dataclasses.asdict(config), default=str)) | {"mnist": True}
    assert record["config"] == {name: settings[name] for name in record["config"]}
    check(record, config)
    assert len({one["seed"] for one in record["curves"]}) == 5
    text = PAGES[1].read_text()
    assert f"python -m experiments.{script.NAME}" in text
    assert "\n".join(script.markdown(record)) in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ratios": (0.5,)}, "below and above"),
        ({"scales": (0.0,)}, "scales"),
        ({"name": ".."}, "a plain"),
    ],
)
def test_bad_settings(options, why):
    with pytest.raises(ValueError, match=why):
        script.Config(**options)
