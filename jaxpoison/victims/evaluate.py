"""What a trained victim does: accuracy, confusion, targeted success, and intervals over seeds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import lax
from jaxtyping import Array, Float, Int, Num

from jaxpoison import check, tree
from jaxpoison.types import Dataset, InputError, Variables, Victim, as_float

__all__ = [
    "Interval",
    "Judgment",
    "Similarity",
    "accuracy",
    "confusion",
    "hits",
    "interval",
    "judge",
    "logits",
    "similarity",
    "targeted",
]


class Interval(NamedTuple):
    """A mean with its 95 % t-interval; `low` and `high` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    values: list[float]

    def __str__(self) -> str:
        """As `0.972 [0.965, 0.979]`."""
        spread = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f}{spread}"


class Judgment(NamedTuple):
    """Victims of several seeds on one training set; accuracies are fractions of the clean test set.

    Attributes:
      final_accuracy: after the last epoch.
      peak_accuracy: the best epoch, chosen on the test set (an upper bound, as by early stopping).
      train_accuracy: on the training set as given, running statistics, after the last epoch.
      per_class: [L] final accuracy by true class, mean over seeds; None where none is tested.
      confusion: [L, L] counts, true class by predicted class, summed over seeds.
      curve: [T] test accuracy after each epoch, mean over seeds.
    """

    final_accuracy: Interval
    peak_accuracy: Interval
    train_accuracy: Interval
    per_class: list[float | None]
    confusion: list[list[int]]
    curve: list[float]


class Similarity(NamedTuple):
    """How close poisoned images are to clean ones, mean over changed rows; None where undefined.

    Attributes:
      psnr: 10 log10(1 / MSE), decibels; None if nothing changed.
      ssim: structural similarity (Wang et al. 2004, eq. 13), mean over places and channels;
        Gaussian window of sigma 1.5 and up to 11 pixels (odd, at most the image); None likewise.
    """

    psnr: float | None
    ssim: float | None


def logits(
    victim: Victim, variables: Variables, image: Num[Array, "n h w c"], *, batch_size: int = 500
) -> Float[Array, "n l"]:
    """Logits [N, L] in eval mode (running statistics), batch by batch.

    Args:
      victim: the network.
      variables: one trained victim.
      image: uint8, or float in [0, 1]; N >= 1.
      batch_size: rows at a time; the last batch is filled up and cut again.

    Raises: InputError for no images, or batch_size < 1.
    """
    if not len(image):
        raise InputError("there are no images to classify")
    check.at_least(1, batch_size=batch_size)

    def one(batch):
        return victim.apply(variables, as_float(batch), train=False)[0]

    batches, _ = tree.batches(image, batch_size)
    scores = lax.map(one, batches)
    return scores.reshape(-1, scores.shape[-1])[: len(image)]


def accuracy(
    victim: Victim, variables: Variables, dataset: Dataset, *, batch_size: int = 500
) -> Float[Array, ""]:
    """Share of rows whose largest logit is the label's; arguments as of `logits`."""
    predicted = jnp.argmax(logits(victim, variables, dataset.image, batch_size=batch_size), axis=1)
    return jnp.mean(predicted == dataset.label)


def confusion(label: Int[Array, " n"], predicted: Int[Array, " n"], num: int) -> Int[Array, "l l"]:
    """Counts [L, L]: row = true class, column = predicted class."""
    return jnp.zeros((num, num), jnp.int32).at[label, predicted].add(1)


