"""The one assembly behind optimized attacks: a space, a gradient rule, an optax rule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxpoison import check, perturb, tree
from jaxpoison.types import Attack, Hypergrad, Info, Perturbation, Scenario, Variables, Victim
from jaxpoison.victims.checks import check_classes, check_variables

__all__ = ["BilevelState", "bilevel", "closed_form", "of_classes"]

PyTree = Any


class BilevelState(NamedTuple):
    """The leader's variables, the follower, and the leader's optimizer state."""

    theta: PyTree
    phi: PyTree
    opt_state: PyTree


def bilevel(space: Perturbation, hypergrad: Hypergrad, tx: optax.GradientTransformation) -> Attack:
    """Theta <- project(theta + tx(d outer_loss / d theta)).

    Args:
      space: what theta is, how it enters the images, and its budget.
      hypergrad: the gradient rule; it also owns the follower.
      tx: gradients to updates, e.g. `optax.sign_sgd(eps / 10)` or `optax.adam(0.1)`; of a generator
        `perturb.moving(optax.adam(1e-4))`.

    Returns: an Attack whose info is `Info`.
    """

    def init(key, scenario):
        theta_key, phi_key = jax.random.split(key)
        theta = space.init(theta_key, scenario)
        return BilevelState(theta, hypergrad.init(phi_key, scenario), tx.init(theta))

    def step(key, state, scenario):
        gradient, phi, loss = hypergrad.estimate(key, state.theta, state.phi, scenario)
        updates, opt_state = tx.update(gradient, state.opt_state, state.theta)
        theta = space.project(optax.apply_updates(state.theta, updates), scenario)
        return BilevelState(theta, phi, opt_state), info(loss, gradient)

    def poison(state, scenario):
        return perturb.poison(space, state.theta, scenario)

    return Attack(init, step, poison)


def closed_form(space: Perturbation) -> Attack:
    """An attack without optimization: the work is in `space.init`, steps change nothing.

    Args:
      space: its `init` returns the finished theta.

    Returns: an Attack whose outer loss is 0.
    """

    def step(key, state, scenario):
        del key, scenario
        zero = jnp.zeros((), jnp.float32)
        return state, Info(zero, zero, tree.all_finite(state))

    def poison(state, scenario):
        return perturb.poison(space, state, scenario)

    return Attack(space.init, step, poison)


def of_classes(
    num_classes: int | None, victim: Victim | None = None, *, at_surrogate: bool = False
) -> Callable[[Scenario], None]:
    """The `Attack.check` of an attack that has something for every class.

    Args:
      num_classes: L; labels of the training set have to be 0 .. L - 1. None is the logits' number.
      victim: its network, if it has one, which needs a logit for each of them.
      at_surrogate: whether `scenario.aux` has to be the Variables of one such network.
    """

    def sound(scenario):
        if victim is not None:
            check_classes(victim, scenario.train, num_classes)
            if at_surrogate and jax.tree.leaves(scenario.aux):  # of none the hypergradient speaks
                check_variables(victim, scenario.aux, "scenario.aux")
        elif num_classes is not None:
            check.labels(num_classes, **{"labels of the training set": scenario.train.label})

    return sound


def info(loss, gradient) -> Info:
    """Loss, gradient norm, and whether both are finite; of a generator, that of its parameters."""
    size = tree.norm(gradient.params if isinstance(gradient, Variables) else gradient)
    return Info(loss, size, jnp.isfinite(loss) & jnp.isfinite(size))
