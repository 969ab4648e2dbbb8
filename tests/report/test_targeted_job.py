"""Targeted runs: what a setup leaves, what binds it, what is refused, and where it goes on."""

import dataclasses
import functools
import importlib
import json
import shutil

import jax
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.book import Book
from jaxpoison.data import poisoned, with_poison
from jaxpoison.report import Trainee, arm, stored
from jaxpoison.types import InputError, TrainState
from tests.report import small_job, small_targeted

pytestmark = pytest.mark.usefixtures("quick_module")
FOLDER = "small/default"


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs / FOLDER, small_targeted.run(runs, keep_checkpoints=True)


def test_a_record_has_values_per_setup_and_victim(finished):
    folder, record = finished
    assert json.loads((folder / "result.json").read_text()) == record
    assert list(record["arms"]) == ["clean", "random-noise", "gradient-matching"]
    for name, entry in record["arms"].items():
        assert [one["name"] for one in entry["setups"]] == ["s0", "s1"]
        for rate, values in (("success_rate", "success"), ("intended_probability", "intended"),
                             ("true_probability", "true"), ("final_accuracy", "accuracy"),
                             ("true_loss", "true_loss")):  # fmt: skip
            own = [np.mean(one[values]) for one in entry["setups"]]
            assert entry[rate]["values"] == pytest.approx(own)
            assert all(len(one[values]) == 2 for one in entry["setups"])
        hits = sum(sum(one["success"]) for one in entry["setups"])
        assert entry["success_count"] == {"hits": hits, "trials": 4}
        assert (entry["poison"] is None) == (name == "clean")
        # 23 of 24 test images are left, for two victims of two setups.
        assert np.sum(entry["confusion"]) == 2 * 2 * 23
    assert {"craft gradient-matching", "victims gradient-matching"} <= record["seconds"].keys()
    parts = json.loads((folder / "seconds.json").read_text())["parts"]
    both = [parts[f"setups/{name}//craft gradient-matching"] for name in ("s0", "s1")]
    assert record["seconds"]["craft gradient-matching"] == pytest.approx(sum(both), abs=1e-3)
    losses = [one["outer_loss"] for one in record["arms"]["gradient-matching"]["setups"]]
    assert all(loss["last"] < loss["first"] for loss in losses)
    assert {one["outer_loss"] for one in record["arms"]["random-noise"]["setups"]} == {None}


