"""An objective whose poisons also stay where the clean images lie in feature space."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.data.augment import Augmentation
from jaxpoison.types import Objective, Victim, as_float

__all__ = ["hidden"]


def hidden(
    objective: Objective,
    victim: Victim,
    *,
    weight: float | Float[Array, ""] = 1.0,
    augment: Augmentation | None = None,
) -> Objective:
    """B + weight mean_{i,d} (phi_d(A_1(x_i + delta_i)) - phi_d(A_2(x_i)))^2, against filters.

    phi is the input of the surrogate's last layer. A_1 is the augmentation that the poisons of the
    batch went through, A_2 an independent draw.

    Args:
      objective: B.
      victim: the surrogate network.
      weight: of the distance.
      augment: A_2 of the clean images; None for none.

    Returns: an Objective with the aim of `objective`.
    Raises: InputError for a negative weight.
    Cost: 4 forward passes of the poisons more.
    Source: data-poisoning code (Geiping), recipe gradient-matching-hidden.
    """
    check.number(least=0, weight=weight)

    def value_and_grad(key, variables, aim, batch, scenario):
        own_key, augment_key = jax.random.split(key)
        clean = as_float(scenario.train.image[batch.index]).astype(batch.image.dtype)
        clean = clean if augment is None else augment(augment_key, clean)
        origin = victim.features(variables, clean)

        def distance(image: Any) -> Array:
            return jnp.mean((victim.features(variables, image) - origin) ** 2)

        value, gradient = objective.value_and_grad(own_key, variables, aim, batch, scenario)
        far, slope = jax.value_and_grad(distance)(batch.image)
        return value + weight * far, gradient + weight * slope

    return Objective(objective.aim, value_and_grad)
