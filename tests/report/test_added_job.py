"""The job of added points: what it stores, trains on and says, what it refuses, how it resumes."""

import copy
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import sklearn.linear_model

import jaxpoison as jp
from experiments import tables as committed
from jaxpoison import loops
from jaxpoison.__main__ import main
from jaxpoison.data import poisoned, with_added
from jaxpoison.data.manifest import tree_sha256
from jaxpoison.data.poisoned import read
from jaxpoison.perturb import Constraint
from jaxpoison.report import AddedConfig, Player, added_arm, added_tables, command_line, runs
from jaxpoison.report import page as report_page
from jaxpoison.report.work import Work
from jaxpoison.types import InputError
from jaxpoison.victims import Extractor, extract, on_features
from tests.report import small_added

CHUNK = loops._chunk

pytestmark = pytest.mark.usefixtures("quickest_module")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    return place / "small" / "default", small_added.run(place)


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


def test_the_command_line_verifies_shows_and_exports_added_points(finished, tmp_path, capsys):
    """Grey levels in every format that holds them; values of any size as npz, with their bases."""
    folder, _ = finished
    source, train = tmp_path / "blobs.npz", small_added.split().train
    np.savez(source, image=train.image, label=train.label)
    for name, words in (("ball", "linf at most"), ("free", "values from")):
        place = folder / "poison" / f"{name} share=0.5"
        assert main(["verify", str(place), "--source", str(source)]) == 0
        out = capsys.readouterr().out
        assert "none here: all rows were added" in out and words in out and "FAIL" not in out
        assert main(["show", str(place)]) == 0
        shown = capsys.readouterr().out
        assert "24 rows to be added to the 48 of the source (eps_d = 0.5)" in shown
        assert main(["export", str(place), "--to", "npz", "--out", str(tmp_path / name)]) == 0
        exported, stored = np.load(tmp_path / name / f"{place.name}-train.npz"), read(place)
        np.testing.assert_array_equal(exported["image"], stored.dataset.image)
        np.testing.assert_array_equal(exported["source_rows"], stored.source_rows)
        png = main(["export", str(place), "--to", "png", "--out", str(tmp_path / f"{name}-png")])
        found = list((tmp_path / f"{name}-png").rglob("*.png"))
        assert (png, len(found)) == ((0, 24) if name == "ball" else (2, 0))
    assert "holds unbounded values; png cannot hold them without loss" in capsys.readouterr().err
    other = tmp_path / "other.npz"
    np.savez(other, image=train.image[::-1], label=train.label)
    assert main(["verify", str(place), "--source", str(other)]) == 2


def test_a_reachable_target_is_what_a_convergent_follower_ends_at(finished):
    """Points anywhere: canceled to less than a tenth; in the ball the residual hardly moves."""
    _, record = finished
    free, ball = (record["arms"][f"lbfgs/{n} share=0.5"]["added"] for n in ("free", "ball"))
    assert free["residual"]["last"] < 0.1 * free["residual"]["first"]
    assert ball["residual"]["last"] > 0.5 * ball["residual"]["first"]
    assert free["residual"]["curve"][-1] == pytest.approx(free["residual"]["last"], rel=1e-5)
    assert free["residual"]["steps"][-1] == 200
    assert free["distance"]["mean"] < ball["distance"]["mean"]
    assert free["drop"]["mean"] > ball["drop"]["mean"] + 0.2
    tau = free["reach"]["tau"]
    assert free["reach"]["reachable"] is (tau < 0.5) and ball["reach"]["reachable"] is not True
    assert len(ball["reach"]["conditions"]) > len(free["reach"]["conditions"])


def test_a_finished_run_is_shown_and_other_settings_are_refused(finished, capsys):
    folder, record = finished
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert small_added.run(folder.parents[1]) == record
    out = capsys.readouterr().out
    assert "finished before" in out and "lbfgs:" in out and "most" in out
    with pytest.raises(InputError, match=r"free.shares = \[0.25, 0.5\], now it is \[0.5\]"):
        small_added.run(folder.parents[1], shares=(0.5,))
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_the_page_and_the_tables_show_points_residuals_and_drops(finished):
    folder, record = finished
    page = (folder / "report.html").read_text()
    assert "Residuals and reachability" in page and "linf 0.1" in page
    for picture in ("grid.png", "curves.png", "sweep.png", "residual.png", "reach.png"):
        assert (folder / picture).stat().st_size > 1000
    rows = added_tables.markdown(record)
    assert len(rows) == 6 and all(row.count("|") == added_tables.HEAD.count("|") for row in rows)
    assert rows[0].startswith("| small | free, none, sgd | 12, 0.25 | ")
    assert rows[-1].startswith("| small | ball, linf 0.1, lbfgs | 24, 0.5 | 100.0 | - | ")
    page = f"## Sweeps\n\n{committed.ADDED}\n"
    assert rows[0] in committed.filled(page, {"small": record})


