"""One setup of a targeted run: its poisons crafted and stored, victims trained on them and judged.

setups/<setup>/craft/<arm>/            metrics.jsonl; checkpoints/ until the poison is stored
setups/<setup>/poison/<arm>/           the poison folder: the P changed rows, in the drawn order
setups/<setup>/victims/<entry>/        metrics.jsonl, entry.json; checkpoints/ until that is there
setups/<setup>/surrogates/             where every setup has fresh ones
setups/<setup>/result.json             all of it in numbers; it marks a finished setup
"""

import functools
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import checkpoint, hosts, over, tree
from jaxpoison.data import Setup, poisoned, with_poison
from jaxpoison.report import record
from jaxpoison.report.arms import Arm, ball
from jaxpoison.report.poisons import verified
from jaxpoison.report.preparation import Trainee
from jaxpoison.report.work import Work
from jaxpoison.sweep import numbered
from jaxpoison.types import Attack, Dataset, Key, Scenario, Split, Sweep, Training
from jaxpoison.victims import Watched, assess, read_targets
from jaxpoison.victims.evaluate import judgment
from jaxpoison.victims.targets import all_logits

__all__ = [
    "Crafted",
    "Field",
    "Seen",
    "chosen",
    "craft",
    "finished",
    "forget",
    "judge_setup",
    "judged",
    "run_setup",
    "scores",
    "see",
    "store",
    "watch",
]


class Field(NamedTuple):
    """What all setups of a run share.

    Attributes:
      split: clean training set and test set.
      source: where the training set came from.
      target_split: split of the source that the test set is (the first rows of).
      settings: of the run, for the manifests.
      arms: attacks by name.
      victims: networks by name, "" where there is one.
      trainings: by name, of all seeds.
      keep_checkpoints: whether those of finished parts stay.
    """

    split: Split
    source: dict[str, Any]
    target_split: str
    settings: dict[str, Any]
    arms: Mapping[str, Arm]
    victims: Mapping[str, Trainee]
    trainings: Mapping[str, Training]
    keep_checkpoints: bool


class Crafted(NamedTuple):
    """What an attack made of the P rows of one setup.

    Attributes:
      image: [P, H, W, C] float32, in the order of the rows.
      outer_loss: {first, last} of the best restart, before its first and its last update; None for
        an attack of one step, which has nothing to minimize.
      seconds: of wall time, compiling included.
    """

    image: Any
    outer_loss: dict[str, float] | None
    seconds: float


class Seen(NamedTuple):
    """What victims of V seeds made of the test set.

    Attributes:
      logits: [V, N, L] after the last epoch.
      train_accuracy: [V].
      curve: [T, V] accuracy on the whole test set after each epoch.
      success: [T, V] share of the targets that they were shown as they learned.
      intended: [T, V] probability of the wanted label, likewise.
    """

    logits: np.ndarray
    train_accuracy: np.ndarray
    curve: np.ndarray
    success: np.ndarray
    intended: np.ndarray


