"""Data-parallel training: batches divided over the devices of a mesh axis, the rest on each.

Only constraints on where arrays stand; XLA's partitioner divides the convolutions and adds up what
crosses devices (gradients, BatchNorm's sums) with all-reduces. Without a mesh all of it is the
identity.
"""

from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxpoison.over import axis_size
from jaxpoison.types import InputError, Victim

__all__ = ["check_mesh", "everywhere", "spread", "spread_victim"]


def spread(x: Array, mesh: Mesh | None, axis: str) -> Array:
    """Rows [B, ...] divided over a mesh axis; where it does not divide B, whole on each device."""
    if mesh is None:
        return x
    rows = P(axis) if x.shape[0] % mesh.shape[axis] == 0 else P()
    return lax.with_sharding_constraint(x, NamedSharding(mesh, rows))


def spread_victim(victim: Victim, mesh: Mesh | None, axis: str) -> Victim:
    """The same network, every batch of images divided over a mesh axis."""
    if mesh is None:
        return victim

    def apply(variables, image, **options):
        return victim.apply(variables, spread(image, mesh, axis), **options)

    return victim._replace(apply=apply)


def everywhere(values: Any, mesh: Mesh | None) -> Any:
    """A copy of every leaf on every device of the mesh."""
    if mesh is None:
        return values
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, NamedSharding(mesh, P())), values)


def check_mesh(mesh: Mesh | None, axis: str, batch_size: int) -> None:
    """An `InputError` unless the mesh has the axis and divides a batch."""
    if mesh is None:
        return
    size = axis_size(mesh, axis)
    if batch_size % size:
        raise InputError(
            f"batch_size = {batch_size} cannot be spread evenly over {size} devices of axis "
            f"{axis!r}; it must be a multiple of {size}"
        )
