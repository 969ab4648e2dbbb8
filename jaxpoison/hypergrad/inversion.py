"""How far images are from the poisoned features that they shall have, and what that costs."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxpoison.hypergrad.canceling import Canceling, canceling
from jaxpoison.perturb import Points, free_points
from jaxpoison.types import Dataset, Scenario, Victim, as_float
from jaxpoison.victims import Extractor, extract

__all__ = ["InversionError", "inversion_error"]


class InversionError(NamedTuple):
    """P images of poisoned features; r is the gradient that is left at the target head.

    Attributes:
      residual_features: ||r|| of zeta itself.
      residual_images: ||r|| of f(x), the images in the place of zeta.
      feature_error: mean over the points of ||f(x_j) - zeta_j||.
      distance: mean over the points of ||x_j - x_base,j||, pixel units.
    """

    residual_features: Float[Array, ""]
    residual_images: Float[Array, ""]
    feature_error: Float[Array, ""]
    distance: Float[Array, ""]


def inversion_error(
    extractor: Extractor,
    head: Victim,
    phi: Canceling,
    zeta: Points,
    image: Num[Array, "p h w c"],
    scenario: Scenario,
    *,
    weight: float | None = None,
    batch_size: int = 500,
) -> InversionError:
    """The third stage of a feature-targeted attack, judged on the images as they are stored.

    Args:
      extractor: network and arrays.
      head: as the attack had it.
      phi: the target head and the clean gradient there: of the attack's state, `feature.phi`.
      zeta: poisoned features and labels: `feature.theta`.
      image: the added images, those of the poison folder (uint8) for what a victim gets.
      scenario: of the attack; its index gives the base images.
      weight: as in `canceling`.
      batch_size: rows at a time.
    """
    rule = canceling(head, free_points(), weight=weight)
    found = extract(extractor, Dataset(image, zeta.label.astype(jnp.int32)), batch_size=batch_size)
    found = found.image.astype(zeta.value.dtype)

    def residual(value):
        points = Points(value, zeta.label)
        return jnp.sqrt(2 * rule.estimate(None, points, phi, scenario)[2])

    base = as_float(scenario.train.image[scenario.index])
    away = (as_float(image) - base).reshape(base.shape[0], -1)
    apart = (found - zeta.value).reshape(base.shape[0], -1)
    return InversionError(
        residual(zeta.value),
        residual(found),
        jnp.mean(jnp.linalg.norm(apart, axis=1)),
        jnp.mean(jnp.linalg.norm(away, axis=1)),
    )
