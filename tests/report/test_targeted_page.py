"""Entries, tables, pictures and page of a targeted run, from results that are written by hand."""

import copy
import functools
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxpoison.__main__ import main
from jaxpoison.report import page, runs, sweeps, tables, targeted_figures, targeted_tables
from jaxpoison.report.targeted_record import arm_entry, comparisons
from jaxpoison.types import InputError
from tests.report import test_page
from tests.report.browser import browse

SETUPS = ("key-1", "key-2", "key-3")
ARMS = ("clean", "random-noise", "gradient-matching")
WANTED = {"clean": (0.1, 0.2, 0.3), "random-noise": (0.2, 0.1, 0.3)}
WANTED["gradient-matching"] = (0.7, 0.9, 0.5)


def result(number):
    """One setup of one victim network of two seeds, in three classes."""

    def values(wanted):
        both = [wanted - 0.05, wanted + 0.05]
        return {
            "success": [float(p > 0.6) for p in both],
            "intended": both,
            "true": [1 - p for p in both],
            "intended_loss": [-np.log(p) for p in both],
            "true_loss": [-np.log(1 - p) for p in both],
            "accuracy": [0.8, 0.9],
            "peak": [0.9, 0.9],
            "train": [1.0, 1.0],
            "curve": [0.5, 0.85],
            "success_epochs": [0.25, 0.75],
            "intended_curve": [wanted / 2, wanted],
            "confusion": [[8, 1, 1], [0, 9, 1], [0, 0, 0]],
        }

    def poison(loss):
        own = {"norm": "linf", "eps": 16 / 255, "measured": 0.06 + number / 1000}
        return own | {"psnr": 20.0 + number, "ssim": None, "outer_loss": loss}

    loss = {"first": 0.8, "last": 0.2 + number / 10}
    return {
        "name": SETUPS[number],
        "poisons": {"random-noise": poison(None), "gradient-matching": poison(loss)},
        "arms": {f"net/{arm}": values(WANTED[arm][number]) for arm in ARMS},
    }


@functools.cache
def made():
    results = [result(i) for i in range(3)]
    arms = {
        f"net/{arm}": arm_entry(results, f"net/{arm}", arm, expect="as told", victim="net",
                                targets=[1, 1, 1])
        for arm in ARMS
    }  # fmt: skip
    value = test_page.record(arms=arms, comparisons=comparisons(arms, "gradient-matching"))
    value["poison"] = arms["net/gradient-matching"]["poison"]
    value["seconds"] |= {"craft gradient-matching": 3.0, "victims net/gradient-matching": 1.0}
    return json.loads(json.dumps(value))


def record(**changes):
    return copy.deepcopy(made() | changes)


def test_an_entry_has_means_over_setups_and_counts_over_victims():
    entry = record()["arms"]["net/gradient-matching"]
    assert entry["intended_probability"]["values"] == pytest.approx([0.7, 0.9, 0.5])
    assert entry["success_rate"]["values"] == [1.0, 1.0, 0.0]
    assert entry["success_count"] == {"hits": 4, "trials": 6}
    assert entry["success_over_epochs"]["values"] == [0.5] * 3
    assert entry["intended_curve"] == pytest.approx([0.35, 0.7])
    assert "intended_curve" not in record()["arms"]["net/clean"]
    spread = 4.302653 * np.std([0.7, 0.9, 0.5], ddof=1) / np.sqrt(3)
    assert entry["intended_probability"]["low"] == pytest.approx(0.7 - spread, rel=1e-5)
    assert entry["poison"]["measured"] == 0.062 and entry["poison"]["psnr"] == 21.0
    assert entry["poison"]["ssim"] is None
    assert entry["per_class"] == [0.8, 0.9, None]
    assert record()["arms"]["net/clean"]["poison"] is None


def test_comparisons_are_of_the_main_arm_against_all_others():
    rows = {(row["b"], row["what"]): row for row in record()["comparisons"]}
    assert set(rows) == {
        (b, what)
        for b in ("clean", "random-noise")
        for what in ("success_rate", "intended_probability", "true_probability")
    }
    row = rows["clean", "intended_probability"]
    assert row["difference"]["mean"] == pytest.approx(0.5) and row["n"] == 3
    assert row["sign_test_p"] == 1 / 8 and row["mcnemar_p"] is None
    lower = rows["clean", "true_probability"]
    assert lower["difference"]["mean"] == pytest.approx(-0.5) and lower["sign_test_p"] == 1 / 8
    assert rows["clean", "success_rate"]["mcnemar_p"] == 1 / 4  # two of two setups


