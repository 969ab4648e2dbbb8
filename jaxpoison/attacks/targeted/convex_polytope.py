"""Convex Polytope (Zhu et al. 2019): the target's feature lies in the hull of the poisons'.

min_{|delta_i| <= eps}  ||phi_t - sum_i c_i phi(x_i + delta_i)||^2 / (2 ||phi_t||^2),
c = argmin over the simplex {c_i >= 0, sum_i c_i = 1} of ||phi_t - sum_i c_i phi(x_i + delta_i)||^2

Threat model: the images of `scenario.index` may change within eps, labels stay (the wanted class in
the paper); phi is trained beforehand; the victim trains a last layer on phi or on a relative of it.
`scenario.goal` holds the targets. Differs from the released code: every step solves for c from the
uniform start (that of the Witches' Brew authors' later code), not from the last step's c; no
end-to-end mode, which sums the loss over the outputs of all blocks (a `Victim` gives the input of
its last layer alone).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison.attacks.crafting import WITCHES_BREW, Crafting, Networks, craft
from jaxpoison.hypergrad import feature_objective
from jaxpoison.types import Attack, Key

__all__ = ["convex_polytope", "hull_coefficients"]

TOLERANCE = 1e-6  # relative change of c at which the solver stops
MAX_STEPS = 10_000


def convex_polytope(victim: Networks, *, eps: float, crafting: Crafting = WITCHES_BREW) -> Attack:
    """The distance of the target's feature from the poisons' polytope; run `crafting.steps`.

    The gradient holds c constant. Of several targets each has its own c, and the loss is their
    mean. More poisons than `crafting.batch_size` are cut into batches, and each batch has its own
    polytope.

    Args:
      victim: the surrogate network, or several; their trained `Variables` are `scenario.aux`, in
        the form that `attacks.crafting.craft` says.
      eps: L-infinity radius, pixel units (8/255).
      crafting: settings of the outer loop; `POLYTOPE_BENCHMARK` for those of the public benchmark.

    Returns: an Attack; `outer_loss` is the loss before the step.
    Raises: InputError for a bad value, named; at init if `scenario.aux` or `scenario.index` is
      empty.
    Source: Zhu et al. 2019, Algorithm 1 and released code (also for several targets).
    """

    def objective(victim):
        return feature_objective(victim, _distance)

    return craft(victim, objective, eps=eps, crafting=crafting)


def _distance(key, poison, target):
    def to(key, target):
        c = hull_coefficients(key, lax.stop_gradient(poison), target)
        return jnp.sum((target - c @ poison) ** 2) / (2 * jnp.sum(target**2))

    return jnp.mean(jax.vmap(to)(jax.random.split(key, target.shape[0]), target))


class _Search(NamedTuple):
    """Of one projected gradient descent; `residual` is c A - b, `value` its squared length."""

    c: Array
    residual: Array
    value: Array
    step_size: Array
    number: Any
    done: Array


def hull_coefficients(
    key: Key, points: Float[Array, "b d"], target: Float[Array, " d"]
) -> Float[Array, " b"]:
    """The convex combination of points that is nearest to the target.

    c <- P(c - s A (c A - b)), A the points, b the target, P the projection onto the simplex, from
    c_i = 1 / B with s = 2 / L, L = ||A A^T y|| / ||y||, y ~ N(0, I), which is at most the largest
    eigenvalue; s is halved instead of a step after which the distance would be larger. Ends at a
    relative change of c below 1e-6 or after 10,000 steps.

    Args:
      key: of y.
      points: [B, D].
      target: [D].

    Returns: [B], on the simplex. No derivative in reverse: take it at constant c.
    Source: Zhu et al. 2019, released code, which looks at the distance before the projection.
    """

    def times(x, matrix):
        return jnp.matmul(x, matrix, precision=lax.Precision.HIGHEST)

    def at(c):
        residual = times(c, points) - target
        return residual, jnp.sum(residual**2)

    def step(search):
        gradient = times(points, search.residual)
        c = optax.projections.projection_simplex(search.c - search.step_size * gradient)
        residual, value = at(c)
        better = value <= search.value
        small = _length(c - search.c) < TOLERANCE * _length(search.c)
        return _Search(
            jnp.where(better, c, search.c),
            jnp.where(better, residual, search.residual),
            jnp.where(better, value, search.value),
            jnp.where(better, 1.0, 0.5) * search.step_size,
            search.number + 1,
            better & small,
        )

    num = points.shape[0]
    c = jnp.full(num, 1 / num, points.dtype)
    residual, value = at(c)
    y = jax.random.normal(key, (num,), points.dtype)
    curvature = _length(times(points, times(y, points))) / _length(y)
    step_size = 2 / jnp.maximum(curvature, jnp.finfo(points.dtype).tiny)
    start = _Search(c, residual, value, step_size, jnp.int32(0), ~jnp.isfinite(value))
    return lax.while_loop(lambda s: ~s.done & (s.number < MAX_STEPS), step, start).c


def _length(x):
    return jnp.sqrt(jnp.sum(x**2))
