"""The last layer of a network, found by what its features do not need; networks of some parameters.

`partial_victim(victim, head_mask(victim, shape))` is the last layer alone as a network on images:
what trains or attacks it reads and moves nothing else.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpoison.types import InputError, Key, Variables, Victim

__all__ = [
    "head_mask",
    "join",
    "new_head",
    "part",
    "partial_variables",
    "partial_victim",
    "whole_variables",
]

CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}
"""Equations that run one program on their own inputs; any other needs all of its inputs."""


def head_mask(victim: Victim, image_shape: Sequence[int]) -> Any:
    """Which parameters `victim.features` does not depend on: those of the last layer.

    Read from the traced function, nothing is computed; so it asks nothing of a network's names. A
    normalization behind the last layer belongs to it, and all of a linear classifier, whose
    features are the pixels.

    Args:
      victim: the network.
      image_shape: (H, W, C).

    Returns: a pytree of Python bools, like `Variables.params`.
    Raises: InputError if features depend on every parameter, or the network gives none.
    """
    return jax.tree.map(lambda used: not used, _used(victim, image_shape).params)


def new_head(
    key: Key, victim: Victim, variables: Variables, *, image_shape: Sequence[int]
) -> Variables:
    """The network with its last layer as `victim.init(key)` draws it, all else as it was.

    Running statistics behind the features start anew as well. The arrays may be of a network of
    the same architecture with another number of classes.

    Args:
      key: of the new layer.
      victim: the network that is returned.
      variables: pretrained arrays of it, or of that other network.
      image_shape: (H, W, C).

    Raises: InputError as `head_mask`, and for arrays whose extractor is another one.
    """
    used, fresh = _used(victim, image_shape), victim.init(key)
    if jax.tree.structure(fresh) != jax.tree.structure(variables):
        raise InputError("the pretrained variables are of another network: their names differ")

    def choose(used, fresh, old):
        if used and fresh.shape != jnp.shape(old):
            raise InputError(
                "the pretrained variables are of another network: before its last layer an array "
                f"is {jnp.shape(old)}, not {fresh.shape}"
            )
        return jnp.array(old, fresh.dtype) if used else fresh

    return jax.tree.map(choose, used, fresh, variables)


def partial_victim(victim: Victim, mask: Any) -> Victim:
    """The network as a function of the parameters in `mask`; all else is constant, in eval mode.

    The constants stand in `stats`: {"extractor": the other parameters, "stats": the statistics}.

    Args:
      victim: the whole network.
      mask: a pytree of Python bools, like its `Variables.params`.

    Returns: a Victim whose params are a list of the arrays in `mask`; see `partial_variables`.
    """

    def init(key):
        return partial_variables(victim.init(key), mask)

    def apply(variables, image, *, train, key=None):
        del train, key
        return victim.apply(whole_variables(variables, mask), image, train=False)[
            0
        ], variables.stats

    def features(variables, image):
        return victim.features(whole_variables(variables, mask), image)

    return Victim(init, apply, features)


def partial_variables(variables: Variables, mask: Any) -> Variables:
    """The arrays of a network as its `partial_victim` takes them."""
    own, others = part(variables.params, mask)
    return Variables(own, {"extractor": others, "stats": variables.stats})


def whole_variables(variables: Variables, mask: Any) -> Variables:
    """The arrays of a `partial_victim` as the whole network takes them."""
    params = join(mask, variables.params, variables.stats["extractor"])
    return Variables(params, variables.stats["stats"])


def part(values: Any, mask: Any) -> tuple[list[Any], list[Any]]:
    """The leaves whose mask is True, and the others, both in the order of the tree."""
    pairs = list(zip(jax.tree.leaves(values), jax.tree.leaves(mask), strict=True))
    return [x for x, own in pairs if own], [x for x, own in pairs if not own]


def join(mask: Any, own: Sequence[Any], others: Sequence[Any]) -> Any:
    """The tree of which `own` and `others` are the two parts."""
    first, second = iter(own), iter(others)
    return jax.tree.map(lambda is_own: next(first if is_own else second), mask)


def _used(victim: Victim, image_shape: Sequence[int]) -> Variables:
    """Whether `features` depends on an array of the network, for each of them."""
    variables = jax.eval_shape(victim.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jaxpr = jax.make_jaxpr(victim.features)(variables, image).jaxpr
    needed = _needed(jaxpr, [True] * len(jaxpr.outvars))
    leaves, structure = jax.tree.flatten(variables)
    used = jax.tree.unflatten(structure, needed[: len(leaves)])
    if all(jax.tree.leaves(used.params)):
        raise InputError("the network's features depend on all of its parameters: no last layer")
    return used


def _needed(jaxpr: Any, wanted: list[bool]) -> list[bool]:
    """Which inputs the wanted outputs depend on."""
    outputs = zip(jaxpr.outvars, wanted, strict=True)
    live = {id(v) for v, keep in outputs if keep}
    for equation in reversed(jaxpr.eqns):
        kept = [id(v) in live for v in equation.outvars]
        if not any(kept):
            continue
        inputs, inner = equation.invars, _inner(equation)
        if inner is not None:
            used = _needed(inner, kept)
            inputs = [v for v, keep in zip(inputs, used, strict=True) if keep]
        live.update(id(v) for v in inputs)
    return [id(v) in live for v in jaxpr.invars]


def _inner(equation: Any) -> Any:
    """The program that an equation calls; None for any other equation."""
    if equation.primitive.name not in CALLS:
        return None
    programs = [getattr(value, "jaxpr", value) for value in equation.params.values()]
    programs = [p for p in programs if hasattr(p, "eqns") and len(p.invars) == len(equation.invars)]
    return programs[0] if len(programs) == 1 else None
