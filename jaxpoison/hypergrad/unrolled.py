"""Unrolled hypergradients: reverse mode through K steps of the follower's own training."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check
from jaxpoison.types import Bilevel, Hypergrad

__all__ = ["unrolled"]


def unrolled(
    problem: Bilevel,
    *,
    steps: int,
    remat: bool = True,
    restart: bool = False,
    every_step: bool = False,
) -> Hypergrad:
    """Exact hypergradient of the outer loss after K inner steps.

    phi_K(theta) = step_theta(... step_theta(phi_0));  gradient = d L(theta) / d theta,
    L = L_out(theta, phi_K), or with `every_step` the mean of L_out(theta, phi_k) over k = 1 .. K.

    Memory with remat: one follower state per step, and one step's activations (two levels above
    K = 32: 2 sqrt(K) states).

    Args:
      problem: inner_step is differentiable in theta and phi.
      steps: K >= 1.
      remat: rematerialize each inner step; False keeps all K steps' activations.
      restart: phi_0 is drawn anew at every estimate; otherwise training goes on from phi_K.
      every_step: the outer loss is read after every inner step, not after the last one alone.

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
                phi = problem.inner_step(step_key, theta, phi, scenario)[0]
                if not every_step:
                    return phi, None
                read_key = jax.random.fold_in(outer_key, k)
                return phi, problem.outer_loss(read_key, theta, phi, scenario)

            one = jax.checkpoint(step, prevent_cse=False) if remat else step
            if outer == 1:
                return lax.scan(one, phi, jnp.arange(steps))

            @jax.checkpoint
            def several(phi, ks):
                return lax.scan(one, phi, ks)

            return lax.scan(several, phi, jnp.arange(steps).reshape(outer, -1))

        def after(theta):
            phi_k, losses = trained(theta)
            if losses is not None:
                return jnp.mean(losses), phi_k
            return problem.outer_loss(outer_key, theta, phi_k, scenario), phi_k

        (loss, phi), gradient = jax.value_and_grad(after, has_aux=True)(theta)
        return gradient, phi, loss

    return Hypergrad(problem.inner_init, estimate)
