"""The two loops: `run`, one scan on the device, and `run_chunks`, the same steps watched by a host.

Both drive anything with `init(key, data)` and `step(key, state, data) -> (state, info)`: attacks,
victims in training, purifiers. Step t of a run draws `fold_in(steps_key, t)`, so a resumed run
takes the same steps; `run_chunks` compiles one program whatever the length of a chunk, so it takes
them bit for bit.
"""

import functools
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxpoison import check, checkpoint, hosts, signals, tree
from jaxpoison.book import Book, Seconds
from jaxpoison.types import (
    Attack,
    Dataset,
    InputError,
    Key,
    Purifier,
    Scenario,
    Split,
    Streaming,
    Sweep,
    Training,
)

__all__ = ["NonFiniteError", "Seconds", "run", "run_chunks"]

PyTree = Any
CAPACITY = 256  # steps a chunk can hold at the most
CHUNK_SECONDS = 1.0  # what a chunk aims at, so that a signal is heard and the bar moves


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the message names the step and the last checkpoint."""


def run(process: Any, key: Key, data: PyTree, *, num_steps: int) -> tuple[PyTree, PyTree]:
    """Take `num_steps` steps in one jitted `lax.scan`.

    Args:
      process: an Attack or Training; static, so build it once.
      key: typed PRNG key.
      data: the Scenario or Split; traced, so `run` can be differentiated and mapped over it.
      num_steps: T; static.

    Returns: (state, info), info leaves [T, ...].
    Raises: InputError for num_steps < 1, a Streaming, which the host drives, or data that cannot be
      used (`check.rows`, `check.images`, `Attack.check`).
    """
    check.at_least(1, num_steps=num_steps)
    if isinstance(process, Streaming):
        raise InputError("a streamed training cannot be one program: use run_chunks")
    _check(process, data)
    return _run(process, key, data, num_steps)


def _check(process, data):
    """What can be said of the values before they are traced."""
    check.rows(data)
    check.images(data)
    if isinstance(process, Attack):
        if isinstance(data, Split | Dataset):
            kind = type(data).__name__
            raise InputError(
                f"data is a {kind}; an Attack runs on a Scenario (over_setups: a Sweep)"
            )
        if process.check is not None:
            for scenario in _scenarios(data):
                process.check(scenario)
    elif isinstance(process, Training) and isinstance(data, Scenario):
        raise InputError("data is a Scenario; a Training runs on a Split")
    elif isinstance(process, Purifier):
        if not isinstance(data, Dataset):
            raise InputError(f"data is a {type(data).__name__}; a Purifier is fitted to a Dataset")
        if process.check is not None:
            process.check(data)


def _scenarios(data):
    """The Scenario, or those of a Sweep one by one; none of a Sweep that several hosts may hold."""
    if isinstance(data, Scenario):
        yield data
    elif isinstance(data, Sweep) and isinstance(data.data, Scenario) and jax.process_count() == 1:
        own = data.data
        if not jnp.ndim(data.number):
            yield own
            return
        for s in range(len(data.number)):
            yield own._replace(goal=tree.take(own.goal, s), index=own.index[s])


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(process, key, data, num_steps):
    init_key, steps_key = jax.random.split(key)

    def body(state, t):
        return process.step(jax.random.fold_in(steps_key, t), state, data)

    return lax.scan(body, process.init(init_key, data), jnp.arange(num_steps))


def run_chunks(
    process: Any,
    key: Key,
    data: PyTree,
    *,
    num_steps: int,
    directory: str | pathlib.Path | None = None,
    save_every: int | None = None,
    description: str = "",
    console: Console | None = None,
) -> tuple[PyTree, PyTree, Seconds]:
    """Take `num_steps` steps with a progress bar, a metrics file, checkpoints and resumption.

    Writes `directory/metrics.jsonl` (one line a step) and `directory/checkpoints/`. Called again
    with the same arguments it goes on from the newest valid checkpoint; a finished run is only
    loaded. SIGTERM and SIGINT save, then act as they would have.

    Args:
      process: an Attack, a Training, or a Streaming; static.
      key: typed PRNG key.
      data: the Scenario, Split or StreamSplit.
      num_steps: T; may be raised later to go on.
      directory: where to write; None writes nothing.
      save_every: steps between checkpoints; None saves about every 30 s and at the end.
      description: the bar's label.
      console: where the bar is drawn; None is standard error. `Console(quiet=True)` hides it.

    Returns: (state, info, seconds): info leaves are numpy arrays [T, ...].

    Raises:
      NonFiniteError: step t gave a NaN or infinity; checkpoints hold the last good state.
      InputError: num_steps < 1, data that cannot be used, a checkpoint of another key or setting,
        more steps done than asked for, or a directory that another run holds.
    """
    check.at_least(1, num_steps=num_steps)
    _check(process, data)
    if save_every is not None:
        check.at_least(1, save_every=save_every)
    key, data = _loose((key, jax.device_put(data)))
    init_key, steps_key = jax.random.split(key)
    started = time.perf_counter()
    state = _init(process, init_key, data)
    home = _home(state)
    state, steps_key, data = _place((state, steps_key, data), home)
    description, console = description or "run", console or Console(stderr=True)
    console = console if hosts.is_first() else Console(quiet=True)
    received: list[signal.Signals] = []
    with Book(directory, key, process, state, data) as book:
        state, step, seconds = book.resume(state, num_steps)
        if step < num_steps:
            if step:
                line = f"{description}: going on at step {step} of {num_steps}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            own = process.chunk if isinstance(process, Streaming) else None
            chunk = functools.partial(own or functools.partial(_chunk, process), steps_key)
            zero = hosts.put(np.int32(step), home)
            # Zero steps: compiles the program, and the state comes back as it was.
            state, _, _ = jax.block_until_ready(chunk(state, data, zero, zero))
            compiled = seconds.compile + time.perf_counter() - started
            with (
                _bar(console, description, step, num_steps) as advance,
                signals.collect() as received,
            ):
                state, step, seconds = _watch(
                    lambda state, *bounds: chunk(state, data, *bounds),
                    state,
                    span=(step, num_steps),
                    seconds=Seconds(compiled, seconds.steps),
                    save_every=save_every,
                    home=home,
                    book=book,
                    advance=advance,
                    received=received,
                )
    if number := hosts.any_of(max(received, default=0)):
        _stop(signal.Signals(number), step, book.folder)
    return state, book.info(), seconds


def _watch(chunk, state, *, span, seconds, save_every, home, book, advance, received):
    """Chunk after chunk until the end or a signal; (state, steps done, seconds).

    Of many processes the first one decides how long chunks are and when a checkpoint is due, by its
    clock; a signal to any of them stops all.
    """
    step, num_steps = span
    last_save, done_at_save, length, spent = time.perf_counter(), step, 1, seconds.steps
    stopped = 0
    while step < num_steps and not stopped:
        until_save = num_steps if save_every is None else done_at_save + save_every
        stop = min(num_steps, step + length, until_save)
        start, stop = (hosts.put(np.int32(bound), home) for bound in (step, stop))
        began = time.perf_counter()
        with jax.transfer_guard("disallow"):
            state, end, buffer = chunk(state, start, stop)
        taken = int(jax.device_get(end)) - step
        rows = jax.tree.map(lambda x, n=taken: x[:n], hosts.fetch(buffer))
        elapsed = time.perf_counter() - began
        spent += elapsed
        book.record(step, rows)
        _stop_if_not_finite(rows, step, book)
        step += taken
        advance(step, taken / elapsed, rows.outer_loss[-1])
        stopped = hosts.any_of(max(received, default=0))
        wanted = int(np.clip(CHUNK_SECONDS * taken / elapsed, 1, min(CAPACITY, 4 * length)))
        late = time.perf_counter() - last_save > 30 if save_every is None else step == until_save
        length, due = hosts.first(lambda wanted=wanted, late=late: (wanted, late))
        if due or stopped or step == num_steps:
            book.save(step, state, Seconds(seconds.compile, spent))
            last_save, done_at_save = time.perf_counter(), step
    return state, step, Seconds(seconds.compile, spent)


def _stop(number, step, folder):
    """Say so, then let the signal do what it would have done."""
    if hosts.is_first():
        where = f"saved in {folder}; {signals.AGAIN}" if folder else "lost"
        print(f"stopped by {number.name} after step {step}: {where}", file=sys.stderr)
    signals.die(number)


@functools.partial(jax.jit, static_argnums=0)
def _init(process, key, data):
    return process.init(key, data)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _chunk(process, steps_key, state, data, start, stop):
    """Steps start..stop-1, at most CAPACITY, ended early by a step that is not finite."""

    def step(t, state):
        return process.step(jax.random.fold_in(steps_key, t), state, data)

    info = jax.eval_shape(step, start, state)[1]
    buffer = jax.tree.map(lambda x: jnp.zeros((CAPACITY, *x.shape), x.dtype), info)

    def body(carry):
        t, state, buffer, _ = carry
        state, info = step(t, state)
        buffer = jax.tree.map(lambda b, x: b.at[t - start].set(x), buffer, info)
        return t + 1, state, buffer, jnp.all(info.finite)

    def proceed(carry):
        return (carry[0] < stop) & carry[3]

    t, state, buffer, _ = lax.while_loop(proceed, body, (start, state, buffer, jnp.array(True)))
    return state, t, buffer


def _loose(values):
    """What is bound to the first device, as an earlier run's result is, may go to a whole mesh."""
    if jax.device_count() == 1:
        return values
    bound = {jax.local_devices()[0]}

    def loose(x):
        if not x.committed or x.sharding.device_set != bound:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                loose(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        return jax.device_put(np.asarray(x))

    return jax.tree.map(loose, values)


def _home(state):
    """Where the state lives: its device, or every device of its mesh."""
    shardings = [x.sharding for x in jax.tree.leaves(state)] or [None]
    meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
    return NamedSharding(meshes[0], PartitionSpec()) if meshes else shardings[0]


def _place(values, home):
    """Copied to `home` unless there already, so that no chunk moves or compiles anything again."""

    def put(x):
        if home is None or x.sharding.device_set == home.device_set:
            return jax.device_put(x, x.sharding) if x.is_fully_addressable else x
        return hosts.put(x, home)

    return jax.tree.map(put, values)


def _stop_if_not_finite(rows, start, book) -> None:
    if np.all(rows.finite[-1]):
        return
    step = start + len(rows.outer_loss) - 1
    steps = checkpoint.valid_steps(book.folder / "checkpoints") if book.folder else []
    kept = f"step {steps[-1]} in {book.folder / 'checkpoints'}" if steps else "none"
    loss = np.asarray(rows.outer_loss[-1]).tolist()
    raise NonFiniteError(
        f"step {step} is not finite (outer loss {loss}); last good checkpoint: {kept}"
    )


@contextmanager
def _bar(console: Console, description: str, step: int, num_steps: int) -> Iterator[Any]:
    progress = Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]} steps/s"),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}"),
        console=console,
    )
    with progress:
        task = progress.add_task(description, total=num_steps, completed=step, speed="-", loss="-")

        def advance(done, speed, loss):
            shown = f"{float(np.mean(loss)):.4g}"
            progress.update(task, completed=done, speed=f"{speed:.3g}", loss=shown)

        yield advance