def run_setup(
    work: Work,
    setup: Setup,
    field: Field,
    aux: Any,
    clean: Mapping[str, Seen],
    *,
    number: int,
    attack_key: Key,
    victim_key: Key,
) -> dict[str, Any]:
    """Every arm of one setup, and every victim on each; what is finished there is read.

    Args:
      work: the setup's own place in the run folder.
      setup: rows and labels.
      field: what all setups share.
      aux: the trained surrogates.
      clean: by victim, what clean victims made of the test set.
      number: of the setup; it is folded into every draw, as in a sweep.
      attack_key: of all setups and arms alike.
      victim_key: of the victims of all setups and arms alike, so that seeds are paired.

    Returns: {name, poisons: {arm: ...}, arms: {entry: values per victim}}, as in result.json.
    """
    if done := finished(work):
        return done
    test, poisons = field.split.test, {}
    arms = {record.entry("clean", v): scores(seen, setup, test) for v, seen in clean.items()}
    for name, one in field.arms.items():
        path = work.folder / "poison" / name
        if not hosts.first(path.exists):
            scenario = setup.scenario(field.split, aux)
            crafted = craft(work, name, one, attack_key, Sweep(jnp.int32(number), scenario))
            store(work, name, one, setup, field, crafted, attack_key, number=number)
        forget(work, f"craft/{name}", field)
        stored, poisons[name] = verified(path, field.split.train)
        poisons[name]["outer_loss"] = stored.manifest.extra["outer_loss"]
        dataset = with_poison(field.split.train, stored)
        for victim, trainee in field.victims.items():
            entry = record.entry(name, victim)
            data = Sweep(jnp.int32(number), Split(dataset, test))
            arms[entry] = _retrain(work, entry, victim, trainee, setup, field, data, victim_key)
    result = {"name": setup.name, "poisons": poisons, "arms": arms}
    hosts.first(lambda: checkpoint.write_json(work.folder / "result.json", result))
    for path in (work.folder / "surrogates").glob("*/checkpoints"):
        forget(work, f"surrogates/{path.parent.name}", field)
    return result


def finished(work: Work) -> dict[str, Any] | None:
    """The result of a setup that has one."""
    return work.read("result.json", {"name": str, "poisons": dict, "arms": dict})


def craft(work: Work, name: str, one: Arm, key: Key, sweep: Sweep) -> Crafted:
    """Run the attack of an arm on one setup; of restarts the best one counts."""
    attack = one.spread()
    state, info, seconds = work.run("craft", name, numbered(attack), key, sweep, one.num_steps)
    return chosen(attack, state, info, sweep.data, seconds.compile + seconds.steps)


def chosen(attack: Attack, state: Any, info: Any, scenario: Scenario, seconds: float) -> Crafted:
    """What an attack that ran on one setup made; of restarts the best one counts."""
    loss = np.asarray(info.outer_loss, np.float64)
    if attack.single is not None:
        number = int(over.best_restart(attack, state, info, scenario))
        attack, state, loss = attack.single, tree.take(state, number), loss[:, number]
    first_last = {"first": float(loss[0].mean()), "last": float(loss[-1].mean())}
    image = jax.device_get(_changed(attack, state, scenario))
    return Crafted(image, first_last if len(loss) > 1 else None, seconds)


def store(
    work: Work,
    name: str,
    one: Arm,
    setup: Setup,
    field: Field,
    crafted: Crafted,
    key: Key,
    *,
    number: int,
) -> None:
    """Write the poison folder of an arm: the P rows, each with the row that it replaces.

    `run(sweep.numbered(attack), key, Sweep(number, scenario))` makes them again.
    """
    rows, began = np.asarray(setup.poison_rows), time.perf_counter()
    norm, eps = ball(one.budget)
    write = functools.partial(
        poisoned.write,
        work.folder / "poison" / name,
        poisoned=Dataset(jnp.asarray(crafted.image), field.split.train.label[rows]),
        clean=field.split.train,
        index=np.arange(len(rows)),
        source_rows=rows,
        attack=name,
        settings=field.settings | one.facts(),
        norm=norm,
        eps=eps,
        source=field.source,
        key=key,
        wall_time_s=crafted.seconds,
        domain="float" if one.rounding == "none" else "uint8",
        rounding="nearest" if one.rounding == "none" else one.rounding,
        extra=setup.extra(field.target_split)
        | {"number": number, "outer_loss": crafted.outer_loss},
    )
    hosts.first(lambda: write() and None)
    work.note(f"write {name}", time.perf_counter() - began)


