"""Training on a set that does not fit the device: windows of batches, read ahead by a thread.

An epoch draws the order, the keys and the batches of `victims.training`, so its results are those
of training in memory. Each window of k batches is one jitted loop; while it runs the next one is
read from disk and copied to the device, and the one before is freed. The clean test set is
evaluated through the same windows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jaxpoison import check, over, tree
from jaxpoison.data import Rows, StreamSplit
from jaxpoison.types import (
    Dataset,
    InputError,
    Streaming,
    Training,
    TrainingDefense,
    Victim,
    as_float,
)
from jaxpoison.victims.evaluate import Judgment, judgment
from jaxpoison.victims.parallel import check_mesh, everywhere, spread_victim
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.train import EpochInfo, check_batch, make_learner, make_update
from jaxpoison.victims.windows import Job, Windows

__all__ = ["judge_streamed", "streamed_training"]


def streamed_training(
    victim: Victim,
    recipe: Recipe,
    num_train: int,
    *,
    max_bytes: int,
    seeds: int | None = None,
    defense: TrainingDefense | None = None,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    axis: str = "batch",
) -> Streaming:
    """`victim_training` over a `StreamSplit`, for `run_chunks`.

    The same rows, keys and updates as in memory: states agree to rounding. Seeds are trained one
    after the other within an epoch, each in its own order, so the set is read once per seed and
    epoch. A signal is heard, and a checkpoint written, between epochs.

    Args:
      victim: the network.
      recipe: how it is trained; run it for `recipe.epochs` steps. It is judged with running
        statistics, `batch_size` rows at a time.
      num_train: N of the training sets it will see.
      max_bytes: of device memory that windows may take together, on all devices of a mesh. Two
        windows are held (one in use, one on its way) where two batches fit, else one. Parameters
        and activations come on top.
      seeds: R, as `over_restarts(victim_training(...), R)`; None for one run without that axis.
      defense: as of `victim_training`.
      accumulate: micro-batches per update; see `victims.learner`.
      mesh: devices to spread each batch over; see `victims.training`.
      axis: name of its axis.

    Raises: InputError as in `victim_training`, for seeds < 1, max_bytes < 1 or a recipe with batch
      statistics; when it starts, for a cap below one batch, and for a training set of another size.
    """
    check.at_least(1, max_bytes=max_bytes)
    if seeds is not None:
        check.at_least(1, seeds=seeds)
    check_batch(recipe, num_train, accumulate)
    check_mesh(mesh, axis, recipe.batch_size)
    if recipe.statistics != "running":
        raise InputError(
            f"statistics = {recipe.statistics!r}; of a set that is streamed they must be running"
        )
    model = make_learner(victim, recipe, num_train, accumulate, defense)
    update = make_update(model, recipe, mesh, axis)
    train = jax.jit(functools.partial(_train, update, mesh), donate_argnums=0)
    right = jax.jit(functools.partial(_right, spread_victim(victim, mesh, axis)))

    def windows(split: StreamSplit) -> Windows:
        num = len(split.train)
        if num != num_train:
            raise InputError(f"the training set has {num} rows; num_train = {num_train}")
        if not len(split.test):
            raise InputError("there are no images to classify")
        return Windows(split, recipe.batch_size, max_bytes, mesh, axis)

    def init(key, split):
        windows(split)
        return everywhere(model.init(key), mesh)

    def shapes(key, phi, split):
        del key, split
        zero = jnp.float32(0)
        return phi, EpochInfo(zero, zero, jnp.array(True), zero, zero)

    def epoch(key, phi, split):
        held = windows(split)
        order_key, epoch_key = jax.random.split(key)
        order = np.asarray(_permutation(order_key, num_train))
        infos, hits = [], []

        def use(job, window):
            nonlocal phi
            if job.train:
                phi, info = train(phi, epoch_key, job.number, window, job.count)
                infos.append((job, info))
                return info
            hits.append(right(phi.variables, window, job.count))
            return hits[-1]

        jobs = [*held.training(order, drop_last=recipe.drop_last), *held.testing()]
        held.through(jobs, use)
        share = sum(int(x) for x in hits) / len(split.test)
        return phi, _epoch_info(infos, share)

    def epochs(key, state, split):
        """One epoch of every seed."""
        if seeds is None:
            return epoch(key, state, split)
        infos = []
        for r in range(seeds):
            phi, info = epoch(jax.random.fold_in(key, r), _seed(state, r), split)
            state = _put(state, r, phi)
            infos.append(info)
        return state, jax.tree.map(lambda *x: np.stack(x), *infos)

    def compile_all(phi, split):
        """Every program once, on no batch at all: the state comes back as it was."""
        held = windows(split)

        def use(job, window):
            nonlocal phi
            if job.train:
                phi, info = train(phi, jax.random.key(0), job.number, window, 0)
                return info
            return right(phi.variables, window, 0)

        order = np.arange(num_train)
        jobs = [*held.training(order, drop_last=recipe.drop_last), *held.testing()]
        held.through(list({(job.train, job.shape): job for job in jobs}.values()), use)
        return phi

    def chunk(steps_key, state, split, start, stop):
        first, last = int(start), int(stop)
        with jax.transfer_guard("allow"):
            if first == last:
                one = state if seeds is None else _seed(state, 0)
                one = compile_all(one, split)
                return (one if seeds is None else state), first, ()
            infos: list[Any] = []
            for t in range(first, last):
                state, info = epochs(jax.random.fold_in(steps_key, t), state, split)
                infos.append(info)
                if not np.all(info.finite):
                    break
            return state, first + len(infos), jax.tree.map(lambda *x: np.stack(x), *infos)

    plain = Training(init, shapes)
    both = plain if seeds is None else over.over_restarts(plain, seeds)
    return Streaming(both.init, both.step, chunk, max_bytes)


def judge_streamed(
    victim: Victim,
    state: Any,
    info: Any,
    train: Rows,
    test: Rows,
    *,
    max_bytes: int,
    batch_size: int = 500,
) -> Judgment:
    """`judge` of victims whose sets stay on disk; each row is read once for all seeds.

    Args:
      victim: the network.
      state: TrainState with leading axis R.
      info: EpochInfo over epochs, leaves [T, R].
      train: the training set they saw.
      test: clean test set.
      max_bytes: of device memory for windows of rows.
      batch_size: rows at a time, fewer where the cap or the set is smaller.
    """
    counts = [
        _counts(victim, state.variables, rows, max_bytes, min(batch_size, len(rows)))
        for rows in (train, test)
    ]
    train_accuracy = np.trace(counts[0], axis1=1, axis2=2) / len(train)
    return judgment(counts[1], train_accuracy, info.test_accuracy)


def _train(update, mesh, phi, epoch_key, number, window, count):
    """Batches 0 .. count - 1 of a window; (phi, StepInfo [K], of which count are real)."""

    def take(phi, i):
        some = Dataset(window.image[i], window.label[i])
        return update(epoch_key, phi, number + i, window.rows[i], some)

    def body(i, carry):
        phi, infos = carry
        phi, info = take(phi, i)
        return phi, jax.tree.map(lambda all_, one: all_.at[i].set(one), infos, info)

    one = jax.eval_shape(take, phi, 0)[1]
    length = window.label.shape[0]
    infos = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), one)
    phi, infos = lax.fori_loop(0, count, body, (phi, infos))
    return everywhere(phi, mesh), infos


def _right(victim, variables, window, count):
    """How many rows of a window are classified as labeled."""

    def body(i, total):
        scores = victim.apply(variables, as_float(window.image[i]), train=False)[0]
        return total + jnp.sum(jnp.argmax(scores, axis=1) == window.label[i])

    return lax.fori_loop(0, count, body, jnp.int32(0))


def _counts(victim, variables, rows, max_bytes, batch_size):
    """Counts [R, L, L] of a set, true class by predicted class."""
    most = max(1, min(batch_size, max_bytes // (rows.row_bytes + 8)))
    held = Windows(StreamSplit(rows, rows), most, max_bytes, None, "")
    parts = []

    def use(job, window):
        parts.append(_confusions(victim, variables, window, job.count))
        return parts[-1]

    held.through(list(held.testing()), use)
    return np.sum(jax.device_get(parts), axis=0)


@jax.jit(static_argnums=0)
def _confusions(victim, variables, window, count):
    def scores(one, i):
        return victim.apply(one, as_float(window.image[i]), train=False)[0]

    num = jax.eval_shape(scores, tree.take(variables, 0), 0).shape[1]

    def of_seed(one):
        def body(i, counts):
            predicted = jnp.argmax(scores(one, i), axis=1)
            known = (window.label[i] >= 0).astype(jnp.int32)
            return counts.at[jnp.maximum(window.label[i], 0), predicted].add(known)

        return lax.fori_loop(0, count, body, jnp.zeros((num, num), jnp.int32))

    return lax.map(of_seed, variables)


def _epoch_info(infos: list[tuple[Job, Any]], test_accuracy: float) -> EpochInfo:
    """Means over the updates of an epoch, each by its rows."""
    kept = [jax.tree.map(lambda x, n=job.count: x[:n], jax.device_get(i)) for job, i in infos]
    weight = np.concatenate([np.full(job.count, job.shape[1]) for job, _ in infos])
    loss, grad_norm, finite, accuracy = (np.concatenate(x) for x in zip(*kept, strict=True))
    loss, grad_norm, accuracy = (np.average(x, weights=weight) for x in (loss, grad_norm, accuracy))
    floats = [np.float32(x) for x in (loss, grad_norm, accuracy, test_accuracy)]
    values: Any = (*floats[:2], np.all(finite), *floats[2:])
    return EpochInfo(*values)


@functools.partial(jax.jit, static_argnums=1)
def _permutation(key, num):
    return jax.random.permutation(key, num)


@jax.jit
def _seed(state, r):
    return tree.take(state, r)


@functools.partial(jax.jit, donate_argnums=0)
def _put(state, r, phi):
    return jax.tree.map(lambda all_, one: all_.at[r].set(one), state, phi)
