"""The crafting step of gradient matching on the fixed problems: attack, scenario, settings.

Poisons are noise images of random labels, the target is one more, as is the surrogate: a step costs
the same on any data. The batch is that of `benchmarks.problems`, on an accelerator the 500 poisons
of the paper.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import problems
from jaxpoison import attacks, over
from jaxpoison.data import augment
from jaxpoison.types import Attack, Dataset, Scenario

__all__ = ["EPS", "FILL", "STD", "TAU", "Brew", "attack", "brew", "scenario", "steps"]

EPS, TAU, STD, FILL = 16 / 255, 0.1, 0.25, 0.5
FAR = 10**6  # steps of a schedule whose first drop is never reached


class Brew(NamedTuple):
    """A whole crafting run.

    Attributes:
      problem: network and number of poisons.
      steps: M.
      restarts: R.
    """

    problem: problems.Problem
    steps: int
    restarts: int


def steps(*, smoke: bool, accelerator: bool) -> list[problems.Problem]:
    """The small CNN with max-pools and ResNet-18; tiny ones for `smoke`."""
    small, _, deep = problems.problems(smoke=smoke, accelerator=accelerator)
    return [small, deep._replace(batch=500) if accelerator and not smoke else deep]


def brew(*, smoke: bool, accelerator: bool) -> Brew:
    """The paper's 500 poisons, 250 steps, 8 restarts; on a CPU the small CNN, 20 steps, 2."""
    small, deep = steps(smoke=smoke, accelerator=accelerator)
    if accelerator and not smoke:
        return Brew(deep, 250, 8)
    return Brew(small, 2 if smoke else 20, 2)


def attack(
    problem: problems.Problem,
    dtype: Any = jnp.float32,
    *,
    num_steps: int = FAR,
    ensemble: int = 1,
    shifts: bool = True,
) -> Attack:
    """Gradient matching as in the paper: sign-Adam, one batch, shifts and flips while crafting.

    Args:
      problem: its network is the surrogate's.
      dtype: compute dtype.
      num_steps: over which the rate falls; by default it never does.
      ensemble: K.
      shifts: whether poisons are augmented.
    """
    crafting = attacks.Crafting(
        steps=num_steps,
        tau=TAU,
        std=(STD,),
        ensemble=ensemble,
        augment=augment.shift_flip(fill=FILL) if shifts else None,
    )
    return attacks.gradient_matching(problem.victim(dtype), eps=EPS, crafting=crafting)


def scenario(problem: problems.Problem, *, ensemble: int = 1) -> Scenario:
    """All B images may change, the goal is one image of its own; K surrogates, stacked if K > 1."""
    given = problems.scenario(problem)
    random = np.random.default_rng(problems.SEED + 1)
    image = random.integers(0, 256, (1, *problem.image_shape), dtype=np.uint8)
    goal = Dataset(jnp.asarray(image), jnp.zeros(1, jnp.int32))
    init = jax.jit(over_members(problem.victim().init, ensemble))
    return given._replace(goal=goal, aux=init(jax.random.key(1)))


def over_members(init: Any, ensemble: int) -> Any:
    """`init` of K members, stacked if K > 1."""
    if ensemble == 1:
        return init
    return lambda key: jax.vmap(init)(jax.random.split(key, ensemble))


def restarts(problem: problems.Problem, dtype: Any, brew: Brew) -> Attack:
    """The attack of a brew with its restarts."""
    one = attack(problem, dtype, num_steps=brew.steps)
    return over.over_restarts(one, brew.restarts)