def test_numbers_are_those_of_the_victims_themselves(finished):
    """Read by hand from the kept checkpoints: softmax, arg max, accuracy without the target."""
    folder, record = finished
    split, setup = small_job.split(), small_targeted.setup(1)
    states = jp.checkpoint.restore(
        folder / "setups/s1/victims/gradient-matching/checkpoints", _like(), read=dict
    ).state
    entry = record["arms"]["gradient-matching"]["setups"][1]
    kept, ends = np.arange(24) != 1, []
    for v in range(2):
        variables = jax.tree.map(lambda x, v=v: x[v], TrainState(*states).variables)
        image = jp.types.as_float(split.test.image)
        scores = np.asarray(small_targeted.MLP.apply(variables, image, train=False)[0], np.float64)
        odds = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        wanted, true = setup.wanted[0], setup.true[0]
        assert entry["intended"][v] == pytest.approx(odds[1, wanted], rel=1e-4)
        assert entry["true_loss"][v] == pytest.approx(-np.log(odds[1, true]), rel=1e-4)
        assert entry["success"][v] == float(scores[1].argmax() == wanted)
        ends.append(odds[1, wanted])
        right = scores.argmax(axis=1) == np.asarray(split.test.label)
        assert entry["accuracy"][v] == pytest.approx(right[kept].mean())
    values = json.loads((folder / "setups/s1/victims/gradient-matching/entry.json").read_text())
    assert len(values["intended_curve"]) == small_targeted.RECIPE.epochs
    assert values["intended_curve"][-1] == pytest.approx(np.mean(ends), rel=1e-4)
    lines = (folder / "setups/s1/victims/gradient-matching/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line)["success"] for line in lines]
    assert values["success_epochs"] == pytest.approx(np.mean(rows, axis=0))


def _like():
    learner = jp.victims.victim_training(small_targeted.MLP, small_targeted.RECIPE, 48)
    two = jp.over_restarts(learner, 2, chunk=None)
    return jax.jit(two.init)(jax.random.key(0), small_job.split())


def test_a_poison_folder_has_the_changed_rows_in_the_drawn_order(finished):
    folder, _ = finished
    train, setup = small_job.split().train, small_targeted.setup(0)
    for name in ("random-noise", "gradient-matching"):
        path = folder / "setups/s0/poison" / name
        assert poisoned.verify(path, train).passed
        poison = poisoned.read(path)
        assert poison.source_rows.tolist() == setup.poison_rows.tolist()
        assert poison.dataset.image.shape[0] == 6
        extra = poison.manifest.extra
        assert extra["target"] == {"split": "test", "row": 0} and extra["setup"] == "s0"
        assert extra["poison_rows"] == setup.poison_rows.tolist()
        whole = with_poison(train, poison)
        others = np.setdiff1d(np.arange(48), setup.poison_rows)
        assert np.array_equal(whole.image[others], train.image[others])
        assert np.array_equal(whole.image[setup.poison_rows], poison.dataset.image)
        assert np.array_equal(whole.label, train.label)
        change = np.abs(np.asarray(whole.image, int) - np.asarray(train.image, int))
        assert 0 < change.max() <= 255 * small_targeted.EPS + 1e-6


def test_a_finished_run_computes_nothing(finished, monkeypatch, capsys):
    folder, record = finished
    before = files(folder)
    monkeypatch.setattr(jp.loops, "run_chunks", lambda *args, **options: pytest.fail("computed"))
    assert small_targeted.run(folder.parents[1]) == record
    assert files(folder) == before
    shown = capsys.readouterr().out
    assert "2 victims of each of 2 setups" in " ".join(shown.split())


def test_a_lost_record_is_made_of_the_setups_alone(finished, monkeypatch, tmp_path):
    folder, record = finished
    copy = tmp_path / FOLDER
    shutil.copytree(folder, copy)
    (copy / "result.json").unlink()
    monkeypatch.setattr(jp.loops, "run_chunks", lambda *args, **options: pytest.fail("computed"))
    again = small_targeted.run(tmp_path)
    assert again["arms"] == record["arms"] and again["comparisons"] == record["comparisons"]
    assert again["seconds"].keys() == record["seconds"].keys()
    (copy / "setups/s1/poison/random-noise/images.npy").write_bytes(b"")
    with pytest.raises(InputError, match="was damaged or changed"):
        small_targeted.run(tmp_path)


class Died(BaseException):
    """As if the process were killed: nothing catches it."""


def test_a_killed_run_goes_on_in_the_part_it_was_in(finished, tmp_path, monkeypatch):
    """And ends with the same poisons and the same numbers; finished parts are not touched."""
    folder, record = finished
    here, before = tmp_path / FOLDER, Book.record
    chunks = functools.partial(jp.loops.run_chunks, save_every=1)
    monkeypatch.setattr(jp.loops, "run_chunks", chunks)
    deadly, done = ["setups/s1/craft/gradient-matching", "setups/s1/victims/random-noise"], []

    def note(book, start, rows):
        before(book, start, rows)
        part = book.folder.relative_to(here).as_posix()
        if part in deadly and start == 1:
            deadly.remove(part)
            raise Died
        done.append((part, start))

    monkeypatch.setattr(Book, "record", note)
    # Noise comes before matching, so its victims are where the first run ends.
    for part in ("setups/s1/victims/random-noise", "setups/s1/craft/gradient-matching"):
        with pytest.raises(Died):
            small_targeted.run(tmp_path)
        assert (here / part / "checkpoints").exists()
        assert not (here / "setups/s0/victims/gradient-matching/checkpoints").exists()
        stands = {p: p.stat().st_mtime_ns for p in here.rglob("s0/**/*") if p.is_file()}
        done.clear()
        last = part
    again = small_targeted.run(tmp_path)
    assert all(p.stat().st_mtime_ns == then for p, then in stands.items())
    assert done[0] == (last, 1)  # from the checkpoint after its first step
    assert not list(here.rglob("setups/*/victims/*/checkpoints"))
    for name, entry in record["arms"].items():
        assert again["arms"][name]["setups"] == entry["setups"]
    for name in ("random-noise", "gradient-matching"):
        for part in ("images.npy", "source_rows.npy"):
            path = f"setups/s1/poison/{name}/{part}"
            assert (here / path).read_bytes() == (folder / path).read_bytes()


def rows(**fields):
    return {"setups": [small_targeted.setup(0), small_targeted.setup(1, **fields)]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setups": []}, "there are no setups; name at least one"),
        (rows(name="s0"), "setup 's0' is named twice; name each setup once"),
        (rows(name="a/b"), "setup = 'a/b'; a plain folder name is needed, not hidden"),
        (
            rows(poison_rows=np.array([1, 48])),
            "setup s1: poison_rows runs from 1 to 48; allowed are 0 to 47",
        ),
        (
            rows(poison_rows=np.zeros(0, int)),
            "setup s1: it has no poison or no target; at least one of each is needed",
        ),
        ({"share": 0.5}, "share = 0.5; setups name the rows that may change"),
        (
            {"craft_seeds": 2},
            "craft_seeds = 2; every setup has an attack key of its own, so it must be 1",
        ),
        ({"probes": ("train-noise",)}, "probes = ('train-noise',); a targeted run has none"),
        ({"main": "brew"}, "main = 'brew'; allowed are random-noise, gradient-matching"),
        (
            {"source": "blobs"},
            "source = 'blobs'; a dict is needed: allowed are name (needed), split, data_dir",
        ),
        ({"experiment": "../x"}, "experiment = '../x'; a plain folder name is needed"),
        (
            {
                "arms": {
                    "brew": small_targeted.matching()._replace(
                        budget=dataclasses.replace(small_targeted.BUDGET, eps=0.1)
                    )
                },
                "main": "brew",
            },
            "arm 'brew': eps = 0.2 is beyond its budget, linf 0.1",
        ),
        ({"victims": {}}, "there are no victims; name at least one"),
        (
            {"victims": {"": Trainee(small_targeted.MLP, small_targeted.RECIPE), "b": None}},
            "victim = ''; a plain folder name is needed, not hidden",
        ),
        (
            {"surrogates": ()},
            "scenario.aux is empty; it must be the trained surrogate's Variables",
        ),
        (
            {
                "surrogates": [
                    Trainee(network, small_targeted.RECIPE)
                    for network in (small_targeted.MLP, small_targeted.MLP, small_targeted.LINEAR)
                ]
            },
            "surrogate 1 has network 0 of 2; networks take turns, so it must have 1",
        ),
    ],
)
def test_bad_input_ends_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(InputError) as error:
        small_targeted.run(tmp_path, **options)
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())


