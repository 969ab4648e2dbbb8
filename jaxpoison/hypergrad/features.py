"""Objectives that are read in feature space: where the poisons' features lie, and the targets'."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check, tree
from jaxpoison.types import Key, Objective, Victim, as_float

__all__ = ["FeatureDistances", "feature_distances", "feature_objective"]

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


class FeatureDistances(NamedTuple):
    """Images against the features they shall have.

    Attributes:
      value: [P], ||phi(x_i) - aim_i||^2, a sum over the D features.
      gradient: [P, H, W, C], d value_i / d x_i.
      features: [P, D], phi(x_i).
    """

    value: Float[Array, " p"]
    gradient: Float[Array, "p h w c"]
    features: Float[Array, "p d"]


def feature_distances(
    features: Callable[[Array], Array],
    image: Float[Array, "p h w c"],
    aim: Float[Array, "p d"],
    *,
    batch_size: int,
) -> FeatureDistances:
    """||phi(x_i) - aim_i||^2 of every image by itself and its gradient, batch after batch.

    Args:
      features: phi, image [B, H, W, C] -> [B, D], row by row (eval mode).
      image: x.
      aim: the features to meet.
      batch_size: B, images at a time at the most, shared out evenly; memory, and last bits.

    Errors: InputError for batch_size < 1.
    Cost: one forward and one backward pass per image.
    """
    check.at_least(1, batch_size=batch_size)
    num = image.shape[0]
    count = -(-num // batch_size)

    def one(batch):
        image, aim = batch

        def distance(image):
            found = features(image)
            return jnp.sum((found - aim) ** 2, axis=1), found

        value, pull, found = jax.vjp(distance, image, has_aux=True)
        return FeatureDistances(value, pull(jnp.ones_like(value))[0], found)

    batches, _ = tree.batches((image, aim), -(-num // count))
    found = lax.map(one, batches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], found)
