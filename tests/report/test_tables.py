import io

import jax
import pytest
from rich.console import Console

from jaxpoison.report import published, record, tables
from jaxpoison.victims import Judgment, interval


def judgment(*values):
    rates = interval(values)
    return Judgment(rates, rates, rates, [0.5, None], [[1, 1], [0, 0]], [0.25, 0.5])


def record_of(arms, numbers=(), seconds=None):
    return record.record(
        "small",
        {"seed": 0},
        seconds={"compile": 1.26, "total": 9.6} | (seconds or {}),
        arms=arms,
        poison=None,
        published=list(numbers),
    )


def text_of(*args):
    out = io.StringIO()
    tables.print_record(record_of(*args), Console(file=out, width=120))
    return out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"mean": 0.97241, "low": 0.965, "high": 0.97949}, "97.2 [96.5, 97.9]"),
        ({"mean": 0.97251, "low": None, "high": None}, "97.3"),
        ({"mean": 1.0, "low": 1.0, "high": 1.0}, "100.0 [100.0, 100.0]"),
        ({"mean": 0.0, "low": None, "high": None}, "0.0"),
        ({"mean": 0.349, "low": -0.346, "high": 1.0445}, "34.9 [0.0, 100.0]"),
    ],
)
def test_percent(value, text):
    assert tables.percent(value) == text


@pytest.mark.parametrize(
    ("norm", "eps", "text"),
    [
        ("linf", 8 / 255, "linf 8/255"),
        ("linf", 32 / 255, "linf 32/255"),
        ("linf", 0.3, "linf 0.3"),
        ("linf", 0.0, "linf 0"),
        ("l2", 8 / 255, "l2 0.0314"),
        ("l2", 1.0, "l2 1"),
        ("l0", 1, "l0 1"),
        (None, None, "no norm"),
    ],
)
def test_radius(norm, eps, text):
    assert tables.radius(norm, eps) == text


def test_a_poison_without_a_norm_stands_beside_the_shared_filter():
    poison = {"poison": {"norm": None, "eps": None}}
    arms = {"clean": {"poison": None}, "shared-filter": poison, "convolution": {**poison}}
    assert tables.control(arms, arms["convolution"]) is arms["shared-filter"]
    assert tables.is_control("shared-filter") and not tables.is_control("convolution")
    del arms["shared-filter"]
    assert tables.control(arms, arms["convolution"]) is None


def test_the_table_of_one_victim():
    text = text_of(
        {"clean": record.arm(judgment(0.9), expect="about [90]")},
        [published("clean", 0.9535, "Somebody 2021, table 2")],
        {"victims clean": 3.21, "craft clean": 1.1},
    )
    lines = text.splitlines()
    assert lines[0] == "small: clean test accuracy in %, mean [95 % interval] over 1 victims"
    assert lines[2].split() == ["training", "set", "final", "peak", "s"]
    assert lines[4].split() == ["clean", "90.0", "90.0", "4.3"]
    assert "clean: about [90]" in text
    assert "published: clean: 95.35 (Somebody 2021, table 2)" in text
    assert "10 s in all, 1 s of it compiling" in text


def test_targeted_arms_get_a_column():
    targeted = record.arm(
        judgment(0.9, 0.8),
        expect="misread",
        success_rate=interval([1.0, 0.5]),
        intended_probability=interval([0.9, 0.4]),
    )
    text = text_of({"clean": record.arm(judgment(0.9, 0.8), expect="-"), "matched": targeted})
    lines = text.splitlines()
    assert lines[2].split() == ["training", "set", "final", "peak", "success", "s"]
    assert "over 2 victims" in lines[0]
    assert "75.0 [0.0, 100.0]" in lines[5]
    assert targeted["success_rate"]["low"] < 0 and targeted["success_rate"]["high"] > 1
    assert lines[4].split()[-1] == "0.0" and "75.0" not in lines[4]
    assert targeted["success_rate"]["values"] == [1.0, 0.5]
    assert targeted["intended_probability"]["mean"] == pytest.approx(0.65)
    assert targeted["poison"] is None and targeted["final_accuracy"]["values"] == [0.9, 0.8]


def test_markdown_has_a_row_per_attack():
    poison = {"norm": "linf", "eps": 8 / 255, "measured": 8 / 255, "psnr": 30.0, "ssim": 0.9}
    value = record_of(
        {
            "clean": record.arm(judgment(0.9), expect="-"),
            "random-noise": record.arm(judgment(0.8), expect="-", poison=poison),
            "tap": record.arm(judgment(0.1), expect="-", poison=poison),
        }
    )
    value["device"] = {"platform": "gpu", "kind": "H", "count": 2, "host": "x", "host_cores": 4}
    assert tables.markdown(value) == [
        "| small | tap, linf 8/255 | 90.0 | 80.0 | 10.0 | 0.2 min | 2 x H |"
    ]
    value["device"] |= {"platform": "cpu"}
    assert tables.markdown(value)[0].endswith("| CPU, 4 cores |")


def test_markdown_has_a_row_per_victim_and_attack_and_says_small():
    noise = {"norm": "l2", "eps": 1.0, "measured": 1.0, "psnr": 30.0, "ssim": 0.9}
    arms = {}
    for accuracy, name in ((0.9, "a"), (0.8, "b/c")):
        for change, kind in ((0, "clean"), (0.01, "random-noise-l2"), (0.5, "lsp")):
            poison = noise if change else None
            rates = judgment(accuracy - change)
            arms[f"{name}/{kind}"] = record.arm(rates, expect="-", poison=poison, victim=name)
    value = record_of(dict(sorted(arms.items(), key=lambda item: item[0][-3:])))
    value["config"]["scale"] = "small"
    value["device"] |= {"platform": "cpu", "host_cores": 2}
    assert sorted(tables.markdown(value)) == [
        "| small (small run) | lsp, l2 1, a | 90.0 | 89.0 | 40.0 | 0.2 min | CPU, 2 cores |",
        "| small (small run) | lsp, l2 1, b/c | 80.0 | 79.0 | 30.0 | 0.2 min | CPU, 2 cores |",
    ]
    victims = [entry["victim"] for entry in value["arms"].values()]
    assert victims == sorted(victims) or victims == sorted(victims, reverse=True)


def test_the_table_of_several_victims_names_each_once():
    arms = {
        f"{victim}/{kind}": record.arm(judgment(0.9), expect=f"{kind} text", victim=victim)
        for kind in ("clean", "lsp")
        for victim in ("a", "b")
    }
    lines = text_of(arms).splitlines()
    assert [line.split() for line in lines[4:10]] == [
        ["a:"], ["clean", "90.0", "90.0", "0.0"], ["lsp", "90.0", "90.0", "0.0"],
        ["b:"], ["clean", "90.0", "90.0", "0.0"], ["lsp", "90.0", "90.0", "0.0"],
    ]  # fmt: skip
    assert sum("lsp text" in line for line in lines) == 1


def test_names_in_brackets_are_not_styles():
    text = text_of({"[red]a": record.arm(judgment(0.9), expect="[bold]b")})
    assert "[red]a" in text and "[bold]b" in text


def test_versions_and_device_name_what_ran():
    assert record.versions()["jax"] == jax.__version__
    device = record.device()
    assert device["platform"] == "cpu" and device["count"] == jax.device_count()
    assert device["host"] and device["host_cores"] >= 1
