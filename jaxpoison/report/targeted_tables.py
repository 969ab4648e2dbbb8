"""The tables of a targeted run: who was fooled, how sure they are, and what it cost elsewhere."""

import textwrap
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpoison.report import tables
from jaxpoison.report.record import entry as entry_name

__all__ = [
    "HEAD",
    "comparison_table",
    "count",
    "is_targeted",
    "markdown",
    "outer_loss",
    "print_record",
    "table",
]

HEAD = (
    "| targeted experiment | attack, budget | fooled victims | p(wanted): clean | random noise "
    "| poisoned | clean accuracy | B first -> last | time | device |"
)
"""Of the table in Markdown whose rows `markdown` makes."""


def is_targeted(record: dict[str, Any]) -> bool:
    """Whether it is the record of a `targeted_job`."""
    return "comparisons" in record


def count(entry: dict[str, Any]) -> str:
    """`9 of 40`: targets read as wanted, of all setups, victims and targets."""
    return "{hits} of {trials}".format(**entry["success_count"])


def outer_loss(entry: dict[str, Any]) -> tuple[float, float] | None:
    """Mean over setups of the outer loss before the first and the last update, if it has any."""
    losses = [one["outer_loss"] for one in entry["setups"]]
    if not losses or None in losses:
        return None
    first, last = (sum(loss[end] for loss in losses) / len(losses) for end in ("first", "last"))
    return first, last


def table(record: dict[str, Any], width: int) -> Table:
    """One row per training set; victims stand together under a line with the name of each.

    Like `comparison_table` it cuts no digit on a terminal of `width` >= 80 columns: long names are
    broken.
    """
    result = _empty(width)
    result.add_column("training set", no_wrap=True)
    for name in ("fooled", "success", "p\n(wanted)", "p\n(true)", "accuracy", "B"):
        result.add_column(name, justify="right")
    result.add_column("s", justify="right", no_wrap=True)
    last = None
    for name, entry in record["arms"].items():
        victim, arm = tables.split_name(name, entry)
        if victim and victim != last:
            result.add_row(Text(f"{victim}:"))
            last = victim
        result.add_row(
            Text("\n".join(textwrap.wrap(arm, len(LONG_NAME), break_long_words=False))),
            count(entry),
            *(tables.percent(entry[rate]) for rate in _SHOWN),
            _loss(entry),
            f"{tables.seconds(record, name):.1f}",
        )
    return result


def _empty(width: int) -> Table:
    padding = (0, 0, 0, 1 if width >= 100 else 0)
    return Table(box=box.SIMPLE_HEAD, padding=padding, pad_edge=False, show_edge=False)


def comparison_table(record: dict[str, Any], width: int) -> Table:
    """One row for each pair of arms and each quantity, with its tests."""
    result = _empty(width)
    for name in ("comparison", "of"):
        result.add_column(name, overflow="fold", no_wrap=name == "of")
    for name in ("difference", "sign\ntest p", "Wilcoxon\np", "McNemar\np", "n"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in record["comparisons"]:
        name = f"{row['a']} - {row['b']}"
        result.add_row(
            Text(f"{row['victim']}: {name}" if row["victim"] else name),
            WORDS[row["what"]],
            difference(row["difference"]),
            *(p_value(row[test]) for test in ("sign_test_p", "wilcoxon_p", "mcnemar_p")),
            str(row["n"]),
        )
    return result


def print_record(record: dict[str, Any], console: Console) -> None:
    """Print both tables, what to expect of each row, the published values and the total time."""
    entry = next(iter(record["arms"].values()))
    setups, seeds = len(entry["setups"]), len(entry["setups"][0]["success"])
    title = Text(
        f"{record['experiment']}: targets read as wanted by {seeds} victims of each of {setups} "
        "setups; in %, mean [95 % interval] over setups"
    )
    against = Text("differences in percentage points, tested setup by setup")
    width = console.width
    shown = table(record, width), Text(), against, comparison_table(record, width), Text()
    parts = [title, *shown, *_crafting(record)]
    tables.print_parts(record, parts, console)


def _crafting(record: dict[str, Any]) -> list[Text]:
    """What crafting took: of several victims it is in no row of the table."""
    arms = dict.fromkeys(tables.split_name(*item)[1] for item in record["arms"].items())
    took = {arm: record["seconds"].get(f"craft {arm}") for arm in arms}
    shown = ", ".join(f"{arm} {seconds:.1f}" for arm, seconds in took.items() if seconds)
    return [Text(f"seconds of crafting, all setups: {shown}")] if shown else []


WORDS = {
    "success_rate": "success",
    "intended_probability": "p(wanted)",
    "true_probability": "p(true)",
}
"""What the quantities of a comparison are called."""
LONG_NAME = "gradient-matching"
"""Names of training sets that are longer are broken."""
_SHOWN = ("success_rate", "intended_probability", "true_probability", "final_accuracy")


def difference(value: dict[str, Any]) -> str:
    """`+12.3 [4.5, 20.1]`: in percentage points, not cut at 0."""
    mean = f"{100 * value['mean']:+.1f}"
    if value["low"] is None:
        return mean
    return f"{mean} [{100 * value['low']:+.1f}, {100 * value['high']:+.1f}]"


def p_value(value: float | None) -> str:
    """`0.031`; below 0.001 as such; nothing where the test does not apply."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def markdown(record: dict[str, Any]) -> list[str]:
    """Rows for README's table of targeted runs, one per attack and victim; see `HEAD`.

    No rows of a record that is not targeted, nor of controls.
    """
    if not is_targeted(record):
        return []
    arms, rows = record["arms"], []
    for name, entry in arms.items():
        victim, arm = tables.split_name(name, entry)
        if arm == "clean" or tables.is_control(arm):
            continue
        clean = arms[entry_name("clean", victim)]
        noise = tables.control(arms, entry)
        budget = tables.radius(entry["poison"]["norm"], entry["poison"]["eps"])
        cells = [
            tables.experiment(record),
            ", ".join(filter(None, (arm, budget, victim))),
            f"{count(entry)}, {len(entry['setups'])} setups",
            *(
                tables.percent(e["intended_probability"]) if e else "-"
                for e in (clean, noise, entry)
            ),
            tables.percent(entry["final_accuracy"]),
            _loss(entry) or "-",
            *tables.made(record),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _loss(entry: dict[str, Any]) -> str:
    losses = outer_loss(entry)
    return "" if losses is None else f"{losses[0]:.3g} -> {losses[1]:.3g}"
