"""Gradient canceling: added points that make given parameters a stationary point of training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check, tree
from jaxpoison.types import Hypergrad, InputError, Key, Perturbation, Scenario, Variables, Victim
from jaxpoison.victims import mean_gradient

__all__ = ["Canceling", "canceling"]


class Canceling(NamedTuple):
    """Phi of `canceling`; constant.

    Attributes:
      target: the network whose parameters shall be stationary.
      clean: like target.params, the mean gradient of the clean set there.
    """

    target: Variables
    clean: Any


def canceling(
    victim: Victim,
    space: Perturbation,
    *,
    target: Callable[[Key, Scenario], Variables] | None = None,
    weight: float | Float[Array, ""] | None = None,
    batch_size: int = 1000,
) -> Hypergrad:
    """J = ||r||^2 / 2,  r = g_clean(w) + (eps / P) sum_j d CE(x_j, y_j) / d w.

    Two passes over the added points, no second-order graph: first r, then
    dJ/dx_j = (eps / P) d/dx_j <d CE(x_j, y_j) / d w, r> with r held, a Hessian-vector product
    forward over reverse. g_clean is taken once, in `init`.

    Args:
      victim: the network, or a `partial_victim` of it: the gradient is canceled in its parameters.
      space: of P added points (`perturb.free_points`).
      target: (key, scenario) -> the target; None takes `scenario.aux`, Variables.
      weight: eps, the weight of all added points together against the clean mean; None is P / N, as
        a victim that trains on all rows alike weighs them.
      batch_size: rows at a time in all passes, at the most; the points are shared out evenly. All
        at once is fastest where memory allows, as it does for a head on features.

    Returns: a Hypergrad; phi is `Canceling`.
    Errors: InputError for batch_size < 1, a weight <= 0, or a space that adds no rows.
    Source: Lu et al. 2023 (ICML), equation of gradient canceling; means in the place of sums.
    """
    check.at_least(1, batch_size=batch_size)
    if weight is not None:
        check.positive(weight=weight)
    if (points := space.added) is None:
        raise InputError("canceling needs a space of added points, such as perturb.free_points")

    def init(key, scenario):
        network = scenario.aux if target is None else target(key, scenario)
        clean = mean_gradient(victim, network, scenario.train, batch_size=batch_size)
        return Canceling(network, clean)

    def estimate(key, theta, phi, scenario):
        del key
        num, added = scenario.train.label.shape[0], scenario.index.shape[0]
        eps = added / num if weight is None else weight
        image, pull = jax.vjp(lambda t: points(t, scenario).image, theta)
        label = points(theta, scenario).label
        count = -(-added // batch_size)
        batches = tree.batches((image, label), -(-added // count))
        params, stats = phi.target

        def total(params, image, label, weight):
            scores, _ = victim.apply(Variables(params, stats), image, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, label)
            return eps / added * jnp.sum(losses * weight.astype(losses.dtype))

        def add(carry, job):
            (x, y), w = job
            return tree.axpy(1.0, jax.grad(total)(params, x, y, w), carry), None

        residual, _ = lax.scan(add, phi.clean, batches)

        def product(job):
            (x, y), w = job
            direction = jax.tree.map(lambda r, p: r.astype(p.dtype), residual, params)
            slope = jax.grad(total, argnums=1)
            return jax.jvp(lambda p: slope(p, x, y, w), (params,), (direction,))[1]

        gradient = lax.map(product, batches)
        gradient = gradient.reshape(-1, *image.shape[1:])[:added]
        return pull(gradient.astype(image.dtype))[0], phi, tree.dot(residual, residual) / 2

    return Hypergrad(init, estimate)