def test_several_attack_keys_stand_in_the_table_by_their_spread(finished):
    """Targets differ from key to key: the first alone would be a choice of one."""
    record = copy.deepcopy(finished[1])
    entry = record["arms"]["lbfgs/free share=0.25"]
    entry["craft_seeds"] = {"mean": 0.2, "low": 0.0, "high": 0.448, "values": [0.1, 0.2, 0.3]}
    clean = record["arms"]["lbfgs/clean"]["final_accuracy"]["mean"]
    (row,) = [x for x in added_tables.markdown(record) if "free, none, lbfgs | 12, 0.25" in x]
    assert f"| 20.0 [0.0, 44.8] | {100 * clean - 20:.1f} [" in row


def test_a_run_that_broke_off_goes_on_where_it_was(finished, tmp_path, monkeypatch):
    _, record = finished
    options = {"own": {"free": small_added.canceling("none", shares=(0.25, 0.5))}}
    options["players"] = {"": Player(small_added.HEAD, lbfgs(), "lbfgs")}
    run, seen = Work.run, []

    def breaks(self, room, name, *rest):
        if room == "victims" and name.endswith("free share=0.5"):
            raise KeyboardInterrupt
        return run(self, room, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "run", breaks)
        with pytest.raises(KeyboardInterrupt):
            small_added.run(tmp_path, **options)
    monkeypatch.setattr(
        loops, "_chunk", lambda process, *a: seen.append(process) or CHUNK(process, *a)
    )
    again = small_added.run(tmp_path, **options)
    for name, entry in again["arms"].items():
        assert entry == record["arms"][name]
    assert len(set(seen)) == 1  # the part that was left


def lbfgs():
    return {"lbfgs": small_added.followers()["lbfgs"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.5}, "share = 0.5; no row changes here: set shares, of what is added"),
        ({"probes": ("train-noise",)}, "a run of added points has none"),
        ({"shares": ()}, "shares are none; name at least one"),
        ({"shares": (1.5,)}, "shares = 1.5; it must be a number above 0 and at most 1"),
        ({"shares": (0.5, 0.5)}, "shares = (0.5, 0.5); name each once"),
        ({"shares": (0.01,)}, "shares = 0.01 of 48 rows is less than one point"),
        ({"main": "other"}, "main = 'other'; allowed are free, ball"),
        ({"players": {}}, "there are no players; name at least one"),
        ({"players": {"": Player(small_added.HEAD, {}, "sgd")}}, "has no followers"),
        ({"players": {"": Player(small_added.HEAD, lbfgs(), "sgd")}}, "reference = 'sgd'; allowed"),
    ],
)
def test_bad_settings_end_before_anything_is_written(tmp_path, options, message):
    refused(tmp_path, message, **options)


def refused(path, message, **options):
    with pytest.raises(InputError) as error:
        small_added.run(path, **options)
    assert message in str(error.value) and not list(path.iterdir())


def test_arms_that_do_not_fit_end_before_anything_is_written(tmp_path):
    def check(message, one):
        refused(tmp_path, message, own={"free": one})

    many = functools.partial(added_arm, jp.attacks.gradient_canceling, expect="")
    check("arm 'free': player = 'b'; allowed are ''", small_added.canceling("none", player="b"))
    check("player '' has no extractor", small_added.canceling("none", space="features"))
    check("num_classes = 4; its player has 3 logits",
          many(small_added.HEAD, labels="random", num_classes=4))  # fmt: skip
    check("labels of the training set run from 0 to 2; num_classes = 2 allows 0 to 1",
          added_arm(jp.attacks.label_flip, num_classes=2, expect=""))  # fmt: skip
    noise = added_arm(jp.attacks.random_noise, eps=0.1, expect="")
    check("gives a training set of (48, 8, 8, 1); 12 added points ask for (60, 8, 8, 1)", noise)
    with pytest.raises(InputError, match="constraint = box is for pixels; features may have none"):
        small_added.canceling("box", space="features")
    with pytest.raises(InputError, match="num_steps = 7; the schedule of gradient_canceling"):
        small_added.canceling("none", num_steps=7)
    crop = dataclasses.replace(small_added.followers()["sgd"], augmentation="flip")
    body = Extractor(small_added.HEAD, small_added.HEAD.init(jax.random.key(0)))
    head = jp.models.logistic_regression((1, 1, 64), 3)
    players = {"": Player(head, {"sgd": crop}, "sgd", body)}
    refused(tmp_path, "augmentation = flip is for images; it learns features", players=players)


