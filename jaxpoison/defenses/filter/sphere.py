"""Sphere and slab (Steinhardt et al. 2017): removal by the distance to the mean of the class."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.defenses.known import SPACES, Known, by_class, network, trusted, vectors
from jaxpoison.defenses.per_sample_gradients import (
    OPERATORS,
    class_blocks,
    gradient_gaps,
    mean_gradients,
)
from jaxpoison.defenses.removal import check_share, groups, keep_below
from jaxpoison.types import Dataset, Filter, InputError, Screening, Victim

__all__ = ["slab", "sphere"]

CENTERS = ("set", "trusted")


def sphere(
    *,
    share: float = 0.03,
    num_classes: int | None = None,
    space: str = "data",
    victim: Victim | None = None,
    center: str = "set",
    gradients: str = "head",
) -> Filter:
    """Score_i = ||x_i - mu_y||, mu_y the mean of the class; the `share` largest go.

    Args:
      share: p, removed of every class; see `removal.keep_below`.
      num_classes: L; None for one mean and one quantile of the whole set.
      space: what x is: "data", "features" of `Known.variables`, or "gradients" of the loss there.
      victim: the network, for features and gradients.
      center: mean of the "set" that is screened, or of "trusted" rows, which poison cannot move.
      gradients: "head" or "all", as in `largest_gradient`.

    Returns: a Filter. A class without trusted rows has no mean: its scores are NaN, and it is kept
      whole.
    Errors: InputError for a bad argument, or what is missing in `Known`.
    Source: Steinhardt et al. 2017 (NeurIPS), section 2; in data and gradient space baselines "l2"
      and "gradientCentered" of Diakonikolas et al. 2019 (Sever), released code.
    """
    check_share(share, num_classes)
    check.one_of((*SPACES, "gradients"), space=space)
    check.one_of(CENTERS, center=center)
    check.one_of(OPERATORS, gradients=gradients)
    if space == "gradients" and victim is None:
        raise InputError("space = gradients needs a victim")

    def screen(key, dataset, aux):
        del key
        dataset = jax.tree.map(jnp.asarray, dataset)
        own, num = groups(dataset.label, num_classes)
        clean = _clean(center, dataset, aux)
        other, _ = groups(clean.label, num_classes)
        if victim is not None and space == "gradients":
            make = OPERATORS[gradients]
            blocks, away = class_blocks(own, num), class_blocks(other, num)
            there = make(victim, network(victim, aux), clean, away)
            mean = mean_gradients(there, away, other.shape[0])
            here = make(victim, network(victim, aux), dataset, blocks)
            score = blocks.rejoin(gradient_gaps(here, blocks, mean), own.shape[0])
        else:
            x, z = (vectors(space, victim, rows, aux) for rows in (dataset, clean))
            score = jnp.linalg.norm(x - _means(z, other, num)[own], axis=1)
        return Screening(keep_below(score, own, num, share)[0], score)

    return by_class(screen, num_classes)


def slab(
    num_classes: int,
    *,
    share: float = 0.03,
    space: str = "data",
    victim: Victim | None = None,
    center: str = "set",
) -> Filter:
    """Score_i = |<mu_y - mu_rest, x_i - mu_y>|; the `share` largest of every class go.

    mu_rest is the mean of all rows of other classes: with two classes the published score. A
    distance along the axis between classes alone, which the sphere of many dimensions drowns.

    Args:
      num_classes: L, at least 2.
      share: as in `sphere`, like space, victim and center.
      space: "data" or "features".
      victim: as there.
      center: as there.

    Returns: a Filter; see `sphere` for a class without trusted rows.
    Errors: InputError for a bad argument, or what is missing in `Known`.
    Source: Steinhardt et al. 2017 (NeurIPS), section 2, of two classes.
    """
    check_share(share, num_classes)
    check.at_least(2, num_classes=num_classes)
    check.one_of(SPACES, space=space)
    check.one_of(CENTERS, center=center)

    def screen(key, dataset, aux):
        del key
        dataset = jax.tree.map(jnp.asarray, dataset)
        clean, group = _clean(center, dataset, aux), dataset.label
        x, z = (vectors(space, victim, rows, aux) for rows in (dataset, clean))
        count = jnp.bincount(clean.label, length=num_classes)[:, None]
        mean = _means(z, clean.label, num_classes)
        total = jnp.where(count > 0, count * mean, 0)
        rest = (jnp.sum(total, axis=0)[None] - total) / (jnp.sum(count) - count)
        along = jnp.sum((mean - rest)[group] * (x - mean[group]), axis=1)
        score = jnp.abs(along)
        return Screening(keep_below(score, group, num_classes, share)[0], score)

    return by_class(screen, num_classes)


def _clean(center: str, dataset: Dataset, aux: Known) -> Dataset:
    if center == "set":
        return dataset
    return jax.tree.map(jnp.asarray, trusted(aux, dataset))


def _means(x: Float[Array, "n d"], group: Int[Array, " n"], num: int) -> Float[Array, "g d"]:
    """Of every group; NaN for an empty one."""
    count = jnp.bincount(group, length=num)[:, None]
    return jax.ops.segment_sum(x, group, num) / count
