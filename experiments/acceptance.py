"""The table of the specification's acceptance tests 12 to 17, made from the committed records.

Each row is one statement about attacks that add points, with the value that the specification of
this library writes beside it (section 13; reference runs, of no paper). `experiments.tables` puts
the table into experiments/README.md.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxpoison.report import added_tables, tables
from jaxpoison.victims import interval

__all__ = ["HEAD", "rows"]

HEAD = (
    "| test | what | value there | ours | holds | record |\n"
    "|---|---|---|---|---|---|\n"
)  # fmt: skip
CANCELING, TGDA = "digits_gradient_canceling", "digits_tgda"
FEATURES, MNIST = "digits_feature_targeted", "mnist_gradient_canceling"


class Row(NamedTuple):
    """One statement.

    Attributes:
      test: its number.
      record: stem of the record, before a dot.
      arm: in it, as its entry is called.
      what: in words.
      there: the value written there, in words.
      kind: "accuracy" or "drop", both over attack keys where there are several; "distance" of the
        victims' parameters from the target.
      holds: whether a mean (a fraction, or a distance) is as it shall be.
    """

    test: int
    record: str
    arm: str
    what: str
    there: str
    kind: str
    holds: Callable[[float], bool]


def _least(least: float) -> Callable[[float], bool]:
    return lambda value: value >= least


def _most(most: float) -> Callable[[float], bool]:
    return lambda value: value <= most


ROWS = (
    Row(12, CANCELING, "lbfgs/canceling share=0.03", "3 % points anywhere, accuracy",
        "at most 12, about 9", "accuracy", _most(0.12)),
    Row(12, CANCELING, "lbfgs/canceling share=0.03", "the same, distance from the target",
        "below 0.01", "distance", _most(0.01)),
    Row(13, CANCELING, "lbfgs/canceling-box share=0.03", "3 % images, drop",
        "at most 6, about 2.4", "drop", _most(0.06)),
    Row(13, CANCELING, "lbfgs/canceling-box share=0.1", "10 % images, drop",
        "at least 6, about 9.8", "drop", _least(0.06)),
    Row(13, CANCELING, "lbfgs/canceling-box share=0.3", "30 % images, drop",
        "at least 15, about 23", "drop", _least(0.15)),
    Row(15, TGDA, "lbfgs/tgda-base share=0.1", "10 % images by TGDA, labels of the base, drop",
        "at least 4, about 7.2", "drop", _least(0.04)),
    Row(15, TGDA, "lbfgs/tgda share=0.1", "the same, labels drawn, drop",
        "at least 4, about 6.4", "drop", _least(0.04)),
    Row(15, TGDA, "lbfgs/label-flip share=0.1", "its control of random labels, drop",
        "below 4, and so TGDA's", "drop", _most(0.04)),
    Row(16, FEATURES, "same/lbfgs/features share=0.03", "3 % features anywhere, accuracy",
        "at most 12, about 8.4", "accuracy", _most(0.12)),
    Row(16, FEATURES, "transfer/lbfgs/features-transfer share=0.03",
        "the same, extractor of other classes, accuracy", "at most 12, about 8.4", "accuracy",
        _most(0.12)),
    Row(17, MNIST, "lr/sgd/official-0.5-lr share=0.03",
        "released form, 3 % points anywhere, radius 0.5, drop", "at least 10, about 15.1", "drop",
        _least(0.1)),
    Row(17, MNIST, "lr/sgd/official-0.8-lr share=0.03", "the same, radius 0.8, drop",
        "at least 10, about 44.2", "drop", _least(0.1)),
    Row(17, MNIST, "lr/sgd/clipped-0.5-lr share=0.03", "3 % images, radius 0.5, drop",
        "at most 5, about 1.6", "drop", _most(0.05)),
)  # fmt: skip


def rows(records: dict[str, dict[str, Any]], folder: pathlib.Path) -> list[str]:
    """The rows of `HEAD` that these records have something for.

    Args:
      records: by the names of their files.
      folder: of the records of another shape: the phase transition (test 14), GradPC (test 17).
    """
    lines = [
        (one.test, line)
        for one in ROWS
        for stem, record in records.items()
        if stem.partition(".")[0] == one.record and (line := _line(one, stem, record))
    ]
    path = folder / "gaussian_phase_transition.json"
    lines.append((14, _kink(json.loads(path.read_text()), path.stem)))
    path = folder / "mnist_parameter_corruption.json"
    lines.append((17, _target(json.loads(path.read_text()), path.stem)))
    return [line for _, line in sorted(lines, key=lambda one: one[0])]


def _line(one: Row, stem: str, record: dict[str, Any]) -> str | None:
    entry = record["arms"].get(one.arm)
    victim = one.arm.rpartition("/")[0]
    clean = record["arms"].get(f"{victim}/clean")
    if entry is None or clean is None:
        return None
    if one.kind == "accuracy":
        value = added_tables.over_keys(entry)
        words = tables.percent(value)
    elif one.kind == "drop":
        value = added_tables.drop(entry, clean)
        words = added_tables.points(value)
    else:
        added = entry["added"]
        value = added.get("craft_seeds", {}).get("distance") or added["distance"]
        words = str(interval(value["values"]))
    return _joined(one.test, one.what, one.there, words, one.holds(value["mean"]), stem)


def _kink(record: dict[str, Any], stem: str) -> str:
    kinks = [curve["kink"] for curve in record["curves"]]
    held = all(abs(kink - 1) <= 0.05 for kink in kinks)
    what = f"kink of the residual over eps / tau, all {len(kinks)} curves"
    words = f"{min(kinks):.4f} to {max(kinks):.4f}"
    return _joined(14, what, "0.95 to 1.05", words, held, stem)


def _target(record: dict[str, Any], stem: str) -> str:
    """Of GradPC alone: how far the CNN's corrupted parameters fall, without added points."""
    cells = {
        (one["kind"], one["seed"]): one["accuracy"]
        for one in record["cells"]
        if one["network"] == "cnn" and one["radius"] in (0, 0.5)
    }
    seeds = [seed for kind, seed in cells if kind == "clean"]
    drops = interval([cells["clean", seed] - cells["GradPC", seed] for seed in seeds])
    what = f"the CNN at GradPC's target, radius 0.5, {len(seeds)} seed(s), drop"
    there, words = "20 to 35, 30.9 (third-party)", added_tables.points(drops._asdict())
    return _joined(17, what, there, words, 0.2 <= drops.mean <= 0.35, stem)


def _joined(test: int, what: str, there: str, ours: str, holds: bool, stem: str) -> str:
    name = stem.replace(".small", " (small run)")
    return f"| {test} | {what} | {there} | {ours} | {'yes' if holds else 'no'} | {name} |"