def test_the_terminal_shows_both_tables():
    out = io.StringIO()
    targeted_tables.print_record(record(), Console(file=out, width=160))
    shown = out.getvalue()
    assert "2 victims of each of 3 setups" in shown
    assert "seconds of crafting, all setups: gradient-matching 3.0" in shown
    assert "4 of 6" in shown and "0.8 -> 0.3" in shown and "70.0 [" in shown
    assert "net: gradient-matching - clean" in shown and "+50.0 [" in shown and "0.125" in shown


def test_a_narrow_terminal_breaks_names_and_no_numbers():
    out, value = io.StringIO(), record()
    value["arms"]["net/gradient-matching-eps=0.0313725"] = value["arms"]["net/gradient-matching"]
    targeted_tables.print_record(value, Console(file=out, width=80))
    shown = out.getvalue()
    assert "\u2026" not in shown and max(map(len, shown.splitlines()[:-2])) <= 80
    differences = [targeted_tables.difference(row["difference"]) for row in value["comparisons"]]
    for whole in ("70.0", "100.0]", "0.125", "matching-", "eps=0.0313725", *differences):
        assert whole in shown


def test_rows_in_markdown_fit_their_head():
    assert tables.markdown(record()) == [] and sweeps.markdown(record()) == []
    (row,) = targeted_tables.markdown(record())
    assert row.count("|") == targeted_tables.HEAD.count("|")
    assert "4 of 6, 3 setups" in row and "gradient-matching, linf 16/255, net" in row
    assert targeted_tables.markdown(test_page.record()) == []


def test_the_page_of_a_run_and_beside_another(tmp_path):
    for name, value in (("a", record()), ("b", test_page.record())):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    one = page.write(tmp_path / "one.html", runs.read_runs([tmp_path / "a.json"]))
    text = one.read_text()
    for words in ("3 setups, 2 victims per", "4 of 6", "Tests, paired by setup", "key-2",
                  "0.800 → 0.300", "probability of the wanted label"):  # fmt: skip
        assert words in text, words
    assert "http" not in text.replace("http-equiv", "")
    both = [tmp_path / "a.json", tmp_path / "b.json"]
    page.write(tmp_path / "two.html", runs.read_runs(both))
    main(["report", *map(str, both), "--out", str(tmp_path / "three.html")])
    assert "4 of 6" in (tmp_path / "three.html").read_text()


def test_a_browser_finds_nothing_to_complain_about(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(record()))
    path = page.write(tmp_path / "one.html", runs.read_runs([tmp_path / "a.json"]))
    document, console = browse(path, tmp_path)
    assert not console and "Every setup" in document


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda v: v["arms"]["net/clean"].pop("setups"), "arms.net/clean.setups"),
        (lambda v: v["arms"]["net/clean"]["setups"].pop(), "arms.net/random-noise.setups"),
        (lambda v: v["arms"]["net/clean"].pop("success_count"), "arms.net/clean.success_count"),
        (lambda v: v["comparisons"][0].update(what="luck"), "comparisons"),
        (lambda v: v["comparisons"][0].update(wilcoxon_p=None), "comparisons"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, change, name):
    change(value := record())
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=f"its entry {name} is missing or unsound"):
        runs.read_run(path)


def assert_drawn(path):
    with Image.open(path) as image:
        assert min(image.size) > 200


def test_pictures_are_drawn_of_color_and_of_grey(tmp_path):
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        clean = rng.integers(0, 200, (3, 4, 4, channels)).astype(np.uint8)
        one = targeted_figures.Shown("key-1", clean[0], "cat → dog", clean, clean + 9)
        targeted_figures.targets(tmp_path / "grid.png", [one, one])
        assert_drawn(tmp_path / "grid.png")
    targeted_figures.pairs(tmp_path / "pairs.png", record())
    assert_drawn(tmp_path / "pairs.png")
