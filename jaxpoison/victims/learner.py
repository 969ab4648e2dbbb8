"""How a victim learns from a batch: an optax rule on its weighted cross-entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxpoison import tree
from jaxpoison.types import Learner, TrainState, Victim

__all__ = ["StepInfo", "learner"]


class StepInfo(NamedTuple):
    """Diagnostics of one update.

    Attributes:
      outer_loss: the weighted cross-entropy of the batch, before the update.
      grad_norm: L2 norm of its gradient over all parameters.
      finite: whether both are finite.
      accuracy: share of the batch classified as labeled, by weight, in train mode.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    accuracy: Float[Array, "..."]


def learner(victim: Victim, tx: optax.GradientTransformation) -> Learner:
    """Supervised training of `victim` by the optax rule `tx`.

    loss = sum_i w_i CE(z_i, y_i) / sum_i w_i,  z in train mode (batch statistics);
    step: params <- params + tx(d loss / d params), running statistics updated.

    A row of weight 0 counts for nothing but batch statistics: a network with BatchNorm sees it.

    Args:
      victim: the network.
      tx: gradients to updates; weight decay, clipping and the schedule are part of it.

    Returns: a Learner; step(key, phi, batch) -> (phi, StepInfo). `key` is the network's (dropout).
    """

    def init(key):
        variables = victim.init(key)
        return TrainState(variables.params, variables.stats, tx.init(variables.params))

    def loss(key, params, stats, batch):
        variables = TrainState(params, stats, ()).variables
        logits, stats = victim.apply(variables, batch.image, train=True, key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
        return _mean(losses, batch.weight), (logits, stats)

    def step(key, phi, batch):
        def of_params(params):
            return loss(key, params, phi.stats, batch)

        (value, (logits, stats)), gradient = jax.value_and_grad(of_params, has_aux=True)(phi.params)
        updates, opt_state = tx.update(gradient, phi.opt_state, phi.params)
        params = optax.apply_updates(phi.params, updates)
        size = tree.norm(gradient)
        right = jnp.argmax(logits, axis=1) == batch.label
        accuracy = _mean(right.astype(jnp.float32), batch.weight)
        info = StepInfo(value, size, jnp.isfinite(value) & jnp.isfinite(size), accuracy)
        return TrainState(params, stats, opt_state), info

    return Learner(victim, init, loss, step)


def _mean(values: Float[Array, " b"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    return jnp.sum(weight * values) / jnp.maximum(jnp.sum(weight), 1e-12)
