"""A victim's training as a process for the loops: one step is one epoch, all on the device."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.types import (
    Batch,
    Dataset,
    InputError,
    Learner,
    Losses,
    Training,
    TrainingDefense,
    Victim,
    as_float,
)
from jaxpoison.victims.adversarial import adversarial, trades
from jaxpoison.victims.evaluate import accuracy
from jaxpoison.victims.learner import cross_entropy
from jaxpoison.victims.learner import learner as plain_learner
from jaxpoison.victims.parallel import check_mesh, everywhere, spread, spread_victim
from jaxpoison.victims.recipe import Recipe

__all__ = ["EpochInfo", "training", "victim_training"]


class EpochInfo(NamedTuple):
    """Diagnostics of one epoch.

    Attributes:
      outer_loss: mean training loss of its updates, each by its rows.
      grad_norm: mean gradient norm, likewise.
      finite: whether every update was finite.
      train_accuracy: on the augmented training batches as they were used (train mode): on their
        adversarial examples in adversarial training, on what a defense made of them; a mixed image
        counts by its own label.
      test_accuracy: on the clean test set, after the epoch, with the recipe's statistics.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    train_accuracy: Float[Array, "..."]
    test_accuracy: Float[Array, "..."]


def training(
    learner: Learner, recipe: Recipe, *, mesh: Mesh | None = None, axis: str = "batch"
) -> Training:
    """Epochs of `learner` over a `Split`, shuffled anew each epoch, augmented in the step.

    The set stays on the device as stored (uint8). The last partial batch is a step of its own size
    unless the recipe drops it, so BatchNorm never sees filling.

    With a mesh every batch is spread over `axis`, the parameters stand on every device, and XLA
    adds the gradients up; BatchNorm normalizes by the whole batch, so results are those of one
    device but for rounding. A last partial batch, and a last batch of the test set, that the axis
    does not divide is computed on every device alike. The set is copied to every device.

    Args:
      learner: the update; see `victims.learner`.
      recipe: batch size, augmentation, `drop_last` and how it is judged (`evaluation`) are read;
        epochs are the loop's num_steps.
      mesh: devices to spread each batch over, `device_mesh(axis="batch")`; None for no spreading.
      axis: name of its axis.

    Returns: Training with init(key, split) and step(key, phi, split) -> (phi, EpochInfo).
    Raises: InputError for a mesh without the axis, or an axis that does not divide the batch size;
      on tracing, for an empty training or test set, or one smaller than a batch.
    """
    check_mesh(mesh, axis, recipe.batch_size)
    update = make_update(learner, recipe, mesh, axis)

    def init(key, split):
        del split
        return everywhere(learner.init(key), mesh)

    def step(key, phi, split):
        order_key, epoch_key = jax.random.split(key)
        num, size = split.train.label.shape[0], recipe.batch_size
        check_batch(recipe, num)
        order = jax.random.permutation(order_key, num)
        full, rest = num // size, num % size

        def take(phi, job):
            number, rows = job
            rows = spread(rows, mesh, axis)
            some = Dataset(split.train.image[rows], split.train.label[rows])
            return update(epoch_key, phi, number, rows, some)

        rows = order[: full * size].reshape(full, size)
        phi, info = lax.scan(take, phi, (jnp.arange(full), rows))
        total = jax.tree.map(lambda x: size * jnp.sum(x, axis=0), info)
        finite, seen = jnp.all(info.finite), full * size
        if rest and not recipe.drop_last:
            phi, last = take(phi, (full, order[full * size :]))
            total = jax.tree.map(lambda s, x: s + rest * x, total, last)
            finite, seen = finite & last.finite, num
        victim = spread_victim(learner.victim, mesh, axis)
        test_accuracy = accuracy(victim, phi.variables, split.test, **recipe.evaluation)
        mean = jax.tree.map(lambda x: x / seen, total)
        info = EpochInfo(mean.outer_loss, mean.grad_norm, finite, mean.accuracy, test_accuracy)
        return everywhere(phi, mesh), info

    return Training(init, step)


