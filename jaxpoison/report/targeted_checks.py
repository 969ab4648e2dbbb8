"""What a targeted job looks at before its run folder is made."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpoison import check
from jaxpoison.data import Setup
from jaxpoison.report.arms import Arm
from jaxpoison.report.preparation import Trainee, check_arms, rehearse
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import InputError, Split

__all__ = ["check_settings", "check_setups", "check_targeted_arms", "fingerprint_of", "start_all"]


def check_settings(config: StudyConfig, victims: Mapping[str, Trainee]) -> None:
    """Settings of other jobs stand as they are by default, and victims have names.

    Raises: InputError where they do not.
    """
    if config.share != 1:
        raise InputError(f"share = {config.share}; setups name the rows that may change")
    if config.craft_seeds != 1:
        raise InputError(
            f"craft_seeds = {config.craft_seeds}; every setup has an attack key of its own, so it "
            "must be 1"
        )
    if config.probes:
        raise InputError(f"probes = {config.probes}; a targeted run has none")
    if not victims:
        raise InputError("there are no victims; name at least one")
    for name in victims:
        if (name or len(victims) > 1) and not _plain(name):
            raise InputError(f"victim = {name!r}; a plain folder name is needed, not hidden")


def check_setups(setups: Sequence[Setup], split: Split) -> None:
    """Each by itself sound for these data, and all of different names.

    Raises: InputError naming the setup, its value and what is allowed.
    """
    if not setups:
        raise InputError("there are no setups; name at least one")
    seen: set[str] = set()
    for one in setups:
        if not _plain(one.name):
            raise InputError(f"setup = {one.name!r}; a plain folder name is needed, not hidden")
        if one.name in seen:
            raise InputError(f"setup {one.name!r} is named twice; name each setup once")
        seen.add(one.name)
        one.check(split)


def check_targeted_arms(arms: Mapping[str, Arm], main: str) -> None:
    """Attacks that are crafted anew for every setup.

    Raises: InputError for other arms, for an `eps` beyond the budget, and as `check_arms`.
    """
    check.one_of(arms, main=main)
    check_arms(arms)
    for name, one in arms.items():
        if not isinstance(one, Arm) or one.trains_generator:
            kind = "trains a generator" if isinstance(one, Arm) else "is stored or derived"
            raise InputError(f"arm {name!r} {kind}; a targeted run crafts one poison per setup")
        eps, budget = one.settings.get("eps"), one.budget
        if (
            budget is not None
            and budget.norm == "linf"
            and isinstance(eps, int | float)
            and eps > budget.eps
        ):
            raise InputError(
                f"arm {name!r}: eps = {eps:g} is beyond its budget, linf {budget.eps:g}"
            )


def start_all(arms: Mapping[str, Arm], setups: Sequence[Setup], split: Split, aux: Any) -> None:
    """Every attack's first moves without computing, once for each number of poisons and targets.

    Raises: InputError where an attack cannot start.
    """
    sizes = {(len(one.poison_rows), len(one.target_rows)): one for one in setups}
    for one in sizes.values():
        rehearse(arms, one.scenario(split, aux), split.test, ())


def fingerprint_of(setups: Sequence[Setup]) -> dict[str, Any]:
    """Names of the setups, and one SHA-256 of all their rows and labels."""
    rows = [[np.asarray(x).tolist() for x in one[1:]] for one in setups]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"names": [one.name for one in setups], "sha256": digest}


def _plain(name: str) -> bool:
    return bool(name) and pathlib.Path(name).name == name and not name.startswith(".")
