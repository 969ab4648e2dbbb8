"""One option varied: arms, their lines in a record, and the charts drawn of them."""

import io
import json
import re

import pytest
from rich.console import Console

import jaxpoison as jp
from jaxpoison.report import arm, charts, control, figures, page, shares, sweep, sweeps, tables
from jaxpoison.report.runs import read_run
from jaxpoison.types import InputError
from jaxpoison.victims import interval
from tests.report.test_derived import run
from tests.report.test_page import Tables, entry, folder, record

RATES = {"train-noise": interval([0.5, 0.7])._asdict()}


def noise(eps):
    budget = jp.perturb.Budget("linf", eps)
    return arm(jp.attacks.random_noise, eps=eps, budget=budget, expect=f"at {eps:g}")


def swept(*, victim="", option="eps", values=(0.1, 0.2), of="dc", rates=(0.6, 0.4), eps=None):
    """Entries of a sweep, as a record has them."""
    head, named = (f"{victim}/", {"victim": victim}) if victim else ("", {})
    return {
        f"{head}{of} {option}={v:g}": entry(
            [r, r + 0.1],
            sweep={"of": of, "option": option, "value": v},
            poison={"norm": "linf", "eps": eps or v, "measured": v, "psnr": 9.0, "ssim": 0.5},
            **named,
        )
        for v, r in zip(values, rates, strict=True)
    }


def test_a_sweep_is_one_arm_for_each_value_and_its_noise(tmp_path):
    arms = sweep("dc", noise, "eps", (0.05, 0.1), controls=True)
    assert list(arms) == ["dc eps=0.05", "random-noise eps=0.05", "dc eps=0.1",
                          "random-noise eps=0.1"]  # fmt: skip
    assert [one.budget.eps for one in arms.values()] == [0.05, 0.05, 0.1, 0.1]
    assert arms["dc eps=0.1"].settings["eps"] == 0.1 and arms["dc eps=0.1"].expect == "at 0.1"
    value = run(tmp_path, arms)
    lines = {one.of: one.points for one in sweeps.read(value)}
    assert list(lines) == ["dc", "random-noise"]
    for of, points in lines.items():
        assert [x for x, _ in points] == [0.0, 0.05, 0.1]
        names = ["clean", f"{of} eps=0.05", f"{of} eps=0.1"]
        assert [e for _, e in points] == [value["arms"][name] for name in names]
    made = tmp_path / "derived" / "default"
    assert (made / "sweep.png").read_bytes().startswith(b"\x89PNG")
    poison = value["arms"]["dc eps=0.05"]
    assert tables.control(value["arms"], poison) == value["arms"]["random-noise eps=0.05"]
    text = (made / "report.html").read_text()
    assert 'id="sweeps"' in text and text.count('class="bar"') == 0  # one victim: no interval


def test_bad_sweeps_are_one_line():
    for values, message in [
        ((), "values of eps are none; name at least one"),
        ((0.1, 0.1), "eps=0.1 is named twice; name each value once"),
        ((float("nan"),), "eps = nan; it must be a finite number"),
    ]:
        with pytest.raises(InputError, match=message):
            sweep("dc", noise, "eps", values)


def test_the_ends_of_a_sweep_are_arms_that_are_there_anyway():
    value = record(
        arms={"clean": entry([0.9]), "tap": entry([0.2])}
        | swept(of="tap", option="share", values=(0.5, 0.8), rates=(0.8, 0.7))
        | swept(of="tap", option="generator_train_fraction", values=(0.25,), rates=(0.3,)),
        config={"attacks": {"tap": {"generator_train_fraction": 1.0}}},
    )
    share, fraction = sweeps.read(value)
    assert [x for x, _ in share.points] == [0.0, 0.5, 0.8, 1.0]
    assert share.points[0][1] is value["arms"]["clean"]
    assert share.points[-1][1] is value["arms"]["tap"] is fraction.points[-1][1]
    assert [x for x, _ in fraction.points] == [0.25, 1.0]
    assert not sweeps.is_log([share]) and not sweeps.is_log([fraction])
    wide = swept(option="generator_train_fraction", values=(0.01, 0.1, 1.0), rates=(0.3, 0.2, 0.1))
    assert sweeps.is_log(sweeps.read(record(arms=wide)))
    assert list(shares("tap", (0.5,), expect="-").values())[0].sweep.option == "share"


