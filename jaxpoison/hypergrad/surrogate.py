"""Gradients read at a surrogate that stands still: of an objective batch by batch, or of a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check
from jaxpoison.data.augment import Augmentation
from jaxpoison.hypergrad.alternating import alternating
from jaxpoison.types import Bilevel, Hypergrad, InputError, Objective, Perturbation, Variables

__all__ = ["Aimed", "at_surrogate", "loss_at_surrogate"]


class Aimed(NamedTuple):
    """A surrogate that stands still, and what the objective took from it and the targets."""

    variables: Variables
    aim: Any


def at_surrogate(
    objective: Objective,
    space: Perturbation,
    *,
    batch_size: int = 512,
    augment: Augmentation | None = None,
    full_data: bool = False,
) -> Hypergrad:
    """D objective / d theta at the surrogate of `scenario.aux`, whose parameters do not move.

    The P rows of `scenario.index` are cut, in their order, into batches of `batch_size` (the last
    one may be smaller). Every batch has the whole aim to itself: its rows' gradient is that of its
    own value. The outer loss is the mean of the values over batches.

    With `full_data` the batches are those of an ordinary epoch instead: all N training rows, newly
    shuffled at every step. The objective then reads clean images along with the poisons among them,
    and the outer loss is the mean over the batches that hold a poison.

    Args:
      objective: its value and image gradient.
      space: how theta enters the images.
      batch_size: B.
      augment: of the images of a batch, drawn anew for every image and step; None for none.
      full_data: batches of the whole training set.

    Returns: a Hypergrad whose phi is `Aimed`.
    Raises: InputError for batch_size < 1; at init if `scenario.aux` or `scenario.index` is empty.
    Cost: one `value_and_grad` per batch; memory of one batch and two thetas.
    Source: Geiping et al. 2021, released code (batches, full_data).
    """
    check.at_least(1, batch_size=batch_size)

    def init(key, scenario):
        variables = _surrogate(scenario)
        return Aimed(variables, objective.aim(key, variables, scenario))

    def estimate(key, theta, phi, scenario):
        rows = scenario.index
        if full_data:
            key, order_key = jax.random.split(key)
            rows = jax.random.permutation(order_key, scenario.train.label.shape[0])

        def one(number, rows):
            augment_key, own_key = jax.random.split(jax.random.fold_in(key, number))

            def images(theta):
                batch = space.apply(theta, scenario, rows)
                image = batch.image if augment is None else augment(augment_key, batch.image)
                return image, batch

            image, pull, batch = jax.vjp(images, theta, has_aux=True)
            value, gradient = objective.value_and_grad(
                own_key, phi.variables, phi.aim, batch._replace(image=image), scenario
            )
            counts = jnp.any(jnp.isin(rows, scenario.index)) if full_data else jnp.array(True)
            counts = counts.astype(value.dtype)
            return pull(gradient)[0], counts * value, counts

        gradient, value, count = _over_batches(one, rows, batch_size)
        return gradient, phi, value / count

    return Hypergrad(init, estimate)


def loss_at_surrogate(
    outer_loss: Callable[..., Any], *, prepare: Callable[..., Any] | None = None
) -> Hypergrad:
    """D L(theta, phi) / d theta, phi the surrogate of `scenario.aux`, which never moves.

    Args:
      outer_loss: (key, theta, phi, scenario) -> scalar, minimized; see `rowwise_loss`.
      prepare: (Variables, scenario) -> phi, once: what else the loss reads, such as the features of
        clean images; None for the Variables themselves.

    Returns: a Hypergrad.
    Raises: InputError at init if `scenario.aux` or `scenario.index` is empty.
    """

    def init(key, scenario):
        del key
        variables = _surrogate(scenario)
        return variables if prepare is None else prepare(variables, scenario)

    def fixed(key, theta, phi, scenario):
        raise InputError("the surrogate of scenario.aux stands still; it has no steps of its own")

    return alternating(Bilevel(init, fixed, fixed, outer_loss), inner_steps=0)


def _surrogate(scenario: Any) -> Variables:
    """The network in aux; an InputError where there is none, or no row that may change."""
    check.some_rows(scenario)
    if not jax.tree.leaves(scenario.aux):
        raise InputError("scenario.aux is empty; it must be the trained surrogate's Variables")
    return jax.tree.map(jnp.asarray, scenario.aux)


def _over_batches(one, rows, size):
    """The sum of one(number, rows of that batch) over batches."""
    full, rest = divmod(rows.shape[0], size)
    if not rest:
        full, rest = full - 1, size
    total = one(full, rows[full * size :])
    if full:
        shapes = jax.tree.map(jnp.zeros_like, total)
        jobs = (jnp.arange(full), rows[: full * size].reshape(full, size))
        before, _ = lax.scan(lambda s, job: (_add(s, one(*job)), None), shapes, jobs)
        total = _add(before, total)
    return total


def _add(a, b):
    return jax.tree.map(jnp.add, a, b)
