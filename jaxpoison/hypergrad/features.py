"""Objectives that are read in feature space: where the poisons' features lie, and the targets'."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from jaxpoison.types import Key, Objective, Victim, as_float

__all__ = ["feature_objective"]

FeatureLoss = Callable[[Key, Float[Array, "b d"], Float[Array, "t d"]], Float[Array, ""]]
"""(key, features of the poisons, features of the targets) -> scalar, minimized."""


def feature_objective(victim: Victim, loss: FeatureLoss) -> Objective:
    """l(phi(x_1 + delta_1), ..., phi(x_B + delta_B); phi(x_t^1), ..., phi(x_t^T)).

    phi is the input of the surrogate's last layer, in eval mode; first order. Only what
    `Victim.features` gives is read, so the end-to-end modes of the polytope attacks, which average
    over the outputs of all blocks, are not available.

    Args:
      victim: the surrogate network.
      loss: of the features of one batch of poisons and of all targets: with more poisons than fit
        one batch, each batch has its own mean, its own polytope.

    Returns: an Objective whose aim is [T, D], the targets' features.
    """

    def aim(key, variables, scenario):
        del key
        return victim.features(variables, as_float(scenario.goal.image))

    def value_and_grad(key, variables, aim, batch, scenario):
        del scenario

        def of_image(image):
            return loss(key, victim.features(variables, image), aim)

        return jax.value_and_grad(of_image)(batch.image)

    return Objective(aim, value_and_grad)
