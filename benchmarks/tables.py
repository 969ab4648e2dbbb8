"""The tables of benchmarks/README.md, made from the records in results/ and nothing else.

    python -m benchmarks.tables

writes each table between its marks `<!-- NAME -->` and `<!-- end -->` of the page.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

from benchmarks import harness

__all__ = ["PAGE", "filled", "main", "markdown"]

PAGE = pathlib.Path(__file__).parent / "README.md"
OURS = "jaxpoison"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    form = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=form).parse_args(arguments)
    with harness.command():
        text = filled(PAGE.read_text(), harness.RESULTS)
        temporary = PAGE.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(PAGE)
    print(f"wrote {PAGE}")


def filled(text: str, results: pathlib.Path) -> str:
    """The page with the table of every mark made anew; "not measured" where there is no record."""

    def table(match: re.Match) -> str:
        path = results / f"{match[1]}.json"
        lines = markdown(json.loads(path.read_text())) if path.exists() else ["not measured"]
        return "\n".join([f"<!-- {match[1]} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def markdown(record: dict[str, Any]) -> list[str]:
    """A line on where and when, an empty one, and the table of the record."""
    device, around = record["device"], record["environment"]
    cpu = device["platform"] == "cpu"
    where = f"{device['host']}, {around['cores']} cores" if cpu else device["kind"]
    torch = f", torch {around['torch']}" if around["torch"] else ""
    load = around["load_average"][0]
    head = (
        f"{record['date'][:10]}; {where}; jax {record['versions']['jax']}{torch}; "
        f"load average {load:g}"
    )
    return [head, "", *TABLES[record["benchmark"]](record)]


def _step(record: dict[str, Any]) -> list[str]:
    rows = [
        "| problem, batch, precision | step | against | wall, ours / theirs | CPU, ours / theirs "
        "| ours, ms | theirs, ms | compile, s | temp, MiB |"
    ]
    for row in record["rows"]:
        cost, ours = row["cost"][OURS], row["times"][OURS]["wall_ms"]["median"]
        what = f"{row['problem']}, {row['batch']}, {row['precision']} | {row['work']}"
        tail = f"{cost['compile_s']:.1f} | {cost['temp_mib']:.0f} |"
        if not row["ratio"]:
            rows.append(f"| {what} | - | - | - | {ours:.1f} | - | {tail}")
        for other in row["ratio"]:
            ratios = f"{_spread(row['ratio'][other])} | {_spread(row['cpu_ratio'][other])}"
            theirs = row["times"][other]["wall_ms"]["median"]
            rows.append(f"| {what} | {other} | {ratios} | {ours:.1f} | {theirs:.1f} | {tail}")
    return _ruled(rows)


def _purify(record: dict[str, Any]) -> list[str]:
    rows = [
        "| problem, batch, precision | work | against | wall, ours / theirs | CPU, ours / theirs "
        "| ours, images/s | theirs, images/s | compile, s | temp, MiB |"
    ]
    for row in record["rows"]:
        rates, tail = row["images_per_s"], "- | - |"
        what = f"{row['problem']}, {row['batch']}, {row['precision']} | {row['work']}"
        if cost := row.get("cost", {}).get(OURS):
            tail = f"{cost['compile_s']:.1f} | {cost['temp_mib']:.0f} |"
        if not row["ratio"]:
            rows.append(f"| {what} | - | - | - | {rates[OURS]:.0f} | - | {tail}")
        for other in row["ratio"]:
            ratios = f"{_spread(row['ratio'][other])} | {_spread(row['cpu_ratio'][other])}"
            rows.append(
                f"| {what} | {other} | {ratios} | {rates[OURS]:.0f} | {rates[other]:.0f} | {tail}"
            )
    return _ruled(rows)


def _unlearnable(record: dict[str, Any]) -> list[str]:
    rows = [
        "| problem, images, precision | work | against | wall, ours / theirs | CPU, ours / theirs "
        "| ours, s | theirs, s | compile, s | temp, MiB |"
    ]
    for row in record["rows"]:
        cost, seconds = row["cost"][OURS], {n: _seconds(t) for n, t in row["times"].items()}
        what = f"{row['problem']}, {row['images']}, {row['precision']} | {row['work']}"
        what += f", {row['passes']} passes" if row["passes"] else ""
        tail = f"{cost['compile_s']:.1f} | {cost['temp_mib']:.0f} |"
        if not row["ratio"]:
            rows.append(f"| {what} | - | - | - | {seconds[OURS]} | - | {tail}")
        for other in row["ratio"]:
            ratios = f"{_spread(row['ratio'][other])} | {_spread(row['cpu_ratio'][other])}"
            if "times_as_long" in row:
                ratios = " | ".join(
                    f"1 / {t['median']:,.0f}" for t in row["times_as_long"].values()
                )
            rows.append(
                f"| {what} | {other} | {ratios} | {seconds[OURS]} | {seconds[other]} | {tail}"
            )
    return _ruled(rows)


def _conv(record: dict[str, Any]) -> list[str]:
    """One table per set of forms; cells are library / form, CPU and wall."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault(tuple(row["ratio"]), []).append(row)
    lines = []
    for forms, rows in groups.items():
        table = [f"| library / other form, CPU (wall) | {' | '.join(forms)} |"]
        for row in rows:
            medians = [(row["cpu_ratio"][f]["median"], row["ratio"][f]["median"]) for f in forms]
            cells = " | ".join(f"{cpu:.2f} ({wall:.2f})" for cpu, wall in medians)
            table.append(f"| {row['work']} | {cells} |")
        lines += [*([""] if lines else []), *_ruled(table)]
    return lines


