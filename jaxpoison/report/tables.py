"""The result table on a terminal."""

from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from jaxpoison.report.record import entry as entry_name

__all__ = [
    "RANDOM_POINTS",
    "SHARED_FILTER",
    "control",
    "experiment",
    "is_control",
    "made",
    "markdown",
    "markdown_probes",
    "percent",
    "probe_names",
    "print_parts",
    "print_record",
    "radius",
    "seconds",
    "split_name",
    "table",
]


RANDOM_POINTS = "random-points"
"""What the arms are called that control added points."""
SHARED_FILTER = "shared-filter"
"""And the one that controls filters by class: it changes images as much, and tells no class."""


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


def radius(norm: str | None, eps: float | None) -> str:
    """`linf 8/255`, `l2 1`, `l0 1`: pixels in [0, 1]; whole grey levels as such under linf.

    `no norm` of a poison that only the image box bounds.
    """
    if norm is None or eps is None:
        return "no norm"
    levels = round(255 * eps)
    if norm == "linf" and levels and abs(255 * eps - levels) < 1e-4:
        return f"linf {levels}/255"
    return f"{norm} {eps:.3g}"


def control(arms: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of random noise at the budget of `entry`'s poison, on the same victim.

    Of added points that of as many random ones; of a poison without a norm the filter that all
    classes share (`attacks.convolution`).
    """
    if added := entry.get("added"):
        others = (one for one in arms.values() if one.get("victim") == entry.get("victim"))
        for one in others:
            mine = one.get("added")
            same = mine is not None and mine["num_added"] == added["num_added"]
            if same and mine["arm"].startswith(RANDOM_POINTS):
                return one
        return None
    norm, eps = entry["poison"]["norm"], entry["poison"]["eps"]
    plain = {"linf": "random-noise", None: SHARED_FILTER}.get(norm, f"random-noise-{norm}")
    for name, noise in arms.items():
        victim, attack = split_name(name, noise)
        same = victim == entry.get("victim", "") and noise["poison"] is not None
        named = attack == plain or attack.startswith(f"{plain} ")
        if same and named and noise["poison"]["eps"] == eps:
            return noise
    return None


def is_control(attack: str) -> bool:
    """Whether a training set of that name is a comparison and no attack."""
    named = attack.startswith("random-noise") or attack.endswith("-permuted")
    return named or attack == SHARED_FILTER


def probe_names(record: dict[str, Any]) -> list[str]:
    """The probes that any training set of a record has, each once."""
    return list(
        dict.fromkeys(k for entry in record["arms"].values() for k in entry.get("probes", ()))
    )


def table(record: dict[str, Any]) -> Table:
    """One row per training set: final and peak accuracy, targeted success, seconds of its steps.

    Where there are several victims, their rows stand together under a line with the name of each.
    """
    arms = record["arms"]
    targeted = any("success_rate" in a for a in arms.values())
    result = Table(box=box.SIMPLE_HEAD)
    result.add_column("training set", no_wrap=True)
    for name in ["final", "peak"] + (["success"] if targeted else []):
        result.add_column(name, justify="right")
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


def probe_table(record: dict[str, Any]) -> Table | None:
    """One row per poisoned training set that has probes, accuracy on each; None without any."""
    names = probe_names(record)
    if not names:
        return None
    result = Table(box=box.SIMPLE_HEAD)
    for name in ("training set", *names):
        justify = "left" if name == "training set" else "right"
        result.add_column(name, justify=justify, no_wrap=justify == "left")
    for name, entry in record["arms"].items():
        if rates := entry.get("probes"):
            cells = [percent(rates[k]) if k in rates else "" for k in names]
            result.add_row(Text(name), *cells)
    return result


def split_name(name: str, entry: dict[str, Any]) -> tuple[str, str]:
    """(victim or "", training set) of an entry of the record and its key."""
    victim = entry.get("victim", "")
    return victim, name.removeprefix(f"{victim}/") if victim else name


def markdown(record: dict[str, Any]) -> list[str]:
    """Rows for README's table, one per attack (and victim), from the record alone.

    Controls have none, nor have the points of a sweep, see `sweeps.markdown`, nor targeted runs,
    which have a table of their own, see `targeted_tables.markdown`.

    experiment | attack, budget, victim if several | clean | random noise of that norm | poisoned |
    time | device
    """
    if "comparisons" in record:
        return []
    arms, rows = record["arms"], []
    for name, entry in arms.items():
        victim, attack = split_name(name, entry)
        if attack == "clean" or is_control(attack) or entry.keys() & {"sweep", "defended"}:
            continue
        budget = radius(entry["poison"]["norm"], entry["poison"]["eps"])
        noise = control(arms, entry)
        cells = [
            experiment(record),
            ", ".join(filter(None, (attack, budget, victim))),
            percent(arms[entry_name("clean", victim)]["final_accuracy"]),
            percent(noise["final_accuracy"]) if noise else "-",
            percent(entry["final_accuracy"]),
            *made(record),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def experiment(record: dict[str, Any]) -> str:
    """Its name, and whether it was run at the small scale."""
    small = record["config"].get("scale") == "small"
    return record["experiment"] + (" (small run)" if small else "")


def made(record: dict[str, Any]) -> tuple[str, str]:
    """How long the whole run took, and on what."""
    device = record["device"]
    cpu = device["platform"] == "cpu"
    where = f"CPU, {device['host_cores']} cores" if cpu else f"{device['count']} x {device['kind']}"
    return f"{record['seconds']['total'] / 60:.1f} min", where


def markdown_probes(record: dict[str, Any]) -> list[str]:
    """A table in Markdown of all that has probes or a success rate; no lines where nothing has.

    training set | final | success, if any | one column for each probe
    """
    names = probe_names(record)
    targeted = any("success_rate" in entry for entry in record["arms"].values())
    if not names and not targeted:
        return []
    head = ["training set", "clean test", *(["success"] if targeted else []), *names]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, entry in record["arms"].items():
        rates = [entry["final_accuracy"]]
        rates += [entry.get("success_rate")] if targeted else []
        rates += [entry.get("probes", {}).get(k) for k in names]
        cells = [name, *(percent(rate) if rate else "" for rate in rates)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def print_record(record: dict[str, Any], console: Console | None = None) -> None:
    """Print title, table, what to expect of each row, the published values and the total time."""
    seeds = max(len(a["final_accuracy"]["values"]) for a in record["arms"].values())
    title = Text(
        f"{record['experiment']}: clean test accuracy in %, mean [95 % interval] over "
        f"{seeds} victims"
    )
    parts: list[Any] = [title, table(record)]
    if probes := probe_table(record):
        parts += [Text("accuracy on other sets in %, with their true labels"), probes]
    print_parts(record, parts, console or Console())


def print_parts(record: dict[str, Any], parts: list[Any], console: Console) -> None:
    """Print `parts`, and below them what a reader wants to know of any record."""
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
    console.print(Group(*parts, *lines, Text()))
    console.print(total, soft_wrap=True)


def seconds(record: dict[str, Any], arm: str) -> float:
    """Of one training set: crafting it and training its victims, compiling apart."""
    parts = record["seconds"]
    return parts.get(f"craft {arm}", 0.0) + parts.get(f"victims {arm}", 0.0)
