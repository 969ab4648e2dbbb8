"""Sever (Diakonikolas et al. 2019): fit, remove what stands out in gradient space, fit again.

Repeat R times: fit the model to the rows that are left; of every class take the loss gradients G,
G^ = (G - mean) / sqrt(n), v its top right singular vector; row i scores |G^ v|_i; rows stay whose
score is below the (1 - p) quantile of the class (all of them if that quantile is 0). The defender
knows the poisoned set alone. Differs from the release: v is found by Lanczos' method.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check
from jaxpoison.defenses.fits import Fit
from jaxpoison.defenses.known import by_class
from jaxpoison.defenses.per_sample_gradients import OPERATORS, class_blocks, singular_scores
from jaxpoison.defenses.removal import groups, keep_below
from jaxpoison.types import Filter, InputError, Screening, Victim

__all__ = ["ENRON", "REGRESSION", "RELEASE", "SeverSettings", "sever"]


@dataclasses.dataclass(frozen=True)
class SeverSettings:
    """What a round removes, and how many there are.

    Attributes:
      share: p, of the rows left in every class, in each round.
      rounds: R, fits before the victim's own.
      per_class: whether every class has a v and a quantile of its own; else the whole set has one.

    Errors: InputError for a share outside [0, 1), or no round.
    """

    share: float = 0.03
    rounds: int = 5
    per_class: bool = True

    def __post_init__(self):
        check.number(least=0, below=1, share=self.share)
        check.at_least(1, rounds=self.rounds)


RELEASE = SeverSettings()
ENRON = SeverSettings(share=0.017, rounds=2)
REGRESSION = SeverSettings(share=0.3, rounds=8, per_class=False)


def sever(
    victim: Victim,
    fit: Fit,
    settings: SeverSettings = RELEASE,
    *,
    num_classes: int = 10,
    gradients: str = "head",
    iterations: int = 32,
) -> Filter:
    """Sever as a filter; `Known` is not read, as it fits for itself.

    Args:
      victim: the network that `fit` trains.
      fit: `defenses.converged(victim, settings)`, `defenses.trained(training, epochs)`, or another
        (key, dataset, keep [N] bool) -> Variables.
      settings: p, R, and whether by class: `RELEASE` (0.03, 5), `ENRON` (0.017, 2), `REGRESSION`
        (0.3, 8, not by class).
      num_classes: L.
      gradients: "head", of the last layer in closed form; "all", of all of the victim's parameters.
      iterations: of Lanczos' method; see `per_sample_gradients.singular_scores`.

    Returns: a Filter. The score of a row is |G^ v|_i in units of its root mean square over the
      class, in the round that removed it, or the last one. A share p in each of R rounds removes
      about 1 - (1 - p)^R of all rows.
    Errors: InputError for a bad argument.
    Source: Diakonikolas et al. 2019 (ICML), algorithm 1 and released code.
    """
    check.at_least(1, num_classes=num_classes, iterations=iterations)
    check.one_of(OPERATORS, gradients=gradients)
    check.kind(SeverSettings, settings=settings)
    if not callable(fit):
        raise InputError(
            f"fit is a {type(fit).__name__}; it must be defenses.converged(victim, settings), "
            "defenses.trained(training, epochs), or a function of (key, dataset, keep)"
        )
    operator = OPERATORS[gradients]

    def screen(key, dataset, aux):
        del aux
        dataset = jax.tree.map(jnp.asarray, dataset)
        num_rows = dataset.label.shape[0]
        group, num = groups(dataset.label, num_classes if settings.per_class else None)
        blocks = class_blocks(group, num)

        def step(carry, number):
            keep, score = carry
            fit_key, start_key = jax.random.split(jax.random.fold_in(key, number))
            gradient = operator(victim, fit(fit_key, dataset, keep), dataset, blocks)
            weight = blocks.cut(keep.astype(jnp.float32)).astype(score.dtype)
            found = singular_scores(
                start_key, gradient, blocks, weight, iterations=iterations
            ).astype(score.dtype)
            mean = blocks.total(found**2) / jnp.maximum(blocks.total(weight), 1)
            found = found / blocks.of_group(jnp.where(mean > 0, jnp.sqrt(mean), 1))
            found = jnp.where(keep, blocks.rejoin(found, num_rows), score)
            stays, _ = keep_below(found, jnp.where(keep, group, num), num, settings.share)
            return (stays, found), None

        start = jnp.ones(num_rows, bool), jnp.zeros(num_rows, jnp.float32)
        (keep, score), _ = lax.scan(step, start, jnp.arange(settings.rounds))
        return Screening(keep, score)

    return by_class(screen, num_classes if settings.per_class else None)
