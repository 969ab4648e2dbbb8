"""The defense matrix: its cells are those of lone jobs; it resumes, and computes nothing twice."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.report import (
    Attacker,
    MatrixConfig,
    Trainee,
    arm,
    main_job,
    matrix_job,
    matrix_tables,
    published_cell,
    purified_by,
    trained_with,
)
from jaxpoison.report.cache import Cache

pytestmark = pytest.mark.usefixtures("quick_module")
RECIPE = jp.victims.recipes.small(epochs=2, batch_size=20)
BUDGET = jp.perturb.Budget("l2", 2.0)
LINF = jp.perturb.Budget("linf", 0.2)


@pytest.fixture(scope="module")
def data():
    sets = (jp.data.digits(split) for split in ("train", "test"))
    train, test = (jax.tree.map(lambda x: x[:100], one) for one in sets)
    return {"name": "digits", "split": "train"}, jp.Split(train, test)


@pytest.fixture(scope="module")
def victim():
    return jp.models.create("logistic_regression", (8, 8, 1), 10)


@pytest.fixture(scope="module")
def attackers(victim):
    lsp = {"eps": 2.0, "num_classes": 10, "patch": 4, "budget": BUDGET, "expect": "low"}
    tap = {"eps": 0.2, "num_classes": 10, "num_steps": 2, "budget": LINF, "expect": "lower"}
    return {
        "lsp": Attacker(arm(jp.attacks.lsp, **lsp)),
        "tap": Attacker(arm(jp.attacks.error_maximizing, victim, **tap), Trainee(victim, RECIPE)),
    }


DEFENSES = {
    "bit-depth": purified_by(jp.defenses.bit_depth, bits=1),
    "adversarial": trained_with(
        recipe=dataclasses.replace(RECIPE, adversarial="pgd", adversarial_steps=1)
    ),
}
PUBLISHED = [published_cell("lsp", "bit-depth", 0.5, "a paper")]


@pytest.fixture(scope="module")
def study(tmp_path_factory, data, victim, attackers):
    """job(name, **settings) -> record, all in one folder of runs."""
    runs = tmp_path_factory.mktemp("runs")

    def job(name, rows=attackers, columns=DEFENSES, recipe=RECIPE, **settings):
        config = MatrixConfig(name=name, runs=runs, victims=2, **settings)
        source, split = data
        return matrix_job("matrix", config, network="logistic_regression", victim=victim,
                          recipe=recipe, split=split, source=source, attackers=rows,
                          defenses=columns, published=PUBLISHED)  # fmt: skip

    return runs, job


@pytest.fixture(scope="module")
def whole(study):
    return study[1]("whole")


def accuracies(record):
    return {name: entry["final_accuracy"]["values"] for name, entry in record["arms"].items()}


def test_every_cell_is_there_and_nothing_came_from_the_cache(whole):
    rows, columns = ("clean", "lsp", "tap"), ("none", "bit-depth", "adversarial")
    assert list(whole["arms"]) == [f"{column}/{row}" for column in columns for row in rows]
    assert matrix_tables.axes(whole) == (list(rows), list(columns))
    kinds = {e["defended"]["defense"]: e["defended"]["kind"] for e in whole["arms"].values()}
    assert kinds == {"none": "none", "bit-depth": "purifier", "adversarial": "training"}
    for name, entry in whole["arms"].items():
        cell = entry["defended"]
        assert not cell["cached"] and name == f"{cell['defense']}/{cell['attack']}"
        assert (cell["psnr"] is not None) == (cell["defense"] == "bit-depth")
        assert (entry["poison"] is None) == (cell["attack"] == "clean")
        poisoned = cell["attack"] != "clean"
        assert (cell["residual"] is not None) == (poisoned and cell["defense"] == "bit-depth")


def test_the_cells_without_a_defense_are_those_of_the_main_job(whole, study, data, attackers):
    """Same rows, seeds and keys: victims of the clean set are the main job's, bit for bit."""
    runs, _ = study
    source, split = data
    config = jp.report.StudyConfig(name="alone", runs=runs, victims=2)
    victim = jp.models.create("logistic_regression", (8, 8, 1), 10)
    alone = main_job("alone", config, victim=victim, recipe=RECIPE, split=split, source=source,
                     arms={"lsp": attackers["lsp"].arm}, main="lsp")  # fmt: skip
    other = main_job("purified", dataclasses.replace(config, name="purified"), victim=victim,
                     recipe=RECIPE, split=coarse(split), source=source,
                     arms={"lsp": attackers["lsp"].arm}, main="lsp")  # fmt: skip
    found = accuracies(whole)
    assert found["none/clean"] == accuracies(alone)["clean"]
    assert found["bit-depth/clean"] == accuracies(other)["clean"]
    assert found["bit-depth/clean"] != found["none/clean"]


def coarse(split):
    image = np.asarray(split.train.image) & np.uint8(128)
    return jp.Split(jp.Dataset(jax.numpy.asarray(image), split.train.label), split.test)


def test_a_finished_run_is_shown_and_an_unfinished_one_goes_on(whole, study):
    runs, job = study
    assert job("whole") == json.loads(json.dumps(whole))
    (runs / "matrix" / "whole" / "result.json").unlink()
    again = job("whole", cache=True)
    assert accuracies(again) == accuracies(whole)


