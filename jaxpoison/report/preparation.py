"""All that is looked at before a run folder is made, so that a bad setting ends before work."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxpoison import check
from jaxpoison.data import check_dataset, poison_rows, poisoned
from jaxpoison.models import num_params
from jaxpoison.report.arms import Arm, Stored
from jaxpoison.report.derived import Derived
from jaxpoison.report.probes import HELD_OUT, everything
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import (
    Dataset,
    InputError,
    Key,
    Scenario,
    Split,
    Training,
    Variables,
    Victim,
)
from jaxpoison.victims import (
    Recipe,
    Transfer,
    TransferSplit,
    checkpoints_along,
    transfer_training,
)
from jaxpoison.victims.checks import num_logits

__all__ = [
    "Trainee",
    "abstract",
    "check_arms",
    "check_split",
    "rehearse",
    "rows",
]

_TAKEN = {"clean": "clean training set", "surrogate": "network that attacks may know"}


class Robustness(NamedTuple):
    """A question to trained victims: what PGD on the clean test images leaves of their accuracy.

    Attributes:
      eps: L-infinity radius, pixels in [0, 1].
      steps: of `victims.assess_robust`, at its own step size, from a uniform start.
    """

    eps: float
    steps: int = 20

    @property
    def name(self) -> str:
        """Of the probe in a record."""
        return f"PGD-{self.steps} at {255 * self.eps:.3g}/255"


class Trainee(NamedTuple):
    """A network and how it is trained.

    Attributes:
      victim: the network.
      recipe: how it is trained.
      transfer: the pretrained network that it starts from, see `victims.transfer`; None is from
        scratch.
      checkpoints: of a surrogate: how many equidistant networks of its one run attacks know,
        stacked, see `victims.checkpoints_along`; None is the last one alone.
      robustness: of a victim in memory: how its robust accuracy is measured, a probe of the record.
    """

    victim: Victim
    recipe: Recipe
    transfer: Transfer | None = None
    checkpoints: int | None = None
    robustness: Robustness | None = None

    @property
    def mode(self) -> str | None:
        """Of its transfer; None is from scratch."""
        return None if self.transfer is None else self.transfer.mode

    def training(self, num_train: int, **options: Any) -> Training:
        """`victims.transfer_training` over N = num_train rows; it takes `data` of a split."""
        one = transfer_training(self.mode, self.victim, self.recipe, num_train, **options)
        if self.checkpoints is None:
            return one
        return checkpoints_along(one, self.checkpoints, self.recipe.epochs)

    def known(self) -> Variables:
        """Shapes and dtypes of what attacks know of it as a surrogate; nothing is computed."""
        one = abstract(self.victim)
        if self.checkpoints is None:
            return one
        num = (self.checkpoints,)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(num + x.shape, x.dtype), one)

    def facts(self) -> dict[str, Any]:
        """Size, recipe and, where given, transfer and robustness: what binds a run folder."""
        facts = {"parameters": num_params(self.victim), "recipe": dataclasses.asdict(self.recipe)}
        if self.robustness is not None:
            facts["robustness"] = self.robustness._asdict()
        return facts if self.transfer is None else facts | {"transfer": self.transfer.facts()}

    def data(self, split: Split) -> Split | TransferSplit:
        """What that training takes: the split, with the pretrained network where there is one."""
        return split if self.transfer is None else self.transfer.data(split)


def check_split(split: Split, trainees: Iterable[Trainee]) -> Split:
    """Both sets sound, of one shape, of classes all networks know; the training set in uint8.

    Raises: InputError where they are not, and for images that a network does not take.
    """
    train, test = split
    if train.image.dtype != "uint8":
        raise InputError(
            f"training images are {train.image.dtype}; poisons are stored as uint8, so uint8 is "
            "needed"
        )
    if train.image.shape[1:] != test.image.shape[1:]:
        raise InputError(
            f"training images are {train.image.shape[1:]}, test images {test.image.shape[1:]}; "
            "one shape is needed"
        )
    shape = train.image.shape[1:]
    most = min((num_logits(one.victim, shape) for one in trainees), default=None)
    return Split(
        check_dataset(train, num_classes=most, source="training set"),
        check_dataset(test, num_classes=most, source="test set"),
    )


def rows(
    key: Key, config: StudyConfig, train: Dataset, arms: Mapping[str, Arm | Stored | Derived]
) -> Int[Array, " p"]:
    """The rows that may change: those of a poison at hand, else a seeded `config.share` of all.

    Raises: InputError for a share of rows too small, or beside a stored poison; for a stored poison
      of other data.
    """
    for one in arms.values():
        if isinstance(one, Stored):
            if config.share != 1:
                raise InputError(f"share = {config.share}; the rows of {one.path} are chosen")
            _check_source(one, train)
            return jnp.asarray(one.index, jnp.int32)
    return poison_rows(key, train, share=config.share)


def check_arms(arms: Mapping[str, Arm | Stored | Derived]) -> None:
    """Names that can be folders beside "clean" and "surrogate"; what is made of others after them.

    Raises: InputError where they are not.
    """
    earlier: set[str] = set()
    for name, one in arms.items():
        if name in ("clean", "surrogate"):
            raise InputError(f"no arm can be called {name!r}, the name of the {_TAKEN[name]}")
        if pathlib.Path(name).name != name or name.startswith("."):
            raise InputError(f"arm = {name!r}; a plain folder name is needed, not hidden")
        if isinstance(one, Derived) and one.of not in earlier:
            allowed = ", ".join(sorted(earlier)) or "none here"
            raise InputError(f"arm {name!r} is made of {one.of!r}; allowed are earlier: {allowed}")
        if not isinstance(one, Derived):
            earlier.add(name)
            continue
        parent = arms[one.of]
        if isinstance(parent, Arm) and parent.rounding == "none":
            raise InputError(f"arm {name!r} needs grey levels; {one.of!r} has rounding = 'none'")


def rehearse(
    arms: Mapping[str, Arm | Stored | Derived],
    scenario: Scenario,
    test: Dataset,
    probes: Iterable[str],
) -> None:
    """Every attack's first moves without computing, and what its victims will be shown.

    Raises: InputError where an attack cannot start, or its map has no label for a class.
    """
    held_out = not HELD_OUT.isdisjoint(probes)
    classes = int(max(scenario.train.label.max(), test.label.max())) + 1
    for name, one in arms.items():
        if isinstance(one, Derived):
            one.check(len(scenario.index))
        if not isinstance(one, Arm):
            continue
        check.at_least(1, **{f"num_steps of {name}": one.num_steps})
        if one.label_map is not None and len(one.label_map) < classes:
            raise InputError(
                f"label_map of {name} has {len(one.label_map)} entries; there are {classes} classes"
            )
        if one.attack.check is not None:
            one.attack.check(scenario)
        state = jax.eval_shape(one.attack.init, jax.random.key(0), scenario)
        jax.eval_shape(one.attack.step, jax.random.key(0), state, scenario)
        if held_out and one.trains_generator and one.attack.single is None:
            jax.eval_shape(one.attack.poison, state, everything(test))


def abstract(victim: Victim) -> Variables:
    """Shapes and dtypes of a network's arrays; nothing is computed."""
    return jax.eval_shape(victim.init, jax.random.key(0))


def _check_source(one: Stored, train: Dataset) -> None:
    report = poisoned.verify(one.path, train)
    for entry in report.checks:
        if entry.passed is False:
            source = report.manifest.source
            raise InputError(
                f"{one.path} is no poison of this training set ({entry.name}: {entry.detail}); it "
                f"was made of {source.get('name')} {source.get('split')}"
            )
