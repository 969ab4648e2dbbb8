"""Filters of several attack keys in one record."""

import pytest

from jaxpoison.report.added_cells import gathered
from jaxpoison.report.added_filters import gather_filters


def result(caught, precision, fit):
    rates = {"true_positive_rate": caught, "false_positive_rate": 0.1, "auc": 0.9}
    fit = None if fit is None else {"mean": fit, "low": None, "high": None, "values": [fit]}
    return {"removed": 3, "precision": precision, "final_accuracy": fit} | rates


def test_attack_keys_are_gathered_as_intervals():
    found = [
        {"loss": result(caught, 0.5, fit), "range": result(0.2, precision, None)}
        for caught, fit, precision in ((0.5, 0.8, 0.1), (0.7, 0.9, None), (0.9, 0.7, 0.3))
    ]
    gather_filters(found)
    seeds = found[0]["loss"]["craft_seeds"]
    assert seeds["true_positive_rate"]["values"] == [0.5, 0.7, 0.9]
    assert seeds["true_positive_rate"]["mean"] == pytest.approx(0.7)
    assert seeds["final_accuracy"]["values"] == [0.8, 0.9, 0.7]
    assert found[0]["loss"]["true_positive_rate"] == 0.5  # all else is of the first key
    assert "craft_seeds" not in found[1]["loss"]
    other = found[0]["range"]["craft_seeds"]
    assert other["precision"] is None and other["final_accuracy"] is None


def test_what_attack_keys_came_to_is_gathered():
    found = [
        {
            "target_accuracy": 0.1 * key,
            "residual": {"first": 3.0, "last": float(key)},
            "distance": {"mean": 2.0, "low": None, "high": None, "values": [2.0]} if key else None,
        }
        for key in range(3)
    ]
    seeds = gathered(found)
    assert set(seeds) == {"target_accuracy", "residual"}  # one key has no distance, none an error
    assert seeds["target_accuracy"]["values"] == pytest.approx([0.0, 0.1, 0.2])
    assert seeds["residual"]["values"] == [0.0, 1.0, 2.0]
