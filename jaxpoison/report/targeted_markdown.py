"""A targeted record as tables in Markdown: setup by setup, and the tests between training sets."""

from typing import Any

from jaxpoison.report import tables
from jaxpoison.report.record import entry as entry_name
from jaxpoison.report.targeted_tables import WORDS, difference, is_targeted, p_value

__all__ = ["comparisons", "setups"]


def comparisons(record: dict[str, Any]) -> list[str]:
    """One row for each pair of training sets and each quantity, with its one-sided tests.

    comparison, victim if several | of | difference, percentage points | sign test p | Wilcoxon p |
    McNemar p | n; no lines of a record that is not targeted.
    """
    if not is_targeted(record):
        return []
    lines = ["| comparison | of | difference | sign test p | Wilcoxon p | McNemar p | n |"]
    lines.append("|---" * 7 + "|")
    for row in record["comparisons"]:
        name = ", ".join(filter(None, (f"{row['a']} - {row['b']}", row["victim"])))
        tests = [p_value(row[name]) for name in ("sign_test_p", "wilcoxon_p", "mcnemar_p")]
        cells = [name, WORDS[row["what"]], difference(row["difference"]), *tests, str(row["n"])]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def setups(record: dict[str, Any]) -> list[str]:
    """One row for each setup and victim: the attack that the others are tested against, and these.

    setup, victim if several | B first -> last | fooled victims | p(wanted): one column for each
    training set, mean over victims, in %; no lines of a record that is not targeted.
    """
    if not is_targeted(record):
        return []
    arms, main = record["arms"], record["comparisons"][0]["a"]
    sets = list(dict.fromkeys(tables.split_name(name, entry)[1] for name, entry in arms.items()))
    head = ["setup", "B first -> last", "fooled", *(f"p(wanted): {name}" for name in sets)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for victim in dict.fromkeys(entry.get("victim", "") for entry in arms.values()):
        for i, one in enumerate(arms[entry_name(main, victim)]["setups"]):
            loss, success = one["outer_loss"], one["success"]
            values = [arms[entry_name(name, victim)]["setups"][i]["intended"] for name in sets]
            cells = [
                ", ".join(filter(None, (one["name"], victim))),
                f"{loss['first']:.3g} -> {loss['last']:.3g}" if loss else "-",
                f"{sum(success):g} of {len(success)}",
                *(f"{100 * sum(v) / len(v):.1f}" for v in values),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines
