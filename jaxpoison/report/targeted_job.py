"""The main job of targeted attacks: many setups, each with its own poison and its own victims."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpoison import over
from jaxpoison.data import Setup, class_names, poisoned
from jaxpoison.data.verification import fingerprint
from jaxpoison.report import record, targeted_figures
from jaxpoison.report.arms import Arm
from jaxpoison.report.preparation import Trainee, check_split
from jaxpoison.report.starts import check_starts, warm
from jaxpoison.report.study import Study
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.report.surrogates import abstract_aux, check_members, train_surrogates
from jaxpoison.report.targeted_checks import (
    check_settings,
    check_setups,
    check_targeted_arms,
    fingerprint_of,
    start_all,
)
from jaxpoison.report.targeted_groups import check_at_once, sweep_groups
from jaxpoison.report.targeted_record import arm_entry, comparisons, poison_entry
from jaxpoison.report.targeted_setup import Field, Seen, finished, run_setup, see, watch
from jaxpoison.report.work import Work
from jaxpoison.types import Key, Split, Training, Victim
from jaxpoison.victims import transfer_training, watched

__all__ = ["targeted_job"]

SHOWN = 3  # setups in grid.png


def targeted_job(
    experiment: str,
    config: StudyConfig,
    *,
    setups: Sequence[Setup],
    victims: Mapping[str, Trainee],
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, Arm],
    main: str,
    surrogates: Sequence[Trainee] = (),
    clean: str = "the reference",
    target_split: str = "test",
    published: list[dict[str, Any]] | None = None,
    chunk: int | None = 1,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    at_once: int | None = 1,
    fresh_surrogates: bool = False,
    keep_checkpoints: bool = False,
) -> dict[str, Any]:
    """Surrogates and clean victims once; for every setup and arm a poison and fresh victims.

    Surrogates and V = `config.victims` clean victims are trained on the clean set. Then, setup by
    setup and arm by arm: craft (of restarts the best), write a poison folder of the changed rows,
    verify it, train V fresh victims of every network on the set with these rows in it, judge them
    after the last epoch, in eval mode and without augmentation: is the target classified as wanted,
    its probabilities, and clean accuracy without the targets. Victims of all arms of a setup have
    the same keys, and so have attacks.

    A network with `Trainee.transfer` starts from a pretrained one. "linear": a new last layer on
    the frozen extractor, for surrogates (craft with `params="head"` and the feature attacks) and
    victims alike. "fine_tuning": surrogates train all weights and a new last layer on the clean
    set; victims start from such a network as it stands after that. White box: a victim has the
    network and the transfer (the same object) of a surrogate. Black box: it has its own; its clean
    fine-tuned network is then trained once, below `warm/`. Surrogates and victims have separate
    transfers, so that fresh victims of a pretrained surrogate are possible.

    A killed run goes on with the setup, arm and victim that it was in. Checkpoints are removed as
    soon as what they lead to is stored.

    Args:
      experiment: name, the first level below `config.runs`.
      config: the settings; `share`, `craft_seeds` and `probes` must be as by default.
      setups: targets, wanted labels and poison rows; their names are folders.
      victims: by name, a network and its recipe; one alone may be called "".
      split: clean training set and test set, whole.
      source: where the training set came from, as `data.load` takes it.
      arms: by name, from `arm` and `control`; attacks are crafted for every setup with
        `scenario.goal` = its targets with the wanted labels.
      main: the arm that the others are tested against.
      surrogates: K networks to train on clean data, passed as `scenario.aux`: one network's
        Variables, those of K members stacked, or of n networks that take turns a tuple with one
        stack for each. None for attacks that know no network.
      clean: what to expect of the clean set.
      target_split: split of `source` whose rows the test set has, for `export --to benchmark`.
      published: other people's numbers, see `report.published`.
      chunk: victims and surrogates side by side, as in `over_restarts`: None for dense nets, 1 for
        convolutions, which are then spread over all devices.
      accumulate: micro-batches per update of all networks, see `victims.learner`.
      mesh: spreads every batch of theirs over its axis "batch", see `victims.training`.
      at_once: setups that are crafted, and whose victims are trained, at once, each on a device of
        its own, see `over_setups`; None for as many as all hosts have devices. With 1 the victims
        of a setup are spread instead. The draws are the same: groups of any size above 1 agree bit
        for bit, one by one to rounding.
      fresh_surrogates: whether every setup trains its own.
      keep_checkpoints: whether those of finished parts stay; a victim of ResNet-18 has 90 MB.

    Returns: the record, also in result.json; see `report.record`.
    Raises: NonFiniteError as in `run_chunks`; InputError as in `Study`, and for setups that do not
      fit the data, names that are no folders or stand twice, settings of other jobs, a network the
      data do not fit, or an attack that cannot start (as without the surrogates it needs), before
      anything is written or removed.
    """
    check_targeted_arms(arms, main)
    check_settings(config, victims)
    check_members(surrogates)
    poisoned.check_source(source)
    split = check_split(split, [*victims.values(), *surrogates])
    check_setups(setups, split)
    side_by_side = check_at_once(at_once, mesh, fresh_surrogates)

    made = functools.cache(functools.partial(transfer_training, accumulate=accumulate, mesh=mesh))

    def training(one: Trainee, *, warm: bool = False) -> Training:
        """One process for all pretrained networks of one make: it compiles once."""
        warm = warm and one.mode == "fine_tuning"
        return made(one.mode, one.victim, one.recipe, len(split.train.label), warm=warm)

    @functools.cache
    def repeated(process: Training, victim: Victim) -> Training:
        repeat = over.spread if mesh is None else over.over_restarts
        return repeat(watched(process, victim), config.victims, chunk=chunk)

    field = Field(
        split,
        source,
        target_split,
        config.settings(),
        arms,
        victims,
        {k: repeated(training(one, warm=True), one.victim) for k, one in victims.items()},
        keep_checkpoints,
    )
    check_starts(victims, surrogates, training, split, fresh_surrogates=fresh_surrogates)
    start_all(arms, setups, split, abstract_aux(surrogates))
    study = Study(
        experiment,
        config,
        facts={
            "data": {part: fingerprint(getattr(split, part)) for part in ("train", "test")},
            "setups": fingerprint_of(setups),
            "trainees": {name: one.facts() for name, one in victims.items()},
            "accumulate": accumulate,
            "surrogates": [one.facts() for one in surrogates],
            "fresh_surrogates": fresh_surrogates,
            "attacks": {name: one.facts() for name, one in arms.items()},
        },
    )
    if done := study.finished():
        return done
    clean_key, victim_key, surrogate_key, attack_key = jax.random.split(
        jax.random.key(config.seed), 4
    )
    known = Split(split.train, split.train)  # judged on it too: the test set is not for attacks

    def surrogate(work: Work, key: Key) -> Any:
        return train_surrogates(work, surrogates, training, key, known, chunk=chunk)

    places = [study.work.within(f"setups/{one.name}") for one in setups]
    aux: Any = ()
    references: dict[str, Seen] = {}
    if any(finished(place) is None for place in places):
        aux = () if fresh_surrogates else surrogate(study.work, surrogate_key)
        warm_key = jax.random.fold_in(surrogate_key, len(surrogates))
        warmed = warm(study.work, victims, surrogates, aux, training, warm_key, known)
        field = field._replace(victims=warmed)
        references = {name: _clean(study, field, name, clean_key, setups[0]) for name in victims}
    results = []
    keys = {"attack_key": attack_key, "victim_key": victim_key}
    if side_by_side is not None:
        sweep_groups(study.work, setups, places, field, aux, references, side_by_side, chunk, keys)
    for number, (one, place) in enumerate(zip(setups, places, strict=True)):
        if fresh_surrogates and finished(place) is None:
            aux = surrogate(place, jax.random.fold_in(surrogate_key, number))
        results.append(run_setup(place, one, field, aux, references, number=number, **keys))
    return _finish(study, results, setups, field, main, clean, published or [])


def _clean(study: Study, field: Field, victim: str, key: Key, first: Setup) -> Seen:
    """The victims of the clean set, which all setups share.

    While they learn they look at the first setup's targets, in the program that all victims share;
    it is of no interest.
    """
    one, name = field.victims[victim], record.entry("clean", victim)
    data = watch(one, field.split, first)
    state, info, _ = study.work.run(
        "victims", name, field.trainings[victim], key, data, one.recipe.epochs
    )
    return see(one, state, info, *field.split)


def _finish(study, results, setups, field, main, clean, published) -> dict[str, Any]:
    expect = {"clean": clean} | {name: one.expect for name, one in field.arms.items()}
    targets = [len(one.target_rows) for one in setups]
    for victim in field.victims:
        for name, text in expect.items():
            entry = record.entry(name, victim)
            study.judging.arms[entry] = arm_entry(
                results, entry, name, expect=text, victim=victim, targets=targets
            )
    study.poisons.entries[main] = poison_entry(results, main)
    tests = comparisons(study.judging.arms, main)

    def draw(result: dict[str, Any]) -> None:
        shown = [_shown(study.folder, one, field, main) for one in setups[:SHOWN]]
        targeted_figures.targets(study.folder / "grid.png", shown)
        targeted_figures.pairs(study.folder / "pairs.png", result)

    return study.finish(main=main, published=published, comparisons=tests, draw=draw)


def _shown(folder: pathlib.Path, one: Setup, field: Field, main: str) -> targeted_figures.Shown:
    """A setup's first target and its poisons, for the picture."""
    poison = poisoned.read(folder / "setups" / one.name / "poison" / main)
    source = class_names(str(field.source["name"]), field.source.get("data_dir")) or ()
    labels = [
        source[k] if k < len(source) else str(k) for k in (int(one.true[0]), int(one.wanted[0]))
    ]
    train, test = field.split
    image = np.asarray(poison.dataset.image)
    return targeted_figures.Shown(
        one.name,
        np.asarray(test.image[int(one.target_rows[0])]),
        " → ".join(labels),
        np.asarray(train.image[poison.source_rows]),
        image if image.dtype == np.uint8 else 255 * image,
    )
