"""Pictures of a result: what was done to the images, and how the victims learned."""

import itertools
import pathlib
from typing import Any

import matplotlib.figure
import matplotlib.ticker
import numpy as np
from jaxtyping import Num

from jaxpoison import checkpoint
from jaxpoison.report import sweeps

__all__ = ["COLORS", "blank", "curves", "dress", "grid", "paneled", "save", "sweep"]

COLORS = ["#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#e87ba4", "#008300", "#4a3aa7", "#e34948"]

MOST = 10  # lines of one panel of curves.png before those of a sweep are left out


def grid(
    path: pathlib.Path,
    clean: Num[np.ndarray, "n h w c"],
    poisoned: dict[str, Num[np.ndarray, "n h w c"]],
    *,
    columns: int = 8,
) -> None:
    """A PNG of clean images, and for each attack the poisoned ones and their difference.

    Differences are drawn around mid-grey, stretched so that the largest change of the row spans
    the range; the stretch is written beside the row.

    Args:
      path: file to write.
      clean: uint8 images, N >= 1; the first `columns` are drawn.
      poisoned: by arm, the same rows in grey levels, uint8 or float.
      columns: images a row.
    """
    columns = min(columns, len(clean))
    rows: list[tuple[str, np.ndarray]] = [("clean", clean[:columns] / 255)]
    for name, images in poisoned.items():
        difference = images[:columns].astype(float) - clean[:columns]
        largest = max(float(np.abs(difference).max()), 1.0)
        rows.append((name, images[:columns] / 255))
        rows.append(
            (f"difference\nx {127 / largest:.3g}, grey = 0", 0.5 + difference / largest / 2)
        )
    figure = blank((1.9 + columns * 0.85, 0.6 + len(rows) * 0.85))
    figure.suptitle("training images, as they are stored", fontsize=10)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, images) in zip(axes, rows, strict=True):
        for axis, image in zip(line, images, strict=True):
            color = image if image.shape[2] == 3 else image.mean(axis=2)
            axis.imshow(color, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    save(figure, path)


def curves(path: pathlib.Path, record: dict[str, Any]) -> None:
    """A PNG of clean test accuracy after each epoch, one line per training set, mean over seeds.

    Where there are several victims each that learns in epochs has its own panel. Where a panel
    would have more than 10 lines, those of a sweep are left to `sweep`.
    """
    arms = record["arms"]
    panels: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for name, entry in arms.items():
        victim = entry.get("victim", "")
        short = name.removeprefix(f"{victim}/") if victim else name
        if entry["curve"]:  # a victim without epochs has none
            panels.setdefault(victim, []).append((short, entry))
    if max(map(len, panels.values()), default=0) > MOST:
        panels = {k: [x for x in v if "sweep" not in x[1]] for k, v in panels.items()}
    figure, axes = paneled(_title(record), list(panels) or [""])
    for axis, lines in zip(axes, panels.values() or [[]], strict=True):
        _panel(axis, [(name, entry["curve"]) for name, entry in lines])
    save(figure, path)


def sweep(path: pathlib.Path, record: dict[str, Any]) -> None:
    """A PNG of final accuracy over each option that was varied, with 95 % intervals.

    Each option and victim has its own panel, and each attack its line; without sweeps no file.
    """
    panels = sweeps.charts(record)
    if not panels:
        return
    figure, axes = paneled(_title(record), list(panels))
    for axis, lines in zip(axes, panels.values(), strict=True):
        if sweeps.is_log(lines):
            axis.set_xscale("log")
        for color, one in zip(itertools.cycle(COLORS), lines, strict=False):
            rates = [entry["final_accuracy"] for _, entry in one.points]
            mean = np.array([rate["mean"] for rate in rates])
            ends = [[rate[k] for rate in rates] for k in ("low", "high")]
            low, high = (
                [m if x is None else min(max(x, 0), 1) for m, x in zip(mean, end, strict=True)]
                for end in ends
            )
            axis.errorbar(
                [value for value, _ in one.points],
                100 * mean,
                yerr=100 * np.array([mean - low, high - mean]),
                color=color,
                linewidth=2,
                elinewidth=1.2,
                marker="o",
                markersize=4,
                capsize=3,
                label=one.of,
            )
        axis.legend(fontsize=9, frameon=False)
        dress(axis, lines[0].option)
    save(figure, path)


def _title(record: dict[str, Any]) -> str:
    seeds = max((len(a["final_accuracy"]["values"]) for a in record["arms"].values()), default=0)
    return f"{record['experiment']}: mean of {seeds} victims"


def paneled(title: str, names: list[str]) -> tuple[Any, list[Any]]:
    """(figure, one axis for each name); a single panel without a name has the title."""
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (7.5, 4.2) if len(names) == 1 else (5.2 * columns, 3.4 * rows)
    figure = blank(size)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    if len(names) > 1:
        figure.suptitle(title, fontsize=10)
    for axis, name in zip(axes, names, strict=False):
        shown = title if len(names) == 1 else name
        axis.set_title(shown, loc="left", fontsize=10)
    for axis in axes[len(names) :]:
        axis.remove()
    return figure, list(axes[: len(names)])


def _panel(axis: Any, lines: list[tuple[str, list[float]]]) -> None:
    """Curves by name, each labeled at its end."""
    ends, epochs = [], 1
    for color, (name, curve) in zip(itertools.cycle(COLORS), lines, strict=False):
        values = 100 * np.asarray(curve)
        marker = "o" if len(values) == 1 else ""
        axis.plot(np.arange(1, len(values) + 1), values, color=color, linewidth=2, marker=marker)
        ends.append((values[-1], name, color))
        epochs = max(epochs, len(values))
    for height, (value, name, color) in zip(_apart(ends), sorted(ends), strict=True):
        axis.annotate(
            f"{name} {value:.1f}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=9,
        )
    axis.set_xlim(0.5, epochs + 0.5)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    dress(axis, "epoch")


def dress(axis: Any, name: str, what: str = "clean test accuracy, %") -> None:
    """Percent of `what` upward, `name` to the right."""
    axis.set_ylim(0, 102)
    axis.set_xlabel(name)
    axis.set_ylabel(what)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _apart(ends: list[tuple[float, str, str]], gap: float = 5.0) -> list[float]:
    """Heights for labels in ascending order, at least `gap` apart, kept inside 0..102."""
    heights: list[float] = []
    for value, _, _ in sorted(ends):
        heights.append(max(value, heights[-1] + gap) if heights else max(value, 1.0))
    for i in range(len(heights) - 1, -1, -1):
        ceiling = 101.0 if i == len(heights) - 1 else heights[i + 1] - gap
        heights[i] = min(heights[i], ceiling)
    return heights


def blank(size: tuple[float, float]) -> Any:
    """An empty figure, in inches."""
    return matplotlib.figure.Figure(figsize=size, layout="constrained")


def save(figure: Any, path: pathlib.Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with checkpoint.replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
