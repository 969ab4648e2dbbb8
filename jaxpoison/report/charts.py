"""Curves and heat maps for the page, in numbers that its template draws."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from jaxpoison.report.figures import COLORS
from jaxpoison.report.sweeps import Sweep

__all__ = ["Chart", "Heat", "Line", "chart", "confusion", "data_url", "pairs_chart", "sweep_chart"]

DASHES = ("", "6 4", "2 3", "9 3 2 3")  # one after another as the colors are used up
READABLE = 20  # classes up to which a confusion matrix is written out in numbers
WORST = 10  # confusions listed beside a matrix that is too large to write out
GREY = "#9aa0a6"  # of what is one of many
INK = np.array([42, 120, 214])  # of a full cell


class Line(NamedTuple):
    """One curve: `points` of an SVG polyline in percent of the plot, y downward.

    `bars` are vertical lines (x, top, bottom): the intervals of its points.
    """

    name: str
    color: str
    dash: str
    points: str
    last: float
    dot: bool
    bars: tuple[tuple[float, float, float], ...] = ()


class Chart(NamedTuple):
    """Curves of `what` over `axis` (epochs 1..T, an option) and their axes.

    Ticks are (percent, label); `named`: whether a legend names all lines, else only the last one.
    """

    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    axis: str = "epoch"
    what: str = "accuracy"
    named: bool = True


class Heat(NamedTuple):
    """A confusion matrix by rows: shares of the true class in [0, 1], and counts.

    Attributes:
      name: of the training set.
      labels: of the classes.
      cells: [L][L] of (share, count), or None where the matrix is drawn as `image`.
      image: PNG as a data URL, L x L pixels, or None.
      worst: (true, predicted, count, share) of the largest confusions, for an image.
    """

    name: str
    labels: list[str]
    cells: list[list[tuple[float, int]]] | None
    image: str | None
    worst: list[tuple[str, str, int, float]]


def chart(curves: dict[str, list[float]]) -> Chart:
    """Accuracies in [0, 1] after each epoch, by name; the y axis runs from 0 to 100 %.

    A curve of one epoch is a dot; curves hold at least one.
    """
    epochs = max((len(curve) for curve in curves.values()), default=1)
    width = max(epochs - 1, 1)
    lines = []
    for i, (name, curve) in enumerate(curves.items()):
        places = [100 * (t / width if epochs > 1 else 0.5) for t in range(len(curve))]
        lines.append(_line(i, name, places, curve))
    ticks = MaxNLocator(nbins=6, integer=True, min_n_ticks=1).tick_values(1, max(epochs, 2))
    shown = sorted({1, epochs} | {int(t) for t in ticks if 1 < t <= 0.93 * epochs})
    x_ticks = [(100 * ((t - 1) / width if epochs > 1 else 0.5), str(t)) for t in shown]
    return Chart(lines, x_ticks, _PERCENT)


def sweep_chart(sweeps: Sequence[Sweep], *, log: bool) -> Chart:
    """Final accuracy over the values of an option, with its interval, one line per sweep.

    Args:
      sweeps: of one option; they hold at least one point.
      log: whether the x axis is logarithmic.
    """
    values = sorted({value for one in sweeps for value, _ in one.points})
    scaled = {value: math.log10(value) if log else value for value in values}
    low, high = scaled[values[0]], scaled[values[-1]]

    def place(value: float) -> float:
        return 100 * (scaled[value] - low) / (high - low) if high > low else 50.0

    lines = []
    for i, one in enumerate(sweeps):
        rates = [entry["final_accuracy"] for _, entry in one.points]
        places = [place(value) for value, _ in one.points]
        bars = tuple(
            (x, _depth(rate["high"]), _depth(rate["low"]))
            for x, rate in zip(places, rates, strict=True)
            if rate["low"] is not None
        )
        line = _line(i, one.of, places, [rate["mean"] for rate in rates])
        lines.append(line._replace(bars=bars))
    ticks: list[tuple[float, str]] = []
    for value in values:  # labels that would run into the one before are left out
        if not ticks or place(value) - ticks[-1][0] >= 7:
            ticks.append((place(value), f"{value:.3g}"))
    return Chart(lines, ticks, _PERCENT, sweeps[0].option + (" (logarithmic)" if log else ""))


def pairs_chart(arms: dict[str, dict[str, Any]], setups: Sequence[str], what: str) -> Chart:
    """A grey line for every setup from arm to arm, and one of their means with its intervals.

    Args:
      arms: by name, {mean, low, high, values} over setups.
      setups: their names.
      what: is shown.
    """
    places = [100 * (i + 0.5) / len(arms) for i in range(len(arms))]
    columns = [rate["values"] for rate in arms.values()]
    lines = [
        _line(0, name, places, values)._replace(color=GREY)
        for name, *values in zip(setups, *columns, strict=True)
    ]
    mean = _line(0, "mean over setups", places, [rate["mean"] for rate in arms.values()])
    bars = tuple(
        (x, _depth(rate["high"]), _depth(rate["low"]))
        for x, rate in zip(places, arms.values(), strict=True)
        if rate["low"] is not None
    )
    lines.append(mean._replace(bars=bars))
    ticks = list(zip(places, arms, strict=True))
    return Chart(lines, ticks, _PERCENT, "training set", what, named=False)


_PERCENT = [(float(y), str(y)) for y in range(0, 101, 20)]


def _depth(value: float) -> float:
    """Percent below the top, inside the plot."""
    return 100 - 100 * min(max(value, 0.0), 1.0)


def _line(number: int, name: str, places: Sequence[float], values: Sequence[float]) -> Line:
    """The line of that number; of a single point a dot."""
    points = [f"{x:.2f},{100 - 100 * y:.2f}" for x, y in zip(places, values, strict=True)]
    dot = len(points) == 1
    points = points * 2 if dot else points  # a line of no length has round ends
    dash = DASHES[number // len(COLORS) % len(DASHES)]
    return Line(name, COLORS[number % len(COLORS)], dash, " ".join(points), values[-1], dot)


def confusion(name: str, counts: list[list[int]], labels: list[str]) -> Heat:
    """Row shares of a matrix [L, L] (true class by predicted class); written out up to 20 classes.

    Args:
      name: of the training set.
      counts: as in the record.
      labels: L names.
    """
    matrix = np.asarray(counts, float).reshape(len(labels), len(labels))
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if len(labels) <= READABLE:
        rows = zip(share.tolist(), counts, strict=True)
        cells = [list(zip(part, row, strict=True)) for part, row in rows]
        return Heat(name, labels, cells, None, [])
    # A single cell is small, and most shares are: the square root shows them.
    pixels = np.round(255 + np.sqrt(share)[:, :, None] * (INK - 255)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    wrong = np.where(np.eye(len(labels), dtype=bool), 0, matrix)
    order = np.argsort(-wrong, axis=None, kind="stable")[:WORST]
    pairs = [divmod(int(i), len(labels)) for i in order if wrong.flat[i]]
    worst = [(labels[t], labels[p], int(matrix[t, p]), float(share[t, p])) for t, p in pairs]
    return Heat(name, labels, None, data_url(buffer.getvalue()), worst)


def data_url(png: bytes) -> Any:
    """A PNG inside the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