def _mapping(record: dict[str, Any]) -> list[str]:
    rows = [
        "| network | work | form | wall, form / first | CPU, form / first | ms | compile, s "
        "| temp, MiB |"
    ]
    for row in record["rows"]:
        for form, times in row["times"].items():
            first = form == row["against"]
            ratios = (
                "1 | 1"
                if first
                else " | ".join(_spread(row[kind][form]) for kind in ("ratio", "cpu_ratio"))
            )
            cost = row["cost"][form]
            rows.append(
                f"| {row['problem']} | {row['work']} | {form} | {ratios} | "
                f"{times['wall_ms']['median']:.1f} | {cost['compile_s']:.1f} | "
                f"{cost['temp_mib']:.1f} |"
            )
    lines = _ruled(rows)
    if record.get("devices"):
        rows = ["| network | devices | seeds per device | temp per device, MiB | messages |"]
        for entry in record["devices"]:
            for num, cost in entry["per_device"].items():
                rows.append(
                    f"| {entry['problem']} | {num} | {cost['members']} | "
                    f"{cost['temp_mib']:.1f} | {cost['messages']} |"
                )
        lines += ["", *_ruled(rows)]
    return lines


def _unroll(record: dict[str, Any]) -> list[str]:
    rows = [
        "| network, batch | K | temp with remat, MiB | without | GFLOP with remat | without "
        "| compile with, s | without |"
    ]
    for row in record["rows"]:
        both = [row["cost"][name] for name in ("remat", "no remat")]
        cells = [f"{c['temp_mib']:.0f}" for c in both] + [f"{c['gflop']:.1f}" for c in both]
        cells += [f"{c['compile_s']:.1f}" for c in both]
        rows.append(f"| {row['problem']}, {row['batch']} | {row['steps']} | {' | '.join(cells)} |")
    return _ruled(rows)


def _generator(record: dict[str, Any]) -> list[str]:
    rows = [
        "| problem, batch, precision | step | T | against | wall, ours / theirs "
        "| CPU, ours / theirs | images/s, ours | theirs | MFU | compile, s | temp, MiB | theirs |"
    ]
    for row in record["rows"]:
        cost, depth = row["cost"][OURS], row["inner_steps"]
        what = f"{row['problem']}, {row['batch']}, {row['precision']} | {row['work']} | "
        what += "-" if depth is None else f"{depth}"
        mfu = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        rates = row["images_per_s"]
        tail = f"{mfu} | {cost['compile_s']:.1f} | {cost['temp_mib']:.0f} |"
        if not row["ratio"]:
            rows.append(f"| {what} | - | - | - | {rates[OURS]:,.0f} | - | {tail} - |")
        for other in row["ratio"]:
            ratios = f"{_spread(row['ratio'][other])} | {_spread(row['cpu_ratio'][other])}"
            both = f"{rates[OURS]:,.0f} | {rates[other]:,.0f}"
            held = row["cost"][other]["temp_mib"]
            scratch = "-" if held is None else f"{held:.0f}"
            rows.append(f"| {what} | {other} | {ratios} | {both} | {tail} {scratch} |")
    return _ruled(rows)


