"""The cells of one defense matrix as they are filled, and what each is known by in the cache."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxpoison import hosts
from jaxpoison.data.verification import array_sha256, fingerprint
from jaxpoison.report import record
from jaxpoison.report.cache import Cache
from jaxpoison.report.identity import code_sha256, identity
from jaxpoison.report.judging import Exam
from jaxpoison.report.matrix_config import Attacker
from jaxpoison.report.preparation import Trainee
from jaxpoison.report.protections import Protection
from jaxpoison.report.study import Study
from jaxpoison.types import Dataset, InputError, Purifier, Scenario, Split, Training, Victim
from jaxpoison.victims import Recipe, residual_energy, similarity

__all__ = ["Cells", "known", "protection_facts"]


class Cells:
    """The cells of one run as they are filled."""

    def __init__(
        self,
        study: Study,
        cache: bool,
        victim: Victim,
        split: Split,
        source: Any,
        index: Any,
        keys: Any,
        facts: Any,
    ):
        self._study, self._victim, self._split = study, victim, split
        self._source, self._index = source, index
        _, self._victim_key, self._surrogate_key, self._attack_key, self._purify_key = keys
        self._facts = facts
        self._cache = Cache(study.config.runs / "cache" if cache else None)
        self._made = {
            "versions": record.versions(),
            "code": code_sha256(),
            "platform": jax.default_backend(),
            "kind": jax.devices()[0].device_kind,
            "deterministic": hosts.is_deterministic(),
            "matmul_precision": jax.config.values["jax_default_matmul_precision"],
        }
        self._guides: dict[str, Any] = {}
        self._identities: dict[Any, str] = {}

    def identify(
        self, attackers: Mapping[str, Attacker], defenses: Mapping[str, Protection]
    ) -> None:
        """Note what attacks and defenses are made of, for the cache."""
        for name, one in attackers.items():
            guide = None if one.knows is None else one.knows.victim
            self._identities["row", name] = identity((one.arm.attack, guide))
        for name, one in defenses.items():
            parts = (one.purifier, one.training, self._victim)
            self._identities["column", name] = identity(parts)

    def poison(self, row: str, attacker: Attacker | None) -> tuple[Dataset, Any]:
        """(the stored training set, its entry), crafted, or lent by the cache; verified."""
        train, study = self._split.train, self._study
        if attacker is None:
            return train, None
        one, path = attacker.arm, study.folder / "poison" / row
        facts = {
            "attack": known(attacker),
            "made_of": self._identities.get(("row", row)),
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
        training: Training,
        recipe: Recipe,
        expect: str,
    ) -> None:
        """The entry of one cell, from the cache or computed."""
        study, name = self._study, record.entry(row, column)
        facts = {
            "poison": {"train": fingerprint(stored), "test": self._facts["data"]["test"]},
            "defense": protection_facts(one, recipe),
            "made_of": self._identities.get(("column", column)),
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
        dataset = stored
        if one.purifier is not None:
            dataset = self._purified(f"{column}/{row}", one.purifier, stored)
        study.judging.retrain(
            row,
            Exam(Split(dataset, self._split.test), expect, poison),
            self._victim,
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
            "seconds": self._seconds(f"{column}/{row}"),
            **_closeness(self._split.train, stored, dataset, one),
        }
        hosts.first(lambda: self._cache.keep("cells", facts, entry))

    def _seconds(self, place: str) -> dict[str, float]:
        """Of all processes that worked on the cell, without compiling."""
        spent = self._study.work.seconds()
        purify, apply, victims = (
            spent.get(f"{part} {place}", 0.0) for part in ("purify", "apply", "victims")
        )
        return {"purify": purify + apply, "victims": victims}

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
        facts = _guide_facts(one) | {"made_of": identity(one.victim)}
        facts = json.dumps(facts, sort_keys=True, default=str)
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


def _closeness(
    clean: Dataset, stored: Dataset, dataset: Dataset, one: Protection
) -> dict[str, Any]:
    """PSNR and SSIM of a purified set to the clean images, and `residual_energy`; else None."""
    if one.purifier is None:
        return {"psnr": None, "ssim": None, "residual": None}
    found = similarity(clean.image, dataset.image)
    left = residual_energy(clean.image, stored.image, dataset.image)
    return {"psnr": found.psnr, "ssim": found.ssim, "residual": left}


def known(one: Attacker) -> dict[str, Any]:
    """The settings of a row, those of the network it knows among them."""
    guide = None if one.knows is None else _guide_facts(one.knows)
    return one.arm.facts() | {"surrogate": guide}


def _guide_facts(one: Trainee) -> dict[str, Any]:
    shapes = [str(x.shape) for x in jax.tree.leaves(one.known())]
    return {"recipe": dataclasses.asdict(one.recipe), "arrays": shapes}


def protection_facts(one: Protection, recipe: Recipe) -> dict[str, Any]:
    """A column's settings; with its own recipe the fields that differ from the job's."""
    own = dataclasses.asdict(one.recipe or recipe)
    other = {k: v for k, v in own.items() if v != getattr(recipe, k)}
    return one.settings | ({"recipe": other} if other else {})
