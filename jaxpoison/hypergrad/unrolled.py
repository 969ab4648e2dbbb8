"""Unrolled hypergradients: reverse mode through K steps of the follower's own training."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check
from jaxpoison.types import Bilevel, Hypergrad

__all__ = ["unrolled"]


def unrolled(
    problem: Bilevel, *, steps: int, remat: bool = True, restart: bool = False
) -> Hypergrad:
    """Exact hypergradient of the outer loss after K inner steps.

    phi_K(theta) = step_theta(... step_theta(phi_0));  gradient = d L_out(theta, phi_K) / d theta.

    Memory with remat: one follower state per step, and one step's activations (two levels above
    K = 32: 2 sqrt(K) states).

    Args:
      problem: inner_step is differentiable in theta and phi.
      steps: K >= 1.
      remat: rematerialize each inner step; False keeps all K steps' activations.
      restart: phi_0 is drawn anew at every estimate; otherwise training goes on from phi_K.

    Raises: InputError for steps < 1.
    """
    check.at_least(1, steps=steps)
    outer = math.isqrt(steps) if remat and steps > 32 else 1
    while steps % outer:
        outer -= 1

    def estimate(key, theta, phi, scenario):
        init_key, inner_key, outer_key = jax.random.split(key, 3)
        if restart:
            phi = problem.inner_init(init_key, scenario)

        def trained(theta):
            def step(phi, k):
                step_key = jax.random.fold_in(inner_key, k)
                return problem.inner_step(step_key, theta, phi, scenario)[0], None

            one = jax.checkpoint(step, prevent_cse=False) if remat else step
            if outer == 1:
                return lax.scan(one, phi, jnp.arange(steps))[0]

            @jax.checkpoint
            def several(phi, ks):
                return lax.scan(one, phi, ks)

            return lax.scan(several, phi, jnp.arange(steps).reshape(outer, -1))[0]

        def after(theta):
            phi_k = trained(theta)
            return problem.outer_loss(outer_key, theta, phi_k, scenario), phi_k

        (loss, phi), gradient = jax.value_and_grad(after, has_aux=True)(theta)
        return gradient, phi, loss

    return Hypergrad(problem.inner_init, estimate)
