"""Implicit hypergradients: the total derivative at a follower that rests, by Hessian products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check, tree
from jaxpoison.hypergrad.linear_solve import Solve, normal_cg
from jaxpoison.types import Bilevel, Hypergrad

__all__ = ["Implicit", "implicit"]


class Implicit(NamedTuple):
    """Phi of `implicit`.

    Attributes:
      follower: of the problem.
      solve: how far the last linear solve came; residual 1 and no iterations before the first.
    """

    follower: Any
    solve: Solve


def implicit(
    problem: Bilevel,
    *,
    solver: Callable[..., tuple[Any, Solve]] = normal_cg,
    iterations: int = 16,
    damping: float = 0.0,
    tolerance: float = 0.0,
    inner_steps: int = 0,
) -> Hypergrad:
    """D outer / d theta at w(theta) = argmin inner(theta, .), by the implicit function theorem.

    H = d^2 inner / d phi^2,  v = (H + damping I)^-1 d outer / d phi;
    D_theta outer = d outer / d theta - d/d theta <d inner / d phi, v>, v held.

    First the follower takes `inner_steps`, then the derivative is read where it is: exact where
    d inner / d phi = 0. The inner loss is one function throughout: of one key, so of one batch.

    Args:
      problem: phi has `params` (a TrainState, or any NamedTuple with that field); inner_loss is
        twice differentiable in them.
      solver: `cg`, `normal_cg`, or a partial of `neumann`.
      iterations: of the solver, at most; 2 (`normal_cg`) or 1 Hessian-vector products each.
      damping: of the solver.
      tolerance: of the solver.
      inner_steps: of the problem, before; 0 where the caller moves the follower.

    Returns: a Hypergrad; phi is `Implicit`.
    Errors: InputError for iterations < 1, inner_steps < 0, a damping or tolerance below 0.
    Cost: the part of a product that does not depend on its direction is done once: its memory is
      that of one backward pass, and a product costs about one more gradient.
    Source: Lu et al. 2022 (TGDA), total gradient; means in the place of sums.
    """
    check.at_least(1, iterations=iterations)
    check.at_least(0, inner_steps=inner_steps)
    check.number(least=0, damping=damping, tolerance=tolerance)

    def init(key, scenario):
        follower = problem.inner_init(key, scenario)
        one = jnp.ones((), tree.dot(follower.params, follower.params).dtype)
        return Implicit(follower, Solve(one, jnp.int32(0)))

    def estimate(key, theta, phi, scenario):
        steps_key, inner_key, outer_key = jax.random.split(key, 3)

        def step(follower, k):
            step_key = jax.random.fold_in(steps_key, k)
            return problem.inner_step(step_key, theta, follower, scenario)[0], None

        follower, _ = lax.scan(step, phi.follower, jnp.arange(inner_steps))

        def inner(params, theta):
            at = follower._replace(params=params)
            return problem.inner_loss(inner_key, theta, at, scenario)

        def outer(params, theta):
            at = follower._replace(params=params)
            return problem.outer_loss(outer_key, theta, at, scenario)

        params = follower.params
        loss, (wanted, partial) = jax.value_and_grad(outer, argnums=(0, 1))(params, theta)
        _, product = jax.linearize(lambda p: jax.grad(inner)(p, theta), params)
        v, solve = solver(
            product, wanted, iterations=iterations, tolerance=tolerance, damping=damping
        )
        mixed = jax.jvp(lambda p: jax.grad(inner, argnums=1)(p, theta), (params,), (v,))[1]
        return tree.axpy(-1.0, mixed, partial), Implicit(follower, solve), loss

    return Hypergrad(init, estimate)
