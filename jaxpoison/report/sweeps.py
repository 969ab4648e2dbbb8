"""One option of one attack varied: its arms, and what a record says over the option's values."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxpoison import check
from jaxpoison.report import tables
from jaxpoison.report.arms import Arm, Point, control
from jaxpoison.report.record import entry as entry_name
from jaxpoison.types import InputError

__all__ = ["Sweep", "charts", "is_log", "markdown", "read", "sweep"]

CLEAN_AT_ZERO = ("eps", "share")
"""Options that leave the training set as it is at 0."""


def sweep(
    of: str,
    make: Callable[[Any], Arm],
    option: str,
    values: Sequence[float],
    *,
    controls: bool = False,
) -> dict[str, Arm]:
    """Arms "<of> <option>=<value>": one attack, one option varied.

    With F(eps) = arm(attacks.deepconfuse, ..., eps=eps, budget=Budget("linf", eps)) the call
    sweep("deepconfuse", F, "eps", (0.05, 0.1, 0.2)) is figure 4 of Feng et al. 2019; likewise over
    "generator_train_fraction". An arm of the plain name, where there is one, belongs to the sweep
    too, at the value that its settings have, and so does the clean set at eps = 0. (What a share of
    one poison does is asked without crafting again: `shares`.)

    Args:
      of: name of what is varied.
      make: (value) -> its arm.
      option: name of the option.
      values: what it is set to.
      controls: whether random noise at the budget of each arm is judged beside it, as
        "random-noise <option>=<value>".

    Raises: InputError for no values, one that is no finite number, or two that read the same.
    """
    if not values:
        raise InputError(f"values of {option} are none; name at least one")
    arms: dict[str, Arm] = {}
    for value in values:
        check.number(**{option: value})
        label = f"{option}={value:g}"
        one = make(value)
        found = {f"{of} {label}": one._replace(sweep=Point(of, option, float(value)))}
        if controls:
            if one.budget is None:
                raise InputError(f"{of} has no budget, so no noise of it; controls must be False")
            for name, noise in control(one.budget).items():
                point = Point(name, option, float(value))
                found |= {f"{name} {label}": noise._replace(sweep=point)}
        if arms.keys() & found.keys():
            raise InputError(f"{label} is named twice; name each value once")
        arms |= found
    return arms


class Sweep(NamedTuple):
    """One line of a chart: accuracy of one victim over the values of an option.

    Attributes:
      of: what is varied.
      option: the option.
      victim: its name, or "".
      points: (value, entry of the record), by value.
    """

    of: str
    option: str
    victim: str
    points: list[tuple[float, dict[str, Any]]]


def read(record: dict[str, Any]) -> list[Sweep]:
    """The sweeps of a record, option by option and victim by victim."""
    found: dict[str, dict[str, dict[str, dict[float, dict[str, Any]]]]] = {}
    for entry in record["arms"].values():
        if point := entry.get("sweep"):
            lines = found.setdefault(point["option"], {}).setdefault(entry.get("victim", ""), {})
            lines.setdefault(point["of"], {})[float(point["value"])] = entry
    sweeps = []
    for option, victims in found.items():
        for victim, lines in victims.items():
            for of, points in lines.items():
                for value, name in _ends(record, option, of):
                    entry = record["arms"].get(entry_name(name, victim))
                    if entry is not None:
                        points.setdefault(value, entry)
                ordered = sorted(points.items(), key=lambda point: point[0])
                sweeps.append(Sweep(of, option, victim, ordered))
    return sweeps


def charts(record: dict[str, Any]) -> dict[str, list[Sweep]]:
    """The same, by the heading of the chart that they share: "<victim> · <option>"."""
    groups: dict[str, list[Sweep]] = {}
    for one in read(record):
        groups.setdefault(" · ".join(filter(None, (one.victim, one.option))), []).append(one)
    return groups


def is_log(sweeps: Sequence[Sweep]) -> bool:
    """Whether their values span a decade and none is 0, so that a logarithmic axis serves them."""
    values = [value for one in sweeps for value, _ in one.points]
    return min(values) > 0 and max(values) >= 10 * min(values)


def markdown(record: dict[str, Any]) -> list[str]:
    """Tables in Markdown, one for each option: a row for each sweep, a column for each value."""
    sweeps, lines = read(record), []
    for option in dict.fromkeys(one.option for one in sweeps):
        rows = [one for one in sweeps if one.option == option]
        values = sorted({value for one in rows for value, _ in one.points})
        lines += [] if not lines else [""]
        lines.append(f"| {option} | {' | '.join(f'{value:g}' for value in values)} |")
        lines.append("|---" * (len(values) + 1) + "|")
        for one in rows:
            rates = {value: tables.percent(entry["final_accuracy"]) for value, entry in one.points}
            name = ", ".join(filter(None, (one.of, one.victim)))
            cells = [name, *(rates.get(value, "") for value in values)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ends(record: dict[str, Any], option: str, of: str) -> list[tuple[float, str]]:
    """(value, arm) of the sets that belong to a sweep and were not made for it."""
    ends = [(0.0, "clean")] if option in CLEAN_AT_ZERO else []
    attacks = record["config"].get("attacks")
    settings = attacks.get(of) if isinstance(attacks, dict) else None
    value = settings.get(option) if isinstance(settings, dict) else None
    if option == "share":
        ends.append((1.0, of))
    elif isinstance(value, int | float):
        ends.append((float(value), of))
    return ends
