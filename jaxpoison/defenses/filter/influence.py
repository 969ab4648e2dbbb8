"""Influence functions (Koh & Liang 2017): removal of rows whose weight raises the trusted loss."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpoison import check, tree
from jaxpoison.defenses.known import by_class, network, trusted
from jaxpoison.defenses.per_sample_gradients import class_blocks, parameter_gradients
from jaxpoison.defenses.removal import check_share, groups, keep_below
from jaxpoison.hypergrad import cg, hvp
from jaxpoison.types import Filter, Screening, Variables, Victim, as_float
from jaxpoison.victims import mean_gradient

__all__ = ["influence"]


def influence(
    victim: Victim,
    *,
    share: float = 0.03,
    num_classes: int | None = None,
    damping: float = 1e-2,
    iterations: int = 100,
    tolerance: float = 1e-3,
    batch_size: int = 1000,
) -> Filter:
    """Score_i = max(0, -<g_i, v>), (H + damping I) v = the mean gradient of trusted rows.

    H is the Hessian of the mean loss of the set, g_i the gradient of row i: -<g_i, v> is how fast
    the trusted loss rises with the weight of the row. The `share` largest go; rows that help stay.

    Args:
      victim: the network, at `Known.variables`; a head or a `partial_victim`, as H must be positive
        definite.
      share: p, removed of every group; see `removal.keep_below`.
      num_classes: L, to remove p of every class; None for p of the whole set.
      damping: on the diagonal of H; the weight decay lambda of the victim's training belongs to it.
      iterations: of conjugate gradients, at most.
      tolerance: of its residual, relative to the right-hand side.
      batch_size: rows at a time; changes memory, and the last bits.

    Returns: a Filter that reads both parts of `Known`.
    Errors: InputError for a bad argument, or what is missing in `Known`.
    Source: Koh & Liang 2017 (ICML), equation 2.
    """
    check_share(share, num_classes)
    check.at_least(1, iterations=iterations, batch_size=batch_size)
    check.number(least=0, damping=damping, tolerance=tolerance)

    def screen(key, dataset, aux):
        del key
        dataset, known = jax.tree.map(jnp.asarray, (dataset, network(victim, aux)))
        params, num = known.params, dataset.label.shape[0]
        batches = tree.batches(dataset, batch_size)

        def loss(params, rows, weight):
            z, _ = victim.apply(Variables(params, known.stats), as_float(rows.image), train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(z, rows.label)
            return jnp.sum(losses * weight.astype(losses.dtype)) / num

        def product(v):
            def add(total, job):
                return tree.axpy(1.0, hvp(lambda p: loss(p, *job), params, v), total), None

            return lax.scan(add, jax.tree.map(jnp.zeros_like, v), batches)[0]

        slope = mean_gradient(victim, known, trusted(aux, dataset), batch_size=batch_size)
        solve = {"iterations": iterations, "tolerance": tolerance, "damping": damping}
        v, _ = cg(product, slope, **solve)
        blocks = class_blocks(jnp.zeros_like(dataset.label), 1)
        gradients = parameter_gradients(victim, known, dataset, blocks)
        harm = -gradients.times(jax.tree.map(lambda x: x[None], v))
        score = jnp.maximum(blocks.rejoin(harm, num), 0)
        keep, _ = keep_below(score, *groups(dataset.label, num_classes), share)
        return Screening(keep, score)

    return by_class(screen, num_classes)
