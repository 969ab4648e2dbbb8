"""Keep the best poison of a run: a fresh victim is trained on it now and then, and judged.

Generator attacks get worse again after their best (the game overshoots), and their outer loss does
not tell; published codes select on the test set, which is a leak. Here the slice that judges is
cut from the training set, and no monitoring victim trains on it; the attack itself may.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree
from jaxpoison.types import (
    Attack,
    Dataset,
    InputError,
    Split,
    Training,
    TrainState,
    Victim,
)
from jaxpoison.victims import Recipe
from jaxpoison.victims.train import make_learner
from jaxpoison.victims.train import training as victim_epochs

__all__ = ["SelectionState", "held_out_rows", "keep_best", "monitor", "num_steps"]

PyTree = Any


class SelectionState(NamedTuple):
    """The attack, the best it has been, and the victim that watches it.

    Attributes:
      attack: the attack's state.
      info: the info of its last step, repeated while the monitor trains.
      best: the attack's state after the best round; its start until a round has ended.
      best_score: of that round; infinite until then.
      monitor: the victim of this round.
      score: of the latest round; infinite before the first, and where the monitor diverged.
      phase: steps of this round so far, in [0, every + epochs).
    """

    attack: PyTree
    info: PyTree
    best: PyTree
    best_score: Float[Array, ""]
    monitor: TrainState
    score: Float[Array, ""]
    phase: Int[Array, ""]


def keep_best(
    attack: Attack,
    training: Training,
    *,
    every: int,
    epochs: int,
    holdout: float = 0.1,
    label_map: Sequence[int] | None = None,
    seed: int = 0,
) -> Attack:
    """`attack`, whose poison is that of its best round on a held-out slice of the training set.

    A round is `every` steps of the attack and then `epochs` steps of a fresh victim, each one epoch
    on what `attack.poison` makes of the training set at this point, without the slice (never stored
    between steps). At its end the round's score is the share of clean held-out rows on which the
    attack fails, by the training's `test_accuracy`; the lowest score wins, of equal ones the first:

      score = mean_i [argmax f(x_i) = y_i],  with a label map  mean_i [argmax f(x_i) != eta(y_i)].

    Run `num_steps(rounds, every=every, epochs=epochs)` steps: attack steps after the last round are
    never judged, so never used. In the first round the steps are those of `attack` alone. A victim
    that diverges (NaN or infinite loss or weights) says nothing: its round is not kept.

    Args:
      attack: any attack; restarts go outside, `over_restarts(keep_best(...), num)`.
      training: of the monitoring victim, `monitor(victim, recipe)` or another, whose learning rate
        follows no schedule over a number of rows.
      every: attack steps in a round.
      epochs: of its victim.
      holdout: share of the N training rows in the slice, round(holdout * N) of them.
      label_map: eta as L class numbers, eta(y) = label_map[y], of a label-specific attack.
      seed: of the slice, apart from the run's key: restarts are judged on the same rows.

    Returns: an Attack. Its info has the fields of the attack's own, those of the last attack step
      while the monitor trains, and then `held_out`, the latest round's score, and `best`, the
      lowest so far (both 1 before there is one, or if the monitor diverged). `poison`, and
      `generator` if the attack has one, read the best round, before the first one's end the current
      state. `best_of` chooses among restarts by `best`.
    Raises: InputError for a bad value; on tracing, for a slice that is empty or leaves less than a
      batch.
    Source: Feng et al. 2019 and Liu et al. 2024, released codes, which judge on the test set.
    Cost: a second copy of the attack's state, one of the victim's; in a monitor step the poisoned
      set as float32.
    """
    check.at_least(1, every=every, epochs=epochs)
    check.number(above=0, below=1, holdout=holdout)
    for wanted in label_map or ():
        check.at_least(0, label_map=wanted)
    if attack.single is not None:
        raise InputError("keep_best takes one attack; write over_restarts(keep_best(...), num)")

    def init(key, scenario):
        state = attack.init(key, scenario)
        info = jax.eval_shape(attack.step, key, state, scenario)[1]
        info = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), info)
        phi = training.init(key, split(scenario.train, scenario))  # only its form is used
        none = jnp.float32(jnp.inf)
        return SelectionState(state, info, state, none, phi, none, jnp.int32(0))

    def split(poisoned, scenario):
        return _split(poisoned, scenario.train, holdout, label_map, seed)

    def watch(key, attacked, phi, fresh, scenario):
        """One epoch of the monitor: (its state, the score it has now)."""
        init_key, epoch_key = jax.random.split(key)
        sets = split(attack.poison(attacked, scenario), scenario)
        phi = lax.cond(fresh, lambda: training.init(init_key, sets), lambda: phi)
        phi, info = training.step(epoch_key, phi, sets)
        fails = info.test_accuracy if label_map is None else 1 - info.test_accuracy
        sound = info.finite & tree.all_finite(phi.variables)
        return phi, jnp.where(sound, fails, jnp.inf)

    def step(key, state, scenario):
        phase = state.phase
        attacked, info = _turn_if(
            phase < every,
            lambda carry: attack.step(key, carry[0], scenario),
            (state.attack, state.info),
        )
        phi, now = _turn_if(
            phase >= every,
            lambda carry: watch(key, attacked, carry[0], phase == every, scenario),
            (state.monitor, state.score),
        )
        score = jnp.where(phase == every + epochs - 1, now, state.score)
        better = score < state.best_score  # only at the end of a round does the score change
        best = _turn_if(better, lambda _: attacked, state.best)
        lowest = jnp.where(better, score, state.best_score)
        phase = (phase + 1) % (every + epochs)
        new = SelectionState(attacked, info, best, lowest, phi, score, phase)
        scores = (jnp.minimum(x, 1) for x in (score, lowest))
        return new, _info_type(type(info))(*info, *scores)

    def chosen(state):
        found = jnp.isfinite(state.best_score)
        return lax.cond(found, lambda: state.best, lambda: state.attack)

    def poison(state, scenario):
        return attack.poison(chosen(state), scenario)

    own = attack.generator
    generator = None if own is None else lambda state: own(chosen(state))
    rounds = {"round_steps": every + epochs, "check": attack.check}
    return Attack(init, step, poison, generator=generator, **rounds)


def monitor(victim: Victim, recipe: Recipe) -> Training:
    """The victim that `keep_best` trains: a recipe for any number of rows, adversarial or not.

    Feng et al. judge after every trial, `recipes.deepconfuse_monitor`, with every = the steps of a
    trial; Liu et al. after 5 passes of the generator, `recipes.gue_monitor`, for GUE-adv
    `recipes.gue_adversarial_monitor`. In each case epochs = `recipe.epochs`.

    Args:
      victim: the network, in the papers that of the surrogate.
      recipe: at a constant rate.

    Raises: InputError for a recipe with a schedule or a warm-up, which would need a number of rows.
    """
    if recipe.schedule != "constant" or recipe.warmup:
        raise InputError(
            f"a monitor's rate is constant; the recipe has schedule = {recipe.schedule!r} and "
            f"warmup = {recipe.warmup}"
        )
    return victim_epochs(make_learner(victim, recipe, recipe.batch_size, 1), recipe)


def num_steps(rounds: int, *, every: int, epochs: int) -> int:
    """Steps of `rounds` whole rounds of `keep_best`: rounds (every + epochs)."""
    check.at_least(1, rounds=rounds, every=every, epochs=epochs)
    return rounds * (every + epochs)


def held_out_rows(
    num: int, holdout: float, *, seed: int = 0
) -> tuple[Int[Array, " m"], Int[Array, " h"]]:
    """(rows the monitor trains on, rows it is judged on) of `num`: together all, in random order.

    Raises: InputError if one of the two is empty.
    """
    held = round(holdout * num)
    if held in (0, num):
        raise InputError(f"holdout {holdout} of {num} rows leaves one of the two parts empty")
    order = jax.random.permutation(jax.random.key(seed), num)
    return order[held:], order[:held]


def _turn_if(condition: Array, body: Callable[[PyTree], PyTree], carry: PyTree) -> PyTree:
    """`body(carry)` if the condition holds, else `carry`: a loop of one turn or none.

    `lax.cond` copies what it passes through, step after step; a loop has it in place. Under vmap a
    loop whose condition fails for all is not run, where a cond would run both sides.
    """
    loop = lax.while_loop(
        lambda c: c[0], lambda c: (jnp.array(False), body(c[1])), (condition, carry)
    )
    return loop[1]


def _split(poisoned: Dataset, clean: Dataset, holdout, label_map, seed) -> Split:
    """What the monitor trains on and is judged on: poisoned rows, and clean held-out ones."""
    rest, held = held_out_rows(clean.label.shape[0], holdout, seed=seed)
    test = Dataset(clean.image[held], clean.label[held])
    if label_map is not None:
        test = test._replace(label=jnp.asarray(label_map, jnp.int32)[test.label])
    return Split(Dataset(poisoned.image[rest], poisoned.label[rest]), test)


@functools.cache
def _info_type(own: Any) -> Any:
    """The fields of an attack's info with the scores, flat: each is a column of metrics.jsonl."""
    if taken := {"held_out", "best"} & set(own._fields):
        raise InputError(f"the attack's info has {', '.join(sorted(taken))}: it is selected twice")
    return collections.namedtuple("SelectionInfo", (*own._fields, "held_out", "best"))