def see(trainee: Trainee, state: Any, info: Any, train: Dataset, test: Dataset) -> Seen:
    """What trained victims make of the test set, and how well they know their training set."""
    how = trainee.recipe.evaluation
    known = assess(trainee.victim, state.variables, train, **how).accuracy
    logits = all_logits(trainee.victim, state.variables, test.image, **how)
    curves = (np.asarray(x, np.float64) for x in (info.test_accuracy, info.success, info.intended))
    return Seen(logits, np.asarray(known.values), *curves)


def watch(trainee: Trainee, split: Split, setup: Setup) -> Watched:
    """What victims are trained on, and the targets of a setup that they are shown meanwhile."""
    targets = split.test.image[np.asarray(setup.target_rows)]
    wanted = jnp.asarray(setup.wanted, jnp.int32)
    return Watched(trainee.data(split), Dataset(targets, wanted))


def scores(seen: Seen, setup: Setup, test: Dataset) -> dict[str, Any]:
    """What victims of V seeds do on a setup's targets, and on the test set without them.

    Returns: JSON: {success, intended, true, intended_loss, true_loss, accuracy, peak, train} by
      victim, the curve (mean) and the confusion (sum).
    """
    rows = np.asarray(setup.target_rows)
    on = read_targets(seen.logits[:, rows], setup.wanted, setup.true)
    kept = np.setdiff1d(np.arange(len(test.label)), rows)
    label, num = np.asarray(test.label)[kept], seen.logits.shape[2]
    counts = np.zeros((len(seen.logits), num, num), np.int64)
    for matrix, predicted in zip(counts, seen.logits[:, kept].argmax(axis=2), strict=True):
        np.add.at(matrix, (label, predicted), 1)
    judged = judgment(counts, seen.train_accuracy, seen.curve)
    return {name: values.tolist() for name, values in on._asdict().items()} | {
        "accuracy": judged.final_accuracy.values,
        "peak": judged.peak_accuracy.values,
        "train": judged.train_accuracy.values,
        "curve": judged.curve,
        "confusion": judged.confusion,
    }


def _retrain(
    work: Work,
    entry: str,
    victim: str,
    trainee: Trainee,
    setup: Setup,
    field: Field,
    sweep: Sweep,
    key: Key,
) -> dict[str, Any]:
    """`scores` of fresh victims of one training set; kept in entry.json."""
    values = judged(work, entry)
    if values is None:
        training, epochs, split = field.trainings[victim], trainee.recipe.epochs, sweep.data
        data = sweep._replace(data=watch(trainee, split, setup))
        state, info, _ = work.run("victims", entry, numbered(training), key, data, epochs)
        values = judge_setup(work, entry, trainee, state, info, setup, split)
    forget(work, f"victims/{entry}", field)
    return values


def judged(work: Work, entry: str) -> dict[str, Any] | None:
    """The `scores` that a setup's victims of one training set have got already."""
    return work.read(f"victims/{entry}/entry.json", {"success": list, "accuracy": list})


def judge_setup(
    work: Work, entry: str, trainee: Trainee, state: Any, info: Any, setup: Setup, split: Split
) -> dict[str, Any]:
    """Judge the victims of one training set of one setup; `scores`, also in entry.json."""
    train, test = split
    seen = see(trainee, state, info, train, test)
    values = scores(seen, setup, test) | {
        "success_epochs": seen.success.mean(axis=0).tolist(),
        "intended_curve": seen.intended.mean(axis=1).tolist(),
    }
    path = work.folder / "victims" / entry

    def write() -> None:
        path.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path / "entry.json", values)

    hosts.first(write)
    return values


def forget(work: Work, part: str, field: Field) -> None:
    """Remove the checkpoints of a part whose result is stored: of many setups they fill a disk."""
    if not field.keep_checkpoints:
        folder = work.folder / part / "checkpoints"
        hosts.first(lambda: shutil.rmtree(folder, ignore_errors=True))


@jax.jit(static_argnums=0)
def _changed(attack: Attack, state: Any, scenario: Scenario) -> jax.Array:
    return attack.poison(state, scenario).image[scenario.index]
