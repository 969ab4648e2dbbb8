"""Random noise at the full budget: the control that every attack is compared with.

linf: delta = eps (+-1), or U[-eps, eps];  l2: delta = eps g / ||g||, g ~ N(0, I);
l0: random pixels, U[-1, 1].
The image box then cuts it, as it cuts an attack. Not of a paper; no model is needed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.attacks.bilevel import closed_form
from jaxpoison.perturb import Budget, per_sample, uniform
from jaxpoison.types import Attack

__all__ = ["random_noise"]


def random_noise(
    *, eps: float | Float[Array, ""], norm: str = "linf", distribution: str | None = None
) -> Attack:
    """Noise without intent, as large as the budget allows.

    Args:
      eps: radius, as in `perturb.Budget`.
      norm: "linf", "l2" or "l0".
      distribution: "uniform" in the ball; None is the largest noise: signs under linf, the sphere
        under l2, and under l0 uniform values of the pixels.

    Returns: an Attack without steps.
    Raises: InputError for a bad budget or another distribution.
    """
    check.one_of((None, "uniform"), distribution=distribution)
    draw = _draw if distribution is None else uniform
    return closed_form(per_sample(Budget(norm, eps), init=draw))


def _draw(key, shape, dtype, budget):
    if budget.norm == "linf":
        return budget.eps * jax.random.rademacher(key, shape, dtype)
    if budget.norm == "l0":
        return uniform(key, shape, dtype, budget)
    noise = jax.random.normal(key, shape, dtype)
    return budget.eps * noise / jnp.sqrt(jnp.sum(noise**2, axis=(1, 2, 3), keepdims=True))
