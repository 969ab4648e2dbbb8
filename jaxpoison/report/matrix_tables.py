"""The table of a defense matrix: attacks down, defenses across; on a terminal and in Markdown."""

import itertools
import string
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpoison.report import tables
from jaxpoison.report.record import published

__all__ = ["axes", "is_matrix", "markdown", "print_record", "published_cell", "stated"]


def is_matrix(record: dict[str, Any]) -> bool:
    """Whether a record is of attacks against defenses."""
    return any("defended" in entry for entry in record["arms"].values())


def published_cell(attack: str, defense: str, value: float, source: str) -> dict[str, Any]:
    """Somebody else's accuracy of one cell, a fraction, to stand beside ours.

    Args:
      attack: the row, by our name.
      defense: the column, by our name.
      value: the fraction.
      source: where it was printed.
    """
    names = {"attack": attack, "defense": defense}
    return published(f"{attack} / {defense}", value, source) | names


def axes(record: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(attacks, defenses) in the order they were computed."""
    cells = [entry["defended"] for entry in record["arms"].values() if "defended" in entry]
    attacks, defenses = (dict.fromkeys(c[k] for c in cells) for k in ("attack", "defense"))
    return list(attacks), list(defenses)


def stated(record: dict[str, Any], attack: str, defense: str) -> list[dict[str, Any]]:
    """All published entries of one cell."""
    names = attack, defense
    return [x for x in record["published"] if (x.get("attack"), x.get("defense")) == names]


def markdown(record: dict[str, Any]) -> list[str]:
    """A table in Markdown: mean and 95 % t-interval in %, published values in brackets after it.

    attack | one column for each defense
    A published value has the letter of its source, and the sources are a second table.
    """
    attacks, defenses = axes(record)
    letters = _letters(record)
    lines = [f"| attack | {' | '.join(defenses)} |", "|---" * (len(defenses) + 1) + "|"]
    for attack in attacks:
        cells = [_cell(record, attack, defense, letters) for defense in defenses]
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    if letters:
        lines += ["", "| in brackets | source |", "|---|---|"]
        lines += [f"| {letter} | {source} |" for source, letter in letters.items()]
    return lines


def print_record(record: dict[str, Any], console: Console | None = None) -> None:
    """Print the matrix, what to expect of each row, and the time."""
    attacks, defenses = axes(record)
    seeds = max(len(a["final_accuracy"]["values"]) for a in record["arms"].values())
    title = Text(
        f"{record['experiment']}: clean test accuracy in %, mean and half of its 95 % interval "
        f"over {seeds} victims"
    )
    result = Table(box=box.SIMPLE_HEAD)
    for name in ("attack", *defenses):
        justify = "left" if name == "attack" else "right"
        result.add_column(name, justify=justify, no_wrap=justify == "left")
    for attack in attacks:
        found = [record["arms"].get(f"{defense}/{attack}") for defense in defenses]
        result.add_row(Text(attack), *("" if x is None else _short(x) for x in found))
    cached = sum(entry["defended"]["cached"] for entry in record["arms"].values())
    note = Text(f"{cached} of {len(record['arms'])} cells were taken from the cache")
    tables.print_parts(record, [title, result, note], console or Console())


def _letters(record: dict[str, Any]) -> dict[str, str]:
    """A letter for each source of a value that stands beside a cell."""
    attacks, defenses = axes(record)
    pairs = itertools.product(attacks, defenses)
    sources = dict.fromkeys(x["source"] for pair in pairs for x in stated(record, *pair))
    return dict(zip(sources, string.ascii_lowercase, strict=False))


def _cell(record: dict[str, Any], attack: str, defense: str, letters: dict[str, str]) -> str:
    entry = record["arms"].get(f"{defense}/{attack}")
    if entry is None:
        return "-"
    found = stated(record, attack, defense)
    others = ", ".join(f"{100 * x['value']:.1f} {letters[x['source']]}" for x in found)
    return tables.percent(entry["final_accuracy"]) + (f" ({others})" if others else "")


def _short(entry: dict[str, Any]) -> str:
    """`83.1 ± 0.9`."""
    rate = entry["final_accuracy"]
    mean = f"{100 * rate['mean']:.1f}"
    return mean if rate["low"] is None else f"{mean} ± {50 * (rate['high'] - rate['low']):.1f}"