def targeted(
    victim: Victim, variables: Variables, goal: Dataset
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(success rate, intended probability) on targets.

    Args:
      victim: the network.
      variables: one trained victim.
      goal: target images with the labels the attacker wants.

    Returns: the share classified as intended, and the mean softmax probability of that class.
    """
    scores = logits(victim, variables, goal.image)
    intended = jnp.take_along_axis(jax.nn.softmax(scores), goal.label[:, None], axis=1)
    return jnp.mean(jnp.argmax(scores, axis=1) == goal.label), jnp.mean(intended)


def hits(victim: Victim, state: Any, targets: Dataset) -> tuple[Interval, Interval]:
    """`targeted` for the victims of several seeds.

    Args:
      victim: the network.
      state: TrainState with leading axis R.
      targets: target images with the labels the attacker wants.

    Returns: intervals over seeds of the success rate and of the intended probability.
    """
    rate, probability = _hits(victim, state.variables, targets)
    return interval(np.asarray(rate, np.float64)), interval(np.asarray(probability, np.float64))


def judge(victim: Victim, state: Any, info: Any, train: Dataset, test: Dataset) -> Judgment:
    """The victims of several seeds after training.

    Args:
      victim: the network.
      state: TrainState with leading axis R (from `over_restarts` of a Training).
      info: EpochInfo over epochs, leaves [T, R].
      train: the training set they saw.
      test: clean test set.
    """
    counts, train_accuracy = _final(victim, state.variables, train, test)
    counts = np.asarray(counts)
    curve = np.asarray(info.test_accuracy, np.float64)
    right = np.trace(counts, axis1=1, axis2=2) / counts.sum(axis=(1, 2))
    total = counts.sum(axis=0)  # every seed has the same rows of a class
    return Judgment(
        interval(right),
        interval(np.maximum(curve.max(axis=0), right)),
        interval(np.asarray(train_accuracy, np.float64)),
        [row[i].item() / row.sum().item() if row.any() else None for i, row in enumerate(total)],
        total.tolist(),
        curve.mean(axis=1).tolist(),
    )


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Mean +- t s / sqrt(n): t the 97.5 % point of Student's t with n - 1 degrees, s with n - 1.

    Args:
      values: n independent numbers; of one there is no interval.

    Raises: InputError for none.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.size == 0:
        raise InputError("an interval needs at least one value")
    mean = float(numbers.mean())
    if numbers.size == 1:
        return Interval(mean, None, None, numbers.tolist())
    spread = numbers.std(ddof=1) / np.sqrt(numbers.size)
    half = float(scipy.stats.t.ppf(0.975, numbers.size - 1) * spread)
    return Interval(mean, mean - half, mean + half, numbers.tolist())


def similarity(
    clean: Num[Array, "n h w c"], poisoned: Num[Array, "..."], *, batch_size: int = 500
) -> Similarity:
    """PSNR and SSIM of the rows that differ, mean over rows; see `Similarity`.

    Args:
      clean: images, uint8 or float in [0, 1].
      poisoned: the same rows, poisoned.
      batch_size: rows at a time.

    Raises: InputError if the two differ in shape.
    """
    if clean.shape != poisoned.shape:
        raise InputError(f"clean images are {clean.shape}, poisoned ones {poisoned.shape}")
    sums = np.zeros(3)
    for i in range(0, len(clean), batch_size):
        rows = slice(i, i + batch_size)
        sums += np.asarray(jax.device_get(_closeness(clean[rows], poisoned[rows])))
    psnr, ssim, changed = sums.tolist()
    if not changed:
        return Similarity(None, None)
    return Similarity(psnr / changed, ssim / changed)


@jax.jit
def _closeness(clean, poisoned):
    a, b = as_float(clean), as_float(poisoned)
    changed = jnp.any(a != b, axis=(1, 2, 3))
    window = min(11, *(side - 1 + side % 2 for side in a.shape[1:3]))
    psnr = jnp.where(changed, dm_pix.psnr(a, b), 0)
    ssim = jnp.where(changed, dm_pix.ssim(a, b, filter_size=window), 0)
    return jnp.sum(psnr), jnp.sum(ssim), jnp.sum(changed)


@jax.jit(static_argnums=0)
def _final(victim, variables, train, test):
    def one(variables):
        scores = logits(victim, variables, test.image)
        counts = confusion(test.label, jnp.argmax(scores, axis=1), scores.shape[1])
        return counts, accuracy(victim, variables, train)

    return lax.map(one, variables)


@jax.jit(static_argnums=0)
def _hits(victim, variables, targets):
    return lax.map(lambda one: targeted(victim, one, targets), variables)
