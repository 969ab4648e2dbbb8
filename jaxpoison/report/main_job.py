"""The main job in one call: every arm is crafted, stored, verified, trained on and judged."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxpoison import over
from jaxpoison.data import check_dataset, poison_rows
from jaxpoison.perturb import Budget
from jaxpoison.report.study import Study, StudyConfig
from jaxpoison.types import Attack, Dataset, Scenario, Split, Victim, as_float
from jaxpoison.victims import Recipe, victim_training

__all__ = ["Arm", "arm", "main_job"]


class Arm(NamedTuple):
    """One poisoned training set of an experiment.

    Attributes:
      attack: the attack, or restarts of one (the best is taken).
      num_steps: steps it runs.
      budget: what its stored images keep.
      expect: one line for the reader.
      settings: of the attack, for the manifest.
    """

    attack: Attack
    num_steps: int
    budget: Budget
    expect: str
    settings: dict[str, Any]


def arm(
    factory: Callable[..., Attack],
    *parts: Any,
    num_steps: int,
    budget: Budget,
    expect: str,
    **options: Any,
) -> Arm:
    """The arm of `factory(*parts, **options)`; its settings are all options, defaults included.

    Args:
      factory: an attack of `jaxpoison.attacks`.
      *parts: its positional arguments, such as the victim.
      num_steps: steps to run.
      budget: what the stored images keep.
      expect: one line for the reader.
      **options: its keyword arguments.
    """
    bound = inspect.signature(factory).bind(*parts, **options)
    bound.apply_defaults()
    settings = {"attack": factory.__name__} | {
        k: v for k, v in bound.arguments.items() if v is None or isinstance(v, str | int | float)
    }
    return Arm(factory(*parts, **options), num_steps, budget, expect, settings)


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

    `config.share` of the training rows may change; the goal set of the scenario is the training
    set, and the test set is read by evaluation alone. All arms share rows, victim seeds and the
    attack key.

    Args:
      experiment: name, the first level below `config.runs`.
      config: the settings; `seed`, `victims` and `share` are read.
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
    Raises: InputError and NonFiniteError as in `Study`; InputError for unsound data or labels that
      the network has no logit for, before anything is written.
    """
    split = Split(*(check_dataset(part, num_classes=_num_classes(victim, part)) for part in split))
    study = Study(experiment, config)
    if done := study.finished():
        return done
    train, test = split
    num = len(train.label)
    keys = jax.random.split(jax.random.key(config.seed), 4)
    victim_key, surrogate_key, attack_key, rows_key = keys
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
    scenario = Scenario(train, train, poison_rows(rows_key, train, share=config.share), aux)
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
    for name, one in arms.items():
        stored = study.craft(
            name,
            one.attack,
            attack_key,
            scenario,
            num_steps=one.num_steps,
            budget=one.budget,
            source=source,
            settings=one.settings,
        )
        retrain(name, stored, one.expect)
    return study.finish(main=main, published=published or [])


def _num_classes(victim: Victim, dataset: Dataset) -> int:
    def scores(key):
        image = as_float(dataset.image[:1])
        return victim.apply(victim.init(key), image, train=False)[0]

    return jax.eval_shape(scores, jax.random.key(0)).shape[1]