def victim_training(
    victim: Victim,
    recipe: Recipe,
    num_train: int,
    *,
    defense: TrainingDefense | None = None,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    axis: str = "batch",
) -> Training:
    """`training` of a victim by a recipe whose schedule is laid out over `num_train` rows.

    Args:
      victim: the network.
      recipe: how it is trained; run it for `recipe.epochs` steps.
      num_train: N of the training sets it will see.
      defense: what changes the losses of the recipe, adversarial or not: `defenses.mixup()`, ...
        Without it the state has no count of updates.
      accumulate: micro-batches per update, where memory is short; see `victims.learner`.
      mesh: devices to spread each batch over, for large images; see `training`.
      axis: name of its axis.

    Raises: InputError for num_train < 1, recipe.batch_size > num_train, accumulate < 1 or above the
      batch size, a mesh that cannot divide the batch; on tracing, for a training set of another
      size.
    """
    check_batch(recipe, num_train, accumulate)
    check_mesh(mesh, axis, recipe.batch_size)
    model = make_learner(victim, recipe, num_train, accumulate, defense)
    return of_rows(training(model, recipe, mesh=mesh, axis=axis), num_train)


def of_rows(process: Training, num_train: int) -> Training:
    """The training, for sets of `num_train` rows alone: its schedule is laid out over them."""

    def step(key, phi, split):
        num = split.train.label.shape[0]
        if num != num_train:
            raise InputError(f"the training set has {num} rows; num_train = {num_train}")
        return process.step(key, phi, split)

    return Training(process.init, step)


def make_learner(
    victim: Victim,
    recipe: Recipe,
    num_train: int,
    accumulate: int,
    defense: TrainingDefense | None = None,
) -> Learner:
    """The update of a recipe, plain or adversarial; its schedule laid out over `num_train` rows.

    A defense stands around the adversarial training of the recipe, which sees what it made of the
    batch, and may read the epoch.
    """
    tx, losses = recipe.optimizer_for(num_train), _losses(recipe)
    if defense is None:
        return plain_learner(victim, tx, accumulate=accumulate, losses=losses)
    steps = recipe.steps_per_epoch(num_train)
    return plain_learner(
        victim, tx, accumulate=accumulate, losses=_defended(defense, losses), steps_per_epoch=steps
    )


def _defended(defense: Any, losses: Losses) -> Losses:
    if not callable(defense):
        raise InputError(
            f"defense is a {type(defense).__name__}; it must be a training-time defense, such as "
            "defenses.mixup()"
        )
    try:
        inspect.signature(defense).bind(losses)
    except TypeError as error:  # a factory itself, say
        name = getattr(defense, "__name__", "defense")
        raise InputError(f"defense does not take losses; was {name}(...) meant?") from error
    return defense(losses)


def _losses(recipe: Recipe) -> Losses:
    attack: dict[str, Any] = {
        "eps": recipe.adversarial_eps,
        "step_size": recipe.adversarial_step,
        "steps": recipe.adversarial_steps,
        "norm": recipe.adversarial_norm,
    }
    if recipe.adversarial_start is not None:
        attack["start"] = recipe.adversarial_start
    if recipe.adversarial == "pgd":
        return adversarial(**attack)(cross_entropy)
    if recipe.adversarial == "trades":
        return trades(beta=recipe.adversarial_beta, **attack)(cross_entropy)
    return cross_entropy


def make_update(
    learner: Learner, recipe: Recipe, mesh: Mesh | None = None, axis: str = "batch"
) -> Callable[..., Any]:
    """One update of an epoch: (epoch_key, phi, number, rows [B], stored rows) -> (phi, StepInfo).

    Batch `number` of the epoch draws its own keys, so that it is the same wherever its rows came
    from.
    """
    augment = recipe.augment()

    def update(epoch_key, phi, number, rows, some):
        augment_key, step_key = jax.random.split(jax.random.fold_in(epoch_key, number))
        weight = jnp.ones(rows.shape, jnp.float32)
        batch = Batch(some.image, some.label, weight, rows)
        batch = jax.tree.map(lambda x: spread(x, mesh, axis), batch)
        image = spread(augment(augment_key, as_float(batch.image)), mesh, axis)
        return learner.step(step_key, phi, batch._replace(image=image))

    return update


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
