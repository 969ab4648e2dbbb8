"""Shuffled mini-batches for an estimator: each step sees the next rows of a seeded order."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxpoison import check
from jaxpoison.types import Dataset, Hypergrad, InputError, Scenario

__all__ = ["BatchState", "minibatches"]


class BatchState(NamedTuple):
    """Where the passes over the data are.

    Attributes:
      rows: [S] rows of the training set that take part, in the order of this pass.
      cursor: how many of them were seen in this pass.
      phi: state of the estimator inside.
    """

    rows: Int[Array, " s"]
    cursor: Int[Array, ""]
    phi: Any


def minibatches(hypergrad: Hypergrad, *, batch_size: int, train_fraction: float = 1.0) -> Hypergrad:
    """`hypergrad` on one mini-batch after the other, passes shuffled anew, without partial ones.

    The estimator sees a Scenario of B rows, all of which may change; so theta must not belong to
    rows (a generator, class-wise noise). One pass over S rows has floor(S / B) steps.

    Args:
      hypergrad: takes all rows of the scenario it is given.
      batch_size: B.
      train_fraction: share of `scenario.index` that takes part at all, a seeded choice:
        S = ceil(fraction * P).

    Raises: InputError for batch_size < 1 or a fraction outside (0, 1]; on tracing, for S < B.
    """
    check.at_least(1, batch_size=batch_size)
    check.number(above=0, most=1, train_fraction=train_fraction)

    def init(key, scenario):
        rows_key, phi_key = jax.random.split(key)
        num = math.ceil(train_fraction * scenario.index.shape[0])
        if num < batch_size:
            raise InputError(
                f"batch_size = {batch_size}; only {num} rows take part in training the generator"
            )
        rows = jax.random.permutation(rows_key, scenario.index)[:num]
        first = _batch(rows, jnp.int32(0), scenario)
        return BatchState(rows, jnp.int32(0), hypergrad.init(phi_key, first))

    def estimate(key, theta, state, scenario):
        order_key, step_key = jax.random.split(key)
        fits = state.cursor + batch_size <= state.rows.shape[0]
        rows, cursor = lax.cond(
            fits,
            lambda: (state.rows, state.cursor),
            lambda: (jax.random.permutation(order_key, state.rows), jnp.int32(0)),
        )
        batch = _batch(rows, cursor, scenario)
        gradient, phi, loss = hypergrad.estimate(step_key, theta, state.phi, batch)
        return gradient, BatchState(rows, cursor + batch_size, phi), loss

    def _batch(rows, cursor, scenario):
        some = lax.dynamic_slice_in_dim(rows, cursor, batch_size)
        train = Dataset(scenario.train.image[some], scenario.train.label[some])
        return Scenario(train, scenario.goal, jnp.arange(batch_size), scenario.aux)

    return Hypergrad(init, estimate)
