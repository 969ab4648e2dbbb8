"""Whether the target of an attack can be reached at a share: tau, where it is a linear head."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison.hypergrad import reachability
from jaxpoison.report.added_arms import AddedArm
from jaxpoison.report.added_config import Follower
from jaxpoison.types import Dataset, Scenario, Variables, Victim
from jaxpoison.victims import Recipe, mean_gradient

__all__ = ["reachable"]


def reachable(
    one: AddedArm,
    victim: Victim,
    target: Variables,
    scenario: Scenario,
    how: Follower,
    *,
    space: str,
) -> dict[str, Any] | None:
    """`reachability.reach` of a target for a follower: its weights of added rows, weight decay.

    Args:
      one: the arm; under a constraint conditions are necessary only, and where points are what the
        head sees they have a box.
      victim: the network of the target.
      target: of the attack.
      scenario: the clean set in the space that `victim` sees, and the base rows.
      how: the follower.
      space: that space.

    Returns: {tau, reachable, floor, conditions} as the record has it; None for a network that is no
      linear head.
    """
    if not reachability.is_linear_head(target.params):
        return None
    num_added, num = len(scenario.index), len(scenario.train.label)
    weight = 1.0 if isinstance(how, Recipe) else how.added_weight
    if not weight:
        return None
    direct = space == one.space and _is_direct(victim, target, scenario.train)
    low, high = _box(one, victim, target, scenario) if direct else (None, None)
    free = direct and one.constraint is not None and one.constraint.kind == "none"
    found = reachability.reach(
        target,
        _gradient(victim, target, scenario.train),
        weight * num_added / num,
        bias="frozen" if one.settings.get("params") in ("weights", "first") else "joint",
        weight_decay=float(how.weight_decay),
        normalize="all" if isinstance(how, Recipe) else how.normalize,
        low=low,
        high=high,
        constrained=not free,
    )
    return {
        "tau": _finite(found.tau),
        "reachable": found.reachable,
        "floor": float(found.floor),
        "conditions": {name: _finite(value) for name, value in found.conditions.items()},
    }


@jax.jit(static_argnums=0)
def _gradient(victim, target, clean):
    return mean_gradient(victim, target, clean)


def _finite(value: float) -> float | None:
    """None for a share that does not exist; JSON has no infinity."""
    return float(value) if np.isfinite(value) else None


def _is_direct(victim: Victim, target: Variables, clean: Dataset) -> bool:
    """Whether the head reads the points themselves, each entry scaled and shifted on its own."""
    shape = (1, *clean.image.shape[1:])
    x = jax.random.uniform(jax.random.key(0), shape)
    low, high, found = (victim.features(target, v) for v in (jnp.zeros(shape), jnp.ones(shape), x))
    if low.shape[1] != x.size:
        return False
    expected = low + (high - low) * x.reshape(1, -1)
    return bool(jnp.allclose(found, expected, rtol=1e-4, atol=1e-4))


def _box(one: AddedArm, victim: Victim, target: Variables, scenario: Scenario) -> tuple[Any, Any]:
    """The smallest box [D] that holds all allowed points, in the units that the kernel multiplies.

    Around several base rows it is that of all their balls together.
    """
    if one.constraint is None:
        return None, None
    low, high = one.constraint.bounds(scenario)
    low, high = jnp.min(low, axis=0, keepdims=True), jnp.max(high, axis=0, keepdims=True)
    if not bool(jnp.isfinite(low).all() & jnp.isfinite(high).all()):
        return None, None
    shape = (1, *scenario.train.image.shape[1:])
    first, second = (
        np.asarray(victim.features(target, jnp.broadcast_to(x, shape))[0], np.float64)
        for x in (low, high)
    )
    return np.minimum(first, second), np.maximum(first, second)
