"""The tables of README.md and experiments/README.md, made from the records in results/ alone.

    python -m experiments.tables

A table is known by its head; the tables of one record alone (sweeps; setups and tests of a targeted
run; a defense matrix) by the section named after it, "### NAME" or "### NAME (small run)". Whole
runs come in the order of the list of claims, small runs after them by name. The table of added
points stands in experiments/README.md, and in README.md where that has its head; that of
acceptance tests (`experiments.acceptance`) where its head is.
"""

import argparse
import json
import pathlib
import re
from typing import Any

from experiments import acceptance
from jaxpoison.report import (
    added_tables,
    matrix_tables,
    sweeps,
    tables,
    targeted_markdown,
    targeted_tables,
)

__all__ = ["APART", "PAGES", "RESULTS", "filled", "main", "own_tables", "read_records"]

FOLDER = pathlib.Path(__file__).parent
RESULTS = FOLDER / "results"
PAGES = (FOLDER.parent / "README.md", FOLDER / "README.md")
APART = (
    "cifar10_dvae_leak",
    "cifar10_leak_probe",
    "gaussian_phase_transition",
    "mnist_parameter_corruption",
)
MEASURED = (
    "| experiment | attack, budget | clean | random noise | poisoned | time | device |\n"
    "|---|---|---|---|---|---|---|\n"
)
ADDED = f"{added_tables.HEAD}\n{'|---' * (added_tables.HEAD.count('|') - 1)}|\n"
TARGETED = f"{targeted_tables.HEAD}\n{'|---' * (targeted_tables.HEAD.count('|') - 1)}|\n"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=form).parse_args(arguments)
    records = read_records()
    for page in PAGES:
        text = filled(page.read_text(), records)
        temporary = page.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(page)
        print(f"wrote {page}")


def read_records(folder: pathlib.Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The committed records by the names of their files, in the order of the tables."""
    claims = re.findall(r"^\| `(\w+)` \|", PAGES[1].read_text(), flags=re.MULTILINE)

    def place(path: pathlib.Path):
        small = "." in path.stem
        return small, 0 if small else claims.index(path.stem), path.stem

    paths = sorted((p for p in folder.glob("*.json") if p.stem not in APART), key=place)
    return {path.stem: json.loads(path.read_text()) for path in paths}


def filled(text: str, records: dict[str, dict[str, Any]]) -> str:
    """The page with every table made anew.

    Args:
      text: the page; with sections of single records if it has a heading "## Sweeps".
      records: as `read_records`.

    Raises: ValueError for a page that lacks the head of a table that has rows, or a section.
    """
    for head, make in ((MEASURED, tables.markdown), (TARGETED, targeted_tables.markdown)):
        rows = [row for record in records.values() for row in make(record)]
        if rows or head in text:
            text = _put(text, head, rows)
    rows = [row for record in records.values() for row in added_tables.markdown(record)]
    if ADDED in text or (rows and "\n## Sweeps\n" in text):
        text = _put(text, ADDED, rows)
    if acceptance.HEAD in text:
        text = _put(text, acceptance.HEAD, acceptance.rows(records, RESULTS))
    if "\n## Sweeps\n" in text:
        for name, record in records.items():
            if lines := own_tables(record):
                title = name.replace(".small", " (small run)")
                text = _put(text, f"### {title}\n\n", lines)
    return text


def own_tables(record: dict[str, Any]) -> list[str]:
    """What stands in the section of one record; no lines of a record without one."""
    if targeted_tables.is_targeted(record):
        return [*targeted_markdown.setups(record), "", *targeted_markdown.comparisons(record)]
    if matrix_tables.is_matrix(record):
        return matrix_tables.markdown(record)
    return [] if added_tables.is_added(record) else sweeps.markdown(record)


def _put(text: str, head: str, lines: list[str]) -> str:
    """The text with these lines in place of the tables that follow the head."""
    before, found, after = text.partition(head)
    if not found:
        raise ValueError(f"the page lacks {head.splitlines()[0]!r}")
    old = re.match(r"(\|[^\n]*\n+(?=\|))*(\|[^\n]*\n)?", after)
    assert old is not None
    rest = after[old.end() :]
    gap = "" if rest.startswith("\n") or not rest else "\n"
    return before + head + "".join(f"{line}\n" for line in lines) + gap + rest


if __name__ == "__main__":
    main()
