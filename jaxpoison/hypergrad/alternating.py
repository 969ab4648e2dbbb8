"""Alternating gradients: the follower moves, then the leader takes the partial derivative."""

import jax
from jax import lax

from jaxpoison import check
from jaxpoison.types import Bilevel, Hypergrad

__all__ = ["alternating"]


def alternating(problem: Bilevel, *, inner_steps: int) -> Hypergrad:
    """Partial gradient at the current follower.

    phi <- K inner steps from phi;  gradient = d L_out(theta, phi) / d theta  with phi constant.

    Exact where the follower does not answer to theta; otherwise the first-order rule of alternating
    min-min and min-max games. With inner_steps = 0 the follower is a fixed surrogate.

    Args:
      problem: outer_loss must read theta itself, as `rowwise_loss` does; else the gradient is 0.
      inner_steps: K >= 0.

    Raises: InputError for inner_steps < 0.
    """
    check.at_least(0, inner_steps=inner_steps)

    def estimate(key, theta, phi, scenario):
        inner_key, outer_key = jax.random.split(key)

        def advance(phi, k):
            return problem.inner_step(jax.random.fold_in(inner_key, k), theta, phi, scenario)[0]

        if inner_steps:
            phi = lax.fori_loop(0, inner_steps, lambda k, p: advance(p, k), phi)
        loss, gradient = jax.value_and_grad(problem.outer_loss, argnums=1)(
            outer_key, theta, lax.stop_gradient(phi), scenario
        )
        return gradient, phi, loss

    return Hypergrad(problem.inner_init, estimate)
