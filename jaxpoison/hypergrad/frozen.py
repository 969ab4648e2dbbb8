"""Replay of a follower that trains on a frozen copy of the generator; both forms of DeepConfuse.

A trial: a fresh follower takes I steps of its own on what the generator of the trial's start
releases. At each of its states the learning generator takes one step of the hypergradient through
one pseudo-step of the follower (Feng et al. 2019, eq. 5). The follower's path depends on the frozen
copy alone, so both forms give the same generator from the same mini-batches.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree
from jaxpoison.hypergrad.game import clean_batch
from jaxpoison.hypergrad.minibatch import check_fraction, first_order, next_rows, some_rows
from jaxpoison.hypergrad.one_step import through_step
from jaxpoison.types import Batch, Game, Hypergrad, Key, Perturbation, TrainState, Variables

__all__ = ["FrozenState", "TrajectoryState", "frozen", "trajectory"]

PyTree = Any


class FrozenState(NamedTuple):
    """A trial under way.

    Attributes:
      follower: after the steps of this trial.
      frozen: the generator it trains on, as it was when the trial began: weights and statistics.
      number: of the next step in its trial, from 0.
    """

    follower: TrainState
    frozen: Variables
    number: Int[Array, ""]


def frozen(
    game: Game,
    space: Perturbation,
    *,
    learning_rate: float | Float[Array, ""],
    trial_steps: int,
) -> Hypergrad:
    """The memory-efficient form: the generator learns while the follower goes its way.

    At step 0 of a trial the follower is drawn anew and frozen <- theta. Then, on one batch (x, y):
    (a) x_t = poison(theta, x), the generator in train mode;
        phi' = phi - a dL(f_phi(x_t), y)/dphi;  gradient = d lead(phi'; x, y) / d theta.params;
    (b) phi <- one step of the follower's own optimizer on release(frozen, x), eval mode.

    The pseudo-step is differentiated with respect to x_t and pulled through the generator once.
    Follower losses use batch statistics, the clean batch its own.

    Args:
      game: the follower, the generator and the leader's loss.
      space: theta's perturbation; its `init` says how theta looks.
      learning_rate: a, of the pseudo-step; the follower's own rate in the paper.
      trial_steps: I, steps of one trial.

    Returns: a Hypergrad on all rows of the scenario it is given (see `minibatches`); its gradient
      is Variables(d / d params, new statistics).
    Raises: InputError for trial_steps < 1.
    Source: Feng et al. 2019, Algorithm 2; batch-norm modes of the released code.
    """
    check.at_least(1, trial_steps=trial_steps)

    def init(key, scenario):
        return FrozenState(*_blank(game, space, key, scenario), jnp.int32(0))

    def estimate(key, theta, phi, scenario):
        keys = _keys(key)
        follower, fixed = lax.cond(
            phi.number == 0,
            lambda: (game.follower.init(keys.start), theta),
            lambda: (phi.follower, phi.frozen),
        )
        batch = clean_batch(scenario)
        loss, gradient = _generator_step(
            game, keys, theta, follower.variables, batch, learning_rate
        )
        follower = _follower_step(game, keys, fixed, follower, batch)
        return gradient, FrozenState(follower, fixed, (phi.number + 1) % trial_steps), loss

    return Hypergrad(init, estimate)


class TrajectoryState(NamedTuple):
    """A recorded trial.

    Attributes:
      rows: [S] rows that take part, in the order of this pass.
      cursor: how many of them were recorded in this pass.
      variables: [I, ...] the follower before each step.
      batches: [I, B] the rows of each step.
      number: of the next step to replay, from 0.
    """

    rows: Int[Array, " s"]
    cursor: Int[Array, ""]
    variables: Variables
    batches: Int[Array, "i b"]
    number: Int[Array, ""]


def trajectory(
    game: Game,
    space: Perturbation,
    *,
    learning_rate: float | Float[Array, ""],
    trial_steps: int,
    batch_size: int,
    train_fraction: float = 1.0,
) -> Hypergrad:
    """The trajectory form: a whole trial of the follower is recorded, then replayed step by step.

    The first estimate of a trial trains a fresh follower for I steps on release(theta, .) and keeps
    (phi_i, rows_i); estimate i gives the generator's gradient at entry i, as (a) of `frozen`.
    The same keys as there would be drawn if step i had the key fold_in(key of the first, i).

    Memory: I copies of the follower's parameters and statistics, 4 I (|params| + |stats|) bytes
    (1.6 GB for one pass over MNIST), where `frozen` holds one. Its first step takes as long as I
    steps of training. It exists to check `frozen`, and for followers whose trial is to be read.

    Args:
      game: as in `frozen`.
      space: as in `frozen`.
      learning_rate: as in `frozen`.
      trial_steps: I.
      batch_size: B; the estimator draws its own mini-batches, shuffled as by `minibatches`.
      train_fraction: as in `minibatches`.

    Returns: a Hypergrad on the whole scenario.
    Raises: InputError for trial_steps or batch_size < 1, a fraction outside (0, 1]; on tracing, for
      fewer rows than B.
    Source: Feng et al. 2019, Algorithm 1.
    """
    check.at_least(1, trial_steps=trial_steps)
    check_fraction(batch_size, train_fraction)

    def init(key, scenario):
        rows_key, follower_key = jax.random.split(key)
        rows = first_order(rows_key, scenario, batch_size, train_fraction)
        follower, _ = _blank(game, space, follower_key, scenario)
        variables = jax.tree.map(
            lambda x: jnp.zeros((trial_steps, *x.shape), x.dtype), follower.variables
        )
        batches = jnp.zeros((trial_steps, batch_size), rows.dtype)
        return TrajectoryState(rows, jnp.int32(0), variables, batches, jnp.int32(0))

    def recorded(key, theta, state, scenario):
        """The state with a new trial, or as it is inside of one; a loop writes in place."""

        def advance(i, carry):
            follower, rows, cursor, variables, batches = carry
            order_key, step_key = jax.random.split(jax.random.fold_in(key, i))
            rows, cursor, some = next_rows(order_key, rows, cursor, batch_size)
            variables = jax.tree.map(lambda a, x: a.at[i].set(x), variables, follower.variables)
            batch = clean_batch(some_rows(scenario, some))
            follower = _follower_step(game, _keys(step_key), theta, follower, batch)
            return follower, rows, cursor, variables, batches.at[i].set(some)

        def fresh():
            step_key = jax.random.split(jax.random.fold_in(key, 0))[1]
            return game.follower.init(_keys(step_key).start)

        begins = state.number == 0
        follower = lax.cond(begins, fresh, lambda: jax.tree.map(_zeros, jax.eval_shape(fresh)))
        steps = jnp.where(begins, trial_steps, 0)
        carry = follower, state.rows, state.cursor, state.variables, state.batches
        return lax.fori_loop(0, steps, advance, carry)[1:]

    def estimate(key, theta, state, scenario):
        rows, cursor, variables, batches = recorded(key, theta, state, scenario)
        batch = clean_batch(some_rows(scenario, batches[state.number]))
        at = tree.take(variables, state.number)
        loss, gradient = _generator_step(game, _keys(key), theta, at, batch, learning_rate)
        number = (state.number + 1) % trial_steps
        return gradient, TrajectoryState(rows, cursor, variables, batches, number), loss

    return Hypergrad(init, estimate)


class _Keys(NamedTuple):
    """Of one step: the follower's start, its pseudo-step, the leader's loss, its own step."""

    start: Key
    pseudo: Key
    lead: Key
    follow: Key


def _keys(key: Key) -> _Keys:
    return _Keys(*jax.random.split(key, 4))


def _generator_step(
    game: Game,
    keys: _Keys,
    theta: Variables,
    at: Variables,
    batch: Batch,
    learning_rate: float | Float[Array, ""],
) -> tuple[Float[Array, ""], Variables]:
    """(a) of `frozen`: the leader's loss, and its gradient with the new statistics of g."""
    image, pull, stats = jax.vjp(
        lambda params: game.poison(Variables(params, theta.stats), batch.image),
        theta.params,
        has_aux=True,
    )

    def inner(params, image):
        return game.follower.loss(keys.pseudo, params, at.stats, batch._replace(image=image))[0]

    def outer(params, image):
        del image
        return game.lead(keys.lead, params, at.stats, batch)

    loss, at_image = through_step(inner, outer, at.params, image, learning_rate=learning_rate)
    return loss, Variables(pull(at_image)[0], stats)


def _follower_step(
    game: Game, keys: _Keys, fixed: Variables, follower: TrainState, batch: Batch
) -> TrainState:
    """(b) of `frozen`."""
    released = batch._replace(image=game.release(fixed, batch.image))
    return game.follower.step(keys.follow, follower, released)[0]


def _blank(game: Game, space: Perturbation, key: Key, scenario: Any) -> tuple[Any, Any]:
    """A follower and a generator of zeros: the first step of a trial replaces both."""
    shapes = jax.eval_shape(lambda: (game.follower.init(key), space.init(key, scenario)))
    return jax.tree.map(_zeros, shapes)


def _zeros(x: Any) -> Array:
    return jnp.zeros(x.shape, x.dtype)
