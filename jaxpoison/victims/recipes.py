"""Training recipes of the papers, as named presets."""

import collections
import dataclasses
import math

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.data import augment
from jaxpoison.types import InputError

__all__ = ["Recipe", "dvae", "small", "tap", "witches_brew"]

SCHEDULES = ("constant", "cosine", "step")
OPTIMIZERS = ("sgd", "adam")
CIFAR10_MEAN = (0.4914672, 0.4822617, 0.4467701)
AUGMENTATIONS = ("none", "crop", "crop_flip", "shift_flip")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a victim is trained; build a variant with `dataclasses.replace`.

    Attributes:
      epochs: passes over the training set.
      batch_size: B.
      learning_rate: at the start; may be traced, for sweeps.
      schedule: of the rate at epoch e of E: "constant"; "cosine", (1 + cos(pi e / E)) / 2 of it;
        "step", 0.1^(number of milestones <= e) of it.
      milestones: 0-based epochs below E in ascending order; read by "step" alone.
      optimizer: "sgd" (with `momentum`, `nesterov`) or "adam" (0.9, 0.999, 1e-8).
      momentum: of SGD: v <- momentum v + g, params <- params - rate v.
      nesterov: params <- params - rate (g + momentum v) instead.
      weight_decay: L2, coupled: g <- g + weight_decay params, on all parameters, after the clip.
      clip_norm: global gradient norm clip; None for none.
      drop_last: leave out the last partial batch of an epoch.
      augmentation: "none", "crop_flip" (4 px of zeros, horizontal flip), "crop", or "shift_flip"
        (sub-pixel shift by up to an eighth of the height each way, then flip).
      fill: color of the padding, pixels in [0, 1]: one value, or one per channel.
      source: where the values come from.

    Errors:
      InputError: a value that cannot be used; the message says what is allowed.
    """

    epochs: int
    batch_size: int
    learning_rate: float | Float[Array, ""]
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    drop_last: bool = False
    augmentation: str = "none"
    fill: tuple[float, ...] = (0.0,)
    source: str = ""

    def __post_init__(self):
        check.at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        check.positive(learning_rate=self.learning_rate)
        check.number(least=0, below=1, momentum=self.momentum)
        check.number(least=0, weight_decay=self.weight_decay)
        if self.clip_norm is not None:
            check.positive(clip_norm=self.clip_norm)
        check.one_of(SCHEDULES, schedule=self.schedule)
        check.one_of(OPTIMIZERS, optimizer=self.optimizer)
        check.one_of(AUGMENTATIONS, augmentation=self.augmentation)
        if self.schedule == "step":
            _check_milestones(self.milestones, self.epochs)

    def steps_per_epoch(self, num_train: int) -> int:
        """Updates of one epoch over N = num_train rows; InputError for N < 1."""
        check.at_least(1, num_train=num_train)
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
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        return optax.chain(*clip, optax.add_decayed_weights(self.weight_decay), rule)

    def augment(self) -> augment.Augmentation:
        """The augmentation as (key, image [B, H, W, C]) -> image."""
        return {
            "none": augment.compose(),
            "crop": augment.crop(padding=4, fill=self.fill),
            "crop_flip": augment.compose(augment.crop(padding=4, fill=self.fill), augment.flip()),
            "shift_flip": augment.shift_flip(fill=self.fill),
        }[self.augmentation]

    def _schedule(self, steps: int) -> optax.Schedule:
        rate = self.learning_rate
        if self.schedule == "constant":
            return optax.constant_schedule(rate)
        if self.schedule == "step":
            times = collections.Counter(self.milestones)
            return optax.piecewise_constant_schedule(
                rate, {m * steps: 0.1**n for m, n in times.items()}
            )
        cosine = optax.cosine_decay_schedule(rate, self.epochs)
        return lambda count: cosine(jnp.floor_divide(count, steps))


def witches_brew(
    *, epochs: int = 40, learning_rate: float = 0.1, fill: tuple[float, ...] = (0.0,)
) -> Recipe:
    """Geiping et al. 2021, "conservative": Nesterov SGD, x 0.1 at 3/8, 5/8, 7/8, sub-pixel shifts.

    The rate is 0.01 for ConvNet, VGG and MobileNet victims. The released code takes its milestones
    by floor division in floating point, 14, 24, 35 of 40 epochs, and so does this. It pads with the
    mean color of the data set: give `fill`, e.g. CIFAR10_MEAN.
    """
    check.at_least(1, epochs=epochs)
    return Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=learning_rate,
        schedule="step",
        milestones=_eighths(epochs),
        nesterov=True,
        weight_decay=5e-4,
        augmentation="shift_flip",
        fill=fill,
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


def tap(*, epochs: int = 40, fill: tuple[float, ...] = (0.0,)) -> Recipe:
    """Fowl et al. 2021: the crafting model of error-maximizing poisons."""
    return dataclasses.replace(
        witches_brew(epochs=epochs, fill=fill), source="Adversarial poisons code, crafting model"
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


def _eighths(epochs: int) -> tuple[int, int, int]:
    """3/8, 5/8 and 7/8 of the epochs as the released code has them; 40 // 1.6 is 24, not 25."""
    return int(epochs // 2.667), int(epochs // 1.6), int(epochs // 1.142)


def _check_milestones(milestones: tuple[int, ...], epochs: int) -> None:
    inside = all(0 <= m < epochs for m in milestones)
    if not milestones or not inside or list(milestones) != sorted(milestones):
        raise InputError(
            f"milestones = {milestones}; a step schedule of {epochs} epochs needs some from 0 to "
            f"{epochs - 1}, in ascending order"
        )
