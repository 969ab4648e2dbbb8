"""Added points that a network makes of base rows: theta is its parameters, not the points."""

import jax.numpy as jnp
from jax import lax

from jaxpoison import tree
from jaxpoison.perturb.free_points import Constraint, check_constraint
from jaxpoison.types import Batch, Dataset, InputError, Leader, Perturbation, as_float

__all__ = ["generated_points"]

BLOCK = 1024  # points that the network makes at a time


def generated_points(
    network: Leader,
    constraint: Constraint = Constraint(),  # noqa: B008
) -> Perturbation:
    """Row N + j is clip(g(x_b(j), y_b(j); theta)), b(j) = scenario.index[j], with that row's label.

    Args:
      network: g.
      constraint: where the points may be; kept by clipping what g makes, through which the gradient
        is zero outside. `project` changes nothing.

    Returns: Perturbation with theta the network's Variables; `apply` takes rows 0 to N + P - 1,
      `release` gives all of them, as `free_points` does.
    Errors: InputError for a network that is no Leader.
    Source: Lu et al. 2022 (TGDA): D_p = leader([label, x_base]).
    """
    if not isinstance(network, Leader):
        raise InputError(f"network is a {type(network).__name__}; a Leader is needed")
    check_constraint(constraint=constraint)

    def init(key, scenario):
        del scenario
        return network.init(key)

    def made(theta, scenario, slots):
        """Points of `slots` of `scenario.index`, and their labels."""
        some = scenario._replace(index=scenario.index[slots])
        base = as_float(scenario.train.image[some.index])
        label = scenario.train.label[some.index]
        return constraint.project(network.apply(theta, base, label), some), label

    def apply(theta, scenario, rows):
        num = scenario.train.label.shape[0]
        added, slots = rows >= num, jnp.maximum(rows - num, 0)
        clean = jnp.minimum(rows, num - 1)
        value, own = made(theta, scenario, slots)
        stored = as_float(scenario.train.image[clean]).astype(value.dtype)
        image = jnp.where(added.reshape(-1, 1, 1, 1), value, stored)
        label = jnp.where(added, own, scenario.train.label[clean]).astype(jnp.int32)
        return Batch(image, label, jnp.ones(rows.shape, image.dtype), rows.astype(jnp.int32))

    def project(theta, scenario):
        del scenario
        return theta

    def added(theta, scenario):
        points = scenario.index.shape[0]
        slots, _ = tree.batches(jnp.arange(points, dtype=jnp.int32), BLOCK)
        value, label = lax.map(lambda some: made(theta, scenario, some), slots)
        value, label = value.reshape(-1, *value.shape[2:])[:points], label.reshape(-1)[:points]
        rows = scenario.train.label.shape[0] + jnp.arange(points, dtype=jnp.int32)
        return Batch(value, label.astype(jnp.int32), jnp.ones(points, value.dtype), rows)

    def release(theta, scenario):
        points = added(theta, scenario)
        clean = as_float(scenario.train.image).astype(points.image.dtype)
        label = jnp.concatenate([scenario.train.label, points.label]).astype(jnp.int32)
        return Dataset(jnp.concatenate([clean, points.image]), label)

    return Perturbation(init, apply, project, release, added)
