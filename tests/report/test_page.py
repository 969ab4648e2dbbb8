"""report.html: what it says, what it refuses, and what a browser makes of it."""

import copy
import functools
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from jaxpoison import data
from jaxpoison.__main__ import main
from jaxpoison.data.manifest import device, versions
from jaxpoison.report import charts, page, runs
from jaxpoison.types import InputError
from jaxpoison.victims import interval
from tests.report.browser import browse, with_script

HOSTILE = "<script>alert(1)</script>&\"'"


def entry(final, *, classes=3, poison=None, **more):
    """An arm whose victims know two classes in three of `final`."""
    rate = interval(final)._asdict()
    counts = [[8 if p == t else 1 for p in range(classes)] for t in range(classes)]
    counts[0] = [0] * classes
    return {
        "final_accuracy": rate,
        "peak_accuracy": interval([1.0])._asdict(),
        "train_accuracy": rate,
        "per_class": [None] + [0.5] * (classes - 1),
        "confusion": counts,
        "curve": [0.1, *final],
        "expect": "as expected",
        "poison": poison,
        **more,
    }


def record(**changes):
    poison = {"norm": "linf", "eps": 8 / 255, "measured": 0.031, "psnr": 31.25, "ssim": 0.9}
    value = {
        "experiment": "toy",
        "config": {"seed": 3, "recipe": {"epochs": 2}, "data": {"train": {"num_rows": 48}}},
        "versions": versions(),
        "device": device(),
        "date": "2026-01-02",
        "seconds": {"craft tap": 1.5, "victims tap": 2.25, "compile": 4.0, "total": 9.0},
        "arms": {
            "clean": entry([0.9, 0.8]),
            "tap": entry([0.1, 0.2], poison=poison),
            "noise": entry([0.7, 0.75], poison=poison),
        },
        "poison": poison,
        "published": [{"what": "TAP on CIFAR-10", "value": 0.0817, "source": "ISS README"}],
    }
    return copy.deepcopy(value | changes)


def folder(path, value=None):
    """A finished run as a study leaves it."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "result.json").write_text(json.dumps(value or record()))
    picture = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(picture, format="PNG")
    (path / "grid.png").write_bytes(picture.getvalue())
    return path


class Tables(html.parser.HTMLParser):
    """Cells by table and row, ids, addresses, and the text of the body without scripts."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.ids, self.addresses, self.words, self.open = [], [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open, found = tag, dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[k] for k in ("src", "href", "action", "data") if found.get(k)]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data):
        if self.open not in ("script", "style") and data.strip():
            self.words.append(data.strip())
            if self.tables and self.open in ("td", "th", "button", "small", "span"):
                cells = self.tables[-1][-1]
                cells[-1] = f"{cells[-1]} {data.strip()}".strip() if cells else ""


@pytest.fixture
def digits_folder(tmp_path):
    """A poison folder of clean digits."""
    clean = data.digits("test")
    data.poisoned.write(
        tmp_path / "digits", poisoned=clean, clean=clean, index=[], attack="none", settings={},
        norm=None, eps=None, source={"name": "digits", "split": "test"},
    )  # fmt: skip
    return tmp_path / "digits"


@pytest.fixture
def single(tmp_path):
    return page.write_run(folder(tmp_path / "toy" / "default"))


@pytest.fixture
def several(tmp_path):
    other = record(config={"seed": 4, "recipe": {"epochs": 2}}, experiment="other")
    other["arms"]["tap"]["final_accuracy"] = interval([0.999])._asdict()
    paths = [folder(tmp_path / "two" / "default"), folder(tmp_path / "two" / "b", other)]
    return page.write(tmp_path / "report.html", runs.read_runs(paths))


