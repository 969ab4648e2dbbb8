"""Attacks against defenses, cell by cell: each resumes by itself, and none is computed twice."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpoison import over
from jaxpoison.data import poison_rows, poisoned
from jaxpoison.data.verification import fingerprint
from jaxpoison.models import num_params
from jaxpoison.report import matrix_figures
from jaxpoison.report.matrix_cells import Cells, known, protection_facts
from jaxpoison.report.matrix_config import Attacker
from jaxpoison.report.preparation import Trainee, check_arms, check_split, rehearse
from jaxpoison.report.protections import UNDEFENDED, Protection
from jaxpoison.report.study import Study
from jaxpoison.types import InputError, Scenario, Split, Training, Victim
from jaxpoison.victims import Recipe, checkpoint_epochs, victim_training

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
    network, the seeds, the package versions, the package's code, the kind of device and how exactly
    it computes; a poison by the attack's settings, the hashes of the data, its rows and its key
    likewise; and both by what their functions are made of (`report.identity`): other widths are
    other cells. With `config.cache` what equal facts determine is taken from RUNS/cache, and the
    entry says so.

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
    Raises: InputError as in `main_job`, for names that are not there, and, with `config.cache`, for
      parts that have no identity.
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
    for one in guides:
        if one.checkpoints is not None:  # asked here, before any other row is computed
            checkpoint_epochs(one.checkpoints, one.recipe.epochs)
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
        "attacks": {name: known(one) for name, one in attackers.items()},
        "defenses": {name: protection_facts(one, recipe) for name, one in defenses.items()},
    }
    study = Study(experiment, config, facts=facts)
    if done := study.finished():
        return done
    cells = Cells(study, config.cache, victim, split, source, index, keys, facts)
    if config.cache:
        cells.identify(attackers, defenses)
    for row, attacker in [("clean", None), *attackers.items()]:
        stored, poison = cells.poison(row, attacker)
        for column, one in defenses.items():
            own = one.recipe or recipe
            training = trainings[own, one.training]
            expect = clean if row == "clean" else arms[row].expect
            cells.fill(row, column, one, stored, poison, training, own, expect)
    first = next(iter(attackers), "clean")
    return study.finish(
        main=first,
        published=published or [],
        draw=lambda found: matrix_figures.heat_map(study.folder / "matrix.png", found),
    )
