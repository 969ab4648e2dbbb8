"""The result table on a terminal."""

from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

__all__ = ["markdown", "percent", "print_record", "seconds", "table"]


def percent(value: dict[str, Any]) -> str:
    """`97.2 [96.5, 97.9]`: a mean and its interval, in percent; the mean alone without one."""
    mean = f"{100 * value['mean']:.1f}"
    if value["low"] is None:
        return mean
    return f"{mean} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def table(record: dict[str, Any]) -> Table:
    """One row per training set: final and peak accuracy, targeted success, seconds of its steps."""
    targeted = any("success_rate" in a for a in record["arms"].values())
    result = Table(box=box.SIMPLE_HEAD)
    result.add_column("training set", no_wrap=True)
    for name in ["final", "peak"] + (["success"] if targeted else []):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("s", justify="right", no_wrap=True)
    for name, entry in record["arms"].items():
        cells = [percent(entry["final_accuracy"]), percent(entry["peak_accuracy"])]
        if targeted:
            cells.append(percent(entry["success_rate"]) if "success_rate" in entry else "")
        result.add_row(Text(name), *cells, f"{seconds(record, name):.1f}")
    return result


def markdown(record: dict[str, Any]) -> list[str]:
    """Rows for README's table, one per poisoned arm, from the record alone.

    experiment | attack and budget | clean | random noise of that norm | poisoned | time | device
    """
    arms, device = record["arms"], record["device"]
    cpu = device["platform"] == "cpu"
    where = f"CPU, {device['host_cores']} cores" if cpu else f"{device['count']} x {device['kind']}"
    clean = percent(arms["clean"]["final_accuracy"])
    minutes = f"{record['seconds']['total'] / 60:.1f} min"
    rows = []
    for name, entry in arms.items():
        if name != "clean" and not name.startswith("random-noise"):
            norm, eps = entry["poison"]["norm"], entry["poison"]["eps"]
            control = arms.get("random-noise" if norm == "linf" else f"random-noise-{norm}")
            noise = percent(control["final_accuracy"]) if control else "-"
            poisoned = percent(entry["final_accuracy"])
            attack = f"{name}, {norm} {eps:.3g}"
            cells = [record["experiment"], attack, clean, noise, poisoned, minutes, where]
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
    lines += [Text(f"  {name}: {entry['expect']}") for name, entry in record["arms"].items()]
    lines += [
        Text(
            f"{name}: {percent(entry['craft_seeds'])} over {len(entry['craft_seeds']['values'])} "
            "attack keys"
        )
        for name, entry in record["arms"].items()
        if "craft_seeds" in entry
    ]
    lines += [
        Text(f"published: {p['what']}: {100 * p['value']:.1f} ({p['source']})")
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