def test_the_table_holds_the_record(single):
    head, *rows = Tables(single.read_text()).tables[0]
    assert head == [
        "training set", "budget", "measured", "final %", "peak %", "train %", "PSNR dB", "SSIM",
        "s",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["clean", "tap", "noise"]
    shown = f"15.0 [0.0, {100 * interval([0.1, 0.2]).high:.1f}]"  # shown inside 0 to 100
    assert rows[1] == [
        "tap", "linf 8/255", "0.031", shown, "100.0", shown, "31.2", "0.900", "3.8",
    ]  # fmt: skip
    assert rows[0][1:3] == ["", ""] and rows[0][-1] == "0.0"
    assert 'title="n = 2: 10.0, 20.0">15.0' in single.read_text()


def test_a_small_run_of_a_paper_is_labeled(tmp_path):
    path = page.write_run(folder(tmp_path / "run", record(config={"scale": "small"})))
    assert "small run, not the scale of the paper" in Tables(path.read_text()).words


def test_targeted_success_gets_a_column(tmp_path):
    value = record()
    value["arms"]["tap"]["success_rate"] = interval([1.0, 0.5])._asdict()
    path = page.write_run(folder(tmp_path / "run", value))
    head, *rows = Tables(path.read_text()).tables[0]
    assert rows[1][head.index("success %")].startswith("75.0 [")
    assert rows[0][head.index("success %")] == ""


def test_confusion_and_classes_are_row_shares(single):
    tables = Tables(single.read_text()).tables
    assert tables[1][1:] == [["0", "", "", ""], ["1", "10", "80", "10"], ["2", "10", "10", "80"]]
    assert tables[4] == [
        ["class", "clean", "tap", "noise"],
        ["0", "-", "-", "-"],
        ["1", "50.0", "50.0", "50.0"],
        ["2", "50.0", "50.0", "50.0"],
    ]
    assert 'title="true 1, predicted 0: 1 (10.0 %)"' in single.read_text()


def test_a_large_confusion_matrix_is_a_picture(tmp_path):
    counts = np.full((30, 30), 1)
    np.fill_diagonal(counts, 60)
    counts[4, 7] = 11
    heat = charts.confusion("tap", counts.tolist(), [f"c{i}" for i in range(30)])
    assert heat.cells is None and heat.worst[0] == ("c4", "c7", 11, 11 / 99)
    assert len(heat.worst) == charts.WORST
    value = record(arms={"tap": entry([0.5], classes=30)})
    text = page.write_run(folder(tmp_path / "run", value)).read_text()
    assert 'class="matrix"' in text and len(text) < 200_000


def test_curves_are_points_in_percent():
    one = charts.chart({"a": [0.0, 0.5, 1.0], "b": [0.25]})
    assert [line.points for line in one.lines] == [
        "0.00,100.00 50.00,50.00 100.00,0.00",
        "0.00,75.00 0.00,75.00",
    ]
    assert [line.last for line in one.lines] == [1.0, 0.25]
    assert one.x_ticks[0] == (0.0, "1") and one.x_ticks[-1] == (100.0, "3")
    alone = charts.chart({"a": [0.5]})
    assert alone.x_ticks == [(50.0, "1")] and alone.lines[0].points == "50.00,50.00 50.00,50.00"
    many = charts.chart({str(i): [0.5, 0.5] for i in range(30)}).lines
    assert len({(line.color, line.dash) for line in many}) == 30


def test_settings_versions_device_statement_and_published_values(single):
    parsed = Tables(single.read_text())
    words = " ".join(parsed.words)
    facts = dict(parsed.tables[-1])
    assert facts["recipe.epochs"] == "2" and facts["versions.jax"] == versions()["jax"]
    assert facts["device.host"] == device()["host"] and facts["date"] == "2026-01-02"
    assert facts["seconds.total"] == "9.0" and facts["data.train.num_rows"] == "48"
    assert "These data are POISONED" in words and "48 training images" in words
    assert "2 victims per training set" in words and "9 s in all" in words
    assert "small run" not in words
    assert parsed.tables[-2][1] == ["published", "TAP on CIFAR-10", "8.17", "ISS README"]
    assert parsed.tables[-2][2][:2] == ["ours", "toy/default · clean"]
    assert {"table", "curves", "grid", "confusion", "published", "settings"} <= set(parsed.ids)


def test_every_text_is_escaped(tmp_path):
    value = record(
        experiment=HOSTILE,
        config={HOSTILE: HOSTILE},
        date=HOSTILE,
        published=[{"what": HOSTILE, "value": 0.5, "source": HOSTILE}],
        arms={HOSTILE: entry([0.5]) | {"expect": HOSTILE, "victim": HOSTILE}},
    )
    value["device"]["host"] = HOSTILE
    first = folder(tmp_path / "a", value)
    second = folder(tmp_path / "b", value)
    for found in (runs.read_runs([first]), runs.read_runs([first, second])):
        found = [run._replace(class_names=(HOSTILE, "b", "c")) for run in found]
        text = page.html(found)
        assert "alert(1)" in text and "<script>alert" not in text
        assert HOSTILE in Tables(text).words


def test_arms_of_several_victims_are_grouped(tmp_path):
    arms = {
        f"{net}/{name}": entry([0.5], victim=net)
        for name in ("clean", "tap")
        for net in ("resnet18", "vgg11")
    }
    parsed = Tables(page.write_run(folder(tmp_path / "r", record(arms=arms))).read_text())
    rows = [row[:2] for row in parsed.tables[0]]
    pairs = [[net, name] for net in ("resnet18", "vgg11") for name in ("clean", "tap")]
    assert rows == [["victim", "training set"], *pairs]
    assert parsed.words.count("resnet18") >= 4  # table, curves, confusion, classes


def test_a_victim_without_epochs_has_no_curve(tmp_path):
    arms = {f"{v}/clean": entry([0.5], victim=v, curve=c) for v, c in (("net", [0.5]), ("svm", []))}
    text = page.write_run(folder(tmp_path / "r", record(arms=arms))).read_text()
    assert text.count("<polyline") == text.count('class="plot"') == 1
    alone = record(arms={"clean": entry([0.5], curve=[])})
    assert 'id="curves"' not in page.write_run(folder(tmp_path / "s", alone)).read_text()


def test_class_names_come_from_the_source_that_the_poison_names(tmp_path, digits_folder):
    path = folder(tmp_path / "run", record(arms={"tap": entry([0.5], classes=10)}))
    (path / "poison").mkdir()
    (path / "poison" / "tap").symlink_to(digits_folder)
    assert runs.read_run(path).class_names == tuple("0123456789")
    (path / "poison" / "tap").unlink()
    assert runs.read_run(path).class_names is None


def test_several_runs_share_a_table_and_settings_that_differ_are_marked(several):
    text = several.read_text()
    parsed = Tables(text)
    assert parsed.tables[0][0][:2] == ["run", "training set"]
    labels = ["toy/default"] * 3 + ["other/b"] * 3
    assert [row[0] for row in parsed.tables[0][1:]] == labels
    settings = parsed.tables[-1]
    assert settings[0] == ["setting", "toy/default", "other/b"]
    assert ["seed", "3", "4"] in settings and ["data.train.num_rows", "48", ""] in settings
    marked = re.findall(r'<tr class="differs"><th scope="row">([^<]*)', text)
    assert marked == ["seed", "data.train.num_rows"]
    assert text.count("<polyline") == 6 and "grid" not in parsed.ids


def test_a_page_asks_the_network_for_nothing(single, several):
    for path in (single, several):
        text = path.read_text()
        assert all(a.startswith(("data:", "#")) for a in Tables(text).addresses)
        assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?://", text)
        assert "default-src 'none'" in text
        assert path.stat().st_size < 1_500_000


def test_chromium_shows_both_pages_without_a_word_on_the_console(single, several, tmp_path):
    for path, parts in ((single, {"table", "curves", "grid", "confusion"}), (several, {"table"})):
        document, console = browse(path, tmp_path)
        assert console == []
        parsed = Tables(document)
        assert parts <= set(parsed.ids)
        assert document.count("<polyline") == (3 if path == single else 6)
    _, console = browse(with_script(single, "nothing.here()", tmp_path / "bad.html"), tmp_path)
    assert "nothing is not defined" in console[0]  # so an error would have been seen


def test_a_click_in_chromium_sorts_numbers_as_numbers(several, tmp_path):
    def order(column, clicks):
        click = f"document.querySelectorAll('#table button')[{column}].click();" * clicks
        document, console = browse(with_script(several, click, tmp_path / "c.html"), tmp_path)
        assert console == []
        return [row[column] for row in Tables(document).tables[0][1:]]

    head = Tables(several.read_text()).tables[0][0]
    finals = [float(cell.split()[0]) for cell in order(head.index("final %"), 1)]
    assert finals == sorted([85.0, 15.0, 72.5, 85.0, 99.9, 72.5])
    finals = [float(cell.split()[0]) for cell in order(head.index("final %"), 2)]
    assert finals == sorted([85.0, 15.0, 72.5, 85.0, 99.9, 72.5], reverse=True)
    assert order(head.index("training set"), 1) == ["clean"] * 2 + ["noise"] * 2 + ["tap"] * 2
    assert order(head.index("PSNR dB"), 2)[-2:] == ["", ""]  # nothing to compare comes last


def test_report_writes_beside_one_run_and_here_for_several(tmp_path, monkeypatch, capsys):
    one = folder(tmp_path / "toy" / "default")
    lone = tmp_path / "record.json"
    lone.write_text(json.dumps(record()))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["report", str(one)]) == 0
    assert (one / "report.html").is_file()
    assert main(["report", str(one), str(lone)]) == 0
    assert main(["report", str(one), str(lone)]) == 0  # a page of ours is made anew
    assert (tmp_path / "here" / "report.html").is_file()
    assert main(["report", str(lone), "--out", str(tmp_path / "x.html")]) == 0
    assert "record" in (tmp_path / "x.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "x.html")


def damaged(**changes):
    return json.dumps(record(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged: Expecting property name"),
        ("[]", "its entry the record is missing or unsound"),
        ("{}", "its entry experiment is missing or unsound"),
        (damaged().replace("9.0", "NaN"), "NaN is no JSON"),
        (damaged(arms={"a": 3}), "its entry arms.a is"),
        (damaged(arms={"a": entry([0.5]) | {"curve": ["x"]}}), "its entry arms.a.curve is"),
        (damaged(arms={"a": entry([0.5]) | {"confusion": [[1]]}}), "arms.a.confusion is"),
        (damaged(arms={"a": entry([0.5]) | {"peak_accuracy": {}}}), "arms.a.peak_accuracy is"),
        (damaged(published=[{"what": "x"}]), "its entry published is"),
        (damaged(seconds={}), "its entry seconds is"),
    ],
)
def test_a_damaged_record_is_one_line(tmp_path, capsys, text, message):
    run = folder(tmp_path / "run")
    (run / "result.json").write_text(text)
    assert main(["report", str(run)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and message in captured.err
    assert not (run / "report.html").exists()


def places(value, path=()):
    """The path of every entry of a record; of lists the first two."""
    yield path
    for key in value if isinstance(value, dict) else ():
        yield from places(value[key], (*path, key))
    for i in range(min(2, len(value))) if isinstance(value, list) else ():
        yield from places(value[i], (*path, i))


@pytest.mark.parametrize("junk", [None, "x", {}, [None], 1e308, "nothing"])
def test_any_entry_may_be_junk_and_there_is_a_page_or_one_line(tmp_path, junk):
    rates = {k: interval([1.0, 0.5])._asdict() for k in ("success_rate", "craft_seeds")}
    poison = dict(record()["poison"])
    whole = record(arms={"n/tap": entry([0.1, 0.2], victim="n", poison=poison, **rates)})
    run = folder(tmp_path / "run")
    pages = 0
    for *path, last in filter(None, places(whole)):
        value = copy.deepcopy(whole)
        node = functools.reduce(lambda inner, key: inner[key], path, value)
        if junk == "nothing":
            del node[last]
        else:
            node[last] = junk
        (run / "result.json").write_text(json.dumps(value))
        try:
            page.html([runs.read_run(run)])
            pages += 1
        except InputError as error:
            assert "\n" not in str(error)
    assert pages > 10  # settings and versions may hold anything


def test_bad_runs_and_targets_are_one_line_and_nothing_is_touched(tmp_path, capsys):
    run = folder(tmp_path / "toy" / "default")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.json").write_text("{}")
    thesis = tmp_path / "thesis.html"
    thesis.write_text("mine")
    cases = [
        ([], "no run named"),
        ([str(tmp_path / "no")], "no run"),
        (["\0"], "no run"),
        ([str(begun)], "begun is not finished: it has no result.json"),
        ([str(tmp_path)], f"no result.json; did you mean {run}?"),
        ([str(run), str(run / "result.json")], "is named twice"),
        ([str(run), "--out", str(thesis)], "exists and is no report of jaxpoison"),
        ([str(run), "--out", str(thesis / "x")], "Not a directory"),
        ([str(run), "--out", str(tmp_path)], "Is a directory"),
    ]
    for words, message in cases:
        assert main(["report", *words]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert message in captured.err
    assert thesis.read_text() == "mine" and not (run / "report.html").exists()


def test_a_failing_write_keeps_the_page_from_before(single, monkeypatch):
    before = single.read_text()

    def full(self, text, **options):
        with open(self, "w") as file:
            file.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(InputError, match="cannot write .*: No space left on device"):
        page.write_run(single.parent)
    assert single.read_text() == before
    names = {p.name for p in single.parent.iterdir()}
    assert names == {"config.json", "result.json", "grid.png", "report.html"}