def _matching(record: dict[str, Any]) -> list[str]:
    """Steps and brews against PyTorch; restarts and ensembles; what each device does."""
    rows = [
        "| problem, poisons, precision | work | against | wall, ours / theirs | CPU, ours / theirs "
        "| images/s, ours | theirs | MFU | compile, s | temp, MiB |"
    ]
    several = []
    for row in record["rows"]:
        if row["work"] in ("restarts", "ensemble"):
            several.append(row)
            continue
        cost, rates = row["cost"][OURS], row["images_per_s"]
        work = row["work"]
        if "restarts" in row:
            work += f", {row['steps']} steps, {row['restarts']} restarts"
        what = f"{row['problem']}, {row['batch']}, {row['precision']} | {work}"
        mfu = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        tail = f"{mfu} | {cost['compile_s']:.1f} | {cost['temp_mib']:.0f} |"
        if not row["ratio"]:
            rows.append(f"| {what} | - | - | - | {rates[OURS]:,.0f} | - | {tail}")
        for other in row["ratio"]:
            ratios = f"{_spread(row['ratio'][other])} | {_spread(row['cpu_ratio'][other])}"
            both = f"{rates[OURS]:,.0f} | {rates[other]:,.0f}"
            rows.append(f"| {what} | {other} | {ratios} | {both} | {tail}")
    lines = _ruled(rows) if len(rows) > 1 else []
    if several:
        rows = ["| problem, poisons | what | number | wall of each / single | CPU | temp, MiB |"]
        for row in several:
            for num, ratio in row["ratio"].items():
                cells = f"{_spread(ratio)} | {_spread(row['cpu_ratio'][num])}"
                what = f"{row['problem']}, {row['batch']} | {row['work']} | {num}"
                rows.append(f"| {what} | {cells} | {row['cost'][num]['temp_mib']:.0f} |")
        lines += [*([""] if lines else []), *_ruled(rows)]
    if record.get("devices"):
        rows = [
            "| problem, poisons | devices | restarts per device | GFLOP per device "
            "| temp per device, MiB | messages |"
        ]
        for entry in record["devices"]:
            for num, cost in entry["per_device"].items():
                rows.append(
                    f"| {entry['problem']}, {entry['batch']} | {num} | {cost['restarts']} | "
                    f"{cost['gflop']:.1f} | {cost['temp_mib']:.0f} | {cost['messages']} |"
                )
        lines += ["", *_ruled(rows)]
    return lines


def _indiscriminate(record: dict[str, Any]) -> list[str]:
    """Work against PyTorch; then its cost against points and width."""
    rows = [
        "| problem, rows, precision | work | against | wall, ours / theirs | CPU, ours / theirs "
        "| per s, ours | theirs | compile, s | temp, MiB |"
    ]
    swept = []
    for row in record["rows"]:
        if row["part"] == "sweep":
            swept.append(row)
            continue
        cost, rates = row["cost"][OURS], row["per_s"]
        what = f"{row['problem']}, {row['points']}, {row['precision']} | {row['work']}"
        if "images_per_s" in row:
            what += f" ({row['images_per_s'][OURS]:.3g} images/s at 1000 steps)"
        tail = f"{cost['compile_s']:.1f} | {cost['temp_mib']:.0f} |"
        if not row["ratio"]:
            rows.append(f"| {what} | - | - | - | {rates[OURS]:,.4g} | - | {tail}")
        for other in row["ratio"]:
            ratios = f"{_spread(row['ratio'][other])} | {_spread(row['cpu_ratio'][other])}"
            both = f"{rates[OURS]:,.4g} | {rates[other]:,.4g}"
            rows.append(f"| {what} | {other} | {ratios} | {both} | {tail}")
    lines = _ruled(rows) if len(rows) > 1 else []
    if swept:
        lines += [*([""] if lines else []), *_swept(swept)]
    return lines


def _swept(found: list[dict[str, Any]]) -> list[str]:
    """Canceling against P and D: CPU time of a step, what a value of a point costs, the ratios."""
    rows = [
        "| points | features | precision | CPU a step, ms | ns a value | temp, MiB "
        "| CPU, ours / theirs |"
    ]
    for row in found:
        spent = row["times"][OURS]["cpu_ms"]["median"] / row["steps"]
        each = 1e6 * spent / (row["points"] * row["values"])
        ratios = [f"{_spread(r)} {other}" for other, r in row["cpu_ratio"].items()]
        what = f"{row['points']} | {row['values']} | {row['precision']}"
        held = f"{row['cost'][OURS]['temp_mib']:.1f}"
        rows.append(f"| {what} | {spent:.3g} | {each:.3g} | {held} | {'; '.join(ratios) or '-'} |")
    return _ruled(rows)


