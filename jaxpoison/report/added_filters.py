"""Filters against added points: what they remove, and followers that learn from what is left."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import tree
from jaxpoison.defenses import Known, refilled, screen_and_score
from jaxpoison.report.added_sides import Side
from jaxpoison.types import Dataset, Key, TrainState
from jaxpoison.victims import Interval, ToConvergence, assess, converge, interval

__all__ = ["gather_filters", "screened"]

RATES = ("true_positive_rate", "false_positive_rate", "precision", "auc")


def screened(
    side: Side, label: str, train: Dataset, state: TrainState, num_added: int, key: Key
) -> dict[str, Any]:
    """Every filter of a player on one training set, judged by its reference follower.

    Args:
      side: the player.
      label: of the training set.
      train: as followers see it, the added points last.
      state: the reference follower's victims of it; filters know the network of seed 0.
      num_added: P.
      key: of the filters.

    Returns: by name {removed, true_positive_rate, false_positive_rate, precision, auc,
      final_accuracy} after a fresh fit to the rows that stay.
    """
    num = len(train.label)
    poison = np.arange(num) >= num - num_added
    aux = Known(tree.take(state.variables, 0), side.trusted)
    found = {}
    for number, (name, one) in enumerate(side.player.filters.items()):
        own = jax.random.fold_in(key, number)
        screening, detection = screen_and_score(one, own, train, aux, poison)
        accuracy = _refit(side, f"{label}/{name}", train, screening.keep, num_added, own)
        found[name] = detection._asdict() | {
            "final_accuracy": None if accuracy is None else accuracy._asdict()
        }
    return found


def gather_filters(found: list[dict[str, Any]]) -> None:
    """What filters did under several attack keys, as intervals in `craft_seeds` of the first.

    Args:
      found: by attack key, as of `screened`; the first is changed. A rate that one of them lacks
        has none.
    """
    for name, first in found[0].items():
        every = [one[name] for one in found]
        rates = {field: [one[field] for one in every] for field in RATES}
        fits = [one["final_accuracy"] for one in every]
        rates["final_accuracy"] = [fit and fit["mean"] for fit in fits]
        first["craft_seeds"] = {
            field: None if None in values else interval(values)._asdict()
            for field, values in rates.items()
        }


def _refit(
    side: Side, label: str, train: Dataset, keep: jax.Array, num_added: int, key: Key
) -> Interval | None:
    """Accuracy after a fit to the rows that stay, in the programs that all sets of this size share.

    SGD sees kept rows, drawn at random, in the place of those that went; L-BFGS gives them weight
    zero.
    """
    player, keep = side.player, jnp.asarray(keep)
    how = player.followers[player.reference]
    if not bool(keep.any()):
        return None
    if not isinstance(how, ToConvergence):
        rest = refilled(jax.random.fold_in(key, 1), train, keep)
        return side.learn_filtered(player.reference, label, rest)
    clean = keep[: len(keep) - num_added]
    if not bool(clean.any()):
        return None
    weights = jnp.where(jnp.arange(len(keep)) < len(clean), 1.0, how.added_weight) * keep
    rates = []
    for start in side.starts(player.reference):
        variables, _ = converge(
            player.victim, start, train, how, num_clean=jnp.sum(clean), row_weights=weights
        )
        rates.append(assess(player.victim, variables, side.test[side.seen]).accuracy.mean)
    return interval(rates)
