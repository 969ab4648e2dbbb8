"""What the page shows of a targeted run: every setup, from arm to arm, and the tests."""

from typing import Any

from jaxpoison.report import charts, tables, targeted_tables
from jaxpoison.report.cells import Cell, number, rate

__all__ = ["cells", "parts"]

_CHARTS = {
    "intended_probability": "probability of the wanted label, %",
    "true_probability": "probability of the true label, %",
}


def cells(entry: dict[str, Any]) -> dict[str, Cell]:
    """The columns of the first table on what the attacker wants; empty where an entry has none."""
    count, fooled, losses = entry.get("success_count"), Cell(""), None
    if count is not None:
        fooled = Cell(targeted_tables.count(entry), count["hits"] / count["trials"])
        losses = targeted_tables.outer_loss(entry)
    losses = losses or (None, None)
    return {
        "fooled": fooled,
        "success %": rate(entry.get("success_rate")),
        "all epochs %": rate(entry.get("success_over_epochs")),
        "p(wanted) %": rate(entry.get("intended_probability") if count else None),
        "p(true) %": rate(entry.get("true_probability")),
        "B first": number(losses[0], "{:.3f}"),
        "B last": number(losses[1], "{:.3f}"),
    }


def parts(record: dict[str, Any]) -> list[dict[str, Any]]:
    """For each victim {victim, charts, tests, head, rows}; none of a record of another kind."""
    if not targeted_tables.is_targeted(record):
        return []
    victims: dict[str, dict[str, dict[str, Any]]] = {}
    for name, entry in record["arms"].items():
        victim, arm = tables.split_name(name, entry)
        victims.setdefault(victim, {})[arm] = entry
    return [
        {"victim": victim, "charts": _charts(arms), "tests": _tests(record, victim)} | _setups(arms)
        for victim, arms in victims.items()
    ]


def _charts(arms: dict[str, dict[str, Any]]) -> list[tuple[str, charts.Chart]]:
    names = [one["name"] for one in next(iter(arms.values()))["setups"]]
    shown = [
        (title, charts.pairs_chart({k: entry[what] for k, entry in arms.items()}, names, title))
        for what, title in _CHARTS.items()
    ]
    curves = {k: entry["intended_curve"] for k, entry in arms.items() if "intended_curve" in entry}
    title = "probability of the wanted label after each epoch, %"
    return shown + ([(title, charts.chart(curves)._replace(what=title))] if curves else [])


def _tests(record: dict[str, Any], victim: str) -> list[list[Cell]]:
    return [
        [
            Cell(f"{row['a']} - {row['b']}"),
            Cell(targeted_tables.WORDS[row["what"]]),
            _difference(row["difference"]),
            *(_p(row[test]) for test in ("sign_test_p", "wilcoxon_p", "mcnemar_p")),
            Cell(str(row["n"]), row["n"]),
        ]
        for row in record["comparisons"]
        if row["victim"] == victim
    ]


def _difference(value: dict[str, Any]) -> Cell:
    mean, _, note = targeted_tables.difference(value).partition(" ")
    return Cell(mean, value["mean"], note)


def _p(value: float | None) -> Cell:
    return Cell(targeted_tables.p_value(value), value)


def _setups(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The head and the rows of the table of all setups."""
    losses = {k for k, entry in arms.items() if targeted_tables.outer_loss(entry)}
    head = ["setup", *arms, *(f"B of {name}" for name in arms if name in losses)]
    rows = []
    for i, one in enumerate(next(iter(arms.values()))["setups"]):
        own = {name: entry["setups"][i] for name, entry in arms.items()}
        row = [Cell(one["name"]), *map(_wanted, own.values())]
        for name in arms:
            if name in losses:
                loss = own[name]["outer_loss"]
                row.append(Cell(f"{loss['first']:.3f} → {loss['last']:.3f}", loss["last"]))
        rows.append(row)
    return {"head": head, "rows": rows}


def _wanted(one: dict[str, Any]) -> Cell:
    num = len(one["success"])
    mean, fooled = sum(one["intended"]) / num, sum(one["success"])
    every = ", ".join(f"{100 * x:.1f}" for x in one["intended"])
    return Cell(f"{100 * mean:.1f}", mean, f"{fooled:g} of {num}", f"n = {num}: {every}")
