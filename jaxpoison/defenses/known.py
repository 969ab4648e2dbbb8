"""What a defender has besides the training set, and how rows are described to a filter."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison.types import Dataset, InputError, Variables, Victim, as_float
from jaxpoison.victims import Extractor, extract
from jaxpoison.victims.evaluate import check_variables

__all__ = ["SPACES", "Known", "network", "trusted", "vectors"]

SPACES = ("data", "features")
"""What a row is a vector of: its stored values, or the input of a network's last layer."""


class Known(NamedTuple):
    """The `aux` of filters; what a filter does not read may be ().

    Attributes:
      variables: of a network trained on the very set that is screened (the defender has no other),
        or of a fixed extractor.
      trusted: a Dataset of rows that are known to be clean.
    """

    variables: Any = ()
    trusted: Any = ()


def network(victim: Victim, aux: Known) -> Variables:
    """The trained network, or an InputError, also for arrays of another network than `victim`."""
    if not isinstance(aux.variables, Variables):
        raise InputError(
            "this filter reads a network trained on the set; Known.variables holds none"
        )
    check_variables(victim, aux.variables, "Known.variables")
    return aux.variables


def trusted(aux: Known) -> Dataset:
    """The clean rows, at least one, or an InputError."""
    if not isinstance(aux.trusted, Dataset) or not len(aux.trusted.label):
        raise InputError("this filter reads clean rows; Known.trusted holds none")
    return aux.trusted


def vectors(space: str, victim: Victim | None, dataset: Dataset, aux: Known) -> Float[Array, "n d"]:
    """Every row as a vector in one of `SPACES`.

    Args:
      space: "data", pixels in [0, 1] or features as they are stored; or "features".
      victim: whose features; read for "features" alone.
      dataset: N rows.
      aux: its network is read for "features".

    Errors: InputError for features without a network.
    """
    if space == "features":
        if victim is None:
            raise InputError("space = features needs a victim")
        dataset = extract(Extractor(victim, network(victim, aux)), dataset)
    return as_float(jnp.asarray(dataset.image)).reshape(dataset.label.shape[0], -1)
