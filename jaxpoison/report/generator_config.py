"""Settings of experiments with attacks that train a generator: what is trained, who judges it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

from jaxpoison import check, models
from jaxpoison.perturb import Budget
from jaxpoison.report.arms import Arm, Stored, arm, control
from jaxpoison.report.derived import Derived, permuted, shares
from jaxpoison.report.images import PaperConfig
from jaxpoison.report.preparation import Trainee
from jaxpoison.report.probes import PROBES, Probe
from jaxpoison.report.sweeps import sweep
from jaxpoison.types import Attack, Generator, InputError, Split, Victim
from jaxpoison.victims import CLASSICAL, Classical

__all__ = ["VARIANTS", "GeneratorConfig"]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lenet_small": ("lenet", {"size": "small"}),
    "lenet_large": ("lenet", {"size": "large"}),
    "vgg11_b2": ("vgg11", {"bottleneck": 2}),
    "cnn5_narrow": ("cnn5", {"width": 8}),
}
"""Further names of networks: (name of `jaxpoison.models.create`, options). All but the last are of
DeepConfuse's code; that one is cheap enough for a CPU and, unlike small_cnn, has BatchNorm, without
which a few dozen steps of plain SGD teach a surrogate nothing."""


@dataclasses.dataclass(frozen=True)
class GeneratorConfig(PaperConfig):
    """Settings of an attack that trains a generator, beside those of every paper's experiment."""

    surrogate: str = "resnet18"
    """Network that the generator is trained against, a name of `jaxpoison.models.create`, or
    lenet_small, lenet_large, vgg11_b2 (with the bottleneck of DeepConfuse's code), cnn5_narrow."""
    generator: str = "unet"
    """A name of `jaxpoison.models.create_generator`."""
    width: int | None = None
    """Channels of the generator's first layer; None is as in the paper."""
    eps: float = 8 / 255
    """L-infinity radius, pixels in [0, 1]."""
    networks: tuple[str, ...] = ("resnet18",)
    """Victims, names as of the surrogate."""
    classical: tuple[str, ...] = ()
    """Victims of scikit-learn, names of `jaxpoison.victims.CLASSICAL`; shown as sklearn.NAME."""
    robust: tuple[float, ...] = ()
    """L-infinity radii of PGD-10 examples; the first network is trained on each, too."""
    epsilons: tuple[float, ...] = ()
    """Radii at which a generator is trained besides, with noise of that size beside each."""
    fractions: tuple[float, ...] = ()
    """Shares of the training set on which a generator is trained besides, for as many steps, to
    poison the whole set."""
    shares: tuple[float, ...] = ()
    """Shares of the training set that keep their poison while the rest is clean."""
    permuted: bool = False
    """Whether victims also get the noise of other images, a control."""
    probes: tuple[Probe, ...] = tuple(PROBES)

    def __post_init__(self):
        super().__post_init__()
        if self.width is not None:
            check.at_least(1, width=self.width)
        for name in self.classical:
            check.one_of(CLASSICAL, classical=name)
        for eps in self.robust:
            check.fraction(robust=eps)
        for part in self.fractions:
            check.number(above=0, most=1, fractions=part)

    @classmethod
    def smoke(cls, **options: Any) -> Self:
        """Seconds: linear victims, a dense generator, a few hundred images, one epoch."""
        one = "logistic_regression"
        tiny = {"networks": (one,), "classical": (), "surrogate": one, "recipe": "small"}
        tiny |= {"probes": (), "epsilons": (), "fractions": (), "shares": (), "robust": ()}
        return super().smoke(**tiny | {"generator": "mlp_generator", "width": None} | options)

    def create(self, network: str, split: Split, num_classes: int, **options: Any) -> Victim:
        """As in `ImageConfig`, also by a name of VARIANTS."""
        name, more = VARIANTS.get(network, (network, {}))
        return super().create(name, split, num_classes, **more, **options)

    def network(self, split: Split) -> Generator:
        """The generator for these images, in `dtype`.

        Raises: InputError as `jaxpoison.models.create_generator`.
        """
        options = {} if self.width is None else {"width": self.width}
        shape = split.train.image.shape[1:]
        return models.create_generator(self.generator, shape, dtype=self.dtype, **options)

    def judges(self, split: Split, num_classes: int) -> dict[str, Trainee | Classical]:
        """All victims by name, as `transfer_job` takes them; NAME-pgd4 is one of radius 4/255."""
        networks = {name: self.trainee(name, split, num_classes) for name in self.networks}
        found: dict[str, Trainee | Classical] = dict(networks)
        for eps in self.robust:
            for name, one in list(networks.items())[:1]:
                recipe = dataclasses.replace(one.recipe, adversarial="pgd", adversarial_eps=eps)
                found[f"{name}-pgd{255 * eps:.3g}"] = Trainee(one.victim, recipe)
        return found | {f"sklearn.{name}": CLASSICAL[name] for name in self.classical}

    def num_rows(self, split: Split, batch_size: int) -> int:
        """Training rows that may change; an InputError where they are fewer than a batch."""
        rows = int(self.share * len(split.train.label))
        if batch_size > rows:
            raise InputError(f"batch_size = {batch_size}; only {rows} rows may change")
        return rows

    def _arm(
        self,
        attack: Callable[..., Attack],
        split: Split,
        num_classes: int,
        expect: str,
        eps: float,
        fraction: float,
        **options: Any,
    ) -> Arm:
        """The arm of a generator attack at that radius, trained on that share of the rows."""
        return arm(
            attack,
            self.create(self.surrogate, split, num_classes),
            self.network(split),
            eps=eps,
            generator_train_fraction=fraction,
            budget=Budget("linf", eps),
            expect=expect,
            **options,
        )

    def arms(
        self, name: str, make: Callable[[float, float], Arm]
    ) -> dict[str, Arm | Stored | Derived]:
        """Random noise, the attack, and what the settings make of it.

        Args:
          name: of the attack.
          make: (eps, share of the training set that the generator learns from) -> its arm.
        """
        arms: dict[str, Arm | Stored | Derived] = {}
        arms |= control(Budget("linf", self.eps))
        arms[name] = make(self.eps, 1.0)
        arms |= shares(name, self.shares, expect="near clean until nearly all is poisoned")
        arms |= permuted(name) if self.permuted else {}
        if self.epsilons:
            arms |= sweep(name, lambda eps: make(eps, 1.0), "eps", self.epsilons, controls=True)
        if self.fractions:
            learned = "generator_train_fraction"
            arms |= sweep(name, lambda part: make(self.eps, part), learned, self.fractions)
        return arms
