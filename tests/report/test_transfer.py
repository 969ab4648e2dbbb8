"""Many victims of the same training sets: names, folders, resumption, and poisons stored before."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import jaxpoison as jp
from jaxpoison.report import (
    Arm,
    Robustness,
    StudyConfig,
    Trainee,
    arm,
    control,
    main_job,
    stored,
    transfer_job,
)
from jaxpoison.types import Dataset, InputError, Split, as_float
from jaxpoison.victims import Classical, join_head, on_features, recipes, transfer
from tests.report import small_job

pytestmark = pytest.mark.usefixtures("quick_module")
BUDGET = jp.perturb.Budget("linf", small_job.EPS)
NEAREST = Classical(lambda seed: KNeighborsClassifier(1), False, "nobody")


def run(runs, *, arms=None, split=None, **options):
    """The record of one network and one nearest-neighbor rule on clean data and noise."""
    network = jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=(6,))
    config = StudyConfig(**{"runs": runs, "victims": 2} | options)
    return transfer_job(
        "many",
        config,
        victims={
            "mlp": Trainee(
                network,
                recipes.small(epochs=small_job.EPOCHS, batch_size=16),
                robustness=Robustness(0.2, 3),
            ),
            "near": NEAREST,
        },
        split=split or small_job.split(),
        source={"name": "blobs"},
        arms=arms or control(BUDGET),
        main=next(iter(arms or control(BUDGET))),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return runs, run(runs)


def test_every_victim_is_judged_on_every_set(finished):
    runs, record = finished
    names = ["mlp/clean", "mlp/random-noise", "near/clean", "near/random-noise"]
    assert list(record["arms"]) == names
    for name in names[:2]:  # robust accuracy is a probe of the network that asks for it
        entry = record["arms"][name]
        plain, attacked = entry["final_accuracy"], entry["probes"]["PGD-3 at 51/255"]
        assert np.all(np.less(attacked["values"], plain["values"]))
    assert "probes" not in record["arms"]["near/clean"]
    for name, entry in record["arms"].items():
        victim, kind = name.split("/")
        assert entry["victim"] == victim and (entry["poison"] is None) == (kind == "clean")
        assert len(entry["final_accuracy"]["values"]) == (2 if victim == "mlp" else 1)
        assert list((runs / "many" / "default" / "victims" / victim / kind).iterdir())
        assert f"victims {name}" in record["seconds"]
    # One neighbor of clean data: every training row is its own.
    assert record["arms"]["near/clean"]["train_accuracy"]["mean"] == 1
    facts = record["config"]
    assert facts["trainees"]["mlp"]["recipe"]["epochs"] == small_job.EPOCHS
    assert facts["classifiers"] == {"near": "nobody"}


def test_a_lost_cell_is_the_only_one_computed_again(finished, tmp_path):
    runs, record = finished
    shutil.copytree(runs, tmp_path / "runs")
    folder = tmp_path / "runs" / "many" / "default"
    (folder / "result.json").unlink()
    for lost in ("mlp/random-noise", "near/clean"):
        shutil.rmtree(folder / "victims" / lost)
    kept = [folder / "victims" / "mlp/clean/metrics.jsonl",
            folder / "victims" / "near/random-noise/entry.json"]  # fmt: skip
    before = [path.stat().st_mtime_ns for path in kept]
    again = run(tmp_path / "runs")
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert again["arms"] == record["arms"]


def test_a_stored_poison_is_judged_as_the_crafted_one(finished, tmp_path):
    runs, record = finished
    path = runs / "many" / "default" / "poison" / "random-noise"
    again = run(tmp_path, arms={"before": stored(path, "as then")})
    then = record["arms"]["mlp/random-noise"]
    now = again["arms"]["mlp/before"]
    assert now["expect"] == "as then" and now["poison"] == then["poison"]
    assert now["final_accuracy"] == then["final_accuracy"]
    assert again["config"]["attacks"]["before"]["attack"] == "random-noise"
    assert again["poison"] == record["poison"]


def test_noise_beside_a_stored_poison_changes_the_same_rows(tmp_path):
    share = small_job.run(tmp_path, share=0.25)
    assert share["arms"]["random-noise"]
    path = tmp_path / "small" / "default" / "poison" / "random-noise"
    run(tmp_path, arms={"before": stored(path, "-")} | control(BUDGET))
    masks = [np.load(p / "mask.npy") for p in (path, tmp_path / "many/default/poison/random-noise")]
    np.testing.assert_array_equal(*masks)
    assert masks[0].sum() == 12


def test_what_a_stored_poison_does_not_fit_is_refused_before_work(finished, tmp_path):
    runs, _ = finished
    path = runs / "many" / "default" / "poison" / "random-noise"
    poison = {"before": stored(path, "-")}
    train, test = small_job.split()
    other = Split(train._replace(image=255 - np.asarray(train.image)), test)
    with pytest.raises(
        InputError, match="is no poison of this training set .*it was made of blobs"
    ):
        run(tmp_path, arms=poison, split=other)
    with pytest.raises(InputError, match="share = 0.5; the rows of .* are chosen"):
        run(tmp_path, arms=poison, share=0.5)
    with pytest.raises(InputError, match="no arm can be called 'clean'"):
        run(tmp_path, arms={"clean": stored(path, "-")})
    with pytest.raises(InputError, match="is no poison folder"):
        stored(tmp_path, "-")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": None, "eps": None}, "states no budget"),
        ({"domain": "float"}, "holds float images with changed rows; uint8 images"),
    ],
)
def test_a_poison_that_victims_or_controls_cannot_use_is_refused(tmp_path, fields, message):
    train = small_job.split().train
    options = {"norm": "linf", "eps": 0.1} | fields
    image = as_float(train.image)
    jp.data.poisoned.write(
        tmp_path / "p",
        poisoned=train._replace(image=image),
        clean=train,
        index=[0],
        attack="none",
        settings={},
        source={"name": "blobs"},
        **options,
    )
    with pytest.raises(InputError, match=message):
        stored(tmp_path / "p", "-")


def test_attack_keys_are_gathered_for_every_victim(tmp_path):
    record = run(tmp_path, craft_seeds=2)
    assert list(record["arms"])[1] == "mlp/random-noise" and len(record["arms"]) == 4
    for victim in ("mlp", "near"):
        entry = record["arms"][f"{victim}/random-noise"]
        assert len(entry["craft_seeds"]["values"]) == 2
        assert entry["craft_seeds"]["values"][0] == entry["final_accuracy"]["mean"]


def test_one_network_by_several_recipes_beside_a_surrogate(tmp_path):
    network = jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=())
    plain = recipes.small(epochs=1, batch_size=16)
    robust = dataclasses.replace(plain, adversarial="pgd", adversarial_eps=0.3, adversarial_steps=2)

    def against(state, scenario):
        kernel = scenario.aux.params["Dense_0"]["kernel"][:, 0].reshape(1, *small_job.SHAPE)
        image = as_float(scenario.train.image) + small_job.EPS * jnp.sign(kernel)
        return Dataset(jnp.clip(image, 0, 1), scenario.train.label)

    knowing = jp.attacks.random_noise(eps=small_job.EPS)._replace(poison=against)
    record = transfer_job(
        "many",
        StudyConfig(runs=tmp_path, victims=2),
        victims={"mlp": Trainee(network, plain), "mlp-adversarial": Trainee(network, robust)},
        split=small_job.split(),
        source={"name": "blobs"},
        arms={"knowing": Arm(knowing, 1, BUDGET, "-", {})},
        main="knowing",
        surrogate=Trainee(network, plain),
        chunk=None,
    )
    assert (tmp_path / "many" / "default" / "craft" / "surrogate" / "metrics.jsonl").exists()
    poison = np.load(tmp_path / "many" / "default" / "poison" / "knowing" / "images.npy")
    shift = np.sign(poison.astype(int) - np.asarray(small_job.split().train.image))
    assert (shift.max(axis=0) - shift.min(axis=0) <= 1).all()  # one sign a pixel, or clipped
    assert len(np.unique(shift)) == 3
    networks = record["config"]["trainees"]
    assert networks["mlp"]["recipe"]["adversarial"] == "none"
    assert networks["mlp-adversarial"]["recipe"]["adversarial_eps"] == 0.3
    metrics = [
        json.loads((tmp_path / "many/default/victims" / name / "knowing" / "metrics.jsonl")
                   .read_text().splitlines()[0])["outer_loss"]
        for name in networks
    ]  # fmt: skip
    assert metrics[1][0] > metrics[0][0] + 0.05  # its batches are harder to fit


def test_no_victims_are_refused():
    with pytest.raises(InputError, match="there are no victims"):
        transfer_job("many", StudyConfig(), victims={}, split=small_job.split(), source={},
                     arms=control(BUDGET), main="random-noise")  # fmt: skip


def test_restarts_and_functions_are_among_the_settings_of_an_arm():
    network = jp.models.logistic_regression(small_job.SHAPE, small_job.CLASSES)
    shift = jp.data.augment.shift_flip()
    one = arm(jp.attacks.error_maximizing, network, eps=0.1, num_classes=3, augment=shift,
              num_steps=2, budget=BUDGET, expect="-", restarts=3)  # fmt: skip
    assert one.attack.single is not None
    facts = one.facts()
    assert facts["restarts"] == 3 and facts["num_steps"] == 2
    assert facts["augment"].startswith("shift_flip")
    json.dumps(facts)
    single = arm(jp.attacks.lsp, num_classes=3, budget=BUDGET, expect="-")
    assert single.attack.single is None and "restarts" not in single.facts()
    assert dataclasses.is_dataclass(single.budget)


def pretrained(runs, start):
    """The record of heads on the extractor of `start`, after noise that knows it."""
    network = jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=(6,), batch_norm=False)
    head = jp.models.logistic_regression((1, 1, 6), small_job.CLASSES)
    victim = on_features(network, head)
    one = Trainee(victim, recipes.small(epochs=2, batch_size=16), transfer("linear", start))
    noise = arm(
        jp.attacks.frozen_error_minimizing, network, head, num_classes=small_job.CLASSES,
        eps=small_job.EPS, batch_size=16, budget=BUDGET, expect="-",
    )  # fmt: skip
    return main_job(
        "heads", StudyConfig(runs=runs, victims=2), victim=one.victim, recipe=one.recipe,
        transfer=one.transfer, surrogate=one, split=small_job.split(), source={"name": "blobs"},
        arms=control(BUDGET) | {"noise": noise}, main="noise", chunk=None,
    )  # fmt: skip


def test_victims_start_from_a_pretrained_network_and_attacks_know_it(tmp_path):
    """Of an extractor of zeros a head learns nothing but its bias: all is one class."""
    shapes = jax.eval_shape(
        jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=(6,), batch_norm=False).init,
        jax.random.key(0),
    )
    head = jp.models.logistic_regression((1, 1, 6), small_job.CLASSES).init(jax.random.key(1))
    start = join_head(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), head)
    record = pretrained(tmp_path, start)
    sizes = np.bincount(np.asarray(small_job.split().test.label)) / 24
    for entry in record["arms"].values():
        for found in entry["final_accuracy"]["values"]:
            assert np.abs(sizes - found).min() < 1e-6
    facts = transfer("linear", start).facts()
    assert record["config"]["transfer"] == record["config"]["surrogate_transfer"] == facts
    other = jax.tree.map(lambda x: jnp.zeros((2, *x.shape)), start)
    with pytest.raises(InputError, match="the pretrained variables are of another network"):
        pretrained(tmp_path / "other", other)
    assert not (tmp_path / "other").exists()
