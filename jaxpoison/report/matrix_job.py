"""Attacks against defenses, cell by cell: each resumes by itself, and none is computed twice."""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpoison import hosts, over
from jaxpoison.data import poison_rows, poisoned
from jaxpoison.data.verification import array_sha256, fingerprint
from jaxpoison.models import num_params
from jaxpoison.report import matrix_figures, record
from jaxpoison.report.cache import Cache
from jaxpoison.report.judging import Exam
from jaxpoison.report.matrix_config import Attacker
from jaxpoison.report.preparation import Trainee, check_arms, check_split, rehearse
from jaxpoison.report.protections import UNDEFENDED, Protection
from jaxpoison.report.study import Study
from jaxpoison.types import Dataset, InputError, Purifier, Scenario, Split, Training, Victim
from jaxpoison.victims import Recipe, similarity, victim_training

__all__ = ["matrix_job"]


def matrix_job(
    experiment: str,
    config: Any,
    *,
    network: str,
    victim: Victim,
    recipe: Recipe,
    split: Split,
    source: dict[str, Any],
    attackers: Mapping[str, Attacker],
    defenses: Mapping[str, Protection],
    clean: str = "the reference",
    published: list[dict[str, Any]] | None = None,
    chunk: int | None = 1,
    accumulate: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Every attack, and the clean set, under every defense and under none.

    A poison is crafted once, stored, verified and purified as stored; each cell trains
    `config.victims` fresh victims, of the same seeds in every cell, and judges them on clean test
    images. Victim seeds are spread over all devices.

    A cell is known by the hash of the stored poison, the settings of the defense, the recipe, the
    network, the seeds, the package versions and the kind of device; a poison by the attack's
    settings, the hashes of the data, its rows and its key likewise. With `config.cache` what equal
    facts determine is taken from RUNS/cache, and the entry says so.

    Args:
      experiment: name, the first level below `config.runs`.
      config: a `MatrixConfig` or `PaperMatrixConfig`.
      network: the victim's name, by which the cache knows it.
      victim: the network of all victims.
      recipe: how they are trained where a defense does not say otherwise.
      split: clean training set (uint8) and test set.
      source: where the training set came from, as `data.load` takes it.
      attackers: rows by name; a name is also a folder.
      defenses: columns by name, likewise; "none" is added.
      clean: what to expect of the clean set under no defense.
      published: other people's values, see `published_cell`.
      chunk: as in `main_job`.
      accumulate: as there.
      mesh: as there.

    Returns: the record, also in result.json: an entry DEFENSE/ATTACK for each cell, with
      `defended`.
    Raises: InputError as in `main_job`, and for names that are not there.
    """
    config.refuse(experiment)
    attackers = config.chosen("attacks", attackers)
    defenses = {"none": UNDEFENDED} | config.chosen("defenses", defenses)
    arms = {name: one.arm for name, one in attackers.items()}
    check_arms(arms)
    for name in defenses:
        if pathlib.Path(name).name != name or name.startswith("."):
            raise InputError(f"defense = {name!r}; a plain folder name is needed, not hidden")
    poisoned.check_source(source)
    guides = [one.knows for one in attackers.values() if one.knows is not None]
    split = check_split(split, [Trainee(victim, recipe), *guides])
    keys = jax.random.split(jax.random.key(config.seed), 5)
    index = poison_rows(keys[0], split.train, share=config.share)
    for name, one in attackers.items():
        aux = () if one.knows is None else one.knows.known()
        rehearse({name: one.arm}, Scenario(split.train, split.train, index, aux), split.test, ())
    how = {"accumulate": accumulate, "mesh": mesh}
    repeat = over.spread if mesh is None else over.over_restarts
    trainings: dict[Any, Training] = {}
    for one in defenses.values():
        own = one.recipe or recipe
        if (own, one.training) not in trainings:
            extra = {} if one.training is None else {"defense": one.training}
            process = victim_training(victim, own, len(split.train.label), **how, **extra)
            trainings[own, one.training] = repeat(process, config.victims, chunk=chunk)
    facts = {
        "data": {"train": fingerprint(split.train), "test": fingerprint(split.test)},
        "network": network,
        "parameters": num_params(victim),
        "recipe": dataclasses.asdict(recipe),
        "accumulate": accumulate,
        "attacks": {name: _known(one) for name, one in attackers.items()},
        "defenses": {name: _facts(one, recipe) for name, one in defenses.items()},
    }
    study = Study(experiment, config, facts=facts)
    if done := study.finished():
        return done
    cells = _Cells(study, config.cache, split, source, index, keys, facts)
    for row, attacker in [("clean", None), *attackers.items()]:
        stored, poison = cells.poison(row, attacker)
        for column, one in defenses.items():
            own = one.recipe or recipe
            training = trainings[own, one.training]
            expect = clean if row == "clean" else arms[row].expect
            cells.fill(row, column, one, stored, poison, victim, training, own, expect)
    first = next(iter(attackers), "clean")
    return study.finish(
        main=first,
        published=published or [],
        draw=lambda found: matrix_figures.heat_map(study.folder / "matrix.png", found),
    )


class _Cells:
    """The cells of one run as they are filled."""

    def __init__(
        self,
        study: Study,
        cache: bool,
        split: Split,
        source: Any,
        index: Any,
        keys: Any,
        facts: Any,
    ):
        self._study, self._split, self._source, self._index = study, split, source, index
        _, self._victim_key, self._surrogate_key, self._attack_key, self._purify_key = keys
        self._facts = facts
        self._cache = Cache(study.config.runs / "cache" if cache else None)
        self._made = {
            "versions": record.versions(),
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
        }
        self._guides: dict[str, Any] = {}

    def poison(self, row: str, attacker: Attacker | None) -> tuple[Dataset, Any]:
        """(the stored training set, its entry), crafted, or lent by the cache; verified."""
        train, study = self._split.train, self._study
        if attacker is None:
            return train, None
        one, path = attacker.arm, study.folder / "poison" / row
        facts = {
            "attack": _known(attacker),
            "data": self._facts["data"]["train"],
            "rows": array_sha256(np.asarray(self._index)),
            "seed": study.config.seed,
            "made": self._made,
        }
        if not hosts.first(path.exists):
            hosts.first(lambda: self._cache.lend("poison", facts, path))
        aux = ()
        if attacker.knows is not None and not hosts.first(path.exists):
            aux = self._guide(attacker.knows)
        dataset = study.poisons.craft(
            row,
            one.spread(),
            self._attack_key,
            Scenario(train, train, self._index, aux),
            num_steps=one.num_steps,
            budget=one.budget,
            source=self._source,
            settings=one.settings,
            rounding=one.rounding,
        )
        hosts.first(lambda: self._cache.store("poison", facts, path))
        return dataset, study.poisons.entries[row]

    def fill(
        self,
        row: str,
        column: str,
        one: Protection,
        stored: Dataset,
        poison: Any,
        victim: Victim,
        training: Training,
        recipe: Recipe,
        expect: str,
    ) -> None:
        """The entry of one cell, from the cache or computed."""
        study, name = self._study, record.entry(row, column)
        facts = {
            "poison": {"train": fingerprint(stored), "test": self._facts["data"]["test"]},
            "defense": _facts(one, recipe),
            "recipe": dataclasses.asdict(recipe),
            **{k: self._facts[k] for k in ("network", "parameters", "accumulate")},
            "seeds": {"seed": study.config.seed, "victims": study.config.victims},
            "made": self._made,
        }
        facts = json.loads(json.dumps(facts, default=str))
        entry = hosts.first(lambda: self._cache.find("cells", facts))
        if entry is not None:
            defended = entry["defended"] | {"attack": row, "defense": column, "cached": True}
            found = {"victim": column, "expect": expect, "poison": poison, "defended": defended}
            study.judging.arms[name] = entry | found
            return
        began = time.perf_counter()
        dataset = stored
        if one.purifier is not None:
            dataset = self._purified(f"{column}/{row}", one.purifier, stored)
        purified, began = time.perf_counter() - began, time.perf_counter()
        study.judging.retrain(
            row,
            Exam(Split(dataset, self._split.test), expect, poison),
            victim,
            training,
            self._victim_key,
            epochs=recipe.epochs,
            network=column,
            evaluation=recipe.evaluation,
        )
        entry = study.judging.arms[name]
        entry["defended"] = {
            "attack": row,
            "defense": column,
            "kind": one.kind,
            "cached": False,
            "seconds": {"purify": purified, "victims": time.perf_counter() - began},
            **_closeness(self._split.train, dataset, one),
        }
        hosts.first(lambda: self._cache.keep("cells", facts, entry))

    def _purified(self, place: str, purifier: Purifier, dataset: Dataset) -> Dataset:
        fit_key, apply_key = jax.random.split(self._purify_key)
        state: Any = ()
        if purifier.num_steps:
            state, _, _ = self._study.work.run(
                "purify", place, purifier, fit_key, dataset, purifier.num_steps
            )
        began = time.perf_counter()
        result = purifier.apply(apply_key, state, dataset)
        self._study.work.note(f"apply {place}", time.perf_counter() - began)
        if not np.array_equal(result.label, dataset.label):
            raise InputError(f"the purifier of {place} changed labels, or their order")
        return result

    def _guide(self, one: Trainee) -> Any:
        """The trained network that attackers know, as `scenario.aux`; once for all equal ones."""
        facts = json.dumps(_guide_facts(one), sort_keys=True, default=str)
        name = f"surrogate-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        if name not in self._guides:
            train = self._split.train
            training = one.training(
                len(train.label), accumulate=self._facts["accumulate"], mesh=None
            )
            state, _ = self._study.train(
                name, training, self._surrogate_key, Split(train, train), epochs=one.recipe.epochs
            )
            self._guides[name] = state.variables
        return self._guides[name]


def _closeness(clean: Dataset, dataset: Dataset, one: Protection) -> dict[str, Any]:
    """PSNR and SSIM of a purified set to the clean images; None where nothing was purified."""
    if one.purifier is None:
        return {"psnr": None, "ssim": None}
    found = similarity(clean.image, dataset.image)
    return {"psnr": found.psnr, "ssim": found.ssim}


def _known(one: Attacker) -> dict[str, Any]:
    guide = None if one.knows is None else _guide_facts(one.knows)
    return one.arm.facts() | {"surrogate": guide}


def _guide_facts(one: Trainee) -> dict[str, Any]:
    shapes = [str(x.shape) for x in jax.tree.leaves(one.known())]
    return {"recipe": dataclasses.asdict(one.recipe), "arrays": shapes}


def _facts(one: Protection, recipe: Recipe) -> dict[str, Any]:
    """A column's settings; with its own recipe the fields that differ from the job's."""
    own = dataclasses.asdict(one.recipe or recipe)
    other = {k: v for k, v in own.items() if v != getattr(recipe, k)}
    return one.settings | ({"recipe": other} if other else {})
