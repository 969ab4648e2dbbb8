"""Removal by one number per row at a network trained on the set: its loss, its gradient's norm."""

import jax
import jax.numpy as jnp
import optax

from jaxpoison import check
from jaxpoison.defenses.known import by_class, network
from jaxpoison.defenses.per_sample_gradients import OPERATORS, class_blocks
from jaxpoison.defenses.removal import check_share, groups, keep_below
from jaxpoison.types import Filter, Screening, Victim
from jaxpoison.victims import logits

__all__ = ["largest_gradient", "largest_loss"]


def largest_loss(victim: Victim, *, share: float = 0.03, num_classes: int | None = None) -> Filter:
    """Score_i = CE(z_i, y_i); the `share` largest go.

    Args:
      victim: the network; `Known.variables` are its arrays, trained on the set.
      share: p, removed of every group; see `removal.keep_below`.
      num_classes: L, to remove p of every class; None for p of the whole set.

    Errors: InputError for a bad argument, or no network.
    Source: baseline "loss" of Diakonikolas et al. 2019 (Sever), released code.
    """
    check_share(share, num_classes)

    def screen(key, dataset, aux):
        del key
        scores = logits(victim, network(victim, aux), dataset.image)
        label = jnp.asarray(dataset.label)
        loss = optax.softmax_cross_entropy_with_integer_labels(scores, label)
        keep, _ = keep_below(loss, *groups(label, num_classes), share)
        return Screening(keep, loss)

    return by_class(screen, num_classes)


def largest_gradient(
    victim: Victim,
    *,
    share: float = 0.03,
    num_classes: int | None = None,
    gradients: str = "head",
) -> Filter:
    """Score_i = ||d CE(z_i, y_i) / d w||; the `share` largest go.

    Args:
      victim: as in `largest_loss`, like share and num_classes.
      share: as there.
      num_classes: as there.
      gradients: "head", of the last layer in closed form, ||p - e_y|| ||(phi, 1)||; "all", of all
        of the victim's parameters.

    Errors: InputError for a bad argument, no network, or a last layer that is not linear.
    Source: baseline "gradient" of Diakonikolas et al. 2019 (Sever), released code.
    """
    check_share(share, num_classes)
    check.one_of(OPERATORS, gradients=gradients)

    def screen(key, dataset, aux):
        del key
        dataset = jax.tree.map(jnp.asarray, dataset)
        group, num = groups(dataset.label, num_classes)
        blocks = class_blocks(group, num)
        operator = OPERATORS[gradients](victim, network(victim, aux), dataset, blocks)
        score = blocks.rejoin(operator.norm(), dataset.label.shape[0])
        return Screening(keep_below(score, group, num, share)[0], score)

    return by_class(screen, num_classes)
