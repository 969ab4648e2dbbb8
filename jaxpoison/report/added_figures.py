"""Pictures of a run with added points: the points beside their bases, residuals, reachability."""

import itertools
import pathlib
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np
from jaxtyping import Num

from jaxpoison.report.figures import COLORS, blank, paneled, save

__all__ = ["Shown", "points", "reach", "residuals"]

COLUMNS = 8
MOST_ROWS = 16
MOST_INSIDE, LEGEND_COLUMNS = 8, 3  # lines with a legend inside the panel; columns of one below it


class Shown(NamedTuple):
    """A few points of one cell, each with the base it was made of.

    Attributes:
      name: of the cell.
      base: [n, H, W, C] grey levels.
      image: [n, H, W, C] the points, uint8 or float pixels.
    """

    name: str
    base: Num[np.ndarray, "n h w c"]
    image: Num[np.ndarray, "n h w c"]


def points(path: pathlib.Path, shown: list[Shown]) -> None:
    """A PNG of base images, and below them the added points that were made of them, cell by cell.

    Values outside [0, 1] are clipped for the picture, and the row says where they lie. Of more than
    16 cells the first ones are drawn; without any there is no file.

    Args:
      path: file to write.
      shown: cells whose points are images.
    """
    groups: dict[bytes, list[Shown]] = {}
    for one in shown[:MOST_ROWS]:
        groups.setdefault(one.base[:COLUMNS].tobytes(), []).append(one)
    rows: list[tuple[str, np.ndarray]] = []
    for cells in groups.values():
        rows.append(("bases", cells[0].base[:COLUMNS] / 255))
        for one in cells:
            rows.append((_caption(one), np.clip(_pixels(one.image[:COLUMNS]), 0, 1)))
    if not rows:
        return
    figure = blank((3.2 + COLUMNS * 0.85, 0.6 + len(rows) * 0.85))
    figure.suptitle("added points and the images they were made of", fontsize=10)
    axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for line, (label, images) in zip(axes, rows, strict=True):
        for axis, image in itertools.zip_longest(line, images):
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if image is not None:
                color = image if image.shape[2] == 3 else image.mean(axis=2)
                axis.imshow(color, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    save(figure, path)


def residuals(path: pathlib.Path, record: dict[str, Any]) -> None:
    """A PNG of the residual over the attack's steps, a panel for each player, a line for each cell.

    Of feature-targeted attacks a dotted line stands where canceling in features ends and inversion
    begins: behind it the residual is that of the images' features. Without an attack that cancels
    there is no file.
    """
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for added in _cells(record):
        if "residual" in added:
            name = f"{added['arm']}, {added['share']:.3g}"
            panels.setdefault(added["player"], {})[name] = added
    if not panels:
        return
    title = f"{record['experiment']}: residual of the gradient at the target"
    figure, axes = paneled(title, list(panels))
    for axis, lines in zip(axes, panels.values(), strict=True):
        styles = itertools.product(("-", "--", ":"), COLORS)
        for (style, color), (name, added) in zip(styles, lines.items(), strict=False):
            found = added["residual"]
            axis.plot(found["steps"], found["curve"], style, color=color, linewidth=1.6, label=name)
        inverted = [one["arm"] for one in lines.values() if "feature_error" in one]
        settings = record["config"]["attacks"]
        for k, last in enumerate(sorted({settings[arm]["cancel_steps"] for arm in inverted})):
            label = None if k else "inversion begins"
            axis.axvline(last, color="#777777", linestyle=":", linewidth=1.2, label=label)
        axis.set_yscale("log")
        _dress(axis, "step", "||r||")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "ncols": LEGEND_COLUMNS}
        axis.legend(fontsize=7, frameon=False, **(below if len(lines) > MOST_INSIDE else {}))
    most = max(len(lines) for lines in panels.values())
    if most > MOST_INSIDE:
        width, height = figure.get_size_inches()
        rows = -(-len(panels) // 3)
        figure.set_size_inches(width, height + 0.17 * rows * (most // LEGEND_COLUMNS + 1))
    save(figure, path)


def reach(path: pathlib.Path, record: dict[str, Any]) -> None:
    """A PNG of the last residual over the share, beside its lower bound and the threshold tau.

    A panel for each attack whose target has a tau; without any there is no file. Thresholds are
    those of the first follower that the record has.
    """
    panels: dict[str, list[dict[str, Any]]] = {}
    for added in _cells(record):
        if added.get("reach") and "residual" in added:
            panels.setdefault(f"{added['player']} {added['arm']}".strip(), []).append(added)
    if not panels:
        return
    figure, axes = paneled(f"{record['experiment']}: residual and threshold", list(panels))
    for axis, cells in zip(axes, panels.values(), strict=True):
        cells = sorted(cells, key=lambda one: one["share"])
        shares = [one["share"] for one in cells]
        last = [one["residual"]["last"] for one in cells]
        floor = [one["reach"]["floor"] for one in cells]
        axis.plot(shares, last, "-o", color=COLORS[0], markersize=4, label="residual")
        if any(floor):
            low = [value or np.nan for value in floor]
            axis.plot(shares, low, "--v", color=COLORS[1], markersize=4, label="lower bound")
        for k, tau in enumerate(sorted({one["reach"]["tau"] for one in cells} - {None, 0.0})):
            label = "tau" if k == 0 else None
            axis.axvline(tau, color=COLORS[2], linestyle=":", linewidth=1.6, label=label)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(shares, [f"{share:.3g}" for share in shares])
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.legend(fontsize=8, frameon=False)
        _dress(axis, "points / clean rows", "||r||")
    save(figure, path)


def _cells(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the record has of each cell, once, with the first follower's view of it."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for entry in record["arms"].values():
        if added := entry.get("added"):
            found.setdefault((added["player"], added["arm"], added["num_added"]), added)
    return list(found.values())


def _caption(one: Shown) -> str:
    pixels = _pixels(one.image)
    low, high = float(pixels.min()), float(pixels.max())
    if low >= 0 and high <= 1:
        return one.name
    return f"{one.name}\n{low:.3g} to {high:.3g}, clipped"


def _pixels(image: np.ndarray) -> np.ndarray:
    return image / 255 if image.dtype == np.uint8 else image


def _dress(axis: Any, name: str, what: str) -> None:
    axis.set_xlabel(name)
    axis.set_ylabel(what)
    axis.grid(alpha=0.25)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
