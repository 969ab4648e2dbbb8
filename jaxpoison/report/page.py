"""report.html: one self-contained page of one run, or of several beside each other.

No network: style, script and pictures are in the file, and its content policy forbids the rest.
"""

import functools
import os
import pathlib
from typing import Any

import jinja2

import jaxpoison
from jaxpoison import check
from jaxpoison.data.manifest import STATEMENT
from jaxpoison.report import (
    added_page,
    charts,
    matrix_tables,
    sweeps,
    tables,
    targeted_page,
    targeted_tables,
)
from jaxpoison.report.cells import Cell, number, rate
from jaxpoison.report.probes import PROBES
from jaxpoison.report.record import flat
from jaxpoison.report.runs import Run, read_run
from jaxpoison.types import InputError

__all__ = ["html", "write", "write_run"]

GENERATOR = '<meta name="generator" content="jaxpoison'
"""How a page of ours is known: only such a file is replaced."""
MADE = ("device", "versions")


def write_run(folder: pathlib.Path) -> pathlib.Path:
    """`report.html` of a finished run, in its folder; returns the file."""
    return write(folder / "report.html", [read_run(folder)])


def write(path: pathlib.Path, runs: list[Run]) -> pathlib.Path:
    """The page of `runs` in one file, which appears whole or not at all; returns the file.

    Args:
      path: the file; an earlier page of ours is replaced.
      runs: one or several, from `runs.read_runs`.

    Raises:
      InputError: another file is there, or the system refuses to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not _is_ours(path):
            raise InputError(f"{path} exists and is no report of jaxpoison; choose another --out")
        try:
            temporary.write_text(html(runs), encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        reason = getattr(error, "strerror", None) or check.one_line(error)
        raise InputError(f"cannot write {path}: {reason}") from error
    return path


def html(runs: list[Run]) -> str:
    """The page as text: every part of one run, or the comparison of several."""
    several = len(runs) > 1
    return _template().render(
        generator=f"jaxpoison {jaxpoison.__version__}",
        statement=STATEMENT,
        runs=runs,
        title="comparison of runs" if several else runs[0].record["experiment"],
        heads=[_head(run) for run in runs],
        table=_table(runs),
        probes=[(name, PROBES[name]) for name in _probes(runs) if name in PROBES],
        targeted=[] if several else targeted_page.parts(runs[0].record),
        added=None if several else added_page.parts(runs[0]),
        matrix=None if several else _matrix(runs[0]),
        curves=_curves(runs),
        sweeps=[] if several else _sweeps(runs[0]),
        differing=_settings(runs) if several else [],
        settings=[] if several else list(_facts(runs[0], *MADE, "date", "seconds").items()),
        grid=None if several or runs[0].grid is None else charts.data_url(runs[0].grid),
        heats=[] if several else _heats(runs[0]),
        classes=[] if several else _classes(runs[0]),
        expected=[] if several else _expected(runs[0]),
        published=_published(runs),
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _is_ours(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(2000)


def _arms(run: Run) -> list[tuple[str, str, dict[str, Any]]]:
    """(victim or "", name without it, entry), the arms of one victim together."""
    arms = run.record["arms"].items()
    rows = [(entry.get("victim", ""), name, entry) for name, entry in arms]
    order = list(dict.fromkeys(victim for victim, _, _ in rows))
    rows = [(v, name.removeprefix(f"{v}/") if v else name, entry) for v, name, entry in rows]
    return sorted(rows, key=lambda row: order.index(row[0]))


def _expected(run: Run) -> list[tuple[str, str]]:
    """(training set, what to expect), once where all victims have the same text."""
    return list(dict.fromkeys((name, entry["expect"]) for _, name, entry in _arms(run)))


def _head(run: Run) -> dict[str, Any]:
    """What a reader has to know before the numbers."""
    value, device = run.record, run.record["device"]
    cpu = device["platform"] == "cpu"
    cores = device.get("host_cores")
    kind = f"{device['host']}, {cores} cores" if cpu else f"{device['count']} x {device['kind']}"
    settings = flat(value["config"])
    return {
        "label": run.label,
        **_counts(value),
        "images": settings.get("data.train.num_rows"),
        "tested": settings.get("data.test.num_rows"),
        "epochs": settings.get("recipe.epochs"),
        "small": settings.get("scale") == "small",
        "device": f"{'CPU' if cpu else device['platform'].upper()}: {kind}",
        "total": f"{value['seconds']['total']:.0f}",
        "compile": f"{value['seconds']['compile']:.0f}",
        "date": value["date"],
        "jax": value["versions"].get("jax", "unknown"),
    }


def _counts(value: dict[str, Any]) -> dict[str, int]:
    """How many victims learned from each training set, and of how many setups."""
    arms = value["arms"].values()
    if targeted_tables.is_targeted(value):
        setups = [one for entry in arms for one in entry["setups"]]
        return {
            "setups": len({one["name"] for one in setups}),
            "victims": max((len(one["success"]) for one in setups), default=0),
        }
    victims = max((len(a["final_accuracy"]["values"]) for a in arms), default=0)
    return {"setups": 0, "victims": victims}


def _table(runs: list[Run]) -> dict[str, Any]:
    """One row per training set; columns that are empty throughout are left out."""
    columns: dict[str, list[Cell]] = {}
    probes = _probes(runs)
    for run in runs:
        names = {id(entry): name for name, entry in run.record["arms"].items()}
        for victim, name, entry in _arms(run):
            poison = entry.get("poison") or {}
            row = {
                "run": Cell(run.label if len(runs) > 1 else ""),
                "victim": Cell(victim),
                "training set": Cell(name),
                "budget": _budget({} if "added" in entry else poison),
                "measured": number(poison.get("measured"), "{:.4g}"),
                **targeted_page.cells(entry),
                "final %": rate(entry["final_accuracy"]),
                "peak %": rate(entry["peak_accuracy"]),
                "train %": rate(entry["train_accuracy"]),
                **added_page.cells(entry),
                **{f"{k} %": rate(entry.get("probes", {}).get(k)) for k in probes},
                "attack keys %": rate(entry.get("craft_seeds")),
                "PSNR dB": number(poison.get("psnr"), "{:.1f}"),
                "SSIM": number(poison.get("ssim"), "{:.3f}"),
                "purified PSNR dB": number(entry.get("defended", {}).get("psnr"), "{:.1f}"),
                "poison left": number(entry.get("defended", {}).get("residual"), "{:.2f}"),
                "s": number(tables.seconds(run.record, names[id(entry)]), "{:.1f}"),
            }
            for column, cell in row.items():
                columns.setdefault(column, []).append(cell)
    shown = {name: cells for name, cells in columns.items() if any(c.text for c in cells)}
    return {"head": list(shown), "rows": list(zip(*shown.values(), strict=True))}


def _probes(runs: list[Run]) -> list[str]:
    """The probes of all runs, each once."""
    return list(dict.fromkeys(name for run in runs for name in tables.probe_names(run.record)))


def _budget(poison: dict[str, Any]) -> Cell:
    if poison.get("norm") is None or poison.get("eps") is None:
        return Cell("none" if poison else "")
    return Cell(tables.radius(poison["norm"], poison["eps"]), float(poison["eps"]))


def _curves(runs: list[Run]) -> list[tuple[str, charts.Chart]]:
    """(heading, chart): one for each victim of one run, one over all arms of several runs."""
    groups: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for victim, name, entry in _arms(run):
            several = len(runs) > 1
            key = "" if several else victim
            full = " · ".join(filter(None, (run.label, victim, name))) if several else name
            if entry["curve"]:  # a victim without epochs has none
                groups.setdefault(key, {})[full] = entry["curve"]
    return [(victim, charts.chart(curves)) for victim, curves in groups.items()]


def _matrix(run: Run) -> str | None:
    """The picture of a defense matrix; None of a run of another kind, or without its picture."""
    file = run.path / "matrix.png"
    found = matrix_tables.is_matrix(run.record) and file.is_file()
    return charts.data_url(file.read_bytes()) if found else None


def _sweeps(run: Run) -> list[tuple[str, charts.Chart]]:
    """(heading, chart): one for each option that was varied, and each victim."""
    return [
        (title, charts.sweep_chart(lines, log=sweeps.is_log(lines)))
        for title, lines in sweeps.charts(run.record).items()
    ]


def _labels(run: Run, num: int) -> list[str]:
    names = run.class_names or ()
    return list(names) if len(names) == num else [str(i) for i in range(num)]


def _heats(run: Run) -> list[tuple[str, list[charts.Heat]]]:
    """(victim, matrices of its training sets)."""
    groups: dict[str, list[charts.Heat]] = {}
    for victim, name, entry in _arms(run):
        labels = _labels(run, len(entry["confusion"]))
        groups.setdefault(victim, []).append(charts.confusion(name, entry["confusion"], labels))
    return list(groups.items())


def _classes(run: Run) -> list[dict[str, Any]]:
    """Per-class accuracy of each victim: names of the training sets, and rows by class."""
    groups: dict[str, dict[str, list[float | None]]] = {}
    for victim, name, entry in _arms(run):
        groups.setdefault(victim, {})[name] = entry["per_class"]
    tables_ = []
    for victim, columns in groups.items():
        num = max(map(len, columns.values()))
        padded = [values + [None] * (num - len(values)) for values in columns.values()]
        rows = list(zip(_labels(run, num), zip(*padded, strict=True), strict=True))
        tables_.append({"victim": victim, "head": list(columns), "rows": rows})
    return tables_


def _facts(run: Run, *parts: str) -> dict[str, str]:
    """Settings, data hashes, and `parts` of the record, under dotted names."""
    facts = flat(run.record["config"]) | flat({name: run.record[name] for name in parts})
    return {name: "-" if x is None else str(x) for name, x in facts.items()}


def _settings(runs: list[Run]) -> list[tuple[str, list[str], bool]]:
    """(name, value in each run, whether they differ); settings that differ come first."""
    facts = [_facts(run, *MADE) for run in runs]
    names = list(dict.fromkeys(name for one in facts for name in one))
    rows = [(name, [one.get(name, "") for one in facts]) for name in names]
    marked = [(name, values, len(set(values)) > 1) for name, values in rows]
    return sorted(marked, key=lambda row: not row[2])


def _claim(entry: dict[str, Any]) -> dict[str, Any]:
    """What published numbers are of: success of a targeted attack, else clean accuracy."""
    return entry["success_rate" if "setups" in entry else "final_accuracy"]


def _published(runs: list[Run]) -> list[dict[str, str]]:
    """Other people's numbers, each once, and below them those of these runs."""
    theirs = {}
    for run in runs:
        for row in run.record["published"]:
            value = str(round(100 * row["value"], 2))
            theirs[row["what"], value, row["source"]] = None
    ours = [
        (" · ".join(filter(None, (run.label, victim, name))), tables.percent(_claim(e)))
        for run in runs
        for victim, name, e in _arms(run)
    ]
    rows = [{"kind": "published", "what": w, "value": v, "source": s} for w, v, s in theirs]
    where = {"kind": "ours", "source": "this page"}
    return rows + [where | {"what": w, "value": v} for w, v in ours] if rows else []
