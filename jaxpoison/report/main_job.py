"""The main job in one call: every arm is crafted, stored, verified, trained on and judged."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxpoison import check, over
from jaxpoison.data import check_dataset, poison_rows
from jaxpoison.data.verification import fingerprint
from jaxpoison.models import num_params
from jaxpoison.perturb import Budget
from jaxpoison.report.study import Study, StudyConfig
from jaxpoison.types import (
    Attack,
    Dataset,
    InputError,
    Scenario,
    Split,
    Variables,
    Victim,
)
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
    Raises: NonFiniteError as in `run_chunks`; InputError as in `Study`, and for unsound data, a
      label the network has no logit for, or an attack that cannot start, before anything is
      written or removed.
    """
    rows_key, *keys = jax.random.split(jax.random.key(config.seed), 4)
    split = _checked(victim, split)
    train, test = split
    num = len(train.label)
    rows = poison_rows(rows_key, train, share=config.share)
    single = victim_training(victim, recipe, num)
    guide = None if surrogate is None else victim_training(victim, surrogate, num)
    _rehearse(arms, Scenario(train, train, rows, () if guide is None else _abstract(victim)))
    facts = {
        "data": {"train": fingerprint(train), "test": fingerprint(test)},
        "parameters": num_params(victim),
        "recipe": dataclasses.asdict(recipe),
        "surrogate": None if surrogate is None else dataclasses.asdict(surrogate),
        "attacks": {k: one.settings | {"num_steps": one.num_steps} for k, one in arms.items()},
    }
    study = Study(experiment, config, facts=facts)
    if done := study.finished():
        return done
    victim_key, surrogate_key, attack_key = keys
    aux = ()
    if guide is not None and surrogate is not None:
        # Judged on its own training set: the test set is not for attacks.
        state, _ = study.train(
            "surrogate", guide, surrogate_key, Split(train, train), epochs=surrogate.epochs
        )
        aux = state.variables
    scenario = Scenario(train, train, rows, aux)
    training = over.over_restarts(single, config.victims, chunk=chunk)

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
        repeats = [name] + [f"{name}.{s}" for s in range(1, config.craft_seeds)]
        for s, repeat in enumerate(repeats):
            stored = study.craft(
                repeat,
                one.attack,
                jax.random.fold_in(attack_key, s),
                scenario,
                num_steps=one.num_steps,
                budget=one.budget,
                source=source,
                settings=one.settings,
            )
            retrain(repeat, stored, one.expect)
        if len(repeats) > 1:
            study.gather(name, repeats[1:])
    return study.finish(main=main, published=published or [])


def _checked(victim: Victim, split: Split) -> Split:
    """Both sets sound, of one shape, of classes the network knows; the training set in uint8."""
    if split.train.image.dtype != "uint8":
        raise InputError(
            f"training images are {split.train.image.dtype}; poisons are stored as uint8, so "
            "uint8 is needed"
        )
    if split.train.image.shape[1:] != split.test.image.shape[1:]:
        raise InputError(
            f"training images are {split.train.image.shape[1:]}, test images "
            f"{split.test.image.shape[1:]}; one shape is needed"
        )
    num_classes = _num_classes(victim, split.train)
    return Split(
        check_dataset(split.train, num_classes=num_classes, source="training set"),
        check_dataset(split.test, num_classes=num_classes, source="test set"),
    )


def _rehearse(arms: dict[str, Arm], scenario: Scenario) -> None:
    """Every attack's first moves without computing, so that a bad one ends before work begins."""
    for name, one in arms.items():
        check.at_least(1, **{f"num_steps of {name}": one.num_steps})
        state = jax.eval_shape(one.attack.init, jax.random.key(0), scenario)
        jax.eval_shape(one.attack.step, jax.random.key(0), state, scenario)


def _abstract(victim: Victim) -> Variables:
    return jax.eval_shape(victim.init, jax.random.key(0))


def _num_classes(victim: Victim, dataset: Dataset) -> int:
    image = jax.ShapeDtypeStruct((1, *dataset.image.shape[1:]), "float32")

    def scores(variables, image):
        return victim.apply(variables, image, train=False)[0]

    return jax.eval_shape(scores, _abstract(victim), image).shape[1]
