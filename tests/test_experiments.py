"""Every experiment runs in seconds by its smoke preset, and leaves what it promises."""

import dataclasses
import gc
import importlib
import itertools
import json
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from experiments import acceptance
from experiments import tables as committed
from jaxpoison.data import poisoned, synthetic
from jaxpoison.perturb import Budget
from jaxpoison.report import (
    AddedImageConfig,
    ImageConfig,
    PaperConfig,
    added_tables,
    command_line,
    matrix_tables,
    tables,
    targeted_tables,
)
from jaxpoison.report.arms import Stored
from jaxpoison.report.images import RECIPES
from jaxpoison.types import Dataset, Scenario, Split
from jaxpoison.victims import Recipe, recipes

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "experiments"
NAMES = sorted(
    p.stem for p in FOLDER.glob("*.py") if p.stem not in ("acceptance", "tables", *committed.APART)
)
GENERATED = {
    "fashion_mnist": ((28, 28, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "svhn_cropped": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
}
"""Shape and classes of the sets in whose place the smoke runs have generated images."""
RATE = {"mean", "low", "high", "values"}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Generated images in the place and shape of the first of the real sets."""
    folder = tmp_path_factory.mktemp("npz")
    for name, (shape, classes) in GENERATED.items():
        for seed, (split, num) in enumerate({"train": 200, "test": 100}.items()):
            image, label = synthetic.blobs(jax.random.key(seed), num, classes, shape)
            np.savez(folder / f"{name}-{split}.npz", image=image, label=label)
    return folder


@pytest.fixture
def release_programs_early():
    """All smoke runs together would hold more memory maps than the 65,530 a process may have."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.mark.usefixtures("release_programs_early")
@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path, request, quickest_compile):
    module, options = importlib.import_module(f"experiments.{name}"), {"runs": tmp_path}
    if issubclass(module.Config, ImageConfig | AddedImageConfig):
        options["data_dir"] = request.getfixturevalue("images")
    check_run(module, module.Config.smoke(**options), name)


def test_smoke_with_a_convolutional_victim(tmp_path, images, quickest_compile):
    module = importlib.import_module("experiments.fashion_mnist_tap")
    options = {"runs": tmp_path, "data_dir": images, "network": "small_cnn"}
    check_run(module, module.Config.smoke(**options), "fashion_mnist_tap")


def check_run(module, config, name):
    """The main job leaves its record, pictures and verified poisons."""
    record = module.main(config)
    run = config.runs / name / "default"
    assert json.loads((run / "result.json").read_text()) == record
    if added_tables.is_added(record):
        check_added(record, name, config)
        assert (run / "curves.png").stat().st_size > 1000
        folders = list((run / "poison").iterdir())
        assert folders and all(poisoned.verify(folder).passed for folder in folders)
        return
    check_record(record, name, config)
    arms = {tables.split_name(name, entry)[1] for name, entry in record["arms"].items()}
    folders = [run / "poison"]
    if targeted_tables.is_targeted(record):
        folders = [run / "setups" / name / "poison" for name in record["config"]["setups"]["names"]]
    for picture in (
        ("curves.png",) if targeted_tables.is_targeted(record) else ("grid.png", "curves.png")
    ):
        assert (run / picture).stat().st_size > 1000
    for folder, arm in itertools.product(folders, sorted(arms - {"clean"})):
        assert poisoned.verify(folder / arm).passed


def check_added(record, name, config):
    """Every follower on the clean set and on each arm at each share, beside its control."""
    assert record["experiment"] == name and record["config"]["seed"] == config.seed
    victims = {entry["victim"] for entry in record["arms"].values() if "victim" in entry} or {""}
    clean = [one for one in record["arms"] if one.split("/")[-1] == "clean"]
    assert len(clean) == len(victims)
    crafted = [entry for entry in record["arms"].values() if "added" in entry]
    assert len(crafted) + len(clean) == len(record["arms"])
    for entry in crafted:
        assert tables.control(record["arms"], entry) is not None
        assert entry["expect"] and len(entry["final_accuracy"]["values"]) in (1, config.victims)
        assert entry["sweep"]["option"] == "share" and entry["added"]["num_added"] >= 1
    for number in record["published"]:
        assert set(number) == {"what", "value", "source"} and 0 <= number["value"] <= 1


def check_record(record, name, config):
    """The shape that all result.json share."""
    assert set(record) == {
        "experiment", "config", "versions", "device", "date", "seconds", "arms", "poison",
        "published", *(["comparisons"] if targeted_tables.is_targeted(record) else []),
    }  # fmt: skip
    assert record["experiment"] == name and record["config"]["seed"] == config.seed
    assert {"compile", "total"} <= set(record["seconds"])
    for name, entry in record["arms"].items():
        victim, arm = tables.split_name(name, entry)
        assert f"{victim}/clean".removeprefix("/") in record["arms"]
        alone = arm == "clean" or "defended" in entry  # noise has no row in a matrix
        assert alone or tables.control(record["arms"], entry) is not None
        seeds = (
            1 if victim in ("sklearn.rbf_svm", "sklearn.logistic_regression") else config.victims
        )
        rates = ["final_accuracy", "peak_accuracy"]
        if targeted_tables.is_targeted(record):
            seeds = len(entry["setups"])
            rates += ["success_rate", "intended_probability", "true_probability"]
            trials = seeds * config.victims
            assert entry["success_count"]["trials"] == trials
        for field in rates:
            assert set(entry[field]) == RATE
            values = entry[field]["values"]
            assert len(values) == seeds and np.all(0 <= np.array(values))
            assert np.all(np.array(values) <= 1)
            assert entry[field]["mean"] == pytest.approx(np.mean(values))
        assert entry["expect"]
        assert (entry["poison"] is None) == (arm == "clean")
    assert set(record["poison"]) == {"norm", "eps", "measured", "psnr", "ssim"}
    if record["poison"]["norm"] is None:
        assert record["poison"]["measured"] is None and record["poison"]["psnr"] > 5
    else:
        assert record["poison"]["measured"] <= record["poison"]["eps"] + 1e-6
    for number in record["published"]:
        assert (
            set(number) - {"attack", "defense"} == {"what", "value", "source"}
            and 0 <= number["value"] <= 1
        )


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a script: (exit code, what it said on standard error)."""

    def run(name, *words):
        module = importlib.import_module(f"experiments.{name}")
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            command_line(module.main, module.Config, module.__doc__)
        return stop.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "cifar10_lsp",
            ["--train-images", 100],
            "batch_size = 128 is larger than the training set of 100 rows; it must be from 1 to "
            "100",
        ),
        (
            "cifar10_tap",
            ["--accumulate", 129],
            "accumulate = 129 micro-batches of a batch of 128 rows; it must be from 1 to 128",
        ),
        (
            "cifar10_lsp",
            ["--data-dir", "TINY", "--network", "convnet"],
            "image_shape = (6, 6, 3); height and width must be at least 9 for convnet",
        ),
        (
            "cifar10_one_pixel",
            ["--network", "resnet81"],
            "no model is called 'resnet81'; did you mean 'resnet18'?",
        ),
        (
            "cifar10_one_pixel",
            ["--recipe", "best"],
            f"recipe = 'best'; allowed are {', '.join(RECIPES)}",
        ),
        (
            "cifar10_lsp",
            ["--adversarial-eps", 0.05],
            "adversarial_eps = 0.05 is of adversarial training; set adversarial to pgd or trades",
        ),
        (
            "cifar10_lsp",
            ["--recipe", "gue_adversarial", "--adversarial-eps", 8],
            "adversarial_eps = 8.0; it must be a number at least 0 and at most 1",
        ),
        (
            "cifar10_transfer",
            ["--classical", "lda"],
            "classical = 'lda'; allowed are random_forest, rbf_svm, logistic_regression",
        ),
        (
            "cifar10_transfer",
            ["--networks", "--classical"],
            "there are no victims; name at least one",
        ),
        ("cifar10_lsp", ["--devices", 5], "num = 5 devices; there are 4"),
        (
            "cifar10_lsp",
            ["--devices", 3],
            "batch_size = 128 cannot be spread evenly over 3 devices of axis 'batch'; it must be a "
            "multiple of 3",
        ),
        ("cifar10_lsp", ["--train-images", 0], "train_images = 0; it must be at least 1"),
        ("cifar10_tap", ["--eps", 8], "eps = 8 looks like grey levels; write 8/255"),
        ("cifar10_gue_adv", ["--decay-passes", 0], "decay_passes = 0; it must be at least 1"),
        (
            "cifar10_poisoning_benchmark",
            [],
            "benchmark = None; name the file of the benchmark's setups, "
            "cifar10_from_scratch.pickle of github.com/aks2203/poisoning-benchmark",
        ),
        (
            "cifar10_poisoning_benchmark",
            ["--scale", "small", "--attack", "het"],
            "attack = 'het'; allowed are base",
        ),
        (
            "cifar10_gradient_matching",
            ["--first", 9, "--num-setups", 2],
            "first = 9, num_setups = 2; there are 10 setups in all",
        ),
        (
            "cifar10_ablation",
            ["--surrogate-networks", "resnet18", "vgg11"],
            "surrogate_networks = resnet18, vgg11; ensembles of several sizes must be of one "
            "network",
        ),
        ("cifar_small_transfer", ["--keys"], "there are no keys; name at least one"),
        (
            "cifar_small_transfer",
            ["--train-images", 200, "--test-images", 100, "--black-box", "resnet81"],
            "no model is called 'resnet81'; did you mean 'resnet18'?",
        ),
        (
            "cifar10_gue_adv",
            ["--follower-eps", 4],
            "follower_eps = 4.0; it must be a number at least 0 and at most 1",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_writes_nothing(
    name, words, message, command, images, tmp_path
):
    if "TINY" in words:
        image, label = synthetic.blobs(jax.random.key(0), 200, 10, (6, 6, 3))
        for split in ("train", "test"):
            np.savez(tmp_path / f"cifar10-{split}.npz", image=image, label=label)
        words = [tmp_path if word == "TINY" else word for word in words]
    small = ["--runs", tmp_path / "runs", "--data-dir", images, "--epochs", 1]
    assert command(name, *small, *words) == (2, f"error: {message}\n")
    assert not (tmp_path / "runs").exists()


def test_gue_on_digits_takes_whole_rounds(command):
    message = "error: passes = 7; it must be a multiple of 5\n"
    assert command("digits_gue", "--passes", 7) == (2, message)


def test_scale_small_sets_the_defaults_that_other_words_then_change(monkeypatch):
    module, seen = importlib.import_module("experiments.cifar10_tap"), []
    monkeypatch.setattr(sys, "argv", ["tap", "--epochs", "3", "--scale=small", "--eps", "0.1"])
    command_line(seen.append, module.Config, module.__doc__)
    assert seen == [module.Config.small(epochs=3, eps=0.1)]
    assert seen[0].network == "small_cnn" and seen[0].scale == "small"
    monkeypatch.setattr(sys, "argv", ["tap", "--network", "vgg11"])
    command_line(seen.append, module.Config, module.__doc__)
    assert seen[1] == module.Config(network="vgg11") and seen[1].scale == "paper"


def test_every_network_of_the_transfer_can_be_made_for_cifar10():
    module = importlib.import_module("experiments.cifar10_transfer")
    config = module.Config(dtype="bfloat16", recipe="witches_brew")
    split = Split(*(Dataset(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, int)),) * 2)
    made = {name: config.trainee(name, split, 10) for name in config.networks}
    rates = {name: one.recipe.learning_rate for name, one in made.items()}
    lower = {name for name in rates if name.startswith(("vgg", "mobilenet"))}
    assert len(lower) == 3 and all(rates[n] == (0.01 if n in lower else 0.1) for n in rates)


def test_gue_and_its_victims_can_be_made_for_a_hundred_classes(tmp_path):
    module, rows = importlib.import_module("experiments.cifar100_gue"), 80
    for part, offset in (("train", 0), ("test", 1)):
        label = (np.arange(rows) + offset) % 100
        image = np.zeros((rows, 32, 32, 3), np.uint8)
        np.savez(tmp_path / f"cifar100-{part}.npz", image=image, label=label)
    few = {"train_images": rows, "test_images": rows}
    config = module.Config.smoke(dataset="cifar100", data_dir=tmp_path, **few)
    assert module.Config().dataset == "cifar100" and config.robust == ()
    _, split = config.load("cifar100")
    (judge,) = config.judges(split, 100).values()
    attack = config.poisons(split, 100, "")["gue"].attack
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    scenario = Scenario(split.train, split.train, np.arange(rows, dtype=np.int32))
    arrays = jax.eval_shape(judge.victim.init, key)
    logits, _ = jax.eval_shape(lambda *a: judge.victim.apply(*a, train=False), arrays, image)
    state = jax.eval_shape(attack.init, key, scenario)
    again, _ = jax.eval_shape(attack.step, key, state, scenario)
    assert logits.shape == (2, 100) and jax.tree.structure(again) == jax.tree.structure(state)


def test_a_recipe_is_the_preset_of_its_name():
    assert {k: make() for k, make in RECIPES.items() if k != "small_color"} == {
        k: getattr(recipes, k)() for k in RECIPES if k != "small_color"
    }
    assert RECIPES["small_color"]() == recipes.small(learning_rate=2e-3, batch_size=64)


def test_settings_change_how_a_recipe_is_trained_and_judged(images):
    given = {"adversarial": "trades", "adversarial_eps": 4 / 255, "adversarial_steps": 7}
    given |= {"statistics": "batch"}
    config = PaperConfig(data_dir=images, recipe="gue_adversarial", **given)
    _, split = config.load("cifar10")
    recipe = config.trainee("logistic_regression", split, 10).recipe
    assert recipe == dataclasses.replace(recipes.gue_adversarial(), **given)
    plain = PaperConfig(data_dir=images, recipe="gue_adversarial")
    found = plain.trainee("logistic_regression", split, 10).recipe
    assert found == recipes.gue_adversarial()


@pytest.mark.parametrize(("network", "rate"), [("resnet18", 0.1), ("vgg11", 0.01)])
def test_the_surrogate_of_tap_has_a_recipe_of_its_own(network, rate, monkeypatch, images):
    module, seen = importlib.import_module("experiments.cifar10_tap"), {}
    monkeypatch.setattr(module, "main_job", lambda *args, **options: seen.update(options))
    few = {"train_images": 200, "test_images": 100}
    module.main(module.Config(data_dir=images, network=network, epochs=3))
    assert seen["recipe"].epochs == 3 and seen["recipe"].learning_rate == 0.1
    assert seen["surrogate"].recipe == recipes.tap_surrogate(network=network)
    assert seen["surrogate"].recipe.learning_rate == rate
    module.main(module.Config.small(data_dir=images, epochs=3, **few))
    assert seen["surrogate"].recipe == (ordinary := seen["recipe"])
    module.main(module.Config.small(data_dir=images, epochs=3, adversarial="pgd", **few))
    assert seen["recipe"].adversarial == "pgd" and seen["surrogate"].recipe == ordinary


def test_the_transfer_shows_published_values_of_em_and_ops(monkeypatch, images):
    module, seen = importlib.import_module("experiments.cifar10_transfer"), {}
    monkeypatch.setattr(module, "transfer_job", lambda *args, **options: seen.update(options))

    def published(attack):
        settings, budget = {"attack": attack, "files": {}}, Budget("linf", 8 / 255)
        one = Stored(pathlib.Path("em"), np.arange(1), budget, "", settings)
        monkeypatch.setattr(module, "stored", lambda path, expect: one)
        module.main(module.Config.smoke(data_dir=images, poison=pathlib.Path("em")))
        return [(p["what"], p["value"]) for p in seen["published"]]

    base = [("resnet18, clean", 0.9468)]
    assert published("lsp") == base
    em = published("error-minimizing.1")
    assert em[0] == base[0] and dict(em[1:]) == {  # Wu et al. 2023, table 2
        "densenet121, clean": 0.9410,
        "densenet121, error-minimizing": 0.2372,
        "resnet18, clean": 0.9401,
        "resnet18, error-minimizing": 0.1958,
        "wide_resnet28_10, clean": 0.9608,
        "wide_resnet28_10, error-minimizing": 0.2396,
    }
    ops = dict(published("one-pixel")[1:])
    assert [v for k, v in ops.items() if "pixel" in k] == [0.1145, 0.1556, 0.1276]


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        (
            "mnist_deepconfuse",
            "random-noise deepconfuse deepconfuse@0.5 deepconfuse@0.6 deepconfuse@0.7 "
            "deepconfuse@0.8 deepconfuse@0.9 eps=0.1 eps=0.15 eps=0.2 eps=0.25 deepconfuse-next",
        ),
        ("cifar10_deepconfuse", "random-noise deepconfuse"),
        ("cifar10_gue", "random-noise gue"),
        ("cifar100_gue", "random-noise gue"),
        ("cifar10_gue_adv", "random-noise gue-adv"),
    ],
)
def test_the_sets_of_a_generators_experiment(name, sets, monkeypatch, images):
    module, seen = importlib.import_module(f"experiments.{name}"), {}
    monkeypatch.setattr(module, "transfer_job", lambda *args, **options: seen.update(options))
    few = {"train_images": 200, "test_images": 100, "batch_size": 64}
    module.main(config := module.Config(data_dir=images, **few))
    names = [arm.removeprefix("deepconfuse ") for arm in seen["arms"] if "noise eps" not in arm]
    assert " ".join(names) == sets
    main = seen["arms"][seen["main"]]
    assert main.budget == Budget("linf", config.eps) and main.trains_generator
    assert main.settings["eps"] == config.eps and main.network.name == config.generator
    assert len(seen["victims"]) == len(config.networks + config.robust + config.classical)


def benchmark_file(folder):
    """Two setups of ten poisons, as the public benchmark's arrays have them."""
    path = folder / "cifar10_from_scratch.npz"
    rows = np.arange(20).reshape(2, 10)
    np.savez(path, target_class=[3, 4], target_index=[0, 1], base_class=[5, 6], base_indices=rows)
    return path


@pytest.mark.parametrize(
    ("name", "options", "sets", "members"),
    [
        ("cifar10_gradient_matching", {}, "gradient-matching", ["resnet18"]),
        ("cifar10_poisoning_benchmark", {}, "gradient-matching", ["resnet18"]),
        ("cifar10_poisoning_benchmark", {"attack": "ens4"}, "gradient-matching", ["resnet18"] * 4),
        (
            "cifar10_poisoning_benchmark",
            {"attack": "het", "noise": False},
            "gradient-matching",
            ["resnet18", "vgg11", "mobilenet_v2"] * 2,
        ),
        (
            "cifar10_ablation",
            {},
            "K1-R8 K1-R1 K2-R8 K2-R1 K4-R8 K4-R1 K8-R8 K8-R1 K1-R8-plain K8-R8-plain",
            ["resnet18"] * 8,
        ),
        ("cifar10_ablation", {"plain": True}, "K1-R8-plain", ["resnet18"]),
        (
            "cifar10_method_comparison",
            {},
            "gradient-matching metapoison-at-surrogate mean-feature-collision feature-collision "
            "bullseye-polytope convex-polytope watermark",
            ["resnet18"],
        ),
        (
            "cifar10_method_comparison",
            {"methods": ("gradient-matching", "metapoison")},
            "gradient-matching metapoison",
            ["resnet18"],
        ),
        (
            "cifar_small_gradient_matching",
            {"sweep": True, "classes": ()},
            "gradient-matching watermark gradient-matching-eps=0.0313725 "
            "gradient-matching-eps=0.0627451 gradient-matching-augmented",
            ["cnn3"] * 4,
        ),
    ],
)
def test_the_sets_of_a_targeted_experiment(
    name, options, sets, members, monkeypatch, images, tmp_path
):
    module, seen = importlib.import_module(f"experiments.{name}"), {}
    monkeypatch.setattr(module, "targeted_job", lambda *args, **given: seen.update(given))
    few = {"train_images": 200, "test_images": 100, "data_dir": images, "budget": 0.05}
    if name == "cifar10_poisoning_benchmark":
        few |= {"benchmark": benchmark_file(tmp_path)}
    module.main(config := module.Config(**few | options))
    noise = ["random-noise"] if options.get("noise", True) else []
    assert [arm.replace(" ", "-") for arm in seen["arms"]] == noise + sets.split()
    rates = {"resnet18": 0.1, "vgg11": 0.01, "mobilenet_v2": 0.01, "cnn3": 0.05}
    assert [one.recipe.learning_rate for one in seen["surrogates"]] == [rates[n] for n in members]
    assert len({one.victim for one in seen["surrogates"]}) == len(set(members))
    main = seen["arms"][seen["main"]]
    assert main.budget == Budget("linf", config.eps) and main.settings["eps"] == config.eps
    assert main.num_steps == config.steps
    assert len(seen["setups"]) == (2 if "benchmark" in few else len(config.keys))
    assert all(len(one.poison_rows) == 10 for one in seen["setups"])
    plain = options.get("plain", False) or name == "cifar_small_gradient_matching"
    assert all((one.recipe.augmentation == "none") == plain for one in seen["surrogates"])


def settings_of(record, expected):
    """The part of a record's settings that the script's configuration has, as its fields are.

    Of a recipe by name the record holds the whole recipe, which must be what the name stands for.
    """
    known = {field.name for field in dataclasses.fields(expected)}
    settings = {k: v for k, v in record["config"].items() if k in known}
    if isinstance(settings.get("recipe"), dict):
        epochs = {} if settings["epochs"] is None else {"epochs": settings["epochs"]}
        held = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["recipe"].items()}
        assert Recipe(**held) == RECIPES[expected.recipe](**epochs)  # newer fields by their default
        settings["recipe"] = expected.recipe
    for rows in ("attacks", "defenses"):  # of a matrix, by name what each was
        if isinstance(settings.get(rows), dict):
            settings[rows] = [name for name in settings[rows] if name != "none"]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


