"""Pictures of a targeted run: targets and their poisons, and every setup from arm to arm."""

import itertools
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num

from jaxpoison.report import figures, tables

__all__ = ["Shown", "pairs", "targets"]

STRETCH = 10  # of the perturbation in the picture
COLUMNS = 6  # poisons a setup
_GREY = "#9aa0a6"


class Shown(NamedTuple):
    """One setup in the picture.

    Attributes:
      name: of the setup.
      target: [H, W, C] uint8.
      labels: "true -> wanted".
      clean: [P, H, W, C] grey levels, the poison rows as they were.
      poisoned: the same rows poisoned.
    """

    name: str
    target: Num[np.ndarray, "h w c"]
    labels: str
    clean: Num[np.ndarray, "p h w c"]
    poisoned: Num[np.ndarray, "p h w c"]


def targets(path: pathlib.Path, setups: list[Shown]) -> None:
    """A PNG of targets, each beside some of its poisons: clean, their perturbation x 10, poisoned.

    Perturbations are drawn around mid-grey and cut at black and white.

    Args:
      path: file to write.
      setups: at least one; the first `COLUMNS` poisons of each are drawn.
    """
    columns = 1 + max(min(COLUMNS, len(one.clean)) for one in setups)
    rows = ("clean", f"difference\nx {STRETCH}, grey = 0", "poisoned")
    figure = figures.blank((1.9 + columns * 0.9, 0.6 + 3 * len(setups) * 0.9))
    figure.suptitle("targets (left) and the training images that are to change them", fontsize=10)
    axes = figure.subplots(3 * len(setups), columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, one in enumerate(setups):
        clean, poisoned = (x[:COLUMNS].astype(float) / 255 for x in (one.clean, one.poisoned))
        change = np.clip(0.5 + STRETCH * (poisoned - clean), 0, 1)
        block = axes[3 * i : 3 * i + 3]
        _picture(block[1, 0], one.target / 255)
        block[0, 0].text(0.5, 0.1, f"{one.name}\n{one.labels}", ha="center", fontsize=8,
                         transform=block[0, 0].transAxes)  # fmt: skip
        for line, label, images in zip(block, rows, (clean, change, poisoned), strict=True):
            for axis, image in zip(line[1:], images, strict=False):
                _picture(axis, image)
            line[-1].text(1.1, 0.5, label, va="center", fontsize=8, transform=line[-1].transAxes)
    figures.save(figure, path)


def pairs(path: pathlib.Path, record: dict[str, Any]) -> None:
    """A PNG of p(wanted) of every setup, a line from arm to arm, and the mean with its interval.

    Each victim has its own panel.
    """
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    for name, entry in record["arms"].items():
        victim, arm = tables.split_name(name, entry)
        panels.setdefault(victim, {})[arm] = entry["intended_probability"]
    title = f"{record['experiment']}: p(wanted) of every setup"
    figure, axes = figures.paneled(title, list(panels))
    for axis, arms in zip(axes, panels.values(), strict=True):
        places = np.arange(len(arms))
        values = 100 * np.array([rate["values"] for rate in arms.values()])
        axis.plot(places, values, color=_GREY, linewidth=1, alpha=0.7, marker="o", markersize=3)
        rates = list(arms.values())
        mean = np.array([100 * rate["mean"] for rate in rates])
        low, high = (
            np.array([100 * (r["mean"] if r[end] is None else r[end]) for r in rates])
            for end in ("low", "high")
        )
        axis.errorbar(places, mean, yerr=[mean - low, high - mean], color=figures.COLORS[0],
                      linewidth=2.2, marker="o", markersize=5, capsize=3)  # fmt: skip
        figures.dress(axis, "", "probability of the wanted label, %")
        slanted = {"rotation": 30, "ha": "right"} if len(arms) > 4 else {}
        axis.set_xticks(places, [_short(arm) for arm in arms], fontsize=9, **slanted)
        axis.set_xlim(-0.3, len(arms) - 0.7)
    figures.save(figure, path)


def _short(name: str) -> str:
    """A name on two lines where it is long."""
    words = name.split("-")
    half = next(i for i in itertools.count(1) if sum(map(len, words[:i])) >= len(name) / 2 - 1)
    rest = "-".join(words[half:])
    return "-".join(words[:half]) + (f"-\n{rest}" if rest else "") if len(name) > 12 else name


def _picture(axis: Any, image: np.ndarray) -> None:
    color = image if image.shape[2] == 3 else image.mean(axis=2)
    axis.imshow(color, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
