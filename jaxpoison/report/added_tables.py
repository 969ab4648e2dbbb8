"""Tables of a run with added points: on a terminal, and in Markdown."""

from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpoison.report import tables
from jaxpoison.report.record import entry as entry_name
from jaxpoison.victims import interval

__all__ = [
    "HEAD",
    "constraint",
    "drop",
    "is_added",
    "markdown",
    "over_keys",
    "points",
    "print_record",
    "reach",
]

HEAD = (
    "| added points | attack, constraint, victim | points / clean rows | clean | random points | "
    "poisoned | drop | tau | target reachable | time | device |"
)
"""Of the table in Markdown, one row for each victim, attack and share."""


def is_added(record: dict[str, Any]) -> bool:
    """Whether a record is of attacks that add points."""
    return any("added" in entry for entry in record["arms"].values())


def constraint(added: dict[str, Any]) -> str:
    """`none`, `box`, `linf 8/255`, and in which space."""
    own = added["constraint"]
    limit = "images" if own is None else own["kind"]
    if own is not None and own["eps"] is not None:
        limit = tables.radius("linf", own["eps"])
    return f"{limit} in features" if added["space"] == "features" else limit


def reach(found: dict[str, Any] | None) -> str:
    """`yes`, `no`, or `open` where the conditions are necessary only; nothing without a tau."""
    if found is None:
        return ""
    return {True: "yes", False: "no", None: "open"}[found["reachable"]]


def tau(found: dict[str, Any] | None) -> str:
    """`0.047`; `inf` where no share is enough; nothing without one."""
    if found is None:
        return ""
    return "inf" if found["tau"] is None else f"{found['tau']:.3g}"


def points(value: dict[str, Any]) -> str:
    """`12.3 [4.5, 20.1]`: percentage points lost, not cut at 0."""
    mean = f"{100 * value['mean']:.1f}"
    if value["low"] is None:
        return mean
    return f"{mean} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def largest(values: dict[str, float] | None, whose: str = "value") -> str:
    """Largest absolute value of a point, or of the clean set; nothing of grey levels."""
    if values is None:
        return ""
    return f"{max(abs(values[f'{whose}_low']), abs(values[f'{whose}_high'])):.3g}"


def table(record: dict[str, Any]) -> Table:
    """One row per training set; victims stand together under a line with the name of each."""
    result = _empty()
    result.add_column("training set", overflow="fold")
    for name in ("accuracy", "drop", "resi-\ndual", "tau", "can\nreach", "most\n|x|"):
        result.add_column(name, justify="right", no_wrap=True)
    last = None
    for name, entry in record["arms"].items():
        victim, arm = tables.split_name(name, entry)
        if victim != last:
            result.add_row(Text(f"{victim}:"))
            last = victim
        cells = [""] * 5
        if added := entry.get("added"):
            found = added.get("reach")
            lost = f"{100 * added['drop']['mean']:.1f}"
            left = added.get("residual")
            size = "" if left is None else f"{left['last']:.2g}"
            cells = [lost, size, tau(found), reach(found), largest(added["values"])]
        result.add_row(Text(f"  {arm}"), tables.percent(entry["final_accuracy"]), *cells)
    return result


def _empty() -> Table:
    """Fits a terminal of 80 columns where names are short."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)


def filter_table(record: dict[str, Any]) -> Table | None:
    """One row per training set and filter; None without filters."""
    result = _empty()
    result.add_column("training set, filter", overflow="fold")
    for name in ("points\nremoved", "clean rows\nremoved", "AUC", "accuracy", "refit"):
        result.add_column(name, justify="right")
    for name, entry in record["arms"].items():
        for defense, found in entry.get("added", {}).get("filters", {}).items():
            after = found["final_accuracy"]
            result.add_row(
                Text(f"{name}, {defense}"),
                share(found["true_positive_rate"]),
                share(found["false_positive_rate"]),
                "" if found["auc"] is None else f"{found['auc']:.3f}",
                tables.percent(entry["final_accuracy"]),
                "" if after is None else tables.percent(after),
            )
    return result if result.row_count else None


def share(value: float | None) -> str:
    """In percent; nothing for none."""
    return "" if value is None else f"{100 * value:.1f}"


def print_record(record: dict[str, Any], console: Console) -> None:
    """Print the tables, what to expect of each row, the published values and the total time."""
    counts = {len(a["final_accuracy"]["values"]) for a in record["arms"].values()}
    seeds = " or ".join(map(str, sorted(counts)))
    title = Text(
        f"{record['experiment']}: clean test accuracy and drop in %, mean [95 % interval] over "
        f"{seeds} victims; residual: of the gradient at the target, in the end"
    )
    parts: list[Any] = [title, table(record)]
    if (filters := filter_table(record)) is not None:
        parts += [Text("filters, in %: what they remove, and a fit to what they leave"), filters]
    tables.print_parts(record, parts, console)


def markdown(record: dict[str, Any]) -> list[str]:
    """Rows for the table of `HEAD`; no rows of a record of another kind, nor of the control.

    Of several attack keys rates and drops are over these, of victims otherwise; tau is that of the
    first.
    """
    rows, arms = [], record["arms"]
    for name, entry in arms.items():
        added = entry.get("added")
        if added is None or added["arm"].startswith(tables.RANDOM_POINTS):
            continue
        victim, _ = tables.split_name(name, entry)
        control = tables.control(arms, entry)
        cells = [
            tables.experiment(record),
            f"{added['arm']}, {constraint(added)}, {victim}",
            f"{added['num_added']}, {added['share']:.3g}",
            tables.percent(arms[entry_name("clean", victim)]["final_accuracy"]),
            tables.percent(over_keys(control)) if control else "-",
            tables.percent(over_keys(entry)),
            points(drop(entry, arms[entry_name("clean", victim)])),
            tau(added.get("reach")) or "-",
            reach(added.get("reach")) or "-",
            *tables.made(record),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def over_keys(entry: dict[str, Any]) -> dict[str, Any]:
    """Final accuracy as an interval over attack keys, or of a single one over victims."""
    return entry.get("craft_seeds") or entry["final_accuracy"]


def drop(entry: dict[str, Any], clean: dict[str, Any]) -> dict[str, Any]:
    """Likewise the drop against the mean of the clean set's victims."""
    if "craft_seeds" not in entry:
        return entry["added"]["drop"]
    lost = clean["final_accuracy"]["mean"] - np.asarray(entry["craft_seeds"]["values"])
    return interval(lost)._asdict()