def test_the_tables_are_the_committed_records_and_nothing_else():
    """NAME.json is of the default settings; NAME.small.json, of a paper's script, of --scale small,
    and so NAME.nightly.json.

    A script without NAME.json stands in the list of claims as not yet run at its size.
    """
    whole, records = set(), committed.read_records()
    for stem, record in records.items():
        name, _, scale = stem.partition(".")
        config = importlib.import_module(f"experiments.{name}").Config
        expected = config.presets()[scale] if scale else config()
        assert config(**settings_of(record, expected)) == expected, stem
        assert name in NAMES
        check = check_added if added_tables.is_added(record) else check_record
        check(record, name, expected)
        rows = tables.markdown(record) + targeted_tables.markdown(record)
        rows += added_tables.markdown(record)
        assert bool(rows) != matrix_tables.is_matrix(record), "a matrix has a section of its own"
        assert all(("small run" in row) == (scale == "small") for row in rows)
        whole |= set() if scale else {name}
    for page in committed.PAGES:
        assert committed.filled(page.read_text(), records) == page.read_text(), (
            f"{page} is not of these records; python -m experiments.tables makes it so"
        )
    text = (FOLDER / "README.md").read_text()
    titles = re.findall(r"^### (\S+)( \(small run\))?$", text, flags=re.MULTILINE)
    alone = {stem for stem, record in records.items() if committed.own_tables(record)}
    assert {name + (".small" if small else "") for name, small in titles} == alone
    claims = {name: line for line in text.splitlines()
              for name in NAMES if line.startswith(f"| `{name}` |")}  # fmt: skip
    assert set(claims) == set(NAMES)
    for name, line in claims.items():
        assert f"python -m experiments.{name}" in line
        assert ("not yet run at this size" in line) == (name not in whole), name


