"""Whether arrays, labels and classes are those of a network, by its shapes; nothing is computed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpoison import check
from jaxpoison.types import Dataset, Generator, InputError, Variables, Victim

__all__ = ["check_classes", "check_variables", "is_stacked", "num_logits", "stacked"]


def stacked(victim: Victim, variables: Variables) -> Variables:
    """The arrays with a leading axis of victims, added to a single one; else as `is_stacked`."""
    if is_stacked(victim, variables):
        return variables
    return jax.tree.map(lambda x: x[None], variables)


def is_stacked(network: Victim | Generator, variables: Variables) -> bool:
    """Whether the arrays have a leading axis of networks, by the shapes of `network.init`.

    Raises: InputError if they are not this network's, with such an axis or without.
    """
    like = jax.eval_shape(network.init, jax.random.key(0))
    if jax.tree.structure(like) != jax.tree.structure(variables):
        raise InputError("the variables are of another network: their names differ")
    found, wanted = ([x.shape for x in jax.tree.leaves(t)] for t in (variables, like))
    if found == wanted:
        return False
    if len({x[:1] for x in found}) == 1 and [x[1:] for x in found] == wanted:
        return True
    x, y = next(pair for pair in zip(found, wanted, strict=True) if pair[0] != pair[1])
    raise InputError(f"the variables are of another network: an array is {x}, not {y}")


def check_classes(victim: Victim, train: Dataset, num_classes: int | None = None) -> None:
    """That labels, and classes to draw from, are among the logits of a network.

    Args:
      victim: the network.
      train: what it is trained on; traced labels pass.
      num_classes: L of labels that are drawn, then of these too; None where none are.

    Raises: InputError where they are not, or as the network does for rows of another shape.
    """
    found = num_logits(victim, train.image.shape[1:])
    if num_classes is not None and num_classes > found:
        raise InputError(f"num_classes = {num_classes}; the network has {found} logits")
    check.labels(num_classes or found, **{"labels of the training set": train.label})


def check_variables(
    network: Victim, variables: Any, name: str, *, members: int | None = None
) -> None:
    """That the arrays are those of this network, or of `members` of it with a leading axis.

    Args:
      network: by the shapes of its init; nothing is computed.
      variables: the arrays.
      name: what the message calls them.
      members: None for one network, without a leading axis.

    Raises: InputError if they are not.
    """
    expected = jax.eval_shape(network.init, jax.random.key(0))
    if jax.tree.structure(variables) != jax.tree.structure(expected):
        raise InputError(f"{name} is not the Variables of its network: their names differ")
    lead = () if members is None else (members,)
    form = "of one network" if members is None else f"stacked over {members} networks"
    for leaf, want in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        if jnp.shape(leaf) != (*lead, *want.shape):
            raise InputError(
                f"{name} has an array of shape {jnp.shape(leaf)} where {(*lead, *want.shape)} is "
                f"expected, {form}"
            )


def num_logits(victim: Victim, image_shape: Sequence[int]) -> int:
    """L, how many logits a network gives for rows of a shape (H, W, C); nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def scores(key, image):
        return victim.apply(victim.init(key), image, train=False)[0]

    return jax.eval_shape(scores, jax.random.key(0), image).shape[1]
