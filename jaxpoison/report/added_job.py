"""The main job of attacks that add points: every arm at every share, every follower on each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxpoison import check
from jaxpoison.data import poisoned
from jaxpoison.data.manifest import tree_sha256
from jaxpoison.data.verification import fingerprint
from jaxpoison.models import num_params
from jaxpoison.report import added_figures
from jaxpoison.report.added_arms import AddedArm
from jaxpoison.report.added_cells import Crafted, craft, gathered, label_of
from jaxpoison.report.added_checks import (
    base_rows,
    check_added_arms,
    check_players,
    rehearse_added,
)
from jaxpoison.report.added_config import AddedConfig, Player
from jaxpoison.report.added_filters import gather_filters, screened
from jaxpoison.report.added_sides import Side, distance, victim_name
from jaxpoison.report.arms import Point
from jaxpoison.report.judging import Exam
from jaxpoison.report.record import entry
from jaxpoison.report.study import Study
from jaxpoison.types import Dataset, Key, Split
from jaxpoison.victims import interval

__all__ = ["added_job"]


def added_job(
    experiment: str,
    config: AddedConfig,
    *,
    players: Mapping[str, Player],
    split: Split,
    source: dict[str, Any],
    arms: Mapping[str, AddedArm],
    main: str,
    clean: str = "the reference",
    published: list[dict[str, Any]] | None = None,
    chunk: int | None = 1,
) -> dict[str, Any]:
    """Clean followers; then each arm at each share is crafted, stored, verified and learned from.

    N clean rows stay as they are; P = round(share * N) are added, one for each base row. Base rows
    are a seeded choice, the same for all arms, those of a smaller share among those of a larger
    one. The reference follower's clean network is what attacks know; `goal` is the training set,
    and the test set is read by evaluation alone. The poison folder of a cell holds the added points
    alone. A killed run goes on where it was.

        head = jp.models.logistic_regression((8, 8, 1), 10, bias=False)
        players = {"": Player(head, {"sgd": recipe, "lbfgs": ToConvergence(1e-3)}, "lbfgs")}
        corruption = jp.attacks.Corruption(radius=3, scale=0.05)
        arms = {
            "random-points": added_arm(jp.attacks.random_points, num_classes=10, expect="as clean"),
            "canceling": added_arm(
                jp.attacks.gradient_canceling, head, corruption=corruption, steps=1000,
                constraint=jp.perturb.Constraint("box"), expect="a few points lower",
            ),
        }  # fmt: skip
        record = added_job("digits_canceling", AddedConfig(shares=(0.03, 0.1)), players=players,
                           split=split, source=source, arms=arms, main="canceling")

    With an extractor the player's victim is the head; arms in input space are built with
    `on_features(extractor.victim, head)`, arms with `space="features"` with the head itself.

    Args:
      experiment: name, the first level below `config.runs`.
      config: the settings; `shares`, `victims`, `craft_seeds` and `seed` are read.
      players: by name; one alone may be called "".
      split: clean training set (uint8) and test set, images.
      source: where the training set came from, as `data.load` takes it.
      arms: by name, from `added_arm`; controls are arms too.
      main: the arm the experiment is about.
      clean: what to expect of the clean set.
      published: other people's numbers, see `report.published`.
      chunk: victims side by side, as in `over_restarts`: None for dense nets, 1 for convolutions,
        which are then spread over all devices.

    Returns: the record, also in result.json; entries are "<follower>/<arm> share=<share>", with the
      player's name in front where it has one, and have a field `added`, see `report.record`.
    Raises: NonFiniteError as in `run_chunks`; InputError as in `Study`, and for players and arms
      that do not fit each other or the data, before anything is written or removed.
    """
    check.kind(AddedConfig, config=config)
    check.kind(Split, split=split)
    check.kind(Dataset, **{"split.train": split.train, "split.test": split.test})
    check.kind(Mapping, hint=", by name", players=players, arms=arms)
    split = check_players(players, split)
    num = len(split.train.label)
    arms = check_added_arms(arms, players, config, num)
    check.one_of(tuple(arms), main=main)
    poisoned.check_source(source)
    rehearse_added(arms, players, split.train)
    study = Study(
        experiment,
        config,
        facts={
            "data": {"train": fingerprint(split.train), "test": fingerprint(split.test)},
            "players": {name: _facts(one) for name, one in players.items()},
            "attacks": {name: one.facts() for name, one in arms.items()},
        },
    )
    if done := study.finished():
        return done
    rows_key, victim_key, attack_key, filter_key = jax.random.split(jax.random.key(config.seed), 4)
    sides = {}
    for name, player in players.items():
        own = [one for one in arms.values() if one.player == name]
        as_float = any(one.domain == "unbounded" for one in own)
        options = {"num": config.victims, "chunk": chunk, "as_float": as_float}
        sides[name] = Side(name, player, split, study, victim_key, **options)
        sides[name].learn_clean(clean)
    shown: list[tuple[int, added_figures.Shown]] = []
    for name, one in arms.items():
        side = sides[one.player]
        for number, share in enumerate(one.shares or ()):
            index = base_rows(rows_key, num, share)
            labels = [label_of(one.player, name, share, s) for s in range(config.craft_seeds)]
            for s, label in enumerate(labels):
                key = jax.random.fold_in(attack_key, s)
                crafted = craft(study, side, name, one, index, key, label=label, source=source)
                _judge(study, side, one, crafted, f"{name} share={share:g}", s, filter_key)
                if s == 0 and crafted.poison.manifest.domain != "features":
                    shown.append((number, _shown(label, crafted, split.train)))
            if len(labels) > 1:
                _gather(study, side, f"{name} share={share:g}", len(labels))
    last = max(arms[main].shares or ())
    top = label_of(arms[main].player, main, last, 0)

    def draw(record: dict[str, Any]) -> None:
        ordered = sorted(shown, key=lambda one: one[0])  # all arms at one share, then the next
        added_figures.points(study.folder / "grid.png", [one for _, one in ordered])
        added_figures.residuals(study.folder / "residual.png", record)
        added_figures.reach(study.folder / "reach.png", record)

    return study.finish(main=top, published=published or [], draw=draw)


def _judge(
    study: Study, side: Side, one: AddedArm, crafted: Crafted, arm: str, s: int, key: Key
) -> None:
    """Every follower of a player on one training set."""
    train, num_added = side.poisoned(crafted.poison), crafted.facts["num_added"]
    label = arm if not s else f"{arm}.{s}"
    point = Point(crafted.facts["arm"], "share", float(arm.rpartition("=")[2]))
    entries = study.poisons.entries
    poison = entries[label_of(one.player, crafted.facts["arm"], point.value, s)]
    for follower in side.player.followers:
        exam = Exam(side.split(train), one.expect, poison, sweep=point)
        state = side.learn(follower, label, exam)
        victim = victim_name(side.name, follower)
        mine = study.judging.arms[entry(label, victim)]
        clean = study.judging.arms[entry("clean", victim)]
        facts: dict[str, Any] = {"follower": follower} | crafted.facts
        before, after = (np.asarray(x["final_accuracy"]["values"]) for x in (clean, mine))
        facts["drop"] = interval(before - after)._asdict()
        if crafted.target is not None:
            apart = distance(state, crafted.target)
            facts["distance"] = None if apart is None else interval(apart)._asdict()
            facts["reach"] = crafted.reach.get(follower)
        if follower == side.player.reference and side.player.filters:
            own = label_of(one.player, crafted.facts["arm"], point.value, s)
            facts["filters"] = screened(side, own, train, state, num_added, key)
        mine["added"] = facts


def _shown(label: str, crafted: Crafted, train: Dataset) -> added_figures.Shown:
    """The first points of a cell, for the picture."""
    rows = crafted.poison.source_rows[: added_figures.COLUMNS]
    image = np.asarray(crafted.poison.dataset.image[: len(rows)])
    return added_figures.Shown(label, np.asarray(train.image)[rows], image)


def _gather(study: Study, side: Side, arm: str, num: int) -> None:
    """The other attack keys as `craft_seeds` of the first."""
    for follower in side.player.followers:
        victim = victim_name(side.name, follower)
        repeats = [f"{arm}.{s}" for s in range(1, num)]
        every = [study.judging.arms[entry(name, victim)] for name in [arm, *repeats]]
        found = [one["added"] for one in every]
        gather_filters([one.get("filters", {}) for one in found])
        if over_keys := gathered(found):
            found[0]["craft_seeds"] = over_keys
        study.judging.gather(arm, repeats, network=victim)


def _facts(player: Player) -> dict[str, Any]:
    """What a run folder is bound to."""
    found: dict[str, Any] = {
        "parameters": num_params(player.victim),
        "followers": {name: dataclasses.asdict(how) for name, how in player.followers.items()},
        "reference": player.reference,
        "filters": list(player.filters),
    }
    if player.extractor is not None:
        found["extractor_sha256"] = tree_sha256(player.extractor.variables)
    return found
