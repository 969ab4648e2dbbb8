"""Cells of the tables on the page."""

from typing import Any, NamedTuple

from jaxpoison.report import tables

__all__ = ["Cell", "number", "rate"]


class Cell(NamedTuple):
    """One cell of a table: what is read, what it is sorted by, a quieter text, and a hint."""

    text: str
    value: float | None = None
    note: str = ""
    hint: str = ""


def rate(value: dict[str, Any] | None) -> Cell:
    """A fraction in percent with its interval; the hint has all values."""
    if value is None:
        return Cell("")
    mean, _, interval = tables.percent(value).partition(" ")
    every = ", ".join(f"{100 * x:.1f}" for x in value["values"])
    return Cell(mean, value["mean"], interval, f"n = {len(value['values'])}: {every}")


def number(value: float | None, form: str) -> Cell:
    """A number in that form; empty for none."""
    return Cell("") if value is None else Cell(form.format(value), float(value))
