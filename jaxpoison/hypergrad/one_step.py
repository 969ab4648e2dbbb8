"""One-step hypergradients: the outer loss after one pseudo-step of plain gradient descent."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import tree
from jaxpoison.types import Bilevel, Hypergrad, TrainState

__all__ = ["one_step", "through_step"]

PyTree = Any


def one_step(problem: Bilevel, *, learning_rate: float | Float[Array, ""]) -> Hypergrad:
    """Hypergradient through one pseudo-step, by forward-over-reverse; see `through_step`.

    Afterwards the follower takes one `inner_step` (its own optimizer) on the same rows.

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

        loss, gradient = through_step(inner, outer, phi.params, theta, learning_rate=learning_rate)
        phi, _ = problem.inner_step(inner_key, lax.stop_gradient(theta), phi, scenario)
        return gradient, phi, loss

    return Hypergrad(problem.inner_init, estimate)


def through_step(
    inner: Callable[..., Float[Array, ""]],
    outer: Callable[..., Float[Array, ""]],
    params: PyTree,
    theta: PyTree,
    *,
    learning_rate: float | Float[Array, ""],
) -> tuple[Float[Array, ""], PyTree]:
    """(L_out(params', theta), its derivative in theta), params' one step down the inner loss.

    params' = params - a g(theta),  g = d L_in / d params;  v = d L_out / d params' at params';
    d L_out / d theta = -a d<g, v>/d theta  (+ the partial derivative of L_out).

    The product is one jvp of theta's inner gradient in the direction v of the follower's
    parameters: no second reverse pass. `params` themselves are held constant.

    Args:
      inner: (params, theta) -> scalar, twice differentiable.
      outer: (params, theta) -> scalar.
      params: of the follower.
      theta: of the leader, or the poisoned images it made.
      learning_rate: a.
    """
    ahead = tree.axpy(-learning_rate, jax.grad(inner)(params, theta), params)
    loss, (direction, partial) = jax.value_and_grad(outer, argnums=(0, 1))(ahead, theta)
    mixed = jax.jvp(lambda p: jax.grad(inner, argnums=1)(p, theta), (params,), (direction,))
    return loss, tree.axpy(-learning_rate, mixed[1], partial)
