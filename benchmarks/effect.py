"""Time to effect: an attack is crafted in turns until fresh victims of its poison are poor enough.

Crafting counts with the attack's own selection on a held-out slice. What does not count is the
check after each turn, a fresh victim's accuracy on the clean test set, which no attacker needs.
A turn, a check and the confirmation are each resumed where they were stopped.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import loops, over, victims
from jaxpoison.checkpoint import write_json
from jaxpoison.data.rounding import to_uint8
from jaxpoison.types import Attack, Dataset, Scenario, Split, Victim

__all__ = ["Job", "Judge", "measure"]


class Judge(NamedTuple):
    """Victims that say how strong a poison is.

    Attributes:
      network: the victim.
      check: recipe of one victim after each turn.
      confirm: recipe of several at the end.
    """

    network: Victim
    check: victims.Recipe
    confirm: victims.Recipe


class Job(NamedTuple):
    """What is to be reached, and how.

    Attributes:
      attack: with its selection.
      eps: its L-infinity radius, pixel units.
      turn: steps of one turn, whole rounds of the selection.
      turns: at the most.
      judges: by name; the first decides.
      limits: clean test accuracies to fall below, descending; the last one ends the job.
      goal_s: seconds of crafting the project wants it in, or None.
    """

    attack: Attack
    eps: float
    turn: int
    turns: int
    judges: dict[str, Judge]
    limits: tuple[float, ...]
    goal_s: float | None


def measure(job: Job, split: Split, folder: pathlib.Path, *, seeds: int) -> dict[str, Any]:
    """Craft and check in turns, then confirm; goes on from what `folder` holds.

    Args:
      job: what to do.
      split: clean training set, all rows of which may change, and clean test set.
      folder: where checkpoints and checks.json are.
      seeds: victims per network of the confirmation.

    Returns: {goal_s, limits, reached_s, checks, confirmed}. `checks` has a row per turn: steps,
      seconds of crafting and of compiling so far, the attack's info, and each judge's accuracy;
      `reached_s` the seconds of crafting at the first check below each limit, None where there was
      none; `confirmed` the accuracies of the victims of the last poison.
    """
    num = len(split.train.label)
    scenario = Scenario(split.train, split.train, jnp.arange(num, dtype=jnp.int32))
    check = {name: _judge(one.network, one.check, num, 1) for name, one in job.judges.items()}
    confirm = {
        name: _judge(one.network, one.confirm, num, seeds) for name, one in job.judges.items()
    }
    decisive = next(iter(job.judges))
    notes = folder / "checks.json"
    checks = json.loads(notes.read_text()) if notes.exists() else []

    def below(limit):
        return [row["craft_s"] for row in checks if row["test_accuracy"][decisive] < limit]

    def finished():
        return len(checks) == job.turns or bool(below(job.limits[-1]))

    while True:
        turn = len(checks) + (not finished())
        sets, row = _craft(job, scenario, split.test, folder / "craft", turn)
        if turn > len(checks):
            for name, judge in check.items():
                row["test_accuracy"][name] = judge(sets, folder / "victims" / f"{turn}-{name}")[0]
            checks.append(row)
            write_json(notes, checks)
        if finished():
            break
    confirmed = {
        name: judge(sets, folder / "victims" / f"last-{name}") for name, judge in confirm.items()
    }
    return {
        "goal_s": job.goal_s,
        "limits": list(job.limits),
        "reached_s": {f"{limit:g}": next(iter(below(limit)), None) for limit in job.limits},
        "checks": checks,
        "confirmed": confirmed,
    }


def _craft(
    job: Job, scenario: Scenario, test: Dataset, folder: pathlib.Path, turn: int
) -> tuple[Split, dict[str, Any]]:
    """The poison after that many turns, in grey levels, and what it took so far."""
    state, info, seconds = loops.run_chunks(
        job.attack,
        jax.random.key(0),
        scenario,
        num_steps=turn * job.turn,
        directory=folder,
        description=f"turn {turn}",
    )
    poisoned = _poison(job.attack, state, scenario)
    clean = np.asarray(scenario.train.image)
    grey = to_uint8(poisoned.image, clean, norm="linf", eps=job.eps)
    row = {"steps": turn * job.turn, "craft_s": seconds.steps, "compile_s": seconds.compile}
    row["info"] = {k: float(np.mean(v[-1])) for k, v in info._asdict().items()}
    row["test_accuracy"] = {}
    return Split(Dataset(jnp.asarray(grey), poisoned.label), test), row


@functools.partial(jax.jit, static_argnums=0)
def _poison(attack: Attack, state: Any, scenario: Scenario) -> Dataset:
    return attack.poison(state, scenario)


def _judge(
    network: Victim, recipe: victims.Recipe, num: int, seeds: int
) -> Callable[[Split, pathlib.Path], list[float]]:
    """(poisoned training set and test set, folder) -> clean test accuracy of each fresh victim."""
    training = over.over_restarts(victims.victim_training(network, recipe, num), seeds)

    def judge(sets, folder):
        _, info, _ = loops.run_chunks(
            training,
            jax.random.key(1),
            sets,
            num_steps=recipe.epochs,
            directory=folder,
            description=folder.name,
        )
        return [float(x) for x in info.test_accuracy[-1]]

    return judge
