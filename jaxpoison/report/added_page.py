"""What the page shows of a run with added points."""

from typing import Any

from jaxpoison.report import added_tables, charts
from jaxpoison.report.cells import Cell, number, rate
from jaxpoison.report.runs import Run

__all__ = ["cells", "parts"]

PICTURES = {
    "residual.png": "Norm of the gradient that is left at the target parameters, over the attack's "
    "steps.",
    "reach.png": "The same after the last step over the share of added points; tau: no points of a "
    "smaller weight can make the target a place of rest; lower bound: what is left at the least.",
}


def cells(entry: dict[str, Any]) -> dict[str, Cell]:
    """The columns of the first table on added points; empty where an entry has none."""
    added = entry.get("added") or {}
    drop, found = added.get("drop"), added.get("reach")
    ends, apart = added.get("residual") or {}, added.get("distance")
    target, values = added.get("target_accuracy"), added.get("values")
    error = added.get("inversion", {}).get("feature_error")  # of the stored images
    if error is None:
        error = (added.get("feature_error") or {}).get("last")
    mean, _, interval = added_tables.points(drop).partition(" ") if drop else ("", "", "")
    return {
        "points": number(added.get("num_added"), "{:d}"),
        "constraint": Cell(added_tables.constraint(added) if added else ""),
        "drop": Cell(mean, drop["mean"] if drop else None, interval),
        "residual first": number(ends.get("first"), "{:.3g}"),
        "residual last": number(ends.get("last"), "{:.3g}"),
        "tau": Cell(added_tables.tau(found), found["tau"] if found else None),
        "reachable": Cell(added_tables.reach(found)),
        "target %": number(None if target is None else 100 * target, "{:.1f}"),
        "distance": number(apart["mean"] if apart else None, "{:.3g}"),
        "most |x|": Cell(added_tables.largest(values)),
        "clean": Cell(added_tables.largest(values, "clean")),
        "feature error": number(error, "{:.3g}"),
    }


def parts(run: Run) -> dict[str, Any] | None:
    """{pictures: (text, data URL), filters: rows}; None of a run of another kind."""
    if not added_tables.is_added(run.record):
        return None
    pictures = []
    for name, text in PICTURES.items():
        file = run.path / name
        if file.is_file():
            pictures.append((text, charts.data_url(file.read_bytes())))
    return {"pictures": pictures, "filters": _filters(run.record)}


def _filters(record: dict[str, Any]) -> list[list[Cell]]:
    rows = []
    for name, entry in record["arms"].items():
        for defense, found in entry.get("added", {}).get("filters", {}).items():
            removed = (found["true_positive_rate"], found["false_positive_rate"])
            rows.append([
                Cell(name),
                Cell(defense),
                *(number(None if x is None else 100 * x, "{:.1f}") for x in removed),
                number(found["auc"], "{:.3f}"),
                rate(entry["final_accuracy"]),
                rate(found["final_accuracy"]),
            ])  # fmt: skip
    return rows
