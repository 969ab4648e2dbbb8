"""The main job in one call: what binds a run folder, what is refused before work, craft seeds."""

import dataclasses
import importlib

import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.report import Arm, Study, StudyConfig, arm, control, main_job
from jaxpoison.types import Dataset, InputError, Split
from jaxpoison.victims import Recipe
from tests.report import small_job

pytestmark = pytest.mark.usefixtures("quick_module")


def files(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, small_job.run(runs)


def changed(part, **fields):
    """The job's data with one part's fields replaced."""
    split = small_job.split()
    return split._replace(**{part: getattr(split, part)._replace(**fields)})


TRAIN, TEST = small_job.split()
LABEL = np.asarray(TRAIN.label)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.001}, "share = 0.001 of 48 rows is less than one"),
        ({"num_steps": 0}, "num_steps of random-noise = 0; it must be at least 1"),
        (
            {"data": changed("train", image=np.asarray(TRAIN.image) / np.float32(255))},
            "training images are float32; poisons are stored as uint8, so uint8 is needed",
        ),
        (
            {"data": changed("train", label=np.where(np.arange(48) == 7, 11, LABEL))},
            "training set: label 11 of row 7 is outside [0, 3)",
        ),
        (
            {"data": changed("test", label=np.full(24, -1))},
            "test set: label -1 of row 0 is outside [0, 3)",
        ),
        (
            {"data": changed("test", image=TEST.image[:, :, :4])},
            "training images are (8, 8, 1), test images (8, 4, 1); one shape is needed",
        ),
        (
            {"data": changed("test", image=TEST.image[:0], label=TEST.label[:0])},
            "test set: no images (shape (0, 8, 8, 1)); N, H, W and C must be at least 1",
        ),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_bad_input_ends_before_anything_is_written_or_removed(
    finished, tmp_path, options, message, overwrite
):
    runs, _ = finished
    before = files(runs)
    for folder in (tmp_path, runs):
        with pytest.raises(InputError) as error:
            small_job.run(folder, overwrite=overwrite, **options)
        assert str(error.value) == message
    assert files(runs) == before and not list(tmp_path.iterdir())


def test_an_attack_that_cannot_start_ends_before_work(tmp_path):
    lsp = arm(
        jp.attacks.lsp,
        eps=1.0,
        num_classes=3,
        patch=3,
        num_steps=1,
        budget=jp.perturb.Budget("l2", 1.0),
        expect="",
    )
    with pytest.raises(InputError, match="patch = 3 does not divide the 8 x 8 image"):
        main_job(
            "small",
            StudyConfig(runs=tmp_path),
            victim=jp.models.logistic_regression(small_job.SHAPE, 3),
            recipe=jp.victims.recipes.small(epochs=1),
            split=small_job.split(),
            source={"name": "blobs"},
            arms={"lsp": lsp},
            main="lsp",
        )
    assert not list(tmp_path.iterdir())


def test_a_recipe_says_how_victims_are_trained_and_judged(tmp_path):
    """Adversarially, and with batch statistics: the last point of a curve is the final accuracy."""
    recipe = dataclasses.replace(
        small_job.recipes.small(epochs=2, batch_size=16, learning_rate=0.1),
        adversarial="pgd",
        adversarial_steps=2,
        statistics="batch",
        evaluation_batch=5,
    )
    record = main_job(
        "small",
        StudyConfig(runs=tmp_path, victims=2),
        victim=jp.models.mlp(small_job.SHAPE, 3, hidden=(4,)),
        recipe=recipe,
        split=small_job.split(),
        source={"name": "blobs"},
        arms=control(jp.perturb.Budget("linf", 0.1)),
        main="random-noise",
    )
    held = record["config"]["recipe"]
    assert Recipe(**{k: tuple(v) if isinstance(v, list) else v for k, v in held.items()}) == recipe
    for entry in record["arms"].values():
        assert entry["final_accuracy"]["mean"] == pytest.approx(entry["curve"][-1])
    assert record["arms"]["clean"]["train_accuracy"]["mean"] > 0.5


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_run_folder_is_bound_to_its_data(finished, part):
    runs, _ = finished
    before = files(runs)
    image = np.asarray(getattr(small_job.split(), part).image)
    with pytest.raises(
        InputError, match=rf"made with data\.{part}\.image_sha256 = '\w+', now it is"
    ):
        small_job.run(runs, data=changed(part, image=255 - image))
    assert files(runs) == before


def test_a_run_folder_is_bound_to_recipe_and_attack_settings(finished, monkeypatch):
    runs, _ = finished
    before = files(runs)
    monkeypatch.setattr(small_job, "EPS", 0.05)
    with pytest.raises(InputError, match=r"made with attacks\.random-noise\.eps = 0\.1, now it is"):
        small_job.run(runs)
    monkeypatch.undo()
    monkeypatch.setattr(small_job, "EPOCHS", 5)
    with pytest.raises(InputError, match=r"made with recipe\.epochs = 4, now it is 5"):
        small_job.run(runs)
    assert files(runs) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_left_alone(tmp_path, overwrite):
    folder = tmp_path / "small" / "default"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("chapter 1")
    with pytest.raises(InputError, match="holds other files than a run; choose a --name"):
        Study("small", StudyConfig(runs=tmp_path, overwrite=overwrite))
    assert (folder / "thesis.txt").read_text() == "chapter 1"


