"""The main job in one call: every arm is crafted, stored, verified, trained on and judged."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpoison import check, over
from jaxpoison.data.verification import fingerprint
from jaxpoison.models import num_params
from jaxpoison.report.arms import Arm, Stored
from jaxpoison.report.judging import Exam
from jaxpoison.report.preparation import Trainee, abstract, check_split, rehearse, rows
from jaxpoison.report.study import Study
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import InputError, Scenario, Split, Victim
from jaxpoison.victims import Classical, Recipe, victim_training

__all__ = ["main_job", "transfer_job"]


def main_job(
    experiment: str,
    config: StudyConfig,
    *,
    victim: Victim,
    recipe: Recipe,
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, Arm | Stored],
    main: str,
    clean: str = "the reference",
    surrogate: Trainee | None = None,
    published: list[dict[str, Any]] | None = None,
    chunk: int | None = 1,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Clean training set and all arms, `config.victims` fresh victims each; resumes on its own.

    `config.share` of the training rows may change; the goal set of the scenario is the training
    set, and the test set is read by evaluation alone. All arms share rows, victim seeds, the attack
    key and the compiled training.

    Args:
      experiment: name, the first level below `config.runs`.
      config: the settings; `seed`, `victims`, `craft_seeds` and `share` are read.
      victim: network of the victims.
      recipe: how victims are trained.
      split: clean training set and test set.
      source: where the training set came from, as `data.load` takes it.
      arms: by name; a name is also a folder.
      main: the arm the experiment is about.
      clean: what to expect of the clean set.
      surrogate: a network to train on clean data, passed as `scenario.aux`; None for none.
      published: other people's numbers, see `report.published`.
      chunk: victims side by side, as in `over_restarts`: None for dense nets, 1 for convolutions,
        which are then spread over all devices.
      accumulate: micro-batches per update of victims and surrogate, see `victims.learner`.
      mesh: spreads every batch of theirs over its axis "batch", see `victims.training`; seeds are
        then trained one after another.

    Returns: the record, also in result.json.
    Raises: NonFiniteError as in `run_chunks`; InputError as in `Study`, and for unsound data, a
      network they do not fit, a label it has no logit for, a batch larger than the set, or an
      attack that cannot start, before anything is written or removed.
    """
    return _job(
        experiment,
        config,
        {"": Trainee(victim, recipe)},
        split=split,
        source=source,
        arms=arms,
        main=main,
        clean=clean,
        surrogate=surrogate,
        published=published,
        chunk=chunk,
        accumulate=accumulate,
        mesh=mesh,
        facts={"parameters": num_params(victim), "recipe": dataclasses.asdict(recipe)},
    )


def transfer_job(
    experiment: str,
    config: StudyConfig,
    *,
    victims: Mapping[str, Trainee | Classical],
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, Arm | Stored],
    main: str,
    clean: str = "the reference",
    published: list[dict[str, Any]] | None = None,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """`main_job` for many victims: the same training sets, every victim on each of them.

    Entries of the record are named "<victim>/<training set>" and say which victim they are of; so
    are the folders below `victims/`, each of which is resumed by itself.

    Args:
      experiment: as in `main_job`, like all that is not named here.
      config: as there.
      victims: by name: a network with its recipe, or a classifier that is no network.
      split: as there.
      source: as there.
      arms: as there.
      main: as there.
      clean: as there.
      published: as there.
      accumulate: as there.
      mesh: as there.

    Raises: as `main_job`; InputError for no victims.
    """
    if not victims:
        raise InputError("there are no victims; name at least one")
    networks = {
        name: {"parameters": num_params(one.victim), "recipe": dataclasses.asdict(one.recipe)}
        for name, one in victims.items()
        if isinstance(one, Trainee)
    }
    others = {name: one.source for name, one in victims.items() if isinstance(one, Classical)}
    return _job(
        experiment,
        config,
        victims,
        split=split,
        source=source,
        arms=arms,
        main=main,
        clean=clean,
        surrogate=None,
        published=published,
        chunk=1,
        accumulate=accumulate,
        mesh=mesh,
        facts={"networks": networks, "classical": others},
    )


def _job(
    experiment: str,
    config: StudyConfig,
    victims: Mapping[str, Trainee | Classical],
    *,
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, Arm | Stored],
    main: str,
    clean: str,
    surrogate: Trainee | None,
    published: list[dict[str, Any]] | None,
    chunk: int | None,
    accumulate: int,
    mesh: Mesh | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Check everything; then craft one training set after another and judge every victim on it."""
    check.one_of(tuple(arms), main=main)
    trainees = {k: v for k, v in victims.items() if isinstance(v, Trainee)}
    rows_key, victim_key, surrogate_key, attack_key = jax.random.split(
        jax.random.key(config.seed), 4
    )
    guides = [] if surrogate is None else [surrogate]
    split = check_split(split, [*trainees.values(), *guides])
    train, test = split
    num = len(train.label)
    index = rows(rows_key, config, train, arms)

    def training(one):
        return victim_training(one.victim, one.recipe, num, accumulate=accumulate, mesh=mesh)

    repeat = over.spread if mesh is None else over.over_restarts
    trainings = {
        name: repeat(training(one), config.victims, chunk=chunk) for name, one in trainees.items()
    }
    guide = None if surrogate is None else training(surrogate)
    aux = () if surrogate is None else abstract(surrogate.victim)
    rehearse(arms, Scenario(train, train, index, aux))
    facts = {
        "data": {"train": fingerprint(train), "test": fingerprint(test)},
        **facts,
        "accumulate": accumulate,
        "surrogate": None if surrogate is None else dataclasses.asdict(surrogate.recipe),
        "attacks": {name: one.facts() for name, one in arms.items()},
    }
    study = Study(experiment, config, facts=facts)
    if done := study.finished():
        return done
    if guide is not None and surrogate is not None:
        # Judged on its own training set: the test set is not for attacks.
        state, _ = study.train(
            "surrogate",
            guide,
            surrogate_key,
            Split(train, train),
            epochs=surrogate.recipe.epochs,
        )
        aux = state.variables
    scenario = Scenario(train, train, index, aux)

    def judge(name, dataset, expect):
        exam = Exam(Split(dataset, test), expect, study.poisons.entries.get(name))
        for victim, one in victims.items():
            if isinstance(one, Classical):
                study.judging.consult(name, exam, one, network=victim)
                continue
            study.judging.retrain(
                name,
                exam,
                one.victim,
                trainings[victim],
                victim_key,
                epochs=one.recipe.epochs,
                network=victim,
            )

    judge("clean", train, clean)
    for name, one in arms.items():
        if isinstance(one, Stored):
            judge(name, study.poisons.adopt(name, one.path, scenario, one.budget), one.expect)
            continue
        repeats = [name] + [f"{name}.{s}" for s in range(1, config.craft_seeds)]
        for s, repeat in enumerate(repeats):
            stored = study.poisons.craft(
                repeat,
                one.attack,
                jax.random.fold_in(attack_key, s),
                scenario,
                num_steps=one.num_steps,
                budget=one.budget,
                source=source,
                settings=one.settings,
            )
            judge(repeat, stored, one.expect)
        if len(repeats) > 1:
            for victim in victims:
                study.judging.gather(name, repeats[1:], network=victim)
            for repeat in repeats[1:]:
                study.poisons.forget_picture(repeat)
    return study.finish(main=main, published=published or [])