def test_features_are_attacked_and_filtered_as_followers_see_them(tmp_path):
    """The points of an image attack are extracted; those of a feature attack are features."""
    body = jp.models.mlp(small_added.SHAPE, 3, hidden=(5,), batch_norm=False)
    frozen = Extractor(body, body.init(jax.random.key(3)))
    head = jp.models.logistic_regression((1, 1, 5), 3, bias=False)
    filters = {"loss": jp.defenses.largest_loss(head, share=0.2)}
    players = {"a": Player(head, lbfgs(), "lbfgs", frozen, filters)}
    arms = {
        "inner": added_arm(jp.attacks.gradient_canceling, head, steps=3, space="features",
                           expect="", corruption=small_added.CORRUPTION),
        "outer": added_arm(jp.attacks.gradient_canceling, on_features(body, head), steps=3,
                           constraint=Constraint("box"), expect=""),
    }  # fmt: skip
    record = small_added.run(tmp_path, players=players, own=arms, main="inner", shares=(0.25,))
    train = small_added.split().train
    folder = tmp_path / "small" / "default" / "poison"
    inner, outer = (poisoned.read(folder / f"a-{name} share=0.25") for name in arms)
    assert inner.manifest.domain == "features" and outer.manifest.domain == "uint8"
    assert inner.manifest.extra["extractor"] == {
        "variables_sha256": tree_sha256(frozen.variables),
        "player": "a",
        "features": 5,
        "image_shape": [8, 8, 1],
    }
    assert not outer.manifest.extra
    clean = extract(frozen, train)
    np.testing.assert_array_equal(inner.dataset.label, train.label[inner.source_rows])
    np.testing.assert_allclose(
        inner.dataset.image, clean.image[inner.source_rows], atol=0.31
    )  # three steps of 0.1
    judged = {}
    for name, poison in (("inner", with_added(clean, inner)),
                         ("outer", extract(frozen, with_added(train, outer)))):  # fmt: skip
        fit = sklearn.linear_model.LogisticRegression(
            C=1 / (48 * small_added.DECAY), fit_intercept=False, tol=1e-8
        )
        fit.fit(np.asarray(poison.image).reshape(60, 5), np.asarray(poison.label))
        test = extract(frozen, small_added.split().test)
        judged[name] = fit.score(np.asarray(test.image).reshape(24, 5), np.asarray(test.label))
        entry = record["arms"][f"a/lbfgs/{name} share=0.25"]
        assert entry["final_accuracy"]["mean"] == pytest.approx(judged[name], abs=1.01 / 24)
        found = entry["added"]["filters"]["loss"]
        assert found["removed"] == 12 and 0 <= found["final_accuracy"]["mean"] <= 1
        assert 12 * found["true_positive_rate"] + 48 * found["false_positive_rate"] == 12


def test_an_inversion_is_judged_on_the_stored_images(tmp_path):
    """Grey levels, not the attack's floats: the oracle reads the poison folder."""
    body = jp.models.mlp(small_added.SHAPE, 3, hidden=(5,), batch_norm=False)
    frozen = Extractor(body, body.init(jax.random.key(3)))
    head = jp.models.logistic_regression((1, 1, 5), 3, bias=False)
    one = added_arm(
        jp.attacks.feature_targeted, body, head, corruption=None,
        cancel_steps=1, match_steps=1, match_rate=0.05, constraint=Constraint("box"), expect="",
    )  # fmt: skip
    players = {"": Player(head, lbfgs(), "lbfgs", frozen)}
    options = {"shares": (0.25,), "craft_seeds": 2}
    record = small_added.run(tmp_path, players=players, own={"m": one}, main="m", **options)
    added = record["arms"]["lbfgs/m share=0.25"]["added"]
    stored = poisoned.read(tmp_path / "small" / "default" / "poison" / "m share=0.25")
    base = small_added.split().train.image[stored.source_rows]
    away = np.linalg.norm((stored.dataset.image / 255.0 - base / 255.0).reshape(12, -1), axis=1)
    assert added["inversion"]["distance"] == pytest.approx(away.mean(), rel=1e-5)
    floats = added["feature_error"]["last"]  # one step earlier, not rounded
    assert added["inversion"]["feature_error"] != pytest.approx(floats, rel=1e-4)
    assert added["inversion"]["residual_features"] < added["residual"]["first"]
    seeds = added["craft_seeds"]["inversion_feature_error"]["values"]
    assert seeds[0] == added["inversion"]["feature_error"] and len(seeds) == 2


def test_help_and_command_line_know_only_settings_that_mean_something(monkeypatch, capsys):
    for words, text in (["--help"], "--shares"), (["--share", "0.5"], "Unrecognized options"):
        monkeypatch.setattr("sys.argv", ["x", *words])
        with pytest.raises(SystemExit):
            command_line(print, AddedConfig, None)
        found = capsys.readouterr()
        assert text in found.out + found.err
        assert "--probes" not in found.out and "--share " not in found.out


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("drop",), None, "added.drop"),
        (("share",), "much", "added.share"),
        (("constraint",), {"kind": 3}, "added.constraint"),
        (("reach", "tau"), "none", "added.reach"),
        (("residual", "last"), None, "added.residual"),
        (("inversion",), {"distance": 1.0}, "added.inversion"),
        (("filters",), {"loss": {"auc": "high"}}, "added.filters"),
    ],
)
def test_a_damaged_record_is_one_line_that_names_the_entry(finished, tmp_path, place, value, named):
    record = copy.deepcopy(finished[1])
    part = record["arms"]["sgd/free share=0.5"]["added"]
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"its entry arms.sgd/free share=0.5.{named}"):
        runs.read_run(path)
    path.write_text(json.dumps(finished[1]))
    assert "Results" in report_page.html([runs.read_run(path)])
