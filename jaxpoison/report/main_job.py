"""The main job in one call: every arm is crafted, stored, verified, trained on and judged."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpoison import over
from jaxpoison.perturb import Budget
from jaxpoison.report.study import Study, StudyConfig
from jaxpoison.types import Attack, Scenario, Split, Victim
from jaxpoison.victims import Recipe, victim_training

__all__ = ["Arm", "main_job"]


class Arm(NamedTuple):
    """One poisoned training set of an experiment.

    Attributes:
      attack: the attack, or restarts of one (the best is taken).
      num_steps: steps it runs.
      budget: what its stored images keep.
      expect: one line for the reader.
    """

    attack: Attack
    num_steps: int
    budget: Budget
    expect: str


def main_job(
    experiment: str,
    config: StudyConfig,
    *,
    victim: Victim,
    recipe: Recipe,
    split: Split,
    source: dict[str, Any],
    arms: dict[str, Arm],
    main: str,
    clean: str = "the reference",
    surrogate: Recipe | None = None,
    published: list[dict[str, Any]] | None = None,
    chunk: int | None = 1,
) -> dict[str, Any]:
    """Clean training set and all arms, `config.victims` fresh victims each; resumes on its own.

    Every row of the training set may change; the goal set of the scenario is the training set, and
    the test set is read by `judge` alone. All arms share victim seeds and the attack key.

    Args:
      experiment: name, the first level below `config.runs`.
      config: the settings; `seed` and `victims` are read.
      victim: network of victims and surrogate.
      recipe: how victims are trained.
      split: clean training set and test set.
      source: where the training set came from, as `data.load` takes it.
      arms: by name; a name is also a folder.
      main: the arm the experiment is about.
      clean: what to expect of the clean set.
      surrogate: recipe of a network trained on clean data, passed as `scenario.aux`; None for none.
      published: other people's numbers, see `report.published`.
      chunk: victims side by side, as in `over_restarts`: None for dense nets, 1 for convolutions.

    Returns: the record, also in result.json.
    Raises: InputError and NonFiniteError as in `Study`.
    """
    study = Study(experiment, config)
    if done := study.finished():
        return done
    train, test = split
    num = len(train.label)
    victim_key, surrogate_key, attack_key = jax.random.split(jax.random.key(config.seed), 3)
    aux = ()
    if surrogate is not None:
        state, _ = study.train(
            "surrogate",
            victim_training(victim, surrogate, num),
            surrogate_key,
            Split(train, train),
            epochs=surrogate.epochs,
        )
        aux = state.variables
    scenario = Scenario(train, train, jnp.arange(num, dtype=jnp.int32), aux)
    training = over.over_restarts(victim_training(victim, recipe, num), config.victims, chunk=chunk)

    def retrain(name, dataset, expect):
        study.retrain(
            name,
            victim,
            training,
            victim_key,
            Split(dataset, test),
            epochs=recipe.epochs,
            expect=expect,
        )

    retrain("clean", train, clean)
    for name, arm in arms.items():
        stored = study.craft(
            name,
            arm.attack,
            attack_key,
            scenario,
            num_steps=arm.num_steps,
            budget=arm.budget,
            source=source,
        )
        retrain(name, stored, arm.expect)
    return study.finish(main=main, published=published or [])