def test_the_chart_places_points_and_intervals_by_hand():
    arms = swept(option="f", values=(0.01, 0.1, 1.0), rates=(0.6, 0.4, 0.0))
    lines = sweeps.read(record(arms=arms))
    chart = charts.sweep_chart(lines, log=True)
    (line,) = chart.lines
    places = [tuple(map(float, p.split(","))) for p in line.points.split()]
    assert [x for x, _ in places] == [0, 50, 100]
    assert [y for _, y in places] == pytest.approx([35, 55, 95])
    assert [x for x, _ in chart.x_ticks] == pytest.approx([0, 50, 100])
    assert [text for _, text in chart.x_ticks] == ["0.01", "0.1", "1"]
    assert chart.axis == "f (logarithmic)"
    low = interval([0.6, 0.7]).low
    assert line.bars[0] == pytest.approx((0, 0, 100 - 100 * low))  # the upper end is above 1
    assert all(0 <= end <= 100 for bar in line.bars for end in bar)  # as the plot cuts them
    assert charts.sweep_chart(lines, log=False).lines[0].points.split()[1].startswith("9.09,")


def test_the_page_has_probes_and_sweeps_only_where_they_are(tmp_path):
    arms = {"clean": entry([0.9, 0.8])}
    for victim in ("a", "b"):
        arms |= {f"{victim}/clean": entry([0.9, 0.8], victim=victim)} | swept(victim=victim)
    arms["a/dc eps=0.2"] |= {"probes": RATES, "success_rate": interval([0.1, 0.3])._asdict()}
    text = page.write_run(folder(tmp_path / "r", record(arms=arms))).read_text()
    head = Tables(text).tables[0][0]
    assert "train-noise %" in head and "success %" in head and "test-noise %" not in head
    column = [row[head.index("train-noise %")] for row in Tables(text).tables[0][1:]]
    assert sorted(filter(None, column)) == ["60.0 [0.0, 100.0]"]
    assert "the noise alone of the poisoned training images" in text
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections.index("sweeps") == sections.index("curves") + 1
    assert "a · eps" in text and "b · eps" in text
    plain = page.write_run(folder(tmp_path / "s")).read_text()
    assert 'id="sweeps"' not in plain and "noise alone" not in plain


def test_a_record_with_unsound_probes_or_sweep_is_refused(tmp_path):
    for changes in ({"probes": {"x": 0.5}}, {"probes": []}, {"sweep": {"of": "dc"}}):
        value = record(arms={"clean": entry([0.5], **changes)})
        path = tmp_path / "r.json"
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match=r"arms\.clean\.(probes|sweep)"):
            read_run(path)


def test_tables_of_probes_and_sweeps():
    arms = {"clean": entry([0.9, 0.8])} | swept()
    arms["dc eps=0.1"] |= {"probes": RATES, "success_rate": interval([0.1])._asdict()}
    value = record(arms=arms)
    out = io.StringIO()
    tables.print_record(value, Console(file=out, width=140))
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert ["training", "set", "train-noise"] in rows
    assert ["dc", "eps=0.1", "60.0", "[0.0,", "100.0]"] in rows
    probed = tables.markdown_probes(value)
    assert probed[0] == "| training set | clean test | success | train-noise |"
    assert probed[3] == "| dc eps=0.1 | 65.0 [1.5, 100.0] | 10.0 | 60.0 [0.0, 100.0] |"
    assert sweeps.markdown(value) == [
        "| eps | 0 | 0.1 | 0.2 |",
        "|---|---|---|---|",
        "| dc | 85.0 [21.5, 100.0] | 65.0 [1.5, 100.0] | 45.0 [0.0, 100.0] |",
    ]
    assert tables.markdown(value) == []  # no row of its own for a point
    plain = record()
    assert tables.markdown_probes(plain) == [] == sweeps.markdown(plain)
    assert tables.probe_table(plain) is None


def test_many_points_leave_the_learning_curves_readable(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_panel", lambda axis, lines: drawn.append([n for n, _ in lines]))
    few, many = (
        swept(values=[i / 20 for i in range(1, n)], rates=[0.5] * (n - 1)) for n in (5, 15)
    )
    figures.curves(tmp_path / "c.png", record(arms={"clean": entry([0.9])} | few))
    figures.curves(tmp_path / "c.png", record(arms={"clean": entry([0.9])} | many))
    assert drawn == [["clean", *few], ["clean"]]
    figures.sweep(tmp_path / "none.png", record())
    assert not (tmp_path / "none.png").exists()
    assert list(control(jp.perturb.Budget("linf", 0.1))) == ["random-noise"]
