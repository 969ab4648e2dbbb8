"""What a defender has besides the training set, and how rows are described to a filter."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.types import (
    Dataset,
    Filter,
    InputError,
    Screening,
    TrainState,
    Variables,
    Victim,
    as_float,
)
from jaxpoison.victims import Extractor, extract
from jaxpoison.victims.checks import check_variables

__all__ = [
    "SPACES",
    "Known",
    "by_class",
    "check_known",
    "check_labels",
    "network",
    "trusted",
    "vectors",
]

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
    check_known(aux)
    if isinstance(aux.variables, TrainState):
        raise InputError("Known.variables is a TrainState; write Known(state.variables, ...)")
    if not isinstance(aux.variables, Variables):
        raise InputError(
            "this filter reads a network trained on the set; Known.variables holds none"
        )
    check_variables(victim, aux.variables, "Known.variables")
    return aux.variables


def trusted(aux: Known, dataset: Dataset) -> Dataset:
    """The clean rows, at least one and like those of the set, or an InputError."""
    check_known(aux)
    if not isinstance(aux.trusted, Dataset) or not len(aux.trusted.label):
        raise InputError("this filter reads clean rows; Known.trusted holds none")
    if (found := aux.trusted.image.shape[1:]) != (own := dataset.image.shape[1:]):
        raise InputError(f"rows of Known.trusted have shape {found}; those of the set have {own}")
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


def by_class(screen: Callable[..., Screening], num_classes: int | None) -> Filter:
    """The filter of a screening that goes by labels in [0, num_classes); None goes by none.

    Labels are checked where they are concrete: here outside traced code, else by
    `screen_and_score`.
    """

    def checked(key, dataset, aux):
        check_labels(num_classes, dataset, aux)
        return screen(key, dataset, aux)

    return Filter(checked, num_classes)


def check_labels(num_classes: int | None, dataset: Dataset, aux: Known) -> None:
    """Labels of the set and of trusted rows; traced ones, and all of None classes, pass."""
    if num_classes is not None:
        check.labels(num_classes, labels=dataset.label)
        if isinstance(aux, Known) and isinstance(aux.trusted, Dataset):
            check.labels(num_classes, **{"labels of Known.trusted": aux.trusted.label})


def check_known(aux: Any) -> None:
    """A Known of arrays."""
    if not isinstance(aux, Known):
        kind = type(aux).__name__
        raise InputError(f"aux is a {kind}; it must be Known(variables, trusted)")
    if any(callable(leaf) for leaf in jax.tree.leaves(aux)):
        raise InputError("Known holds functions (a Victim?); it must hold Variables and a Dataset")
