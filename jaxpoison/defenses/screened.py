"""Filters applied and judged: the rows that stay, and how many poisons are among the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool
from sklearn import metrics

from jaxpoison import check
from jaxpoison.defenses.known import Known, check_known, check_labels
from jaxpoison.types import Dataset, Filter, InputError, Key, Screening

__all__ = ["Detection", "detection", "filtered", "refilled", "screen_and_score"]


class Detection(NamedTuple):
    """How well a screening finds the poison; fractions, None where there is nothing to count.

    Attributes:
      removed: rows that it removes.
      true_positive_rate: share of the poisons that it removes.
      false_positive_rate: share of the clean rows that it removes.
      precision: share of poisons among what it removes.
      auc: area under the ROC curve of its score: the probability that a poison scores above a clean
        row; what the score knows whatever the threshold.
    """

    removed: int
    true_positive_rate: float | None
    false_positive_rate: float | None
    precision: float | None
    auc: float | None


def screen_and_score(
    filter: Filter, key: Key, dataset: Dataset, aux: Known, poisoned: Bool[Array | np.ndarray, " n"]
) -> tuple[Screening, Detection]:
    """Screen a set whose poisons are known, in one compiled program per filter and shape.

    Args:
      filter: built once; it is the static argument.
      key: of what the filter draws.
      dataset: N rows as a victim would get them.
      aux: a network trained on this very set, and a slice of clean rows; see `Known`.
      poisoned: [N] bool, the truth; judging reads it, the filter does not.

    Returns: (screening, how it did).
    Errors: InputError for a mask of another length, labels outside [0, filter.num_classes), an aux
      that is no Known of arrays, and what the filter raises.
    """
    check.kind(Filter, filter=filter)
    check_known(aux)
    check_labels(filter.num_classes, dataset, aux)
    screening = _screen(filter, key, dataset, aux)
    return screening, detection(screening, poisoned)


def detection(screening: Screening, poisoned: Bool[Array | np.ndarray, " n"]) -> Detection:
    """`Detection` of a screening against the truth [N]."""
    truth, gone = np.asarray(poisoned, bool), ~np.asarray(screening.keep)
    if truth.shape != gone.shape:
        raise InputError(f"poisoned has shape {truth.shape}; the screening is of {len(gone)} rows")

    def share(of, among):
        return float((of & among).sum() / among.sum()) if among.any() else None

    score = np.nan_to_num(np.asarray(screening.score, np.float64), nan=1e300, posinf=1e300)
    mixed = truth.any() and not truth.all()
    auc = float(metrics.roc_auc_score(truth, score)) if mixed else None
    rates = share(gone, truth), share(gone, ~truth), share(truth, gone)
    return Detection(int(gone.sum()), *rates, auc)


def filtered(dataset: Dataset, screening: Screening) -> Dataset:
    """The rows that stay, in their order, outside traced code.

    Raises: InputError if none stays, or the screening is of another number of rows.
    """
    keep = np.asarray(screening.keep)
    if len(keep) != len(dataset.label):
        raise InputError(f"the screening is of {len(keep)} rows; the set has {len(dataset.label)}")
    if not keep.any():
        raise InputError("the filter removes every row: nothing is left to train on")
    rows = np.flatnonzero(keep)
    return jax.tree.map(lambda x: np.asarray(x)[rows], dataset)


def refilled(key: Key, dataset: Dataset, keep: Bool[Array, " n"]) -> Dataset:
    """A set of the same shape without the removed rows: kept ones, drawn at random, in their place.

    For training inside compiled code, where a set may not shrink: a share p removed weighs some of
    the kept rows twice. With no row kept it is row 0 alone.
    """
    num = dataset.label.shape[0]
    order = jnp.argsort(~keep, stable=True)  # kept rows first
    draw = jax.random.randint(key, (num,), 0, jnp.maximum(jnp.sum(keep), 1))
    rows = jnp.where(keep, jnp.arange(num), order[draw])
    return jax.tree.map(lambda x: jnp.asarray(x)[rows], dataset)


@jax.jit(static_argnums=0)
def _screen(filter, key, dataset, aux):
    return filter.screen(key, dataset, aux)
