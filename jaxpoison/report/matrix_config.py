"""What a defense matrix is made of: its settings, and the attacks of its rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxpoison import check
from jaxpoison.report.arms import Arm
from jaxpoison.report.images import ImageConfig, PaperConfig
from jaxpoison.report.preparation import Trainee
from jaxpoison.types import InputError

__all__ = ["Attacker", "MatrixConfig", "PaperMatrixConfig"]


class Attacker(NamedTuple):
    """One row of a matrix.

    Attributes:
      arm: the attack, see `report.arm`.
      knows: the network, trained on the clean set, that it gets as `scenario.aux`; None is none.
        Attackers that know equal ones share it.
    """

    arm: Arm
    knows: Trainee | None = None


@dataclasses.dataclass(frozen=True)
class _Matrix:
    """Which cells there are, and where finished ones are looked for."""

    HIDDEN = ("craft_seeds", "probes")

    attacks: tuple[str, ...] = ()
    """Rows to compute, by name; an empty list is all. The clean set is always one."""
    defenses: tuple[str, ...] = ()
    """Columns to compute, by name; an empty list is all. No defense, "none", is always one."""
    cache: bool = True
    """Take poisons and cells of equal settings from RUNS/cache, and keep them there, so that
    another run (of more rows, say, under another --name) computes only what is new. Other package
    versions and edits of the package's code, but for its reports, begin anew."""

    def chosen(self, what: str, named: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `named` that the setting `what` names, in the order of `named`.

        Raises: InputError for a name that is not there.
        """
        wanted = getattr(self, what)
        for name in wanted:
            check.one_of(tuple(named), **{what: name})
        return {k: v for k, v in named.items() if not wanted or k in wanted}

    def refuse(self, experiment: str) -> None:
        """An InputError for settings that a matrix does not read."""
        for name, value in (("probes", ()), ("craft_seeds", 1)):
            found = getattr(self, name)
            if found != value:
                raise InputError(f"{name} = {found!r}; {experiment} is a matrix, it has none")


@dataclasses.dataclass(frozen=True)
class MatrixConfig(_Matrix, ImageConfig):
    """Settings of a defense matrix on a prepared image set."""


@dataclasses.dataclass(frozen=True)
class PaperMatrixConfig(_Matrix, PaperConfig):
    """Settings of a defense matrix at the scale of a paper, and beside them of a small one."""
