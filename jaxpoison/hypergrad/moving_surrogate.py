"""A surrogate that goes on training, one epoch between two steps of the attacker."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxpoison import check, perturb
from jaxpoison.data.augment import Augmentation
from jaxpoison.hypergrad.surrogate import Aimed, at_surrogate
from jaxpoison.types import (
    Hypergrad,
    InputError,
    Objective,
    Perturbation,
    Split,
    TrainState,
    Victim,
)
from jaxpoison.victims import Recipe, victim_training

__all__ = ["RETRAIN_ON", "Moving", "moving_surrogate"]

RETRAIN_ON = ("poisoned", "clean")


class Moving(NamedTuple):
    """A surrogate in training.

    Attributes:
      state: its training state.
      aim: what the objective takes from it as it is now and from the targets.
      started: whether a step was taken; the surrogate trains before every one but the first.
      member: random bits that give the members of an ensemble their own epochs where they share
        the keys of their steps.
    """

    state: TrainState
    aim: Any
    started: Array
    member: Array

    @property
    def standing(self) -> Aimed:
        """The surrogate as `at_surrogate` has it."""
        return Aimed(self.state.variables, self.aim)


def moving_surrogate(
    objective: Objective,
    space: Perturbation,
    victim: Victim,
    recipe: Recipe,
    *,
    on: str = "poisoned",
    batch_size: int = 512,
    augment: Augmentation | None = None,
    full_data: bool = False,
) -> Hypergrad:
    """`at_surrogate` whose surrogate trains for one epoch between two steps of the attacker.

      step m:  g_m = d objective(theta_m; phi_m) / d theta,  then theta_m+1 from g_m (the caller's)
               phi_m+1 = one epoch from phi_m on x + delta(theta_m+1), or on x; aim anew at phi_m+1

    The last theta is not trained on. A restart has a surrogate of its own.

    `scenario.aux` is what the surrogate starts from: a `TrainState` of this recipe goes on where
    it stands, with its momentum and its place in the schedule; of `Variables` the optimizer starts
    afresh, at the rate of the recipe's first epoch, so that a recipe for them should have the low
    constant rate that training ended with. Past its last epoch a schedule stays where it is.

    The paper's code differs: it keeps the first target gradient, draws a new network once the
    recipe's epochs are over, and with `clean_grad` takes gradients at clean images as well
    (`perturb.at_clean`).

    Args:
      objective: its value and image gradient, and its aim.
      space: how theta enters the images.
      victim: the surrogate network.
      recipe: of its epochs; laid out over all N training rows.
      on: "poisoned", or "clean" for the training set as it is.
      batch_size: of poisons, as in `at_surrogate`.
      augment: of poisons, as there; the epochs have the recipe's own.
      full_data: as there.

    Returns: a Hypergrad whose phi is `Moving`.
    Raises: InputError as `at_surrogate`, for another `on`, and at init for a recipe that does not
      fit the training set, or a TrainState whose optimizer is not the recipe's.
    Cost: an epoch of N rows per step; the poisoned set as float32 (none for "clean").
    Source: Geiping et al. 2021, released code, option "step".
    """
    check.one_of(RETRAIN_ON, on=on)
    still = at_surrogate(
        objective, space, batch_size=batch_size, augment=augment, full_data=full_data
    )

    def training(scenario):
        return victim_training(victim, recipe, scenario.train.label.shape[0])

    def data(theta, scenario):
        """The targets stand in for the test set that a training wants; nothing is read from it."""
        train = scenario.train if on == "clean" else perturb.poison(space, theta, scenario)
        return Split(train, scenario.goal)

    def init(key, scenario):
        aim_key, train_key, member_key = jax.random.split(key, 3)
        aux = scenario.aux
        begun = aux if isinstance(aux, TrainState) else None
        network = scenario if begun is None else scenario._replace(aux=begun.variables)
        at = still.init(aim_key, network)
        clean = Split(scenario.train, scenario.goal)
        fresh = training(scenario).init(train_key, clean).opt_state
        if begun is not None:
            _check_same_form(begun.opt_state, fresh)
            fresh = jax.tree.map(jnp.asarray, begun.opt_state)
        state = TrainState(at.variables.params, at.variables.stats, fresh)
        return Moving(state, at.aim, jnp.array(False), jax.random.bits(member_key))

    def estimate(key, theta, phi, scenario):
        step_key, train_key, aim_key = jax.random.split(key, 3)

        def trained():
            own = jax.random.fold_in(train_key, phi.member)
            state, _ = training(scenario).step(own, phi.state, data(theta, scenario))
            return state, objective.aim(aim_key, state.variables, scenario)

        state, aim = lax.cond(phi.started, trained, lambda: (phi.state, phi.aim))
        moved = Moving(state, aim, jnp.array(True), phi.member)
        gradient, _, loss = still.estimate(step_key, theta, moved.standing, scenario)
        return gradient, moved, loss

    return Hypergrad(init, estimate)


def _check_same_form(given: Any, wanted: Any) -> None:
    def form(state):
        return jax.tree.structure(state), [jnp.shape(x) for x in jax.tree.leaves(state)]

    if form(given) != form(wanted):
        raise InputError("the optimizer state of scenario.aux is not that of the recipe")