def test_the_test_set_never_enters_an_attack(finished, tmp_path):
    runs, record = finished
    image = 255 - np.asarray(TEST.image)
    other = small_job.run(tmp_path, data=Split(TRAIN, Dataset(image, TEST.label)))
    assert other["arms"]["clean"]["final_accuracy"] != record["arms"]["clean"]["final_accuracy"]
    for part in ("images.npy", "delta.npy"):
        path = f"small/default/poison/random-noise/{part}"
        assert (tmp_path / path).read_bytes() == (runs / path).read_bytes()
    surrogate = "small/default/craft/surrogate/metrics.jsonl"
    assert (tmp_path / surrogate).read_text() == (runs / surrogate).read_text()


def test_craft_seeds_are_whole_repeats_under_other_keys(finished, tmp_path, capsys):
    _, single = finished
    record = small_job.run(tmp_path, craft_seeds=3)
    assert list(record["arms"]) == ["clean", "random-noise"]
    spread = record["arms"]["random-noise"]["craft_seeds"]
    final = record["arms"]["random-noise"]["final_accuracy"]
    assert final == single["arms"]["random-noise"]["final_accuracy"]
    assert len(spread["values"]) == 3 and spread["values"][0] == pytest.approx(final["mean"])
    assert spread["mean"] == pytest.approx(np.mean(spread["values"]))
    assert "over 3 attack keys" in capsys.readouterr().out
    folder = tmp_path / "small" / "default" / "poison"
    poisons = [np.load(folder / n / "images.npy") for n in ("random-noise", "random-noise.1")]
    assert not np.array_equal(*poisons)


def test_a_network_of_another_shape_ends_before_work(tmp_path):
    with pytest.raises(
        InputError, match=r"images are \(1, 8, 8, 1\), the network takes \(batch, \*\(6"
    ):
        main_job(
            "small",
            StudyConfig(runs=tmp_path),
            victim=jp.models.logistic_regression((6, 6, 1), 3),
            recipe=jp.victims.recipes.small(epochs=1),
            split=small_job.split(),
            source={"name": "blobs"},
            arms=control(jp.perturb.Budget("linf", 0.1)),
            main="random-noise",
        )
    assert not list(tmp_path.iterdir())


def test_more_arms_and_more_attack_keys_trace_nothing_again(tmp_path):
    """Traces of the network and of the attack, counted as Python runs them."""
    traces = {"network": 0, "attack": 0}

    def counted(what, function):
        def call(*args, **options):
            traces[what] += 1
            return function(*args, **options)

        return call

    def run(name, *arms, **options):
        network = jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=(6,))
        attack = jp.attacks.random_noise(eps=0.1)
        attack = attack._replace(step=counted("attack", attack.step))
        budget = jp.perturb.Budget("linf", 0.1)
        before = dict(traces)
        main_job(
            "small",
            StudyConfig(runs=tmp_path, name=name, victims=2, **options),
            victim=network._replace(apply=counted("network", network.apply)),
            recipe=jp.victims.recipes.small(epochs=2, batch_size=20),
            split=small_job.split(),
            source={"name": "blobs"},
            arms={arm: Arm(attack, 1, budget, "-", {}) for arm in arms},
            main=arms[0],
        )
        return {k: v - before[k] for k, v in traces.items()}

    one = run("one", "a")
    assert min(one.values()) > 0
    assert run("several", "a", "b", "c") == one
    assert run("keys", "a", craft_seeds=3) == one


def test_a_mesh_spreads_the_batches_of_victims_and_surrogate(finished, tmp_path, monkeypatch):
    module = importlib.import_module("jaxpoison.victims.transfer")
    meshes, train = [], module.victim_training

    def spy(*args, **options):
        meshes.append(options["mesh"])
        return train(*args, **options)

    monkeypatch.setattr(module, "victim_training", spy)
    mesh = jp.device_mesh(2, axis="batch")
    record = small_job.run(tmp_path, mesh=mesh)
    assert meshes == [mesh, mesh]
    for name, entry in finished[1]["arms"].items():
        # Rounding differs, and Adam makes much of it on 48 rows; learner tests compare closely.
        spread = record["arms"][name]["curve"][-1]
        assert spread == pytest.approx(entry["curve"][-1], abs=0.1)


def test_an_experiment_about_an_arm_that_is_not_there_ends_before_it_begins(tmp_path):
    with pytest.raises(jp.InputError, match="main = 'mien'; allowed are"):
        small_job.run(tmp_path, main="mien")
    assert not list(tmp_path.iterdir())
