"""Settings of DeepConfuse and of GUE as experiments run them, and the training sets they give."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Self

from jaxpoison import attacks, check
from jaxpoison.attacks.selection import num_steps
from jaxpoison.report.arms import Arm, Stored
from jaxpoison.report.derived import Derived
from jaxpoison.report.generator_config import GeneratorConfig
from jaxpoison.types import Attack, Split

__all__ = ["DeepConfuseConfig", "GUEConfig"]


@dataclasses.dataclass(frozen=True)
class DeepConfuseConfig(GeneratorConfig):
    """Settings of DeepConfuse, with those of every generator's experiment."""

    trials: int = 500
    """Fresh surrogates that a generator is trained against; 500 in the paper. Rounded up to a
    multiple of `select_every`."""
    passes: int = 1
    """Over the training set, in one trial."""
    batch_size: int = 64
    """Of the generator's training; a partial batch at the end of a pass is left out."""
    generator_rate: float = 1e-4
    """Of the generator's Adam; 0.0001 in the paper."""
    select_every: int = 1
    """Trials between two looks at a fresh surrogate's held-out accuracy; 1 in the code."""
    label_specific: bool = False
    """Whether a second generator is trained, whose victims shall read the next class."""

    def __post_init__(self):
        super().__post_init__()
        names = ("trials", "passes", "batch_size", "select_every")
        check.at_least(1, **{name: getattr(self, name) for name in names})
        check.positive(generator_rate=self.generator_rate)

    @classmethod
    def smoke(cls, **options: Any) -> Self:
        """As `GeneratorConfig.smoke`, one trial."""
        few = {"trials": 1, "passes": 1, "batch_size": 64, "select_every": 1}
        few |= {"label_specific": False}
        return super().smoke(**few | options)

    def poisons(
        self, split: Split, num_classes: int, expect: str, toward: str = ""
    ) -> dict[str, Arm | Stored | Derived]:
        """Random noise, "deepconfuse", and what else is set; see `GeneratorConfig.arms`.

        Args:
          split: the data.
          num_classes: L.
          expect: of the untargeted attack, one line for the reader.
          toward: of "deepconfuse-next", the label-specific one, eta(y) = (y + 1) mod L.
        """
        rows = self.num_rows(split, self.batch_size)
        trial = self.passes * (rows // self.batch_size)
        rounds = math.ceil(self.trials / self.select_every)
        every = {"every": self.select_every * trial, "epochs": self.passes}
        make = functools.partial(
            self._arm,
            attacks.deepconfuse,
            split,
            num_classes,
            expect,
            num_steps=num_steps(rounds, **every),
            trial_steps=trial,
            batch_size=self.batch_size,
            generator_rate=self.generator_rate,
            select_every=self.select_every,
            select_epochs=self.passes,
        )
        arms = self.arms("deepconfuse", make)
        if self.label_specific:
            eta = tuple((y + 1) % num_classes for y in range(num_classes))
            arms["deepconfuse-next"] = make(self.eps, 1.0, label_map=eta)._replace(expect=toward)
        return arms


@dataclasses.dataclass(frozen=True)
class GUEConfig(GeneratorConfig):
    """Settings of GUE and GUE-adv, with those of every generator's experiment."""

    SMALL = {
        "networks": ("small_cnn",),
        "surrogate": "cnn5_narrow",
        "width": 4,
        "robust": (),
        "recipe": "small_color",
        "epochs": 10,
        "eps": 16 / 255,
        "passes": 20,
        "batch_size": 64,
        "inner_steps": 4,
        "inner_rate": 1e-3,
        "generator_rate": 1.0,
        "follower_rate": 0.05,
        "select_passes": 5,
        "select_epochs": 3,
        "train_images": 4000,
        "test_images": 2000,
    }

    passes: int = 50
    """Of the generator over the training set; 50 in the code, 150 for GUE-adv. Rounded up to a
    multiple of `select_passes`."""
    batch_size: int = 256
    """Of the generator's training; a partial batch at the end of a pass is left out."""
    inner_steps: int = 10
    """Adam steps of the follower's best response to one batch."""
    inner_rate: float = 1e-4
    """Of these steps."""
    barrier: float = 1.5
    """How fast the follower's gap must fall."""
    generator_rate: float = 0.1
    """Of the generator's SGD."""
    follower_rate: float = 0.01
    """Of the surrogate's SGD."""
    select_passes: int = 5
    """Passes between two looks at a fresh surrogate's held-out accuracy."""
    select_epochs: int = 5
    """Of that surrogate."""

    def __post_init__(self):
        super().__post_init__()
        names = ("passes", "batch_size", "inner_steps", "select_passes", "select_epochs")
        check.at_least(1, **{name: getattr(self, name) for name in names})

    @classmethod
    def smoke(cls, **options: Any) -> Self:
        """As `GeneratorConfig.smoke`, one pass."""
        few = {"passes": 1, "batch_size": 64, "inner_steps": 2}
        return super().smoke(**few | {"select_passes": 1, "select_epochs": 1} | options)

    def poisons(
        self,
        split: Split,
        num_classes: int,
        expect: str,
        attack: Callable[..., Attack] = attacks.gue,
        **options: Any,
    ) -> dict[str, Arm | Stored | Derived]:
        """Random noise, the attack under its name with hyphens, and what else is set.

        Args:
          split: the data.
          num_classes: L.
          expect: one line for the reader.
          attack: `attacks.gue` or `attacks.gue_adv`.
          **options: more of its keywords; `decay_passes` stands for its `decay_steps`.
        """
        steps = self.num_rows(split, self.batch_size) // self.batch_size
        rounds = math.ceil(self.passes / self.select_passes)
        if "decay_passes" in options:
            options["decay_steps"] = tuple(steps * n for n in options.pop("decay_passes"))
        every = {"every": self.select_passes * steps, "epochs": self.select_epochs}
        make = functools.partial(
            self._arm,
            attack,
            split,
            num_classes,
            expect,
            num_steps=num_steps(rounds, **every),
            batch_size=self.batch_size,
            inner_steps=self.inner_steps,
            inner_rate=self.inner_rate,
            barrier=self.barrier,
            generator_rate=self.generator_rate,
            follower_rate=self.follower_rate,
            select_every=every["every"],
            select_epochs=self.select_epochs,
            **options,
        )
        return self.arms(attack.__name__.replace("_", "-"), make)
