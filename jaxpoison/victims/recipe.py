"""How a victim is trained: a frozen record of settings, and the optax rule made of it."""

import collections
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.data import augment
from jaxpoison.data.affine import random_affine
from jaxpoison.data.colors import color_jitter
from jaxpoison.types import InputError
from jaxpoison.victims.adversarial import NORMS, STARTS
from jaxpoison.victims.evaluate import STATISTICS

__all__ = ["Recipe"]

SCHEDULES = ("constant", "cosine", "cosine_per_update", "step")
OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
AUGMENTATIONS = ("none", "crop", "flip", "crop_flip", "shift_flip", "strong")
ADVERSARIAL = ("none", "pgd", "trades")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a victim is trained; build a variant with `dataclasses.replace`.

    Attributes:
      epochs: E, passes over the training set.
      batch_size: B.
      learning_rate: r, after the warm-up; may be traced, for sweeps.
      schedule: of the rate at epoch e: "constant", r; "cosine", r (1 + cos(pi (e - W) / (E - W))) /
        2; "cosine_per_update", the same with e counted in updates, as a fraction of an epoch;
        "step", r decay^(number of milestones <= e).
      milestones: 0-based epochs below E in ascending order; read by "step" alone.
      decay: factor at each milestone, in (0, 1].
      warmup: W < E epochs in which the rate rises linearly, update by update, from `warmup_rate`
        to r; the schedule is read after them.
      warmup_rate: of the first update of a warm-up.
      optimizer: "sgd" (with `momentum`, `nesterov`), "adam" or "adamw" (0.9, 0.999, 1e-8), or
        "lars" (with the same two): SGD whose gradient, weight decay included, is scaled for every
        array of two or more axes by `trust` |params| / |gradient|; other arrays (biases, BatchNorm)
        are not scaled and do not decay. The velocity is of the updates, rate included.
      momentum: of SGD: v <- momentum v + g, params <- params - rate v.
      nesterov: params <- params - rate (g + momentum v) instead.
      weight_decay: on all parameters, after the clip; coupled (L2), g <- g + weight_decay params,
        but decoupled for "adamw": params <- params - rate weight_decay params besides its step.
      trust: coefficient of "lars".
      clip_norm: global gradient norm clip; None for none.
      drop_last: leave out the last partial batch of an epoch.
      augmentation: "none", "crop" (4 px of padding), "flip" (horizontal), "crop_flip",
        "shift_flip" (sub-pixel shift by up to an eighth of the height each way, then flip), or
        "strong" (turn by up to 10 degrees; shear by up to 10 degrees and zoom by 0.8 to 1.2; color
        jitter of 0.2, hue kept; then as "crop_flip").
      fill: color of the padding, pixels in [0, 1]: one value, or one per channel.
      mean: per channel, pixel units: what the source subtracts from images; None for nothing.
      std: per channel, pixel units: what it divides them by then; None for nothing. Both are the
        network's business: `create(name, shape, num_classes, **recipe.normalization)`.
      adversarial: "none"; "pgd", training on adversarial examples (`adversarial_learner`); or
        "trades" (`trades_learner`). With either, clean images are still what is judged.
      adversarial_eps: radius of the examples, pixels in [0, 1]; this and the rest are read by "pgd"
        and "trades", beta by "trades" alone.
      adversarial_step: pixel units; None is a quarter of the radius.
      adversarial_steps: of PGD, at least 1.
      adversarial_start: of PGD, a word of `pgd`; None is the method's own: uniform in the ball, for
        "trades" 0.01 N(0, I).
      adversarial_norm: of the radius, "linf" or "l2" (over an image's entries).
      adversarial_beta: weight of the divergence, at least 0.
      statistics: of BatchNorm where the victim is judged, "running" or "batch"; see `logits`.
      evaluation_batch: rows at a time where the victim is judged, in memory; part of the protocol
        with statistics = "batch".
      source: where the values come from.

    Errors:
      InputError: a value that cannot be used; the message says what is allowed.
    """

    epochs: int
    batch_size: int
    learning_rate: float | Float[Array, ""]
    schedule: str = "constant"
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    warmup: int = 0
    warmup_rate: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    trust: float = 0.001
    clip_norm: float | None = None
    drop_last: bool = False
    augmentation: str = "none"
    fill: tuple[float, ...] = (0.0,)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    adversarial: str = "none"
    adversarial_eps: float | Float[Array, ""] = 8 / 255
    adversarial_step: float | Float[Array, ""] | None = None
    adversarial_steps: int = 10
    adversarial_start: str | None = None
    adversarial_norm: str = "linf"
    adversarial_beta: float | Float[Array, ""] = 1.0
    statistics: str = "running"
    evaluation_batch: int = 500
    source: str = ""

    def __post_init__(self):
        check.at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        check.positive(learning_rate=self.learning_rate)
        check.number(above=0, most=1, decay=self.decay)
        check.at_least(0, warmup=self.warmup)
        if self.warmup >= self.epochs:
            raise InputError(f"warmup = {self.warmup}; it must be below epochs = {self.epochs}")
        check.number(least=0, warmup_rate=self.warmup_rate)
        check.number(least=0, below=1, momentum=self.momentum)
        check.number(least=0, weight_decay=self.weight_decay)
        check.positive(trust=self.trust)
        if self.clip_norm is not None:
            check.positive(clip_norm=self.clip_norm)
        check.one_of(SCHEDULES, schedule=self.schedule)
        check.one_of(OPTIMIZERS, optimizer=self.optimizer)
        check.one_of(AUGMENTATIONS, augmentation=self.augmentation)
        if self.schedule == "step":
            _check_milestones(self.milestones, self.epochs)
        check.one_of(ADVERSARIAL, adversarial=self.adversarial)
        check.one_of(NORMS, adversarial_norm=self.adversarial_norm)
        most = 1 if self.adversarial_norm == "linf" else math.inf
        check.number(least=0, most=most, adversarial_eps=self.adversarial_eps)
        if self.adversarial_step is not None:
            check.positive(adversarial_step=self.adversarial_step)
        check.at_least(1, adversarial_steps=self.adversarial_steps)
        check.one_of((None, *STARTS), adversarial_start=self.adversarial_start)
        check.number(least=0, adversarial_beta=self.adversarial_beta)
        check.one_of(STATISTICS, statistics=self.statistics)
        check.at_least(1, evaluation_batch=self.evaluation_batch)

    @property
    def normalization(self) -> dict[str, tuple[float, ...] | None]:
        """`mean` and `std` as the keyword arguments of a network of `jaxpoison.models`."""
        return {"mean": self.mean, "std": self.std}

    @property
    def evaluation(self) -> dict[str, Any]:
        """How victims are judged, as keyword arguments of `logits`, `accuracy`, `judge`, ..."""
        return {"batch_size": self.evaluation_batch, "statistics": self.statistics}

    def steps_per_epoch(self, num_train: int) -> int:
        """Updates of one epoch over N = num_train rows; InputError for N < 1."""
        check.at_least(1, num_train=num_train)
        if self.drop_last and num_train >= self.batch_size:
            return num_train // self.batch_size
        return math.ceil(num_train / self.batch_size)

    def optimizer_for(self, num_train: int) -> optax.GradientTransformation:
        """The optax rule, its schedule laid out over N = num_train rows."""
        rate = self._rate(self.steps_per_epoch(num_train))
        clip = [] if self.clip_norm is None else [optax.clip_by_global_norm(self.clip_norm)]
        if self.optimizer == "adamw":
            return optax.chain(*clip, optax.adamw(rate, weight_decay=self.weight_decay))
        if self.optimizer == "lars":
            return optax.chain(*clip, self._lars(rate))
        rule = {
            "sgd": optax.sgd(rate, self.momentum or None, self.nesterov),
            "adam": optax.adam(rate),
        }[self.optimizer]
        return optax.chain(*clip, optax.add_decayed_weights(self.weight_decay), rule)

    def _lars(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """You et al. 2017, as SimCLR and MoCo-v3 have it."""

        def scaled(params):
            return jax.tree.map(lambda x: x.ndim > 1, params)

        return optax.lars(
            rate,
            self.weight_decay,
            weight_decay_mask=scaled,
            trust_coefficient=self.trust,
            trust_ratio_mask=scaled,
            momentum=self.momentum,
            nesterov=self.nesterov,
        )

    def augment(self) -> augment.Augmentation:
        """The augmentation as (key, image [B, H, W, C]) -> image."""
        return {
            "none": augment.compose(),
            "crop": augment.crop(padding=4, fill=self.fill),
            "flip": augment.flip(),
            "crop_flip": augment.compose(augment.crop(padding=4, fill=self.fill), augment.flip()),
            "shift_flip": augment.shift_flip(fill=self.fill),
            "strong": augment.compose(
                random_affine(degrees=10),
                random_affine(shear=10, scale=(0.8, 1.2)),
                color_jitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0),
                augment.crop(padding=4, fill=self.fill),
                augment.flip(),
            ),
        }[self.augmentation]

    def _rate(self, steps: int) -> optax.Schedule:
        """Update -> rate, with `steps` updates in an epoch."""
        main, first = self._schedule(steps), self.warmup * steps
        if not first:
            return main
        rise = optax.linear_schedule(self.warmup_rate, self.learning_rate, first)
        return optax.join_schedules([rise, lambda count: main(count + first)], [first])

    def _schedule(self, steps: int) -> optax.Schedule:
        rate = self.learning_rate
        if self.schedule == "constant":
            return optax.constant_schedule(rate)
        if self.schedule == "step":
            times = collections.Counter(self.milestones)
            return optax.piecewise_constant_schedule(
                rate, {m * steps: self.decay**n for m, n in times.items()}
            )
        first, epochs = self.warmup * steps, self.epochs - self.warmup
        if self.schedule == "cosine_per_update":
            smooth = optax.cosine_decay_schedule(rate, epochs * steps)
            return lambda count: smooth(count - first)
        cosine = optax.cosine_decay_schedule(rate, epochs)
        return lambda count: cosine(jnp.floor_divide(count - first, steps))


def _check_milestones(milestones: tuple[int, ...], epochs: int) -> None:
    inside = all(0 <= m < epochs for m in milestones)
    if not milestones or not inside or list(milestones) != sorted(milestones):
        raise InputError(
            f"milestones = {milestones}; a step schedule of {epochs} epochs needs some from 0 to "
            f"{epochs - 1}, in ascending order"
        )