@pytest.mark.parametrize(("lost", "holds"), [(0.05, "yes"), (0.03, "no")])
def test_an_acceptance_row_is_of_its_record(lost, holds):
    records = {"digits_tgda": committed.read_records()["digits_tgda"]}
    arms = records["digits_tgda"]["arms"]
    left = arms["lbfgs/clean"]["final_accuracy"]["mean"] - lost
    arms["lbfgs/tgda share=0.1"]["craft_seeds"] = {"mean": left, "values": [left] * 5}
    rows = acceptance.rows(records, committed.RESULTS)
    tests = [row.split(" | ")[0] for row in rows]
    assert tests == ["| 14", "| 15", "| 15", "| 15", "| 17"]
    words = f"{100 * lost:.1f} [{100 * lost:.1f}, {100 * lost:.1f}]"
    assert rows[2].endswith(f"| at least 4, about 6.4 | {words} | {holds} | digits_tgda |")


def test_a_table_is_made_of_its_records_and_what_stands_around_it_stays():
    text = (FOLDER / "README.md").read_text()
    records = committed.read_records()
    one = {"digits_gue": records["digits_gue"]}
    other = committed.filled(text, one)
    assert other != text and committed.filled(other, one) == other
    assert "| quickstart |" not in other and "| digits_gue | gue, linf 0.3, mlp |" in other
    assert committed.filled(other, records) == text
    bare = re.sub(
        r"(### digits_gue\n\n)(\|[^\n]*\n|\n(?=\|))*\n", r"\1", text
    )  # a section made anew
    assert bare != text and committed.filled(bare, records) == text
    with pytest.raises(ValueError, match="the page lacks '### digits_gue'"):
        committed.filled(text.replace("### digits_gue\n", ""), records)
