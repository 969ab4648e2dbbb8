"""The gradient of an objective that is read at a surrogate, batch after batch of poisons."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check
from jaxpoison.data.augment import Augmentation
from jaxpoison.types import Hypergrad, InputError, Objective, Perturbation, Variables

__all__ = ["Aimed", "at_surrogate"]


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
) -> Hypergrad:
    """D objective / d theta at the surrogate of `scenario.aux`, whose parameters do not move.

    The P rows of `scenario.index` are cut, in their order, into batches of `batch_size` (the last
    one may be smaller). Every batch has the whole aim to itself: its rows' gradient is that of its
    own value. The outer loss is the mean of the values over batches.

    Args:
      objective: its value and image gradient.
      space: how theta enters the images.
      batch_size: B.
      augment: of the poisons, drawn anew for every image and step; None for none.

    Returns: a Hypergrad whose phi is `Aimed`.
    Raises: InputError for batch_size < 1; at init if `scenario.aux` or `scenario.index` is empty.
    Source: Geiping et al. 2021, released code (batches).
    """
    check.at_least(1, batch_size=batch_size)

    def init(key, scenario):
        check.some_rows(scenario)
        if not jax.tree.leaves(scenario.aux):
            raise InputError("scenario.aux is empty; it must be the trained surrogate's Variables")
        variables = jax.tree.map(jnp.asarray, scenario.aux)
        return Aimed(variables, objective.aim(key, variables, scenario))

    def estimate(key, theta, phi, scenario):
        rows = scenario.index
        image, pull = jax.vjp(lambda theta: space.apply(theta, scenario, rows).image, theta)

        def one(job):
            number, rows, image = job
            augment_key, own_key = jax.random.split(jax.random.fold_in(key, number))
            batch = space.apply(lax.stop_gradient(theta), scenario, rows)
            back = None
            if augment is not None:
                image, back = jax.vjp(lambda x: augment(augment_key, x), image)
            batch = batch._replace(image=image)
            value, gradient = objective.value_and_grad(
                own_key, phi.variables, phi.aim, batch, scenario
            )
            return value, gradient if back is None else back(gradient)[0]

        values, gradient = _in_batches(one, rows, image, batch_size)
        return pull(gradient)[0], phi, jnp.mean(values)

    return Hypergrad(init, estimate)


def _in_batches(one, rows, image, size):
    """`one` of each batch in turn; the values [K], the gradients as one array of the P rows."""
    num = rows.shape[0]
    full, rest = num // size, num % size
    values, gradients = [], []
    if full:
        cut = full * size
        shape = (full, size)
        jobs = (
            jnp.arange(full),
            rows[:cut].reshape(shape),
            image[:cut].reshape(*shape, *image.shape[1:]),
        )
        value, gradient = lax.map(one, jobs)
        values.append(value)
        gradients.append(gradient.reshape(cut, *image.shape[1:]))
    if rest:
        value, gradient = one((full, rows[num - rest :], image[num - rest :]))
        values.append(value[None])
        gradients.append(gradient)
    return jnp.concatenate(values), jnp.concatenate(gradients)
