"""The result table on a terminal."""

from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from jaxpoison.report.record import entry as entry_name

__all__ = [
    "control",
    "markdown",
    "percent",
    "print_record",
    "radius",
    "seconds",
    "split_name",
    "table",
]


def percent(value: dict[str, Any]) -> str:
    """`97.2 [96.5, 97.9]`: a mean and its interval, in percent; the mean alone without one.

    Ends beyond 0 and 100, which a t-interval of few seeds can have, are shown as 0 and 100; the
    record keeps them as computed.
    """
    mean = f"{100 * value['mean']:.1f}"
    if value["low"] is None:
        return mean
    low, high = (100 * min(max(value[end], 0.0), 1.0) for end in ("low", "high"))
    return f"{mean} [{low:.1f}, {high:.1f}]"


def radius(norm: str, eps: float) -> str:
    """`linf 8/255`, `l2 1`, `l0 1`: pixels in [0, 1]; whole grey levels as such under linf."""
    levels = round(255 * eps)
    if norm == "linf" and levels and abs(255 * eps - levels) < 1e-4:
        return f"linf {levels}/255"
    return f"{norm} {eps:.3g}"


def control(arms: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of random noise in the norm of `entry`'s poison, on the same victim."""
    norm = entry["poison"]["norm"]
    name = "random-noise" if norm == "linf" else f"random-noise-{norm}"
    return arms.get(entry_name(name, entry.get("victim", "")))


def table(record: dict[str, Any]) -> Table:
    """One row per training set: final and peak accuracy, targeted success, seconds of its steps.

    Where there are several victims, their rows stand together under a line with the name of each.
    """
    arms = record["arms"]
    targeted = any("success_rate" in a for a in arms.values())
    result = Table(box=box.SIMPLE_HEAD)
    result.add_column("training set", no_wrap=True)
    for name in ["final", "peak"] + (["success"] if targeted else []):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("s", justify="right", no_wrap=True)
    last = None
    for name, entry in arms.items():
        victim, attack = split_name(name, entry)
        cells = [percent(entry["final_accuracy"]), percent(entry["peak_accuracy"])]
        if targeted:
            cells.append(percent(entry["success_rate"]) if "success_rate" in entry else "")
        if victim and victim != last:
            result.add_row(Text(f"{victim}:"))
            last = victim
        set_name = f"  {attack}" if victim else attack
        result.add_row(Text(set_name), *cells, f"{seconds(record, name):.1f}")
    return result


def split_name(name: str, entry: dict[str, Any]) -> tuple[str, str]:
    """(victim or "", training set) of an entry of the record and its key."""
    victim = entry.get("victim", "")
    return victim, name.removeprefix(f"{victim}/") if victim else name


def markdown(record: dict[str, Any]) -> list[str]:
    """Rows for README's table, one per poisoned arm (and victim), from the record alone.

    experiment | attack, budget, victim if several | clean | random noise of that norm | poisoned |
    time | device
    """
    arms, device = record["arms"], record["device"]
    cpu = device["platform"] == "cpu"
    where = f"CPU, {device['host_cores']} cores" if cpu else f"{device['count']} x {device['kind']}"
    minutes = f"{record['seconds']['total'] / 60:.1f} min"
    small = " (small run)" if record["config"].get("scale") == "small" else ""
    rows = []
    for name, entry in arms.items():
        victim, attack = split_name(name, entry)
        if attack == "clean" or attack.startswith("random-noise"):
            continue
        budget = radius(entry["poison"]["norm"], entry["poison"]["eps"])
        noise = control(arms, entry)
        cells = [
            record["experiment"] + small,
            ", ".join(filter(None, (attack, budget, victim))),
            percent(arms[entry_name("clean", victim)]["final_accuracy"]),
            percent(noise["final_accuracy"]) if noise else "-",
            percent(entry["final_accuracy"]),
            minutes,
            where,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def print_record(record: dict[str, Any], console: Console | None = None) -> None:
    """Print title, table, what to expect of each row, the published values and the total time."""
    console = console or Console()
    seeds = max(len(a["final_accuracy"]["values"]) for a in record["arms"].values())
    title = Text(
        f"{record['experiment']}: clean test accuracy in %, mean [95 % interval] over "
        f"{seeds} victims"
    )
    lines = [Text("expected with the default settings:")]
    expected = {split_name(k, entry)[1]: entry["expect"] for k, entry in record["arms"].items()}
    lines += [Text(f"  {name}: {text}") for name, text in expected.items()]
    lines += [
        Text(
            f"{name}: {percent(entry['craft_seeds'])} over {len(entry['craft_seeds']['values'])} "
            "attack keys"
        )
        for name, entry in record["arms"].items()
        if "craft_seeds" in entry
    ]
    lines += [
        Text(f"published: {p['what']}: {round(100 * p['value'], 2)} ({p['source']})")
        for p in record["published"]
    ]
    device = record["device"]
    where = f"{device['count']} x {device['kind']}, {device['host']}"
    total = Text(
        f"{record['seconds']['total']:.0f} s in all, {record['seconds']['compile']:.0f} s of it "
        f"compiling; {where}; jax {record['versions']['jax']}; {record['date']}"
    )
    console.print(Group(title, table(record), *lines, Text()))
    console.print(total, soft_wrap=True)


def seconds(record: dict[str, Any], arm: str) -> float:
    """Of one training set: crafting it and training its victims, compiling apart."""
    parts = record["seconds"]
    return parts.get(f"craft {arm}", 0.0) + parts.get(f"victims {arm}", 0.0)
