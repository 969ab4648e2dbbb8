"""The job of added points: what it stores, trains on and says, what it refuses, how it resumes."""

import numpy as np
import pytest

from jaxpoison.data import poisoned
from tests.report import small_added

pytestmark = pytest.mark.usefixtures("quick_module")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs / "small" / "default", small_added.run(runs)


def test_every_follower_learns_from_every_arm_at_every_share(finished):
    folder, record = finished
    sets = ["clean", "free share=0.25", "free share=0.5", "ball share=0.5"]
    assert list(record["arms"]) == [f"{who}/{one}" for who in ("sgd", "lbfgs") for one in sets]
    assert {p.name for p in (folder / "poison").iterdir()} == set(sets[1:])
    for name, entry in record["arms"].items():
        who, _, one = name.partition("/")
        assert entry["victim"] == who
        assert len(entry["final_accuracy"]["values"]) == {"sgd": 2, "lbfgs": 1}[who]
        if one == "clean":
            assert "added" not in entry
            continue
        clean = record["arms"][f"{who}/clean"]["final_accuracy"]["values"]
        mine = entry["final_accuracy"]["values"]
        assert entry["added"]["drop"]["values"] == pytest.approx(np.subtract(clean, mine))
        assert entry["sweep"] == {
            "of": one.split()[0], "option": "share", "value": entry["added"]["share"]
        }  # fmt: skip


def test_what_is_stored_are_the_added_points_beside_their_bases(finished):
    folder, record = finished
    train = small_added.split().train
    free, ball = (poisoned.read(folder / "poison" / f"{n} share=0.5") for n in ("free", "ball"))
    assert free.manifest.domain == "unbounded" and ball.manifest.domain == "uint8"
    assert free.manifest.rows == ball.manifest.rows == "added" and len(free.mask) == 24
    np.testing.assert_array_equal(free.source_rows, ball.source_rows)
    small = poisoned.read(folder / "poison" / "free share=0.25").source_rows
    assert len(small) == 12 and set(small) < set(free.source_rows)
    shift = np.abs(ball.dataset.image.astype(int) - train.image[ball.source_rows].astype(int))
    assert 0 < shift.max() <= 25  # floor(255 * 0.1)
    report = poisoned.verify(folder / "poison" / "ball share=0.5", train)
    assert all(check.passed for check in report.checks)
    values = record["arms"]["sgd/free share=0.5"]["added"]["values"]
    assert values["value_low"] == pytest.approx(float(free.dataset.image.min()))
    assert (values["clean_low"], values["clean_high"]) == (0, 1)


def test_a_reachable_target_is_what_a_convergent_follower_ends_at(finished):
    """Points anywhere: canceled to less than a tenth; in the ball the residual hardly moves."""
    _, record = finished
    free, ball = (record["arms"][f"lbfgs/{n} share=0.5"]["added"] for n in ("free", "ball"))
    assert free["residual"]["last"] < 0.1 * free["residual"]["first"]
    assert ball["residual"]["last"] > 0.5 * ball["residual"]["first"]
    assert free["residual"]["curve"][-1] == free["residual"]["last"]
    assert free["residual"]["steps"][-1] == 200
    assert free["distance"]["mean"] < ball["distance"]["mean"]
    assert free["drop"]["mean"] > ball["drop"]["mean"] + 0.2
