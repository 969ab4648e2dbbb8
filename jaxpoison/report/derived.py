"""Training sets made of a poison that is there: a share of it, or its noise on other images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpoison import check
from jaxpoison.report.arms import Point
from jaxpoison.types import InputError, Key

__all__ = ["Derived", "permuted", "shares"]

MISPLACED = "near clean: the noise of one image does little on another"


class Derived(NamedTuple):
    """One training set of an experiment that is made of another one's stored images.

    Attributes:
      of: name of the arm it is made of, which comes before it.
      derive: (key, clean, poisoned, rows) -> (image, rows): uint8 images [N, H, W, C] and the rows
        [P] that may differ, before and after.
      check: (P) -> None; an InputError where that many rows are too few.
      expect: one line for the reader.
      settings: for the manifest and the run folder.
      held_out: whether the arm's generator is still what made the noise, so that its held-out
        images are a fair probe.
      sweep: its place in a sweep.
    """

    of: str
    derive: Callable[..., tuple[np.ndarray, np.ndarray]]
    check: Callable[[int], None]
    expect: str
    settings: dict[str, Any]
    held_out: bool = True
    sweep: Point | None = None

    def facts(self) -> dict[str, Any]:
        """What a run folder is bound to."""
        return self.settings


def shares(of: str, values: Sequence[float], *, expect: str) -> dict[str, Derived]:
    """Arms "<of>@<share>": a seeded share of the poisoned rows stays so, the others become clean.

    One poison, mixed with clean images when victims are trained: of its P rows round(share * P),
    the first of one permutation, so that the rows of a smaller share are among those of a larger
    one. The attack is crafted once (`StudyConfig.share` limits what it may change instead).

    Args:
      of: name of an arm of the same experiment, before these.
      values: shares in (0, 1).
      expect: one line for the reader.

    Raises: InputError for a share outside (0, 1), or twice the same.
    Source: Feng et al. 2019, figure 5.
    """
    arms = {}
    for value in values:
        check.number(above=0, below=1, share=value)
        name = f"{of}@{value:g}"
        if name in arms:
            raise InputError(f"share = {value:g} is named twice; name each share once")
        settings = {"derived": "share", "of": of, "share": float(value)}
        point = Point(of, "share", float(value))
        arms[name] = Derived(of, *_mixture(float(value)), expect, settings, sweep=point)
    return arms


def permuted(of: str, *, expect: str = MISPLACED) -> dict[str, Derived]:
    """The arm "<of>-permuted", a control: every poisoned row gets the noise of another one.

    x_i + (x_p - x)_pi(i) in grey levels, clipped to [0, 255], for a random cyclic order pi of the P
    rows, so that none keeps its own. In the budget, as clipping only shortens the noise.

    Args:
      of: as in `shares`.
      expect: as there.
    """
    settings = {"derived": "permuted", "of": of}
    return {f"{of}-permuted": Derived(of, _other_noise, _two, expect, settings, held_out=False)}


def _mixture(share: float) -> tuple[Callable[..., tuple[np.ndarray, np.ndarray]], Any]:
    """(derive, check) of `Derived`."""

    def check_rows(num: int) -> None:
        if round(share * num) < 1:
            raise InputError(f"share = {share:g} of {num} poisoned rows is less than one")

    def derive(key: Key, clean: np.ndarray, poisoned: np.ndarray, rows: np.ndarray):
        kept = np.sort(_shuffled(key, rows)[: round(share * len(rows))])
        image = clean.copy()
        image[kept] = poisoned[kept]
        return image, kept

    return derive, check_rows


def _other_noise(key: Key, clean: np.ndarray, poisoned: np.ndarray, rows: np.ndarray):
    order = _shuffled(key, rows)
    source = np.roll(order, 1)
    noise = poisoned[source].astype(np.int16) - clean[source]
    image = clean.copy()
    image[order] = np.clip(clean[order] + noise, 0, 255).astype(np.uint8)
    return image, rows


def _two(num: int) -> None:
    if num < 2:
        raise InputError(f"{num} poisoned row; two are needed to exchange their noise")


def _shuffled(key: Key, rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows)[np.asarray(jax.random.permutation(key, len(rows)))]
