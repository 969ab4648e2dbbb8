"""How a victim learns from a batch: an optax rule on the weighted mean of its rows' losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree
from jaxpoison.types import Batch, Key, Learner, Losses, TrainState, Variables, Victim

__all__ = ["Counted", "StepInfo", "cross_entropy", "learner", "row_losses", "share"]


class StepInfo(NamedTuple):
    """Diagnostics of one update.

    Attributes:
      outer_loss: the weighted mean loss of the batch, before the update.
      grad_norm: L2 norm of its gradient over all parameters.
      finite: whether both are finite.
      accuracy: share of the batch classified as labeled, by weight, in train mode.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    accuracy: Float[Array, "..."]


class Counted(NamedTuple):
    """An optimizer's state and how often it was updated.

    Attributes:
      updates: of the parameters, since `init`.
      inner: the state of the optax rule.
    """

    updates: Int[Array, ""]
    inner: Any


def cross_entropy(
    victim: Victim, key: Key, variables: Variables, batch: Batch
) -> tuple[Float[Array, " b"], tuple[Float[Array, "b l"], Any]]:
    """CE(z_i, y_i) row by row, z in train mode (batch statistics).

    Args:
      victim: the network.
      key: its own (dropout).
      variables: its arrays.
      batch: images and labels, or their mixture; weights are not read.

    Returns: (losses [B], (logits [B, L], new running statistics)).
    """
    logits, stats = victim.apply(variables, batch.image, train=True, key=key)
    return row_losses(logits, batch), (logits, stats)


def row_losses(logits: Float[Array, "b l"], batch: Batch) -> Float[Array, " b"]:
    """CE(z_i, y_i) [B]; of mixed rows sum_k w_ik CE(z_i, y_ik), which is CE(z_i, q_i)."""
    if batch.mixture is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.mixture.label, axis=1)
    return -jnp.sum(batch.mixture.weight * scores, axis=1)


def learner(
    victim: Victim,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    losses: Losses = cross_entropy,
    steps_per_epoch: int | None = None,
) -> Learner:
    """Supervised training of `victim` by the optax rule `tx`.

    loss = sum_i w_i l_i / sum_i w_i,  l_i = CE(z_i, y_i), z in train mode (batch statistics);
    step: params <- params + tx(d loss / d params), running statistics updated.

    A row of weight 0 counts for nothing but batch statistics: a network with BatchNorm sees it.

    With accumulate = k the gradient of the same loss is summed over micro-batches of
    m = ceil(B / k) rows, one after the other, so that activations of m rows are held instead of B.
    Of B = q m + r rows, micro-batch j < q is rows j, j + q, ... below q m (each device of a sharded
    batch keeps its own); the last r rows, if any, follow as a smaller one. Without BatchNorm and
    dropout this is the same step but for rounding. BatchNorm normalizes each micro-batch by its own
    statistics and moves the running ones once per micro-batch; dropout draws per micro-batch.

    Args:
      victim: the network.
      tx: gradients to updates; weight decay, clipping and the schedule are part of it.
      accumulate: k, at least 1; 1 takes the batch whole.
      losses: (victim, key, variables, batch) -> (losses [B], (logits [B, L], new stats)), traceable
        and differentiable; what `adversarial_learner`, `trades_learner` and a `TrainingDefense`
        replace.
      steps_per_epoch: updates of an epoch: the learner counts them and sets `Batch.epoch`, for
        losses that depend on it; its optimizer's state is `Counted` then. None: it does not count.

    Returns: a Learner; step(key, phi, batch) -> (phi, StepInfo). `key` is the network's (dropout).
      `loss` takes the batch whole whatever k.
    Raises: InputError for accumulate < 1 or steps_per_epoch < 1.
    Cost: k forward and backward passes of B / k rows; one more copy of the parameters for k > 1.
    """
    check.at_least(1, accumulate=accumulate)
    if steps_per_epoch is not None:
        check.at_least(1, steps_per_epoch=steps_per_epoch)
        tx = _counted(tx)

    def init(key):
        variables = victim.init(key)
        return TrainState(variables.params, variables.stats, tx.init(variables.params))

    def part(key, params, stats, batch, total):
        """The share of `batch` in a loss whose weights sum to `total`, its accuracy likewise."""
        values, aux = losses(victim, key, Variables(params, stats), batch)
        return share(values, batch.weight, total), aux

    def loss(key, params, stats, batch):
        return part(key, params, stats, batch, jnp.sum(batch.weight))

    def gradient(key, params, stats, batch, total):
        (value, (logits, stats)), gradient = jax.value_and_grad(part, argnums=1, has_aux=True)(
            key, params, stats, batch, total
        )
        right = (jnp.argmax(logits, axis=1) == batch.label).astype(jnp.float32)
        return (gradient, value, share(right, batch.weight, total)), stats

    def step(key, phi, batch):
        if steps_per_epoch is not None:
            batch = batch._replace(epoch=phi.opt_state.updates // steps_per_epoch)
        if accumulate == 1:
            sums, stats = gradient(key, phi.params, phi.stats, batch, jnp.sum(batch.weight))
        else:
            sums, stats = _accumulated(gradient, key, phi, batch, accumulate)
        total, value, accuracy = sums
        updates, opt_state = tx.update(total, phi.opt_state, phi.params)
        params = optax.apply_updates(phi.params, updates)
        size = tree.norm(total)
        info = StepInfo(value, size, jnp.isfinite(value) & jnp.isfinite(size), accuracy)
        return TrainState(params, stats, opt_state), info

    return Learner(victim, init, loss, step)


def _accumulated(gradient: Any, key: Any, phi: TrainState, batch: Batch, num: int) -> Any:
    """The sums of `gradient` over the micro-batches of a batch, and the last statistics."""
    rows = batch.label.shape[0]
    size = -(-rows // num)
    full = rows // size
    total, epoch = jnp.sum(batch.weight), batch.epoch
    batch = batch._replace(epoch=None)  # what is left has rows

    def add(carry, job):
        sums, stats = carry
        number, micro = job
        micro = micro._replace(epoch=epoch)
        parts, stats = gradient(jax.random.fold_in(key, number), phi.params, stats, micro, total)
        return (jax.tree.map(jnp.add, sums, parts), stats), None

    def strided(x):
        return x[: full * size].reshape(size, full, *x.shape[1:]).swapaxes(0, 1)

    zero = jnp.zeros((), batch.weight.dtype)
    carry = (jax.tree.map(jnp.zeros_like, phi.params), zero, zero), phi.stats
    carry, _ = lax.scan(add, carry, (jnp.arange(full), jax.tree.map(strided, batch)))
    if full * size < rows:
        carry, _ = add(carry, (full, jax.tree.map(lambda x: x[full * size :], batch)))
    return carry


def _counted(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    def init(params):
        return Counted(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates, state, params=None):
        updates, inner = tx.update(updates, state.inner, params)
        return updates, Counted(state.updates + 1, inner)

    return optax.GradientTransformation(init, update)


def share(
    values: Float[Array, " b"], weight: Float[Array, " b"], total: Float[Array, ""]
) -> Float[Array, ""]:
    """The part of rows in a mean by weight, where the weights of all rows sum to `total`."""
    return jnp.sum(weight * values) / jnp.maximum(total, 1e-12)
