"""What victims are judged on beside the clean test set, by victims and generators known by hand."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import loops
from jaxpoison.report import Arm, StudyConfig, Trainee, arm, control, shares, stored, transfer_job
from jaxpoison.report.judging import Judging
from jaxpoison.types import Attack, Dataset, Info, InputError, Variables, Victim
from jaxpoison.victims import Classical, recipes
from tests.report import small_job

pytestmark = pytest.mark.usefixtures("quick_module")
EPS, PROBES = 0.1, ("train-noise", "test-noise", "poisoned-test")
BUDGET = jp.perturb.Budget("linf", EPS)
MAP = (1, 2, 0)


def left(image):
    """Class 1 where the left half is brighter, else 0."""
    flat = np.asarray(image, np.float64).reshape(-1, *small_job.SHAPE)
    return (flat[:, :, :4].sum(axis=(1, 2, 3)) > flat[:, :, 4:].sum(axis=(1, 2, 3))).astype(int)


class Rule:
    """Scikit-learn's face of `left`."""

    def fit(self, x, y):
        return self

    def predict(self, x):
        return left(x)


def halves():
    """A network that is `left` whatever it learns."""

    def apply(variables, image, *, train, key=None):
        gap = jnp.sum(image[:, :, :4], axis=(1, 2, 3)) - jnp.sum(image[:, :, 4:], axis=(1, 2, 3))
        logits = jnp.stack([-gap, gap, jnp.full_like(gap, -1e6)], axis=1)
        return logits + 0 * variables.params["w"][None], variables.stats

    return Victim(lambda key: Variables({"w": jnp.zeros(3)}, {}), apply, lambda v, x: x)


def waves(frequency=9.0):
    """x + eps sin(frequency x), as an attack with a generator that has nothing to learn."""

    def poison(state, scenario):
        x = jp.types.as_float(scenario.train.image)
        rows = jnp.zeros(len(x), bool).at[scenario.index].set(True)
        noisy = jnp.clip(x + EPS * jnp.sin(state.params["f"] * x), 0, 1)
        return Dataset(jnp.where(rows[:, None, None, None], noisy, x), scenario.train.label)

    def step(key, state, scenario):
        return state, Info(jnp.float32(0), jnp.float32(0), jnp.array(True))

    start = Variables({"f": jnp.float32(frequency)}, {})
    return Attack(lambda key, scenario: start, step, poison, generator=lambda state: state)


def released(image):
    """Grey levels of `waves`, in numpy."""
    x = np.asarray(image) / 255
    shift = np.rint(255 * np.clip(x + EPS * np.sin(9.0 * x), 0, 1)) - 255 * x
    return (np.asarray(image) + np.clip(np.rint(shift), -25, 25)).astype(np.uint8)


def accuracy(image, label):
    return np.mean(left(image) == np.asarray(label))


