"""Attacks that add points, as the arms of an experiment."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxpoison import check
from jaxpoison.data.manifest import tree_sha256
from jaxpoison.perturb import Constraint
from jaxpoison.report.added_config import check_shares
from jaxpoison.report.arms import built
from jaxpoison.types import Attack, InputError, Victim

__all__ = ["AddedArm", "added_arm"]

SPACES = ("input", "features")
GREY = ("box", "linf")
"""Constraints under which points are images, stored as grey levels."""


class AddedArm(NamedTuple):
    """One attack that adds points; crafted at every share.

    Attributes:
      attack: the attack; its poison has N + P rows.
      num_steps: steps it runs.
      expect: one line for the reader.
      settings: of the attack, for the manifest.
      player: whose training it attacks, "" where there is one.
      space: "input", points are images; "features", they are features of the player's extractor.
      constraint: of the points; None where the attack has none, and gives images in [0, 1].
      shares: at which it is crafted; None is `config.shares`.
      aux: what it knows besides the player's clean network; None is nothing.
      victim: the network it was built with, if it has one.
    """

    attack: Attack
    num_steps: int
    expect: str
    settings: dict[str, Any]
    player: str
    space: str
    constraint: Constraint | None
    shares: tuple[float, ...] | None
    aux: Any
    victim: Victim | None

    @property
    def domain(self) -> str:
        """As which its points are stored, see `data.poisoned.write`."""
        if self.space == "features":
            return "features"
        return "uint8" if self.constraint is None or self.constraint.kind in GREY else "unbounded"

    @property
    def eps(self) -> float | None:
        """The radius in which every stored point stays around its base; None for no budget."""
        return None if self.constraint is None else self.constraint.eps

    def facts(self) -> dict[str, Any]:
        """What a run folder is bound to."""
        return self.settings | {
            "num_steps": self.num_steps,
            "player": self.player,
            "space": self.space,
            "shares": self.shares and list(self.shares),
            "aux_sha256": None if self.aux is None else tree_sha256(self.aux),
        }


def added_arm(
    factory: Callable[..., Attack],
    *parts: Any,
    player: str = "",
    expect: str,
    space: str = "input",
    constraint: Constraint | None = None,
    num_steps: int | None = None,
    shares: Sequence[float] | None = None,
    aux: Any = None,
    **options: Any,
) -> AddedArm:
    """The arm of `factory(*parts, **options)`, an attack that adds points; see `added_job`.

    How points are stored follows from the constraint: "box" and "linf" as grey levels (those of
    "linf" are verified against the base rows), others as float values of any size, features as
    features. An attack without a constraint (relabeled images) gives images, stored as grey levels.

    Args:
      factory: an attack of `jaxpoison.attacks`.
      *parts: its positional arguments, such as the victim: the player's head in feature space;
        `victims.on_features(extractor.victim, head)` in input space behind an extractor.
      player: whose training it attacks, by name.
      expect: one line for the reader.
      space: "input" or "features".
      constraint: passed to the factory as `constraint`; None leaves the factory's own.
      num_steps: steps to run; None is what the attack's schedule is laid out over, or one.
      shares: instead of `config.shares`.
      aux: what the attack knows besides the player's clean network V, arrays: `scenario.aux` is
        then (V, aux), for a feature-targeted attack (V, the decoder's Variables or ()). None: it is
        V alone.
      **options: further arguments of the factory.

    Raises: InputError for a bad argument, or a constraint on pixels in the space of features.
    """
    check.one_of(SPACES, space=space)
    if constraint is not None:
        options = options | {"constraint": constraint}
    attack, num_steps, arguments, settings = built(factory, parts, options, num_steps)
    if attack.single is not None or attack.generator is not None:
        raise InputError(f"{factory.__name__} repeats itself or trains a generator; it must be one "
                         "attack that adds points")  # fmt: skip
    own = arguments.get("constraint")
    limit = own if isinstance(own, Constraint) else None
    if space == "features" and limit is not None and limit.kind in GREY:
        raise InputError(f"constraint = {limit.kind} is for pixels; features may have none, range, "
                         "coordinate or nonnegative")  # fmt: skip
    if shares is not None:
        check_shares(shares)
    victim = next((one for one in arguments.values() if isinstance(one, Victim)), None)
    chosen = None if shares is None else tuple(float(share) for share in shares)
    return AddedArm(attack, num_steps, expect, settings, player, space, limit, chosen, aux, victim)
