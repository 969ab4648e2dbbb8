"""The order of a job's work: check all, craft one set after another, judge every victim on each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpoison import check, over
from jaxpoison.data import poisoned
from jaxpoison.data.verification import fingerprint
from jaxpoison.report.arms import Arm, Stored
from jaxpoison.report.derived import Derived
from jaxpoison.report.judging import Exam
from jaxpoison.report.preparation import (
    Trainee,
    check_arms,
    check_split,
    rehearse,
    rows,
)
from jaxpoison.report.probes import noise, wanted
from jaxpoison.report.starts import check_starts
from jaxpoison.report.study import Study
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import Dataset, InputError, Scenario, Split
from jaxpoison.victims import Classical

__all__ = ["job"]


def job(
    experiment: str,
    config: StudyConfig,
    victims: Mapping[str, Trainee | Classical],
    *,
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, Arm | Stored | Derived],
    main: str,
    clean: str,
    surrogate: Trainee | None,
    published: list[dict[str, Any]] | None,
    chunk: int | None,
    accumulate: int,
    mesh: Mesh | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """What `main_job` and `transfer_job` do; arguments as there.

    Args:
      experiment: as there.
      config: as there.
      victims: by name, "" where there is one.
      split: as there.
      source: as there.
      arms: as there.
      main: as there.
      clean: as there.
      surrogate: as there.
      published: as there.
      chunk: as there.
      accumulate: as there.
      mesh: as there.
      facts: what the record says of the victims.
    """
    check.one_of(tuple(arms), main=main)
    check_arms(arms)
    poisoned.check_source(source)
    trainees = {k: v for k, v in victims.items() if isinstance(v, Trainee)}
    rows_key, victim_key, surrogate_key, attack_key = jax.random.split(
        jax.random.key(config.seed), 4
    )
    guides = [] if surrogate is None else [surrogate]
    if any(one.checkpoints is not None for one in trainees.values()):
        raise InputError("checkpoints are of a surrogate; a victim is the last network of its run")
    split = check_split(split, [*trainees.values(), *guides])
    train, test = split
    index = rows(rows_key, config, train, arms)
    how: dict[str, Any] = {"accumulate": accumulate, "mesh": mesh}
    repeat = over.spread if mesh is None else over.over_restarts
    trainings = {
        name: repeat(one.training(len(train.label), **how), config.victims, chunk=chunk)
        for name, one in trainees.items()
    }
    guide = None if surrogate is None else surrogate.training(len(train.label), **how)
    check_starts(
        {name: one for name, one in trainees.items() if one.transfer is not None},
        [one for one in guides if one.transfer is not None],
        lambda one: one.training(len(train.label), **how),
        split,
        fresh_surrogates=False,
    )
    aux = () if surrogate is None else surrogate.known()
    rehearse(arms, Scenario(train, train, index, aux), test, config.probes)
    study = Study(
        experiment,
        config,
        facts={
            "data": {"train": fingerprint(train), "test": fingerprint(test)},
            **facts,
            "accumulate": accumulate,
            **_known(surrogate),
            "attacks": {name: one.facts() for name, one in arms.items()},
        },
    )
    if done := study.finished():
        return done
    if guide is not None and surrogate is not None:
        # Judged on its own training set: the test set is not for attacks.
        state, _ = study.train(
            "surrogate",
            guide,
            surrogate_key,
            surrogate.data(Split(train, train)),
            epochs=surrogate.recipe.epochs,
        )
        aux = state.variables
    sets = _Sets(study, arms, Scenario(train, train, index, aux), test, source, attack_key,
                 jax.random.fold_in(rows_key, 1))  # fmt: skip
    fallback = sets.label_map(main)

    def judge(name: str, exam: Exam) -> None:
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
                evaluation=one.recipe.evaluation,
                transfer=one.transfer,
                robustness=one.robustness,
            )

    judge("clean", Exam(split, clean, targets=_targets(test, fallback)))
    for name, one in arms.items():
        targets = _targets(test, sets.label_map(name) or fallback)
        names = sets.names(name)
        for s, repeated in enumerate(names):
            dataset = sets.make(name, s)
            exam = Exam(
                Split(dataset, test),
                one.expect,
                study.poisons.entries[repeated],
                targets,
                sets.probes(name, s, dataset),
                one.sweep,
            )
            judge(repeated, exam)
        if len(names) > 1:
            for victim in victims:
                study.judging.gather(name, names[1:], network=victim)
        for repeated in names if isinstance(one, Derived) and one.sweep else names[1:]:
            study.poisons.forget_picture(repeated)  # of a share there is nothing new to see
    return study.finish(main=main, published=published or [])


class _Sets:
    """The poisoned training sets of one job, by arm and number s of the attack key."""

    def __init__(self, study, arms, scenario, test, source, attack_key, derive_key):
        self._study, self._arms, self._scenario, self._test = study, arms, scenario, test
        self._source, self._attack_key, self._derive_key = source, attack_key, derive_key
        self._held_out: dict[str, Dataset] = {}

    def parent(self, name: str) -> Arm | Stored:
        """The arm itself, or the one that it is made of."""
        one = self._arms[name]
        return self._arms[one.of] if isinstance(one, Derived) else one

    def label_map(self, name: str) -> tuple[int, ...] | None:
        """What a label-specific attacker wants."""
        return self.parent(name).label_map

    def names(self, name: str) -> list[str]:
        """One for each attack key; a stored poison has one."""
        keys = self._study.config.craft_seeds if isinstance(self.parent(name), Arm) else 1
        return [name] + [f"{name}.{s}" for s in range(1, keys)]

    def make(self, name: str, s: int) -> Dataset:
        """The stored training set (uint8), crafted, derived or adopted; verified."""
        one, poisons, label = self._arms[name], self._study.poisons, self.names(name)[s]
        scenario, source = self._scenario, self._source
        if isinstance(one, Stored):
            return poisons.adopt(name, one.path, scenario)
        if isinstance(one, Derived):
            of, key = self.names(one.of)[s], jax.random.fold_in(self._derive_key, s)
            return poisons.derive(label, one, of, key, scenario, source=source)
        return poisons.craft(
            label,
            one.spread(),
            jax.random.fold_in(self._attack_key, s),
            scenario,
            num_steps=one.num_steps,
            budget=one.budget,
            source=source,
            settings=one.settings,
            network=one.network,
            rounding=one.rounding,
        )

    def probes(self, name: str, s: int, dataset: Dataset) -> dict[str, Dataset]:
        """The further sets that this arm has, in the order of the settings."""
        one, parent = self._arms[name], self.parent(name)
        new = isinstance(parent, Arm) and parent.trains_generator
        new = new and (not isinstance(one, Derived) or one.held_out)
        found = {}
        for probe in self._study.config.probes:
            if probe == "train-noise":
                changed = self._study.poisons.rows[self.names(name)[s]]
                found[probe] = noise(dataset, self._scenario.train, changed)
            elif new:
                released = self._released(one.of if isinstance(one, Derived) else name, s)
                alone = probe == "test-noise"
                found[probe] = noise(released, self._test) if alone else released
        return found

    def _released(self, name: str, s: int) -> Dataset:
        """The test set as the generator of an arm poisons it; once for all that is made of it."""
        label, one = self.names(name)[s], self._arms[name]
        if label not in self._held_out:
            self._held_out[label] = self._study.poisons.held_out(
                label,
                one.spread(),
                jax.random.fold_in(self._attack_key, s),
                self._scenario,
                self._test,
                num_steps=one.num_steps,
                budget=one.budget,
                rounding=one.rounding,
            )
        return self._held_out[label]


def _known(surrogate: Trainee | None) -> dict[str, Any]:
    """What a run folder is bound to of the network that attacks know.

    Nothing of a pretrained start, or of several networks, where there is none: older records have
    no such entries.
    """
    if surrogate is None:
        return {"surrogate_recipe": None}
    facts: dict[str, Any] = {"surrogate_recipe": dataclasses.asdict(surrogate.recipe)}
    if surrogate.transfer is not None:
        facts["surrogate_transfer"] = surrogate.transfer.facts()
    if surrogate.checkpoints is not None:
        facts["surrogate_checkpoints"] = surrogate.checkpoints
    return facts


def _targets(test: Dataset, label_map: tuple[int, ...] | None) -> Dataset | None:
    return None if label_map is None else wanted(test, label_map)