def run(runs, *, arms=None, main="waves", **options):
    """Hand-made victims on `waves` of half of the rows, on shares of it and on noise."""
    waving = Arm(waves(), 2, BUDGET, "-", {"attack": "waves"}, label_map=MAP)
    every = {"waves": waving} | shares("waves", (0.5,), expect="-") | control(BUDGET)
    config = {"runs": runs, "victims": 2, "share": 0.5, "probes": PROBES}
    return transfer_job(
        "probed",
        StudyConfig(**config | options),
        victims={
            "net": Trainee(halves(), recipes.small(epochs=1, batch_size=16)),
            "rule": Classical(lambda seed: Rule(), False, "nobody"),
        },
        split=small_job.split(),
        source={"name": "blobs"},
        arms=arms or every,
        main=main,
        chunk=None,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, run(runs)


def images(runs, name, part="images"):
    return np.load(runs / "probed" / "default" / "poison" / name / f"{part}.npy")


@pytest.mark.parametrize("victim", ["net", "rule"])
def test_probes_are_the_accuracies_by_hand(finished, victim):
    runs, record = finished
    (train, test), arms = small_job.split(), record["arms"]
    clean, noisy = np.asarray(test.image, int), released(test.image)
    new = {
        "test-noise": accuracy(noisy - clean, test.label),
        "poisoned-test": accuracy(noisy, test.label),
    }
    assert "probes" not in arms[f"{victim}/clean"]
    for name in ("waves", "waves@0.5", "random-noise"):
        rows = images(runs, name, "mask")
        shift = images(runs, name).astype(int) - np.asarray(train.image)
        expected = {"train-noise": accuracy(shift[rows], np.asarray(train.label)[rows])}
        expected |= {} if name == "random-noise" else new
        probes = arms[f"{victim}/{name}"]["probes"]
        assert list(probes) == list(expected)
        for probe, value in expected.items():
            assert probes[probe]["values"] == pytest.approx([value] * (2 if victim == "net" else 1))
    rates = {**arms[f"{victim}/waves"]["probes"]}
    assert len({r["mean"] for r in rates.values()}) == 3  # they are told apart


@pytest.mark.parametrize("victim", ["net", "rule"])
def test_success_is_the_share_read_as_the_map_says(finished, victim):
    test = small_job.split().test
    wanted = np.array(MAP)[np.asarray(test.label)]
    for name in ("clean", "waves", "waves@0.5", "random-noise"):
        entry = finished[1]["arms"][f"{victim}/{name}"]
        assert entry["success_rate"]["mean"] == pytest.approx(accuracy(test.image, wanted))
    assert accuracy(test.image, wanted) != accuracy(test.image, test.label)


def test_a_job_stopped_between_arms_ends_the_same(finished, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    judge = Judging.retrain

    def stop_at(self, arm, *args, **options):
        if arm == "waves@0.5":
            raise Stop
        judge(self, arm, *args, **options)

    monkeypatch.setattr(Judging, "retrain", stop_at)
    with pytest.raises(Stop):
        run(tmp_path)
    monkeypatch.undo()
    crafted = tmp_path / "probed" / "default" / "craft" / "waves" / "metrics.jsonl"
    before = crafted.stat().st_mtime_ns
    again = run(tmp_path)
    assert again["arms"] == finished[1]["arms"] and again["config"] == finished[1]["config"]
    assert crafted.stat().st_mtime_ns == before  # the generator was loaded, not trained again


def test_a_finished_run_without_its_record_is_judged_alike(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "probed" / "default" / "result.json").unlink()
    monkeypatch.setattr(loops, "_chunk", None)  # nothing is trained again
    assert run(tmp_path)["arms"] == finished[1]["arms"]


def test_restarts_poison_held_out_images_by_the_best(tmp_path):
    restarts = jp.over_restarts(waves(), 2)
    one = Arm(restarts, 1, BUDGET, "-", {"attack": "waves"})
    record = run(tmp_path, arms={"waves": one}, craft_seeds=2)
    test = small_job.split().test
    probes = record["arms"]["net/waves"]["probes"]
    expected = accuracy(released(test.image), test.label)
    assert probes["poisoned-test"]["mean"] == pytest.approx(expected)


def test_a_stored_poison_keeps_its_map_and_the_noise_of_its_rows(finished, tmp_path):
    runs, record = finished
    folder = tmp_path / "waves"
    shutil.copytree(runs / "probed" / "default" / "poison" / "waves", folder)
    taken = stored(folder, "-")
    assert taken.label_map is None  # this attack noted none
    again = run(tmp_path / "runs", arms={"waves": taken}, share=1.0)
    there = record["arms"]["net/waves"]["probes"]
    assert again["arms"]["net/waves"]["probes"] == {"train-noise": there["train-noise"]}


def test_an_arm_notes_map_and_network(tmp_path):
    network = jp.types.Generator(None, None, "dense", small_job.SHAPE, (("hidden", (4,)),))

    def factory(victim, network, *, label_map, eps):
        return waves()

    one = arm(factory, None, network, label_map=[1, 2, 0], eps=EPS, budget=BUDGET, expect="-")
    assert one.label_map == MAP and one.network is network and one.trains_generator
    assert one.settings["label_map"] == [1, 2, 0]
    assert one.settings["network"] == {"name": "dense", "options": {"hidden": [4]}}
    json.dumps(one.facts())
    taken = stored_with(tmp_path, one.settings)
    assert taken.label_map == MAP


def stored_with(tmp_path, settings):
    train = small_job.split().train
    jp.data.poisoned.write(
        tmp_path / "p", poisoned=train, clean=train, index=[0], attack="a", settings=settings,
        norm="linf", eps=EPS, source={"name": "blobs"},
    )  # fmt: skip
    return stored(tmp_path / "p", "-")


def test_bad_settings_end_before_work(tmp_path):
    short = Arm(waves(), 1, BUDGET, "-", {}, label_map=(1, 0))
    for options, message in [
        ({"arms": {"waves": short}}, "label_map of waves has 2 entries; there are 3 classes"),
        ({"arms": {"surrogate": short}, "main": "surrogate"}, "no arm can be called 'surrogate'"),
        ({"arms": {".x": short}, "main": ".x"}, "arm = '.x'; a plain folder name is needed"),
        ({"probes": ("noise",)}, "probes = 'noise'; allowed are train-noise, test-noise, poiso"),
    ]:
        with pytest.raises(InputError, match=message):
            run(tmp_path, **options)
    assert not list(tmp_path.iterdir())
