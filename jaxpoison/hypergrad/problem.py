"""Bilevel problems: a follower that trains on poisoned batches, and losses over many rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check, tree
from jaxpoison.types import Bilevel, Learner, Perturbation

__all__ = ["poisoned_training", "rowwise_loss"]

RowLoss = Callable[..., Float[Array, " b"]]


def poisoned_training(
    learner: Learner,
    space: Perturbation,
    *,
    batch_size: int,
    outer_loss: Callable[..., Float[Array, ""]],
) -> Bilevel:
    """The follower's side of poisoning: SGD on batches that theta poisons.

    inner_loss(theta, phi) = loss(phi; apply(theta, rows)),  rows uniform over N with replacement.
    Both losses of one key see the same rows. BatchNorm uses batch statistics in the inner loss.

    Args:
      learner: the follower's update.
      space: what theta is and how it enters a batch.
      batch_size: B, rows of one inner step; at most N.
      outer_loss: (key, theta, phi, scenario) -> scalar, minimized; phi is a TrainState.

    Raises: InputError for batch_size < 1.
    """
    check.at_least(1, batch_size=batch_size)

    def draw(key, theta, scenario):
        num = scenario.train.label.shape[0]
        rows_key, step_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (batch_size,), 0, num)
        return space.apply(theta, scenario, rows), step_key

    def inner_init(key, scenario):
        del scenario
        return learner.init(key)

    def inner_step(key, theta, phi, scenario):
        batch, step_key = draw(key, theta, scenario)
        return learner.step(step_key, phi, batch)

    def inner_loss(key, theta, phi, scenario):
        batch, step_key = draw(key, theta, scenario)
        return learner.loss(step_key, phi.params, phi.stats, batch)[0]

    return Bilevel(inner_init, inner_step, inner_loss, outer_loss)


def rowwise_loss(
    loss_fn: RowLoss, space: Perturbation, *, batch_size: int, all_rows: bool = False
) -> Callable[..., Float[Array, ""]]:
    """An outer loss that is a mean over rows, and its gradient in one pass over batches.

    L(theta) = mean over rows i of l(phi, x_i(theta), y_i).  Since rows do not touch one another,
    the forward pass already takes dl/dx batch by batch (memory of one batch, no second forward
    pass); the backward pass pulls it through `space.apply`. First-order only.

    Args:
      loss_fn: (key, phi, image [B, H, W, C], label [B]) -> [B] losses; phi is held constant.
      space: how theta enters the rows.
      batch_size: B of one pass.
      all_rows: over all N rows instead of the P rows of `scenario.index`.

    Returns: (key, theta, phi, scenario) -> scalar.
    Raises: InputError for batch_size < 1.
    """
    check.at_least(1, batch_size=batch_size)

    @jax.custom_vjp
    def mean_loss(image, label, key, phi):
        return forward(image, label, key, phi)[0]

    def forward(image, label, key, phi):
        def one(batch):
            number, (x, y), weight = batch
            batch_key = jax.random.fold_in(key, number)
            total, pull = jax.vjp(lambda v: jnp.sum(weight * loss_fn(batch_key, phi, v, y)), x)
            return total, pull(jnp.ones_like(total))[0]

        num = label.shape[0]
        batches, weights = tree.batches((image, label), batch_size)
        totals, gradient = lax.map(one, (jnp.arange(len(weights)), batches, weights))
        gradient = gradient.reshape(-1, *image.shape[1:])[:num] / num
        return jnp.sum(totals) / num, gradient

    def backward(gradient, cotangent):
        return cotangent * gradient, None, None, None

    mean_loss.defvjp(forward, backward)

    def outer_loss(key, theta, phi, scenario):
        rows = jnp.arange(scenario.train.label.shape[0]) if all_rows else scenario.index
        batch = space.apply(theta, scenario, rows)
        return mean_loss(batch.image, batch.label, key, lax.stop_gradient(phi))

    return outer_loss
