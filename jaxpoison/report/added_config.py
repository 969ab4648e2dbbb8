"""Settings of experiments with added points, and who trains on them."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxpoison import check
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import Dataset, Filter, InputError, Victim
from jaxpoison.victims import Extractor, Recipe, ToConvergence

__all__ = ["AddedConfig", "Follower", "Player"]

Follower = Recipe | ToConvergence


@dataclasses.dataclass(frozen=True)
class AddedConfig(StudyConfig):
    """Settings that every experiment with added points has."""

    HIDDEN = ("share", "probes")
    """Settings that mean nothing here: not in --help, and refused."""

    shares: tuple[float, ...] = (0.03, 0.1, 1.0)
    """Added points relative to the clean training set, eps_d = P / N, above 0 up to 1; every attack
    is crafted at each."""

    def __post_init__(self):
        super().__post_init__()
        if self.share != 1:
            raise InputError(f"share = {self.share}; no row changes here: set shares, of what is "
                             "added")  # fmt: skip
        if self.probes:
            raise InputError(f"probes = {self.probes}; a run of added points has none")
        check_shares(self.shares)
        object.__setattr__(self, "shares", tuple(self.shares))

    def settings(self) -> dict[str, Any]:
        """As of every study, without what means nothing here."""
        return {k: v for k, v in super().settings().items() if k not in self.HIDDEN}


class Player(NamedTuple):
    """Who trains on the clean set and the added points.

    Behind an extractor followers train the head alone. A victim that fine-tunes the extractor, too,
    learns the stored images of a cell apart from the job:

        train = data.with_added(split.train, data.poisoned.read(runs / ... / "poison" / CELL))
        how, num = victims.transfer("fine_tuning", extractor.variables), len(train.label)
        training = victims.transfer_training("fine_tuning", extractor.victim, recipe, num)
        run(training, key, how.data(Split(train, split.test)), num_steps=recipe.epochs)

    `report.main_job(transfer=how)` trains such victims on poisons that change rows instead.

    Attributes:
      victim: what followers train: a network on images, or with an extractor the head on its
        features [B, 1, 1, D].
      followers: how it is trained, by name: a `Recipe`, or `ToConvergence` (L-BFGS). Every training
        set is judged by each of them, `config.victims` seeds; where training draws nothing
        (`start="zeros"`) one.
      reference: the follower whose clean network, seed 0, attacks know as `scenario.aux`.
      extractor: followers then learn its features of whatever images they get. Those of the clean
        set are computed once.
      filters: defenses by name (`jaxpoison.defenses`): each screens what the reference follower was
        trained on, knows that network (seed 0) and `trusted`, and the follower learns again from
        the rows that stay.
      trusted: images that a defender knows to be clean, for filters that ask for them; () for none.
    """

    victim: Victim
    followers: Mapping[str, Follower]
    reference: str
    extractor: Extractor | None = None
    filters: Mapping[str, Filter] = types.MappingProxyType({})
    trusted: Dataset | Any = ()


def check_shares(shares: Any) -> None:
    """At least one, each in (0, 1] and once.

    Raises: InputError where they are not.
    """
    if not isinstance(shares, Sequence) or isinstance(shares, str):
        raise InputError(f"shares = {shares!r}; they must be a sequence, such as (0.03, 0.1)")
    if not shares:
        raise InputError("shares are none; name at least one")
    for share in shares:
        check.number(above=0, most=1, shares=share)
    if len({f"{share:g}" for share in shares}) < len(shares):
        raise InputError(f"shares = {shares}; name each once")