def _effect(result: dict[str, Any]) -> list[str]:
    """Seconds of crafting until each limit, and what the last poison does to confirming victims."""
    goal = "-" if result["goal_s"] is None else f"{result['goal_s']:.0f} s"
    rows = ["| clean test accuracy of a fresh victim | crafting until then | goal |"]
    for limit, seconds in result["reached_s"].items():
        reached = "not reached" if seconds is None else f"{seconds:.0f} s"
        rows.append(f"| below {100 * float(limit):g} % | {reached} | {goal} |")
    last = result["checks"][-1]
    confirmed = [
        f"{name} {', '.join(f'{100 * x:.2f}' for x in values)} %"
        for name, values in result["confirmed"].items()
    ]
    line = f"After {last['steps']} steps, {last['craft_s']:.0f} s: {'; '.join(confirmed)}."
    return [*_ruled(rows), "", line]


def _epoch(result: dict[str, Any]) -> list[str]:
    rows = ["| precision | seconds an epoch | MFU | TFLOP/s | compile, s | temp, MiB |"]
    for name, row in result["precisions"].items():
        cost = row["cost"]
        rows.append(
            f"| {name} | {_spread(row['seconds'])} | {100 * row['mfu']:.1f} % | "
            f"{row['tflops']:.0f} | {cost['compile_s']:.0f} | {cost['temp_mib']:.0f} |"
        )
    return _ruled(rows)


def _deterministic(result: dict[str, Any]) -> list[str]:
    rows = ["| operations | seconds an epoch, bfloat16 |"]
    rows += [f"| {name} | {_spread(row['seconds'])} |" for name, row in result["epochs"].items()]
    return _ruled(rows)


def _parity(result: dict[str, Any]) -> list[str]:
    rows = [
        "| updates | mode | gradient, relative | B, absolute | cos dx | signs, all / strong | "
        "cos dB/dx | signs, all / strong |"
    ]
    for row in result["rows"]:
        cells = [f"{row['gradient_error']:.1e}", f"{row['matching_error']:.1e}"]
        for kind in ("image", "matching"):
            found = row[kind]
            shares = f"{100 * found['signs']:.2f} / {100 * found['strong_signs']:.2f} %"
            cells += [f"{found['cosine']:.5f}", shares]
        rows.append(f"| {row['updates']} | {row['mode']} | {' | '.join(cells)} |")
    return _ruled(rows)


TABLES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "step": _step,
    "conv": _conv,
    "mapping": _mapping,
    "defenses": _mapping,
    "unroll": _unroll,
    "generator": _generator,
    "matching": _matching,
    "indiscriminate": _indiscriminate,
    "purify": _purify,
    "unlearnable": _unlearnable,
}
OF_PARTS = {
    "epoch_resnet18": _epoch,
    "parity_bf16": _parity,
    "deterministic_cost": _deterministic,
    "bench_step": _step,
    "bench_mapping": _mapping,
    "bench_unroll": _unroll,
    "generator_steps": _generator,
    "generator_scaling": _generator,
    "matching_steps": _matching,
    "matching_many": _matching,
    "brew": _matching,
    "canceling": _indiscriminate,
    "solving": _indiscriminate,
    "inversion": _indiscriminate,
    "gue_cifar10": _effect,
    "deepconfuse_cifar10": _effect,
    "deepconfuse_mnist": _effect,
}
TABLES |= {f"accelerator_{k}": lambda r, f=f: f(r["result"]) for k, f in OF_PARTS.items()}


def _seconds(timing: dict[str, Any]) -> str:
    seconds = timing["wall_ms"]["median"] / 1e3
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def _spread(value: dict[str, Any]) -> str:
    """`0.58 [0.55, 0.61]`: median and quartiles."""
    if value["median"] is None:
        return "-"
    return f"{value['median']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _ruled(rows: list[str]) -> list[str]:
    columns = rows[0].count("|") - 1
    return [rows[0], "|" + "---|" * columns, *rows[1:]]


if __name__ == "__main__":
    main()