def test_wrong_labels_of_a_target_and_poisons_of_other_runs_are_refused(finished, tmp_path):
    folder, _ = finished
    true = (small_targeted.setup(1).true + 1) % 3
    with pytest.raises(InputError, match="setup s1: the target in test row 1 has label"):
        small_targeted.run(tmp_path, **rows(true=true))
    old = stored(folder / "setups/s0/poison/random-noise", "-")
    with pytest.raises(InputError, match="arm 'old' is stored or derived; a targeted run crafts"):
        small_targeted.run(tmp_path, arms={"old": old}, main="old")
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_bound_to_its_setups(finished):
    folder, _ = finished
    before = files(folder)
    with pytest.raises(InputError, match=r"made with setups\.sha256 = '\w+', now it is"):
        small_targeted.run(folder.parents[1], **rows(poison_rows=np.arange(3)))
    assert files(folder) == before


def shown(key, state, scenario):
    """An attack's step that changes nothing but checks what it knows."""
    networks = scenario.aux
    assert len(networks) == 2
    assert {x.shape[0] for x in jax.tree.leaves(networks[0])} == {2}
    assert {x.shape[0] for x in jax.tree.leaves(networks[1])} == {1}


def knows_two(*, eps):
    """Random noise of an attack that wants two networks."""
    noise = jp.attacks.random_noise(eps=eps)

    def step(key, state, scenario):
        shown(key, state, scenario)
        return noise.step(key, state, scenario)

    return noise._replace(step=step)


def test_two_victims_and_fresh_surrogates_of_two_networks_and_two_targets(tmp_path, quick_compile):
    trainees = [Trainee(net, small_targeted.RECIPE) for net in
                (small_targeted.MLP, small_targeted.LINEAR, small_targeted.MLP)]  # fmt: skip
    noise = arm(knows_two, eps=0.2, budget=small_targeted.BUDGET, expect="-")
    record = small_targeted.run(
        tmp_path,
        setups=[_two_targets()],
        surrogates=trainees,
        fresh_surrogates=True,
        victims={"mlp": trainees[0], "linear": trainees[1]},
        arms={"random-noise": noise},
        main="random-noise",
    )
    assert list(record["arms"]) == [
        "mlp/clean", "mlp/random-noise", "linear/clean", "linear/random-noise",
    ]  # fmt: skip
    assert [(row["victim"], row["b"]) for row in record["comparisons"]] == (
        [("mlp", "clean")] * 3 + [("linear", "clean")] * 3
    )
    entry = record["arms"]["linear/clean"]
    assert entry["success_rate"]["low"] is None  # one setup
    assert entry["success_count"]["trials"] == 2 * 2 and np.sum(entry["confusion"]) == 2 * 22
    own = tmp_path / FOLDER / "setups/s0"
    assert poisoned.read(own / "poison/random-noise").manifest.extra["targets"]["rows"] == [0, 3]
    assert {p.parent.name for p in own.glob("surrogates/*/metrics.jsonl")} == {"0", "1"}
    assert not (tmp_path / FOLDER / "surrogates").exists()
    assert not list(own.rglob("checkpoints"))


def _two_targets():
    true = np.asarray(small_job.split().test.label)[[0, 3]]
    return small_targeted.setup(0, target_rows=np.array([0, 3]), true=true, wanted=(true + 1) % 3)


def test_the_poison_exports_to_the_benchmark_in_the_drawn_order(finished, tmp_path, monkeypatch):
    folder, _ = finished
    split, setup = small_job.split(), small_targeted.setup(1)
    module = importlib.import_module("jaxpoison.data.export")
    monkeypatch.setattr(module, "load", lambda *args: split.test)
    path = folder / "setups/s1/poison/gradient-matching"
    out = jp.data.export(path, "benchmark", tmp_path / "out")
    with np.load(out / "poisons.npz") as poisons:
        image = poisons["image"]
    assert np.load(out / "base_indices.npy").tolist() == setup.poison_rows.tolist()
    assert np.array_equal(image, poisoned.read(path).dataset.image)
    with np.load(out / "target.npz") as target:
        assert int(target["label"]) == setup.true[0]
