"""Gradients of the loss over a whole data set."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpoison import check, tree
from jaxpoison.types import Dataset, Variables, Victim, as_float

__all__ = ["mean_gradient"]


def mean_gradient(
    victim: Victim, variables: Variables, dataset: Dataset, *, batch_size: int = 1000
) -> Any:
    """The mean gradient (1/N) sum_i d CE(z_i, y_i) / d params, the network in eval mode.

    Args:
      victim: the network, or a `partial_victim` of it.
      variables: its arrays.
      dataset: N rows.
      batch_size: rows at a time; changes memory, and the last bits.

    Returns: a pytree like `variables.params`.
    Errors: InputError for batch_size < 1.
    """
    check.at_least(1, batch_size=batch_size)
    num = dataset.label.shape[0]

    def total(params, rows, weight):
        scores, _ = victim.apply(
            Variables(params, variables.stats), as_float(rows.image), train=False
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, rows.label)
        return jnp.sum(losses * weight.astype(losses.dtype))

    def add(carry, job):
        return tree.axpy(1.0, jax.grad(total)(variables.params, *job), carry), None

    zero = jax.tree.map(jnp.zeros_like, variables.params)
    gradient, _ = lax.scan(add, zero, tree.batches(dataset, batch_size))
    return jax.tree.map(lambda x: x / num, gradient)
