"""Training recipes of the papers, as named presets."""

import dataclasses
import math
from typing import Literal

import optax

from jaxpoison.data import augment
from jaxpoison.types import InputError

__all__ = ["Recipe", "dvae", "small", "tap", "witches_brew"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a victim is trained; build a variant with `dataclasses.replace`.

    Attributes:
      epochs: passes over the training set.
      batch_size: B.
      learning_rate: at the start.
      schedule: "constant", "cosine" (to 0, stepped per epoch) or "step" (x 0.1 at `milestones`).
      milestones: epochs (0-based) from which the rate is 10 times lower.
      optimizer: "sgd" (with `momentum`, `nesterov`) or "adam".
      weight_decay: L2, coupled, on all parameters.
      clip_norm: global gradient norm clip; None for none.
      drop_last: leave out the last partial batch of an epoch.
      augmentation: "none", "crop_flip" (4 px of zeros, horizontal flip), "crop", or "shift_flip"
        (sub-pixel shift by up to an eighth of the height each way, then flip).
      source: where the values come from.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    schedule: Literal["constant", "cosine", "step"] = "constant"
    milestones: tuple[int, ...] = ()
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    drop_last: bool = False
    augmentation: Literal["none", "crop", "crop_flip", "shift_flip"] = "none"
    source: str = ""

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; it must be at least 1")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate = {self.learning_rate}; it must be above 0")

    def steps_per_epoch(self, num_train: int) -> int:
        """Updates of one epoch over N = num_train rows."""
        if self.drop_last and num_train >= self.batch_size:
            return num_train // self.batch_size
        return math.ceil(num_train / self.batch_size)

    def optimizer_for(self, num_train: int) -> optax.GradientTransformation:
        """The optax rule, its schedule laid out over N = num_train rows."""
        steps = self.steps_per_epoch(num_train)
        rule = {
            "sgd": optax.sgd(self._schedule(steps), self.momentum or None, self.nesterov),
            "adam": optax.adam(self._schedule(steps)),
        }[self.optimizer]
        parts = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        parts += [optax.add_decayed_weights(self.weight_decay)] if self.weight_decay else []
        return optax.chain(*parts, rule)

    def augment(self) -> augment.Augmentation:
        """The augmentation as (key, image [B, H, W, C]) -> image."""
        return {
            "none": augment.compose(),
            "crop": augment.crop(padding=4),
            "crop_flip": augment.compose(augment.crop(padding=4), augment.flip()),
            "shift_flip": augment.shift_flip(),
        }[self.augmentation]

    def _schedule(self, steps: int) -> optax.Schedule:
        rate = self.learning_rate
        if self.schedule == "constant":
            return optax.constant_schedule(rate)
        if self.schedule == "step":
            return optax.piecewise_constant_schedule(
                rate, {m * steps: 0.1 for m in self.milestones}
            )
        cosine = optax.cosine_decay_schedule(rate, self.epochs)
        return lambda count: cosine(count // steps)


def thirds(epochs: int) -> tuple[int, int, int]:
    """Milestones at epochs // 2.667, // 1.6, // 1.142: (14, 24, 35) of 40."""
    return int(epochs // 2.667), int(epochs // 1.6), int(epochs // 1.142)


def witches_brew(*, epochs: int = 40, learning_rate: float = 0.1) -> Recipe:
    """Geiping et al. 2021, "conservative": Nesterov SGD, x 0.1 at 3/8, 5/8, 7/8, sub-pixel shifts.

    The rate is 0.01 for ConvNet, VGG and MobileNet victims.
    """
    return Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=learning_rate,
        schedule="step",
        milestones=thirds(epochs),
        nesterov=True,
        weight_decay=5e-4,
        augmentation="shift_flip",
        source="Witches' Brew code, conservative defaults",
    )


def dvae(*, epochs: int = 60) -> Recipe:
    """Yu et al. 2024 (60 epochs on CIFAR-10, 100 on CIFAR-100): cosine SGD, crop and flip."""
    return Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=5e-4,
        clip_norm=5.0,
        drop_last=True,
        augmentation="crop_flip",
        source="D-VAE code, CIFAR victim",
    )


def tap(*, epochs: int = 40) -> Recipe:
    """Fowl et al. 2021: the crafting model of error-maximizing poisons."""
    return dataclasses.replace(
        witches_brew(epochs=epochs), source="Adversarial poisons code, crafting model"
    )


def small(*, epochs: int = 20, learning_rate: float = 0.01, batch_size: int = 32) -> Recipe:
    """Adam at a constant rate without augmentation, for small nets on a CPU; of no paper."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer="adam",
        source="jaxpoison, small nets",
    )
