"""One delta per image, and the poisoned data set that any perturbation makes."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.perturb.budget import Budget
from jaxpoison.perturb.initial import check_initial
from jaxpoison.perturb.projections import project
from jaxpoison.types import Batch, Dataset, Key, Perturbation, Scenario, as_float

__all__ = ["per_sample", "poison"]

Rows = Int[Array, " b"]
Theta = Float[Array, "p h w c"]


def per_sample(budget: Budget, *, init: Any = "zero") -> Perturbation:
    """Image r becomes x_r + theta[slot of r] if r is in `scenario.index`, else stays x_r.

    Args:
      budget: norm and radius that `project` keeps, jointly with the box 0 <= x + theta <= 1.
      init: "zero", "uniform" (in the ball), "normal" (eps N(0, I)) or a function
        (key, shape, dtype, budget) -> delta; what it draws is projected.

    Returns:
      Perturbation with theta [P, H, W, C] float32 (float64 where the images are), theta[i]
      belonging to row index[i]. `apply` does not clip: after `project` the image is in the box,
      before it the gradient passes everywhere. At eps = 0 it returns the clean bits.

    Errors:
      InputError: `init` is unknown.
    """
    draw = check_initial(init)

    def start(key: Key, scenario: Scenario) -> Theta:
        clean = _changed(scenario)
        delta = draw(key, clean.shape, clean.dtype, budget)
        return project(delta, clean, budget)

    def apply(theta: Theta, scenario: Scenario, rows: Rows) -> Batch:
        clean = as_float(scenario.train.image[rows])
        image = clean
        if scenario.index.shape[0]:
            slot = slots(scenario)[rows]
            changed = (slot >= 0).reshape(-1, 1, 1, 1)
            delta = theta[jnp.maximum(slot, 0)]
            image = clean + jnp.where(changed, delta, jnp.zeros_like(delta))
        return _batch(image, scenario, rows)

    def keep(theta: Theta, scenario: Scenario) -> Theta:
        return project(theta, _changed(scenario), budget)

    return Perturbation(init=start, apply=apply, project=keep)


def poison(
    space: Perturbation, theta: Any, scenario: Scenario, *, batch_size: int = 1024
) -> Dataset:
    """The whole training set as `space` poisons it, before rounding to grey levels.

    image[r] = clip(space.apply(theta, scenario, r).image, 0, 1) for all N rows, computed
    `batch_size` rows at a time, so that spaces with a network need no more memory than a batch.
    After `project` the clip only removes rounding errors: compiled code may fuse u / 255 + delta.
    A space with a `release` of its own (one that adds rows) gives that instead.

    Args:
      space: any perturbation of the rows of `scenario.train`.
      theta: its variables.
      scenario: what `theta` belongs to.
      batch_size: rows per block; changes nothing but memory and speed.

    Returns:
      Dataset, image [N, H, W, C] float32 in [0, 1] (rows outside `scenario.index` are exactly
      `as_float` of the stored ones), label [N].

    Errors:
      InputError: batch_size < 1.
    """
    check.at_least(1, batch_size=batch_size)
    if space.release is not None:
        return space.release(theta, scenario)
    train = Dataset(*map(jnp.asarray, scenario.train))  # rows are taken from it in a scan
    scenario = scenario._replace(train=train, index=jnp.asarray(scenario.index))
    num = scenario.train.image.shape[0]
    if num <= batch_size:
        batch = space.apply(theta, scenario, jnp.arange(num, dtype=jnp.int32))
        return Dataset(jnp.clip(batch.image, 0, 1), batch.label)
    num_blocks = -(-num // batch_size)
    rows = jnp.minimum(jnp.arange(num_blocks * batch_size, dtype=jnp.int32), num - 1)

    def block(rows: Rows) -> tuple[Array, Array]:
        batch = space.apply(theta, scenario, rows)
        return jnp.clip(batch.image, 0, 1), batch.label

    image, label = jax.lax.map(block, rows.reshape(num_blocks, batch_size))
    return Dataset(image.reshape(-1, *image.shape[2:])[:num], label.reshape(-1)[:num])


def _changed(scenario: Scenario) -> Float[Array, "p h w c"]:
    """The clean images of the rows that may change, float32 or wider."""
    clean = as_float(scenario.train.image[scenario.index])
    return clean.astype(jnp.promote_types(clean.dtype, jnp.float32))


def slots(scenario: Scenario) -> Int[Array, " n"]:
    """For each training row its place in `scenario.index`, or -1."""
    index = scenario.index
    slots = jnp.full(scenario.train.label.shape, -1, jnp.int32)
    return slots.at[index].set(jnp.arange(index.shape[0], dtype=jnp.int32))


def _batch(image: Float[Array, "b h w c"], scenario: Scenario, rows: Rows) -> Batch:
    ones = jnp.ones(rows.shape, jnp.float32)
    return Batch(image, scenario.train.label[rows], ones, rows.astype(jnp.int32))
