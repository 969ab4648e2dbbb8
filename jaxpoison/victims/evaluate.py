"""What a trained victim does: accuracy, confusion, targeted success, and intervals over seeds."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax
from jaxtyping import Array, Float, Int, Num

from jaxpoison import check
from jaxpoison.types import Dataset, InputError, Variables, Victim, as_float
from jaxpoison.victims.checks import stacked

__all__ = [
    "STATISTICS",
    "Assessment",
    "Interval",
    "Judgment",
    "accuracy",
    "assess",
    "assessment",
    "checked_assessment",
    "confusion",
    "hits",
    "interval",
    "judge",
    "judgment",
    "logits",
    "targeted",
]


STATISTICS = ("running", "batch")
"""By which BatchNorm normalizes where a victim is judged."""


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


class Assessment(NamedTuple):
    """Trained victims on one data set; accuracies are fractions.

    Attributes:
      accuracy: share of rows classified as labeled.
      per_class: [L] of it by true class, mean over victims; None where no row has that class.
      confusion: [L, L] counts, true class by predicted class, summed over victims.
    """

    accuracy: Interval
    per_class: list[float | None]
    confusion: list[list[int]]


class Judgment(NamedTuple):
    """Victims of several seeds on one training set; accuracies are fractions of the clean test set.

    Attributes:
      final_accuracy: after the last epoch.
      peak_accuracy: the best epoch, chosen on the test set (an upper bound, as by early stopping).
      train_accuracy: on the training set as given, after the last epoch.
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


def logits(
    victim: Victim,
    variables: Variables,
    image: Num[Array, "n h w c"],
    *,
    batch_size: int = 500,
    statistics: str = "running",
) -> Float[Array, "n l"]:
    """Logits [N, L], batch by batch.

    With statistics = "batch" BatchNorm normalizes every batch by its own statistics, as a network
    that was never put into eval mode does; the running ones are not read. Batches are consecutive
    rows, all of the same size: the last one reaches back to rows before it, whose logits remain
    those of the batch they came with first. A set sorted by class then has batches of one class.

    Args:
      victim: the network; for "batch" without dropout.
      variables: one trained victim.
      image: uint8, or float in [0, 1]; N >= 1.
      batch_size: B, rows at a time, at most N are taken. With running statistics it changes memory
        alone.
      statistics: "running" (eval mode) or "batch" (train mode).

    Raises: InputError for no images, batch_size < 1, another word for the statistics, or a network
      with dropout and "batch".
    """
    if not len(image):
        raise InputError("there are no images to classify")
    check.at_least(1, batch_size=batch_size)
    check.one_of(STATISTICS, statistics=statistics)
    image, num = jnp.asarray(image), len(image)
    size = min(batch_size, num)
    last = num - size
    starts = jnp.minimum(jnp.arange(0, num, size), last)

    def one(start):
        batch = lax.dynamic_slice_in_dim(image, start, size)
        return victim.apply(variables, as_float(batch), train=statistics == "batch")[0]

    scores = lax.map(one, starts)
    seen = size * (len(starts) - 1)  # rows of the batches before the last
    before = scores[:-1].reshape(seen, scores.shape[-1])
    return jnp.concatenate([before, scores[-1, seen - last :]])


def accuracy(
    victim: Victim,
    variables: Variables,
    dataset: Dataset,
    *,
    batch_size: int = 500,
    statistics: str = "running",
) -> Float[Array, ""]:
    """Share of rows whose largest logit is the label's; arguments as of `logits`."""
    options: dict[str, Any] = {"batch_size": batch_size, "statistics": statistics}
    predicted = jnp.argmax(logits(victim, variables, dataset.image, **options), axis=1)
    return jnp.mean(predicted == dataset.label)


def confusion(label: Int[Array, " n"], predicted: Int[Array, " n"], num: int) -> Int[Array, "l l"]:
    """Counts [L, L]: row = true class, column = predicted class."""
    return jnp.zeros((num, num), jnp.int32).at[label, predicted].add(1)


def targeted(
    victim: Victim,
    variables: Variables,
    goal: Dataset,
    *,
    batch_size: int = 500,
    statistics: str = "running",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(success rate, intended probability) on targets.

    Args:
      victim: the network.
      variables: one trained victim.
      goal: target images with the labels the attacker wants.
      batch_size: as of `logits`, like `statistics`.
      statistics: "running" or "batch".

    Returns: the share classified as intended, and the mean softmax probability of that class.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "statistics": statistics}
    scores = logits(victim, variables, goal.image, **options)
    intended = jnp.take_along_axis(jax.nn.softmax(scores), goal.label[:, None], axis=1)
    return jnp.mean(jnp.argmax(scores, axis=1) == goal.label), jnp.mean(intended)


