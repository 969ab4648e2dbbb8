"""The training sets of an experiment: attacks to run, poisons that are stored already, controls."""

import inspect
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxpoison import attacks, check, over
from jaxpoison.data import poisoned
from jaxpoison.perturb import Budget
from jaxpoison.types import Attack, InputError

__all__ = ["Arm", "Stored", "arm", "control", "stored"]

_PLAIN = str | int | float
HARMLESS = "within 3 of clean: change alone does little"


class Arm(NamedTuple):
    """One poisoned training set of an experiment.

    Attributes:
      attack: the attack, or restarts of one (the best is taken).
      num_steps: steps it runs.
      budget: what its stored images keep.
      expect: one line for the reader.
      settings: of the attack, for the manifest.
    """

    attack: Attack
    num_steps: int
    budget: Budget
    expect: str
    settings: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """What a run folder is bound to."""
        return self.settings | {"num_steps": self.num_steps}


class Stored(NamedTuple):
    """One poisoned training set that was written before, by whatever experiment.

    Attributes:
      path: its poison folder.
      index: [P] rows that may differ from the clean set.
      budget: what the folder promises.
      expect: one line for the reader.
      settings: attack and hashes, which bind a run folder to this very poison.
    """

    path: pathlib.Path
    index: Int[np.ndarray, " p"]
    budget: Budget
    expect: str
    settings: dict[str, Any]

    def facts(self) -> dict[str, Any]:
        """What a run folder is bound to."""
        return self.settings


def arm(
    factory: Callable[..., Attack],
    *parts: Any,
    num_steps: int = 1,
    budget: Budget,
    expect: str,
    restarts: int = 1,
    **options: Any,
) -> Arm:
    """The arm of `factory(*parts, **options)`; its settings are all options, defaults included.

    Functions among the options are kept by name.

    Args:
      factory: an attack of `jaxpoison.attacks`.
      *parts: its positional arguments, such as the victim.
      num_steps: steps to run; one is enough where there is nothing to optimize.
      budget: what the stored images keep.
      expect: one line for the reader.
      restarts: independent runs, of which the one of the lowest loss is stored.
      **options: its keyword arguments.
    """
    bound = inspect.signature(factory).bind(*parts, **options)
    bound.apply_defaults()
    settings = {"attack": factory.__name__} | {
        name: value if value is None or isinstance(value, _PLAIN) else value.__qualname__
        for name, value in bound.arguments.items()
        if value is None or isinstance(value, _PLAIN) or hasattr(value, "__qualname__")
    }
    attack = factory(*parts, **options)
    check.at_least(1, restarts=restarts)
    if restarts > 1:
        attack, settings = over.over_restarts(attack, restarts), settings | {"restarts": restarts}
    return Arm(attack, num_steps, budget, expect, settings)


def control(budget: Budget, expect: str = HARMLESS) -> dict[str, Arm]:
    """The arm of random noise at the full budget, under the name that the tables look for."""
    name = "random-noise" if budget.norm == "linf" else f"random-noise-{budget.norm}"
    noise = arm(
        attacks.random_noise, eps=budget.eps, norm=budget.norm, budget=budget, expect=expect
    )
    return {name: noise}


def stored(path: pathlib.Path, expect: str) -> Stored:
    """The arm of a poison folder.

    Args:
      path: the folder; whether it is a poison of the experiment's own training set is checked when
        the experiment begins.
      expect: one line for the reader.

    Raises: InputError for a folder that is damaged, holds no uint8 images, has added rows or states
      no budget (then there is no noise of the same size to compare with).
    """
    poison = poisoned.read(path)
    manifest = poison.manifest
    if manifest.domain != "uint8" or manifest.rows != "changed":
        raise InputError(
            f"{path} holds {manifest.domain} images with {manifest.rows} rows; uint8 images with "
            "changed rows are needed"
        )
    if manifest.norm is None:
        raise InputError(f"{path} states no budget; there is no random noise of the same size")
    settings = {"attack": manifest.attack, "files": manifest.files}
    budget = Budget(manifest.norm, manifest.eps)
    return Stored(path, np.flatnonzero(poison.mask), budget, expect, settings)
