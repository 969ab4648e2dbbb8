"""Deep k-NN (Peri et al. 2020): removal of rows whose neighbors in feature space disagree.

Squared distances are ||a||^2 + ||b||^2 - 2 <a, b> over the whole set, a block of rows at a time.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree
from jaxpoison.defenses.known import SPACES, by_class, vectors
from jaxpoison.defenses.removal import check_share, groups, keep_below
from jaxpoison.types import Filter, InputError, Screening, Victim

__all__ = ["deep_knn", "knn_distance", "nearest"]

VOTES = ("half", "plurality")


def deep_knn(
    num_neighbors: int,
    *,
    victim: Victim | None = None,
    space: str = "features",
    vote: str = "half",
    num_classes: int = 10,
    batch_size: int = 2048,
) -> Filter:
    """Keep rows whose label at least half of their k nearest others have.

    Args:
      num_neighbors: k; the code of Geiping et al. takes floor(2 b) for b expected poisons.
      victim: whose features, at `Known.variables`; for space = "features".
      space: "features" or "data" (of a set of features these are the same).
      vote: "half", the row itself excluded, a tie is kept; "plurality", the row itself is one of
        the k, and goes if another label has more votes than its own.
      num_classes: L.
      batch_size: rows at a time; changes memory.

    Returns: a Filter; its score is the share of neighbors of another label for "half", and the lead
      of the strongest other label in votes / k for "plurality".
    Errors: InputError for a bad argument, no network, or k of fewer rows.
    Cost: 2 N^2 D operations, [batch_size, N] distances at a time.
    Source: Peri et al. 2020 and released code ("plurality"); "half" is the code of Geiping et al.
      2021 (Witches' Brew).
    """
    check.at_least(1, num_neighbors=num_neighbors, num_classes=num_classes, batch_size=batch_size)
    check.one_of(VOTES, vote=vote)
    if vote == "plurality":
        check.at_least(2, num_neighbors=num_neighbors)
    _check_space(space, victim)

    def screen(key, dataset, aux):
        del key
        label = jnp.asarray(dataset.label)
        x = vectors(space, victim, dataset, aux)
        others = num_neighbors if vote == "half" else num_neighbors - 1
        _, rows = nearest(x, others, batch_size=batch_size)
        votes = jnp.sum(jax.nn.one_hot(label[rows], num_classes, dtype=jnp.float32), axis=1)
        mine = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
        own = jnp.sum(votes * mine, axis=1)
        if vote == "half":
            return Screening(2 * own >= num_neighbors, 1 - own / num_neighbors)
        rival = jnp.max(votes * (1 - mine), axis=1)
        return Screening(rival <= own + 1, (rival - own - 1) / num_neighbors)

    return by_class(screen, num_classes)


def knn_distance(
    num_neighbors: int,
    *,
    share: float = 0.03,
    num_classes: int | None = None,
    victim: Victim | None = None,
    space: str = "features",
    batch_size: int = 2048,
) -> Filter:
    """Score_i = distance to the k-th nearest other row; the `share` largest go.

    Args:
      num_neighbors: k.
      share: p; see `removal.keep_below`.
      num_classes: L, to remove p of every class (distances are over the whole set); or None.
      victim: as in `deep_knn`, like space and batch_size.
      space: as there.
      batch_size: as there.

    Returns: a Filter. A group of more than k equal poisons hides from it.
    Errors: as of `deep_knn`.
    Source: Ramaswamy et al. 2000 (SIGMOD), the outlier score by the k-th neighbor.
    """
    check.at_least(1, num_neighbors=num_neighbors, batch_size=batch_size)
    check_share(share, num_classes)
    _check_space(space, victim)

    def screen(key, dataset, aux):
        del key
        x = vectors(space, victim, dataset, aux)
        score = nearest(x, num_neighbors, batch_size=batch_size)[0][:, -1]
        keep, _ = keep_below(score, *groups(jnp.asarray(dataset.label), num_classes), share)
        return Screening(keep, score)

    return by_class(screen, num_classes)


def nearest(
    x: Float[Array, "n d"], num: int, *, batch_size: int
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """(Euclidean distances, row numbers) of the k nearest other rows, nearest first.

    Errors: InputError for fewer than k + 1 rows.
    """
    rows = x.shape[0]
    if num >= rows:
        raise InputError(f"{num} neighbors of {rows} rows; at most {rows - 1} are others")
    square = jnp.sum(x**2, axis=1)
    batches, _ = tree.batches((x, jnp.arange(rows)), batch_size)

    def block(job):
        some, own = job
        gap = jnp.sum(some**2, axis=1)[:, None] + square[None] - 2 * some @ x.T
        gap = jnp.where(own[:, None] == jnp.arange(rows)[None], jnp.inf, gap)
        closest, which = lax.top_k(-gap, num)
        return jnp.sqrt(jnp.maximum(-closest, 0)), which

    found = lax.map(block, batches)
    return jax.tree.map(lambda a: a.reshape(-1, num)[:rows], found)


def _check_space(space: str, victim: Victim | None) -> None:
    check.one_of(SPACES, space=space)
    if space == "features" and victim is None:
        raise InputError("space = features needs a victim")