def test_another_run_takes_equal_cells_and_poisons_from_the_cache(whole, study, attackers):
    runs, job = study
    extra = DEFENSES | {"gray": purified_by(jp.defenses.grayscale)}
    wider = job("wider", columns=extra, defenses=("bit-depth", "gray"), attacks=("tap",))
    cached = {name: entry["defended"]["cached"] for name, entry in wider["arms"].items()}
    assert cached == {
        name: not name.startswith("gray/")
        for name in ("none/clean", "none/tap", "bit-depth/clean", "bit-depth/tap", "gray/clean",
                     "gray/tap")
    }  # fmt: skip
    both, old = accuracies(wider), accuracies(whole)
    assert all(both[name] == old[name] for name in both if not name.startswith("gray/"))
    assert not (runs / "matrix" / "wider" / "craft").exists()  # neither poison nor surrogate
    assert both["gray/tap"] == both["none/tap"]  # digits are gray


def test_other_seeds_recipes_and_settings_are_computed(whole, study):
    _, job = study
    one = {"attacks": ("lsp",), "defenses": ("bit-depth",)}
    changed = {
        "seed": job("seed", seed=1, **one),
        "recipe": job("recipe", recipe=dataclasses.replace(RECIPE, epochs=1), **one),
        "off": job("off", cache=False, **one),
    }
    for record in changed.values():
        assert not any(entry["defended"]["cached"] for entry in record["arms"].values())
    finer = {"bit-depth": purified_by(jp.defenses.bit_depth, bits=3)}
    cells = job("finer", columns=finer, **one)["arms"]
    assert cells["none/lsp"]["defended"]["cached"]
    assert not cells["bit-depth/lsp"]["defended"]["cached"]
    assert accuracies(changed["off"])["none/lsp"] == accuracies(whole)["none/lsp"]


def test_other_networks_and_inner_defenses_of_equal_settings_are_computed(whole, study, attackers):
    _, job = study
    tap = {"eps": 0.2, "num_classes": 10, "num_steps": 2, "budget": LINF, "expect": "lower"}
    other = jp.models.create("logistic_regression", (8, 8, 1), 10, mean=(0.5,))
    row = Attacker(arm(jp.attacks.error_maximizing, other, **tap), attackers["tap"].knows)
    assert row.arm.facts() == attackers["tap"].arm.facts()
    columns = {
        "composed": trained_with(jp.defenses.compose, jp.defenses.mixup()),
        "other": trained_with(jp.defenses.compose, jp.defenses.mixup(alpha=8.0)),
    }
    record = job("networks", rows={"tap": row}, columns=columns)["arms"]
    assert {n for n, entry in record.items() if entry["defended"]["cached"]} == {"none/clean"}
    assert record["none/tap"]["poison"] != whole["arms"]["none/tap"]["poison"]
    both = accuracies(job("again", rows={"tap": row}, columns=columns))
    assert both["composed/clean"] != both["other/clean"]


def test_the_table_in_markdown_and_the_picture(whole, study):
    lines = matrix_tables.markdown(whole)
    assert lines[0] == "| attack | none | bit-depth | adversarial |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| clean", "| lsp", "| tap"]
    assert "(50.0 a)" in lines[3].split(" | ")[2] and "(50.0" not in lines[3].split(" | ")[1]
    assert lines[5:] == ["", "| in brackets | source |", "|---|---|", "| a | a paper |"]
    folder = study[0] / "matrix" / "whole"
    assert (folder / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "Attacks against defenses" in (folder / "report.html").read_text()
    assert jp.report.tables.markdown(whole) == []


def test_what_is_refused(study, attackers):
    _, job = study
    with pytest.raises(jp.InputError, match="^attacks = 'psl'; allowed are lsp, tap"):
        job("bad", attacks=("psl",))
    with pytest.raises(jp.InputError, match="^defenses = 'jpg'; allowed are bit-depth, adv"):
        job("bad", defenses=("jpg",))
    with pytest.raises(jp.InputError, match="^craft_seeds = 2; matrix is a matrix, it has none"):
        job("bad", craft_seeds=2)
    with pytest.raises(jp.InputError, match="^defense = 'a/b'; a plain folder name"):
        job("bad", columns={"a/b": DEFENSES["bit-depth"]})
    few = attackers["tap"]
    few = few._replace(knows=few.knows._replace(checkpoints=3))
    with pytest.raises(jp.InputError, match="^checkpoints = 3; a run of 2 epochs has at most 2"):
        job("bad", rows={"few": few})
    with pytest.raises(jp.InputError, match="^trained_with needs a defense or a recipe"):
        trained_with()
    with pytest.raises(jp.InputError, match="^random_filter makes no Purifier"):
        purified_by(jp.defenses.random_filter, share=0.1)
    assert not (study[0] / "matrix" / "bad").exists()


def test_a_cache_gives_back_what_was_kept_for_these_facts_alone(tmp_path):
    cache = Cache(tmp_path / "cache")
    assert cache.find("cells", {"a": 1}) is None and not (tmp_path / "cache").exists()
    cache.keep("cells", {"a": 1, "b": (2,)}, {"x": 3})
    assert cache.find("cells", {"b": [2], "a": 1}) == {"x": 3}
    assert cache.find("cells", {"b": [3], "a": 1}) is None
    assert cache.find("others", {"b": [2], "a": 1}) is None
    (folder := tmp_path / "made").mkdir()
    (folder / "file").write_text("text")
    assert not cache.lend("poison", {"a": 1}, tmp_path / "lent")
    cache.store("poison", {"a": 1}, folder)
    assert cache.lend("poison", {"a": 1}, tmp_path / "lent")
    assert (tmp_path / "lent" / "file").read_text() == "text"
    (path,) = (tmp_path / "cache" / "cells").iterdir()
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(jp.InputError, match=f"^{path} is damaged \\(its facts are others\\)"):
        cache.find("cells", {"a": 1, "b": [2]})
    nothing = Cache(None)
    nothing.keep("cells", {"a": 1}, {"x": 3})
    assert nothing.find("cells", {"a": 1}) is None
