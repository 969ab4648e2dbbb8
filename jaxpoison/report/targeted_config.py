"""Settings of experiments with targeted attacks: who is attacked, on what, with which budget."""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax

from jaxpoison import attacks, check
from jaxpoison.attacks import BREWS, Brew, Crafting
from jaxpoison.attacks.crafting import as_networks
from jaxpoison.data import Setup
from jaxpoison.data.setups import PAPER_KEYS, from_key
from jaxpoison.perturb import Budget
from jaxpoison.report.arms import Arm, arm
from jaxpoison.report.images import RECIPES, PaperConfig
from jaxpoison.report.preparation import Trainee
from jaxpoison.types import Attack, InputError, Scenario, Split, Victim

__all__ = ["TargetedConfig"]

MAIN = BREWS["main"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn3": ("small_cnn", {"widths": (8, 16, 32), "pool": "max"})
}
"""Further names of networks: (name of `jaxpoison.models.create`, options)."""


@dataclasses.dataclass(frozen=True)
class TargetedConfig(PaperConfig):
    """Settings of targeted attacks on CIFAR-10, beside those of every paper's experiment."""

    SMALL = {
        "classes": (0, 2, 5, 6),
        "train_images": 1500,
        "test_images": 2500,
        "networks": ("cnn3",),
        "surrogate_networks": ("cnn3",),
        "recipe": "witches_brew_small",
        "surrogate_recipe": "witches_brew_small",
        "ensemble": 4,
        "keys": tuple(range(8)),
        "victims": 4,
        "eps": 32 / 255,
        "budget": 0.05,
        "steps": 120,
        "restarts": 1,
        "crafting_augment": False,
    }

    recipe: str = "witches_brew"
    victims: int = MAIN.victims
    """Fresh victims per setup and training set."""
    classes: tuple[int, ...] = ()
    """Of CIFAR-10 that are kept, with labels 0, 1, ... in this order; none keeps all."""
    networks: tuple[str, ...] = MAIN.networks
    """Victims, names of `jaxpoison.models.create`, or cnn3: convolutions of 8, 16 and 32 channels,
    each with ReLU and a max-pool."""
    surrogate_networks: tuple[str, ...] = MAIN.networks
    """Networks that poisons are crafted on, names as of victims; members of an ensemble take them
    in turn."""
    ensemble: int = MAIN.ensemble
    """Surrogates K, all trained on the clean set once and shared by all setups."""
    surrogate_recipe: str = "witches_brew"
    """How surrogates are trained, a name as of `recipe`."""
    surrogate_epochs: int | None = None
    """Of every surrogate; None is as many as its recipe has."""
    keys: tuple[int, ...] = PAPER_KEYS
    """Integers from each of which classes, target and poison rows are drawn, as the released code
    does; by default the ten of the paper's tables."""
    first: int = 0
    """Number of the first setup that is run, from 0."""
    num_setups: int | None = None
    """How many setups are run; None is all from the first on."""
    eps: float = MAIN.eps
    """L-infinity radius, pixels in [0, 1]."""
    budget: float = 0.01
    """Poisons as a share of the training set, rounded up; at most their class."""
    steps: int = MAIN.steps
    """Of crafting, M."""
    restarts: int = MAIN.restarts
    """Of which the one of the lowest loss is kept, R."""
    tau: float = MAIN.tau
    """Rate of sign-Adam's first steps, in standard deviations of CIFAR-10's pixels."""
    poison_batch: int = MAIN.batch_size
    """Poisons whose gradient is matched together; the rate is in proportion to it."""
    crafting_augment: bool = MAIN.augment
    """Whether poisons are shifted and mirrored at every crafting step."""
    at_once: int = 1
    """Setups that are crafted, and whose victims are trained, at the same time, each on a device of
    its own; 0 is as many as all hosts have devices. Not with --devices above 1."""

    def __post_init__(self):
        super().__post_init__()
        check.one_of(RECIPES, surrogate_recipe=self.surrogate_recipe)
        check.at_least(0, first=self.first, at_once=self.at_once)
        names = ("num_setups", "surrogate_epochs", "ensemble", "steps", "restarts", "poison_batch")
        numbers = {name: getattr(self, name) for name in names}
        check.at_least(1, **{k: v for k, v in numbers.items() if v is not None})
        check.number(above=0, most=1, budget=self.budget)
        check.positive(tau=self.tau)
        for name in ("networks", "surrogate_networks", "keys"):
            if not getattr(self, name):
                raise InputError(f"there are no {name}; name at least one")
        if len(set(self.networks)) < len(self.networks):
            raise InputError(f"networks = {', '.join(self.networks)}; name each once")

    @classmethod
    def smoke(cls, **options: Any) -> Self:
        """Seconds: linear networks, a few hundred images, one epoch, two setups, two steps."""
        one = ("logistic_regression",)
        tiny: dict[str, Any] = {"networks": one, "surrogate_networks": one, "recipe": "small"}
        tiny |= {"classes": (), "surrogate_recipe": "small", "surrogate_epochs": 1, "ensemble": 1}
        tiny |= {"keys": (0, 1), "steps": 2, "restarts": 1, "budget": 0.05}
        return super().smoke(**tiny | options)

    @staticmethod
    def of_brew(brew: Brew) -> dict[str, Any]:
        """The fields that an item of the paper sets; victims are of any network."""
        names = ("victims", "ensemble", "eps", "steps", "restarts", "tau")
        own = {name: getattr(brew, name) for name in names}
        return own | {
            "surrogate_networks": brew.networks,
            "poison_batch": brew.batch_size,
            "crafting_augment": brew.augment,
        }

    @property
    def num_classes(self) -> int:
        """L."""
        return len(self.classes) or 10

    def memory(self) -> dict[str, Any]:
        """As in `ImageConfig`, and `at_once` as `targeted_job` takes it."""
        return super().memory() | {"at_once": self.at_once or None}

    def load_classes(self) -> tuple[dict[str, Any], Split]:
        """CIFAR-10 as `load` gives it, of the classes that are kept."""
        kept = ",".join(map(str, self.classes))
        return self.load(f"cifar10[{kept}]" if kept else "cifar10")

    def create(self, network: str, split: Split, num_classes: int, **options: Any) -> Victim:
        """As in `ImageConfig`, also by a name of VARIANTS."""
        name, more = VARIANTS.get(network, (network, {}))
        return super().create(name, split, num_classes, **more, **options)

    def from_keys(self, split: Split) -> list[Setup]:
        """The setups of `keys` that are to be run.

        Raises: InputError as `chosen` and `data.setups.from_key`.
        """
        labels = split.train.label, split.test.label
        return self.chosen([from_key(key, *labels, budget=self.budget) for key in self.keys])

    def chosen(self, setups: list[Setup]) -> list[Setup]:
        """Those from `first` on; an InputError where there are not as many as asked for."""
        some = setups[self.first :][: self.num_setups]
        if len(some) < (self.num_setups or 1):
            raise InputError(
                f"first = {self.first}, num_setups = {self.num_setups}; there are {len(setups)} "
                "setups in all"
            )
        return some

    def judges(self, split: Split) -> dict[str, Trainee]:
        """The victims by name, "" where there is one, as `targeted_job` takes them."""
        found = {name: self.trainee(name, split, self.num_classes) for name in self.networks}
        return {"": next(iter(found.values()))} if len(found) == 1 else found

    def members(self, split: Split) -> list[Trainee]:
        """The K surrogates, networks in turn, as `targeted_job` takes them.

        Raises: InputError for fewer surrogates than networks, of which some would do nothing.
        """
        known = dataclasses.replace(
            self, recipe=self.surrogate_recipe, epochs=self.surrogate_epochs, adversarial=None,
            adversarial_eps=None, adversarial_steps=None, statistics=None,
        )  # fmt: skip
        each = [known.trainee(name, split, self.num_classes) for name in self.surrogate_networks]
        as_networks([one.victim for one in each], self.ensemble)
        return [each[k % len(each)] for k in range(self.ensemble)]

    def crafting(self) -> Crafting:
        """The outer loop by these settings."""
        names = {"steps", "tau", "ensemble"}
        own = {name: getattr(self, name) for name in names}
        own |= {"batch_size": self.poison_batch, "augment": self.crafting_augment}
        return dataclasses.replace(MAIN, **own).crafting()

    def matching(self, members: list[Trainee], expect: str, **changes: Any) -> Arm:
        """The arm of gradient matching; see `crafted`."""
        return self.crafted(attacks.gradient_matching, members, expect, **changes)

    def crafted(
        self,
        attack: Callable[..., Attack],
        members: list[Trainee],
        expect: str,
        *,
        options: Mapping[str, Any] = types.MappingProxyType({}),
        **changes: Any,
    ) -> Arm:
        """The arm of an attack of the shared outer loop.

        Args:
          attack: (network, eps=, crafting=, **options) -> Attack.
          members: as `members` gives them. An `ensemble` among the changes takes the first of them.
          expect: one line for the reader.
          options: more of the attack's keywords.
          **changes: fields of this configuration that this arm has otherwise, such as `eps`.

        Raises: InputError for fewer members than there are, if these are of several networks.
        """
        own = dataclasses.replace(self, **changes)
        if own.ensemble < len(members):
            if len({one.victim for one in members}) > 1:
                raise InputError(
                    f"surrogate_networks = {', '.join(self.surrogate_networks)}; ensembles of "
                    "several sizes must be of one network"
                )
            attack = of_first(attack, own.ensemble)
        return arm(
            attack,
            networks(members[: own.ensemble]),
            eps=own.eps,
            crafting=own.crafting(),
            budget=Budget("linf", own.eps),
            expect=expect,
            restarts=own.restarts,
            **options,
        )


def networks(members: list[Trainee]) -> Any:
    """What an attack takes as its surrogate network: one, or the different ones in turn."""
    different = tuple(dict.fromkeys(one.victim for one in members))
    return different[0] if len(different) == 1 else different


def of_first(factory: Callable[..., Attack], num: int) -> Callable[..., Attack]:
    """That attack at the first `num` of the surrogates, of one network, that the scenario holds.

    Arms with ensembles of several sizes share their surrogates so.
    """

    def fewer(scenario: Scenario) -> Scenario:
        one = num == 1
        return scenario._replace(aux=jax.tree.map(lambda x: x[0] if one else x[:num], scenario.aux))

    @functools.wraps(factory)
    def make(*parts: Any, **options: Any) -> Attack:
        attack = factory(*parts, **options)
        score = attack.score
        return attack._replace(
            init=lambda key, scenario: attack.init(key, fewer(scenario)),
            step=lambda key, state, scenario: attack.step(key, state, fewer(scenario)),
            poison=lambda state, scenario: attack.poison(state, fewer(scenario)),
            score=None if score is None else lambda state, data: score(state, fewer(data)),
        )

    return make
