"""A network that perturbs any image: theta is its parameters and running statistics."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxpoison.perturb.budget import Budget
from jaxpoison.types import (
    Batch,
    Generator,
    InputError,
    Key,
    Perturbation,
    Scenario,
    Variables,
    as_float,
)

__all__ = ["generated", "generator", "moving"]


def generator(network: Generator, *, eps: float | Float[Array, ""]) -> Perturbation:
    """Image r becomes clip(x_r + eps g(x_r; theta), 0, 1) if r is in `scenario.index`.

    g is in eval mode here (running statistics), as for every released poison; what an attack trains
    in train mode is `generated`. The bound holds by construction (|g| <= 1), so `project` is the
    identity. Theta does not belong to rows: it poisons any scenario of the same image shape.

    Args:
      network: g, with outputs in [-1, 1].
      eps: L-infinity radius, pixel units (8/255); a float or a traced scalar.

    Returns: Perturbation with theta = Variables of the network.
    Raises: InputError if `eps` is no radius, or `network` no Generator.
    """
    radius = Budget("linf", eps).eps
    if not isinstance(network, Generator):
        raise InputError(f"network is a {type(network).__name__}; a Generator is needed")

    def init(key: Key, scenario: Scenario) -> Variables:
        del scenario
        return network.init(key)

    def apply(theta: Variables, scenario: Scenario, rows: Int[Array, " b"]) -> Batch:
        clean = as_float(scenario.train.image[rows])
        member = jnp.zeros(scenario.train.label.shape, bool).at[scenario.index].set(True)
        poisoned, _ = generated(network, theta, clean, eps=radius, train=False)
        image = jnp.where(member[rows].reshape(-1, 1, 1, 1), poisoned, clean)
        ones = jnp.ones(rows.shape, jnp.float32)
        return Batch(image, scenario.train.label[rows], ones, rows.astype(jnp.int32))

    def project(theta: Variables, scenario: Scenario) -> Variables:
        del scenario
        return theta

    return Perturbation(init, apply, project)


def generated(
    network: Generator,
    theta: Variables,
    image: Float[Array, "b h w c"],
    *,
    eps: float | Float[Array, ""],
    train: bool,
) -> tuple[Float[Array, "b h w c"], Any]:
    """(clip(x + eps g(x; theta), 0, 1), new statistics of g).

    Args:
      network: g.
      theta: its variables.
      image: [B, H, W, C] clean images in [0, 1].
      eps: radius, pixel units.
      train: batch statistics, and the running ones move; else running statistics.
    """
    direction, stats = network.apply(theta, image, train=train)
    return jnp.clip(image + eps * direction, 0, 1), stats


def moving(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on a generator's parameters; its statistics move to those in the gradient's place.

    Takes gradients as `Hypergrad` describes them; `optax.apply_updates` then gives
    Variables(params + tx(d/d params), new stats), the statistics to one rounding.
    """

    def init(params: Any) -> Any:
        return tx.init(params.params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        moves, state = tx.update(updates.params, state, params.params)
        stats = jax.tree.map(jnp.subtract, updates.stats, params.stats)
        return Variables(moves, stats), state

    return optax.GradientTransformation(init, update)
