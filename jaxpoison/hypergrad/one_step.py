"""One-step hypergradients: the outer loss after one pseudo-step of plain gradient descent."""

import jax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import tree
from jaxpoison.types import Bilevel, Hypergrad, TrainState

__all__ = ["one_step"]


def one_step(problem: Bilevel, *, learning_rate: float | Float[Array, ""]) -> Hypergrad:
    """Hypergradient through one pseudo-step, by forward-over-reverse.

    phi' = phi - a g(theta, phi),  g = d L_in / d phi;  v = d L_out / d phi' at phi';
    d L_out / d theta = -a d<g, v>/d theta  (+ the partial derivative of L_out).

    The product is one jvp of theta's inner gradient in the direction v of the follower's
    parameters: no second reverse pass. Afterwards the follower takes one `inner_step` (its own
    optimizer) on the same rows.

    Args:
      problem: phi is a TrainState; inner_loss is differentiable in phi.params.
      learning_rate: a, of the pseudo-step; static or traced.
    """

    def estimate(key, theta, phi, scenario):
        inner_key, outer_key = jax.random.split(key)

        def inner(params, theta):
            state = TrainState(params, phi.stats, phi.opt_state)
            return problem.inner_loss(inner_key, theta, state, scenario)

        def outer(params, theta):
            state = TrainState(params, phi.stats, phi.opt_state)
            return problem.outer_loss(outer_key, theta, state, scenario)

        ahead = tree.axpy(-learning_rate, jax.grad(inner)(phi.params, theta), phi.params)
        loss, (direction, partial) = jax.value_and_grad(outer, argnums=(0, 1))(ahead, theta)
        mixed = jax.jvp(lambda p: jax.grad(inner, argnums=1)(p, theta), (phi.params,), (direction,))
        gradient = tree.axpy(-learning_rate, mixed[1], partial)
        phi, _ = problem.inner_step(inner_key, lax.stop_gradient(theta), phi, scenario)
        return gradient, phi, loss

    return Hypergrad(problem.inner_init, estimate)
