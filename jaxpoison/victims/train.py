"""A victim's training as a process for the loops: one step is one epoch, all on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.types import Batch, InputError, Learner, Training, Victim, as_float
from jaxpoison.victims.evaluate import accuracy
from jaxpoison.victims.learner import learner as make_learner
from jaxpoison.victims.recipe import Recipe

__all__ = ["EpochInfo", "training", "victim_training"]


class EpochInfo(NamedTuple):
    """Diagnostics of one epoch.

    Attributes:
      outer_loss: mean training loss of its updates, each by its rows.
      grad_norm: mean gradient norm, likewise.
      finite: whether every update was finite.
      train_accuracy: on the augmented training batches as they were used (train mode).
      test_accuracy: on the clean test set, running statistics, after the epoch.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    train_accuracy: Float[Array, "..."]
    test_accuracy: Float[Array, "..."]


def training(learner: Learner, recipe: Recipe) -> Training:
    """Epochs of `learner` over a `Split`, shuffled anew each epoch, augmented in the step.

    The set stays on the device as stored (uint8). The last partial batch is a step of its own size
    unless the recipe drops it, so BatchNorm never sees filling.

    Args:
      learner: the update; see `victims.learner`.
      recipe: batch size, augmentation and `drop_last` are read; epochs are the loop's num_steps.

    Returns: Training with init(key, split) and step(key, phi, split) -> (phi, EpochInfo).
    Raises: InputError, on tracing, for an empty training or test set, or one smaller than a batch.
    """
    augment = recipe.augment()

    def init(key, split):
        del split
        return learner.init(key)

    def step(key, phi, split):
        order_key, epoch_key = jax.random.split(key)
        num, size = split.train.label.shape[0], recipe.batch_size
        check_batch(recipe, num)
        order = jax.random.permutation(order_key, num)
        full, rest = num // size, num % size

        def update(phi, job):
            number, rows = job
            augment_key, step_key = jax.random.split(jax.random.fold_in(epoch_key, number))
            image = augment(augment_key, as_float(split.train.image[rows]))
            weight = jnp.ones(rows.shape, jnp.float32)
            return learner.step(step_key, phi, Batch(image, split.train.label[rows], weight, rows))

        rows = order[: full * size].reshape(full, size)
        phi, info = lax.scan(update, phi, (jnp.arange(full), rows))
        total = jax.tree.map(lambda x: size * jnp.sum(x, axis=0), info)
        finite, seen = jnp.all(info.finite), full * size
        if rest and not recipe.drop_last:
            phi, last = update(phi, (full, order[full * size :]))
            total = jax.tree.map(lambda s, x: s + rest * x, total, last)
            finite, seen = finite & last.finite, num
        test_accuracy = accuracy(learner.victim, phi.variables, split.test)
        mean = jax.tree.map(lambda x: x / seen, total)
        return phi, EpochInfo(mean.outer_loss, mean.grad_norm, finite, mean.accuracy, test_accuracy)

    return Training(init, step)


def victim_training(
    victim: Victim, recipe: Recipe, num_train: int, *, accumulate: int = 1
) -> Training:
    """`training` of a victim by a recipe whose schedule is laid out over `num_train` rows.

    Args:
      victim: the network.
      recipe: how it is trained; run it for `recipe.epochs` steps.
      num_train: N of the training sets it will see.
      accumulate: micro-batches per update, where memory is short; see `victims.learner`.

    Raises: InputError for num_train < 1, recipe.batch_size > num_train, accumulate < 1 or above the
      batch size; on tracing, for a training set of another size.
    """
    check_batch(recipe, num_train, accumulate)
    optimizer = recipe.optimizer_for(num_train)
    process = training(make_learner(victim, optimizer, accumulate=accumulate), recipe)

    def step(key, phi, split):
        num = split.train.label.shape[0]
        if num != num_train:
            raise InputError(f"the training set has {num} rows; num_train = {num_train}")
        return process.step(key, phi, split)

    return Training(process.init, step)


def check_batch(recipe: Recipe, num_train: int, accumulate: int = 1) -> None:
    """An `InputError` unless the set holds a batch, and a batch `accumulate` micro-batches."""
    if not num_train:
        raise InputError("the training set is empty")
    check.at_least(1, num_train=num_train, accumulate=accumulate)
    if recipe.batch_size > num_train:
        raise InputError(
            f"batch_size = {recipe.batch_size} is larger than the training set of {num_train} "
            f"rows; it must be from 1 to {num_train}"
        )
    if accumulate > recipe.batch_size:
        raise InputError(
            f"accumulate = {accumulate} micro-batches of a batch of {recipe.batch_size} rows; it "
            f"must be from 1 to {recipe.batch_size}"
        )