def hits(
    victim: Victim,
    state: Any,
    targets: Dataset,
    *,
    batch_size: int = 500,
    statistics: str = "running",
) -> tuple[Interval, Interval]:
    """`targeted` for the victims of several seeds.

    Args:
      victim: the network.
      state: TrainState with leading axis R.
      targets: target images with the labels the attacker wants.
      batch_size: as of `logits`, like `statistics`.
      statistics: "running" or "batch".

    Returns: intervals over seeds of the success rate and of the intended probability.
    """
    rate, probability = _hits(victim, state.variables, targets, batch_size, statistics)
    return interval(np.asarray(rate, np.float64)), interval(np.asarray(probability, np.float64))


def judge(
    victim: Victim,
    state: Any,
    info: Any,
    train: Dataset,
    test: Dataset,
    *,
    batch_size: int = 500,
    statistics: str = "running",
) -> Judgment:
    """The victims of several seeds after training, or the one of a single training.

    Args:
      victim: the network.
      state: TrainState with leading axis R (from `over_restarts` of a Training), or of one victim.
      info: EpochInfo over epochs, leaves [T, R], or [T].
      train: the training set they saw.
      test: clean test set.
      batch_size: rows at a time; one victim's activations of one batch are all that is held.
      statistics: "running" or "batch", as in `logits`; `**recipe.evaluation` has both.

    Raises: InputError for the state of another network.
    """
    variables = stacked(victim, state.variables)
    seen, held_out = (
        np.asarray(_counts(victim, variables, dataset, batch_size, statistics))
        for dataset in (train, test)
    )
    train_accuracy = np.trace(seen, axis1=1, axis2=2) / len(train.label)
    curve = np.asarray(info.test_accuracy)
    return judgment(held_out, train_accuracy, curve.reshape(len(curve), -1))


def judgment(
    counts: Int[Array | np.ndarray, "r l l"],
    train_accuracy: Num[Array | np.ndarray, " r"],
    curve: Num[Array | np.ndarray, "t r"],
) -> Judgment:
    """The Judgment of R victims whose predictions are counted.

    Args:
      counts: clean test rows, true class by predicted class.
      train_accuracy: on the training set as given.
      curve: clean test accuracy after each epoch.
    """
    final, per_class, confusions = assessment(counts)
    epochs = np.asarray(curve, np.float64)
    return Judgment(
        final,
        interval(np.maximum(epochs.max(axis=0), final.values)),
        interval(np.asarray(train_accuracy, np.float64)),
        per_class,
        confusions,
        epochs.mean(axis=1).tolist(),
    )


def assess(
    victim: Victim,
    variables: Variables,
    dataset: Dataset,
    *,
    batch_size: int = 500,
    statistics: str = "running",
) -> Assessment:
    """Accuracy, per-class accuracy and confusion of trained victims, in one call.

    Args:
      victim: the network.
      variables: of one trained victim, or of R with a leading axis; as `load` returns them.
      dataset: what they classify.
      batch_size: rows at a time.
      statistics: "running" or "batch", as in `logits`.

    Raises: InputError as in `logits`, and for a label without a logit.
    """
    check.at_least(1, batch_size=batch_size)
    several = stacked(victim, variables)
    counts = np.asarray(_counts(victim, several, dataset, batch_size, statistics))
    return checked_assessment(counts, dataset)


def assessment(counts: Int[Array | np.ndarray, "r l l"]) -> Assessment:
    """The Assessment of R victims whose predictions are counted, true class by predicted class."""
    counts = np.asarray(counts)
    right = np.trace(counts, axis1=1, axis2=2) / counts.sum(axis=(1, 2))
    total = counts.sum(axis=0)  # every victim has the same rows of a class
    per_class = [r[i].item() / r.sum().item() if r.any() else None for i, r in enumerate(total)]
    return Assessment(interval(right), per_class, total.tolist())


def checked_assessment(counts: Int[Array | np.ndarray, "r l l"], dataset: Dataset) -> Assessment:
    """`assessment`, or an InputError where labels of the set have no logit."""
    counts = np.asarray(counts)
    if (found := counts.sum(axis=(1, 2)).min()) < len(dataset.label):
        raise InputError(
            f"{len(dataset.label) - found} labels of the set are not among the network's "
            f"{counts.shape[1]} classes"
        )
    return assessment(counts)


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
    half = float(scipy.special.stdtrit(numbers.size - 1, 0.975) * spread)
    return Interval(mean, mean - half, mean + half, numbers.tolist())


@jax.jit(static_argnums=(0, 3, 4))
def _counts(victim, variables, dataset, batch_size, statistics):
    options = {"batch_size": batch_size, "statistics": statistics}

    def one(variables):
        scores = logits(victim, variables, dataset.image, **options)
        return confusion(dataset.label, jnp.argmax(scores, axis=1), scores.shape[1])

    return lax.map(one, variables)


@jax.jit(static_argnums=(0, 3, 4))
def _hits(victim, variables, targets, batch_size, statistics):
    options = {"batch_size": batch_size, "statistics": statistics}
    return lax.map(lambda one: targeted(victim, one, targets, **options), variables)
