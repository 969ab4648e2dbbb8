"""The control: the same share, at random."""

import jax

from jaxpoison.defenses.known import by_class
from jaxpoison.defenses.removal import check_share, groups, keep_below
from jaxpoison.types import Filter, Screening

__all__ = ["random_filter"]


def random_filter(*, share: float = 0.03, num_classes: int | None = None) -> Filter:
    """Score_i ~ U[0, 1); the `share` largest go, of every class where num_classes is given.

    Errors: InputError for a share outside [0, 1) or num_classes < 1.
    Source: baseline of the Armory evaluation.
    """
    check_share(share, num_classes)

    def screen(key, dataset, aux):
        del aux
        score = jax.random.uniform(key, dataset.label.shape)
        keep, _ = keep_below(score, *groups(dataset.label, num_classes), share)
        return Screening(keep, score)

    return by_class(screen, num_classes)
