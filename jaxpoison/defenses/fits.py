"""How a filter that fits for itself trains: a model of the rows that it has kept so far."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxpoison import check
from jaxpoison.defenses.screened import refilled
from jaxpoison.types import Dataset, Key, Split, Training, Variables, Victim
from jaxpoison.victims import ToConvergence, converge, convergent_training

__all__ = ["Fit", "converged", "trained"]

Fit = Callable[[Key, Dataset, Array], Variables]
"""(key, dataset, keep [N] bool) -> the network trained on the rows that are kept."""


def converged(victim: Victim, settings: ToConvergence) -> Fit:
    """To the minimum, removed rows at weight 0; D is the number of kept rows.

    Args:
      victim: as in `victims.converge`.
      settings: `normalize` and `added_weight` are not read: who screens does not know which rows
        were added.
    """
    check.kind(Victim, victim=victim)
    check.kind(ToConvergence, settings=settings)

    def fit(key, dataset, keep):
        num = dataset.label.shape[0]
        start = convergent_training(victim, settings, num).init(key, None).variables
        weight = keep.astype(jnp.float32)
        mean = weight * (num / jnp.maximum(jnp.sum(weight), 1))
        return converge(victim, start, dataset, settings, num_clean=num, row_weights=mean)[0]

    return fit


def trained(training: Training, epochs: int) -> Fit:
    """By epochs of a Training on a set of the same size; see `refilled`.

    Args:
      training: such as `victims.victim_training(victim, recipe, N + P)`.
      epochs: its steps.

    Errors: InputError for epochs < 1.
    """
    check.at_least(1, epochs=epochs)

    def fit(key, dataset, keep):
        fill_key, init_key, steps_key = jax.random.split(key, 3)
        rows = refilled(fill_key, dataset, keep)
        split = Split(rows, jax.tree.map(lambda x: x[:1], rows))  # nobody reads its test accuracy

        def step(phi, number):
            return training.step(jax.random.fold_in(steps_key, number), phi, split)[0], None

        phi = training.init(init_key, split)
        return lax.scan(step, phi, jnp.arange(epochs))[0].variables

    return fit
