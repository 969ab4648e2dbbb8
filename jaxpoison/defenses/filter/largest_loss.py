"""Removal by one number per row at a network trained on the set: its loss, its gradient's norm."""

import jax.numpy as jnp
import optax

from jaxpoison import check
from jaxpoison.defenses.known import network
from jaxpoison.defenses.removal import groups, keep_below
from jaxpoison.types import Filter, Screening, Victim
from jaxpoison.victims import logits

__all__ = ["largest_loss"]


def largest_loss(victim: Victim, *, share: float = 0.03, num_classes: int | None = None) -> Filter:
    """Score_i = CE(z_i, y_i); the `share` largest go.

    Args:
      victim: the network; `Known.variables` are its arrays, trained on the set.
      share: p, removed of every group; see `removal.keep_below`.
      num_classes: L, to remove p of every class; None for p of the whole set.

    Errors: InputError for a bad argument, or no network.
    Source: baseline "loss" of Diakonikolas et al. 2019 (Sever), released code.
    """
    check.number(least=0, below=1, share=share)
    if num_classes is not None:
        check.at_least(1, num_classes=num_classes)

    def screen(key, dataset, aux):
        del key
        scores = logits(victim, network(aux), dataset.image)
        label = jnp.asarray(dataset.label)
        loss = optax.softmax_cross_entropy_with_integer_labels(scores, label)
        keep, _ = keep_below(loss, *groups(label, num_classes), share)
        return Screening(keep, loss)

    return Filter(screen)
