"""The last layer of a network, found by what its features do not need."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpoison.types import InputError, Victim

__all__ = ["head_mask"]


def head_mask(victim: Victim, image_shape: Sequence[int]) -> Any:
    """Which parameters `victim.features` does not depend on: those of the last layer.

    Read from the traced function, nothing is computed; so it asks nothing of a network's names. A
    normalization behind the last layer belongs to it.

    Args:
      victim: the network.
      image_shape: (H, W, C).

    Returns: a pytree of Python bools, like `Variables.params`.
    Raises: InputError if features depend on every parameter, or the network gives none.
    """
    variables = jax.eval_shape(victim.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(victim.features)(variables, image).jaxpr
    needed = _needed(jaxpr, [True] * len(jaxpr.outvars))
    leaves, structure = jax.tree.flatten(variables.params)
    mask = [not used for used in needed[: len(leaves)]]  # params come first in Variables
    if not any(mask):
        raise InputError("the network's features depend on all of its parameters: no last layer")
    return jax.tree.unflatten(structure, mask)


def _needed(jaxpr: Any, wanted: list[bool]) -> list[bool]:
    """Which inputs the wanted outputs depend on; an equation needs all of its inputs, jit's not."""
    outputs = zip(jaxpr.outvars, wanted, strict=True)
    live = {id(v) for v, keep in outputs if keep}
    for equation in reversed(jaxpr.eqns):
        kept = [id(v) in live for v in equation.outvars]
        if not any(kept):
            continue
        inputs = equation.invars
        if equation.primitive.name in ("jit", "pjit"):
            used = _needed(equation.params["jaxpr"].jaxpr, kept)
            inputs = [v for v, keep in zip(inputs, used, strict=True) if keep]
        live.update(id(v) for v in inputs)
    return [id(v) in live for v in jaxpr.invars]
