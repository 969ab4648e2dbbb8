"""From scores to rows that stay: below the (1 - p) quantile of their group."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpoison import check

__all__ = ["check_share", "group_quantiles", "groups", "keep_below"]


def check_share(share: float, num_classes: int | None) -> None:
    """An InputError unless share is in [0, 1), and num_classes at least 1 or None."""
    check.number(least=0, below=1, share=share)
    if num_classes is not None:
        check.at_least(1, num_classes=num_classes)


def groups(label: Int[Array, " n"], num_classes: int | None) -> tuple[Int[Array, " n"], int]:
    """(group of every row, how many): its class, or one group of all where num_classes is None."""
    if num_classes is None:
        return jnp.zeros_like(label), 1
    return label, num_classes


def group_quantiles(
    score: Float[Array, " n"], group: Int[Array, " n"], num: int, level: float | Float[Array, ""]
) -> Float[Array, " g"]:
    """The `level` quantile of every group's scores, linear between neighbors as numpy's default.

    Args:
      score: of every row, not NaN.
      group: 0 to G - 1; rows of group G are left out.
      num: G.
      level: in [0, 1].

    Returns: [G]; infinity for an empty group.
    """
    order = jnp.lexsort((score, group))
    ranked = score[order]
    count = jnp.bincount(group, length=num)  # which drops group G
    start, last = jnp.cumsum(count) - count, jnp.maximum(count - 1, 0)
    place = level * last.astype(score.dtype)
    below = jnp.floor(place).astype(start.dtype)
    low, high = ranked[start + below], ranked[start + jnp.minimum(below + 1, last)]
    share = place - below
    between = low + jnp.where(share > 0, share * (high - low), 0)  # infinity minus itself is NaN
    return jnp.where(count > 0, jnp.where(high == low, low, between), jnp.inf)


def keep_below(
    score: Float[Array, " n"],
    group: Int[Array, " n"],
    num: int,
    share: float | Float[Array, ""],
) -> tuple[Bool[Array, " n"], Float[Array, " g"]]:
    """Keep_i = score_i < the (1 - share) quantile of its group.

    A group whose quantile is 0 is kept whole (Sever's rule), and so is one in which no score is
    below it, as in a group of two equal scores; share = 0 keeps everything. NaN counts as infinity.

    Args:
      score: at least 0, larger is more suspicious.
      group: 0 to G - 1; rows of group G do not count, and are not kept.
      num: G.
      share: p in [0, 1).

    Returns: (keep [N], the quantiles [G]).
    """
    score = jnp.where(jnp.isnan(score), jnp.inf, score)
    limit = group_quantiles(score, group, num, 1 - share)
    own = limit[jnp.minimum(group, num - 1)]
    below = score < own
    some = jax.ops.segment_max(below.astype(jnp.int32), group, num) > 0
    whole = (limit <= 0) | ~some | (jnp.asarray(share) <= 0)
    keep = below | whole[jnp.minimum(group, num - 1)]
    return keep & (group < num), limit
