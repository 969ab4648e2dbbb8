"""Shuffled mini-batches for an estimator: each step sees the next rows of a seeded order."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxpoison import check
from jaxpoison.types import Dataset, Hypergrad, InputError, Key, Scenario

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
    check_fraction(batch_size, train_fraction)

    def init(key, scenario):
        rows_key, phi_key = jax.random.split(key)
        rows = first_order(rows_key, scenario, batch_size, train_fraction)
        first = some_rows(scenario, rows[:batch_size])
        return BatchState(rows, jnp.int32(0), hypergrad.init(phi_key, first))

    def estimate(key, theta, state, scenario):
        order_key, step_key = jax.random.split(key)
        rows, cursor, some = next_rows(order_key, state.rows, state.cursor, batch_size)
        batch = some_rows(scenario, some)
        gradient, phi, loss = hypergrad.estimate(step_key, theta, state.phi, batch)
        return gradient, BatchState(rows, cursor, phi), loss

    return Hypergrad(init, estimate)


def check_fraction(batch_size: int, train_fraction: float) -> None:
    """An `InputError` for batch_size < 1 or a fraction outside (0, 1]."""
    check.at_least(1, batch_size=batch_size)
    check.number(above=0, most=1, train_fraction=train_fraction)


def first_order(
    key: Key, scenario: Scenario, batch_size: int, train_fraction: float
) -> Int[Array, " s"]:
    """The S rows that take part, in the order of the first pass; an InputError for S < B."""
    num = math.ceil(train_fraction * scenario.index.shape[0])
    if num < batch_size:
        raise InputError(
            f"batch_size = {batch_size}; only {num} rows take part in training the generator"
        )
    return jax.random.permutation(key, scenario.index)[:num]


def next_rows(
    key: Key, rows: Int[Array, " s"], cursor: Int[Array, ""], batch_size: int
) -> tuple[Int[Array, " s"], Int[Array, ""], Int[Array, " b"]]:
    """(order, cursor, the next B rows); where fewer than B are left, a new pass begins by `key`."""
    rows, cursor = lax.cond(
        cursor + batch_size <= rows.shape[0],
        lambda: (rows, cursor),
        lambda: (jax.random.permutation(key, rows), jnp.int32(0)),
    )
    return rows, cursor + batch_size, lax.dynamic_slice_in_dim(rows, cursor, batch_size)


def some_rows(scenario: Scenario, rows: Int[Array, " b"]) -> Scenario:
    """Those rows as a training set of their own, all of which may change."""
    train = Dataset(scenario.train.image[rows], scenario.train.label[rows])
    index = jnp.arange(rows.shape[0], dtype=jnp.int32)
    return Scenario(train, scenario.goal, index, scenario.aux)
