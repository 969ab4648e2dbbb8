"""The picture of a defense matrix."""

import pathlib
from typing import Any

import numpy as np

from jaxpoison.report import matrix_tables
from jaxpoison.report.figures import blank, save

__all__ = ["heat_map"]

DARK = 55  # percent, above which text on the color is dark


def heat_map(path: pathlib.Path, record: dict[str, Any]) -> None:
    """A PNG of mean clean test accuracy in %: attacks down, defenses across, published below ours.

    Of several published values of a cell the least and the greatest.

    Args:
      path: file to write.
      record: of a matrix.
    """
    attacks, defenses = matrix_tables.axes(record)
    means = np.full((len(attacks), len(defenses)), np.nan)
    for i, attack in enumerate(attacks):
        for j, defense in enumerate(defenses):
            if entry := record["arms"].get(f"{defense}/{attack}"):
                means[i, j] = 100 * entry["final_accuracy"]["mean"]
    figure = blank((2.6 + 0.85 * len(defenses), 1.7 + 0.5 * len(attacks)))
    figure.suptitle(
        f"{record['experiment']}: clean test accuracy in %"
        + ("\n(in brackets: published, of other implementations)" if record["published"] else ""),
        fontsize=10,
    )
    axis = figure.subplots()
    picture = axis.imshow(means, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axis.set_xticks(range(len(defenses)), defenses, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(range(len(attacks)), attacks, fontsize=8)
    for (i, j), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            found = matrix_tables.stated(record, attacks[i], defenses[j])
            others = sorted({x["value"] for x in found})
            ends = "-".join(f"{100 * x:.1f}" for x in dict.fromkeys(others[:1] + others[-1:]))
            text = f"{mean:.1f}" + (f"\n({ends})" if ends else "")
            color = "black" if mean > DARK else "white"
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(picture, ax=axis, label="%")
    save(figure, path)
