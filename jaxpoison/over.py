"""The same attack many times: restarts, devices, and the choice among them.

A restart is a whole attack (R independent thetas); an ensemble (`ensemble.py`) lives inside one
outer step (one theta, M followers). All take and give the contracts of `types`, so they nest. Keys
are folded with the global index of the restart: nothing depends on the chunk or the device count.

Several training sets (arms) of one shape go through the same process one after the other: the
second compiles nothing. There is no mapping over arms, as one program for several wins nothing on
a CPU (benchmarks/bench_mapping.py) and holds all sets at once.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from jaxpoison import check, hosts, tree
from jaxpoison.types import Attack, InputError, Scenario, Streaming, Training

__all__ = ["best_of", "best_restart", "device_mesh", "over_devices", "over_restarts", "spread"]

PyTree = Any
Process = TypeVar("Process", Attack, Training)


def over_restarts(process: Process, num: int, *, chunk: int | None = 1) -> Process:
    """`num` independent runs as one: every state and info leaf gains a leading axis R = num.

    Args:
      process: an Attack, or a victim's Training (then a restart is a seed).
      num: R.
      chunk: how many run side by side: 1 = `lax.map` (default, flat in memory and compile time),
        None = vmap over all (dense models), else groups of that size.

    Returns: a process of the same type; its `single` is `process`. An attack's `poison` gives
      images [R, N, H, W, C].
    Raises: InputError for num < 1 or chunk < 1.
    """
    check.at_least(1, num=num)
    _check_repeatable(process)
    each = mapper(chunk)

    def init(key, data):
        return each(lambda r: process.init(jax.random.fold_in(key, r), data), jnp.arange(num))

    def step(key, state, data):
        def one(r, state_r):
            return process.step(jax.random.fold_in(key, r), state_r, data)

        return each(lambda rs: one(*rs), (jnp.arange(num), state))

    def mapped(fn):
        return lambda state, data: each(lambda state_r: fn(state_r, data), state)

    return _repeat(process, init, step, mapped)


def over_devices(
    process: Process, mesh: Mesh, num: int, *, axis: str = "restart", chunk: int | None = 1
) -> Process:
    """`over_restarts` with the restarts spread over a mesh axis; what `jax.pmap` has become.

    Each device runs num / (axis size) restarts through `lax.map` under `jax.shard_map`; there is no
    communication. Restart r draws the same keys on every device count.

    Args:
      process: an Attack or Training.
      mesh: a mesh that has `axis`; see `device_mesh`.
      num: R, divisible by the size of the axis.
      axis: name of the mesh axis.
      chunk: as in `over_restarts`, per device.

    Raises: InputError if the mesh lacks the axis or num is not divisible by its size.
    """
    check.at_least(1, num=num)
    _check_repeatable(process)
    size = axis_size(mesh, axis)
    if num % size:
        raise InputError(
            f"num = {num} restarts cannot be spread evenly over {size} devices of axis {axis!r}"
        )
    each = mapper(chunk)

    def sharded(body, in_specs):
        return jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=P(axis), check_vma=False)

    def init(key, data):
        def body(rs, key, data):
            return each(lambda r: process.init(jax.random.fold_in(key, r), data), rs)

        return sharded(body, (P(axis), P(), P()))(jnp.arange(num), key, data)

    def step(key, state, data):
        def body(rs, state, key, data):
            def one(r, state_r):
                return process.step(jax.random.fold_in(key, r), state_r, data)

            return each(lambda xs: one(*xs), (rs, state))

        return sharded(body, (P(axis), P(axis), P(), P()))(jnp.arange(num), state, key, data)

    def mapped(fn):
        def body(state, data):
            return each(lambda state_r: fn(state_r, data), state)

        return sharded(body, (P(axis), P()))

    return _repeat(process, init, step, mapped)


def spread(process: Process, num: int, *, chunk: int | None = 1) -> Process:
    """`num` independent runs on as many devices as share them evenly, of all hosts; same results.

    That is `over_devices` with chunk = 1, where one run after the other gives the same bits however
    many there are; runs side by side do not, so these stay together (`over_restarts`).

    Args:
      process: an Attack or Training.
      num: R.
      chunk: as in `over_restarts`.

    Raises: InputError for num < 1, or if several hosts cannot share `num` evenly.
    """
    check.at_least(1, num=num)
    hosts: dict[int, list[Any]] = {}
    for device in jax.devices():
        hosts.setdefault(device.process_index, []).append(device)
    if chunk != 1 or len(jax.devices()) == 1:
        return over_restarts(process, num, chunk=chunk)
    if num % len(hosts):
        raise InputError(
            f"{num} independent runs (victims) cannot be shared evenly by {len(hosts)} hosts; a "
            f"multiple of {len(hosts)} is needed"
        )
    each, most = num // len(hosts), min(map(len, hosts.values()))
    per = max(k for k in range(1, most + 1) if each % k == 0)
    devices = [device for own in hosts.values() for device in own[:per]]
    if len(devices) == 1:
        return over_restarts(process, num)
    kinds = (AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("restart",), axis_types=kinds, devices=devices)
    return over_devices(process, mesh, num)


def best_of(
    process: Process, state: PyTree, info: PyTree, scenario: Scenario | None = None
) -> tuple[Process, PyTree]:
    """The restart with the lowest outer loss at the last step, or score (a NaN never wins).

    The loss was taken before the last update, on that step's draws of augmentation. An attack with
    a `score` of its own (`Crafting.score`) is chosen by that of its final states instead. Of
    restarts that `attacks.keep_best` watches, the lowest held-out score decides (`info.best` at the
    last step), the loss only among equal ones. Of restarts of restarts it is the outer one that
    holds the best.

    Args:
      process: what `over_restarts` or `over_devices` returned.
      state: its state, leaves [R, ...].
      info: its info over steps, `info.outer_loss` [T, R, ...].
      scenario: what the attack ran on; read where it has a score, on the devices that ran it.

    Returns: (the single process, the state of its best restart).
    Raises: InputError if `process` repeats nothing, every loss is NaN, or the scenario is missing.
    """
    single: Any = process.single
    return single, tree.take(state, best_restart(process, state, info, scenario))


def best_restart(
    process: Process, state: PyTree, info: PyTree, scenario: Scenario | None = None
) -> Int[Array, ""]:
    """The number of the restart that `best_of` takes; arguments and errors as there."""
    if process.single is None:
        raise InputError("best_of needs the result of over_restarts or over_devices")
    loss, what = jnp.asarray(info.outer_loss)[-1], "outer loss"
    if isinstance(process, Attack) and process.score is not None:
        if scenario is None:
            raise InputError("this attack chooses by its score: best_of needs the scenario too")
        loss, what = _scores(process, state, scenario), "score"
    lost = jnp.isnan(loss)
    if not isinstance(lost, jax.core.Tracer) and bool(jnp.all(lost)):
        raise InputError(f"best_of has nothing to choose: the {what} of every restart is NaN")
    held_out = jnp.asarray(info.best)[-1] if hasattr(info, "best") else jnp.zeros_like(loss)
    order = jnp.lexsort([x.ravel() for x in (loss, held_out, lost)])
    return order[0] // (loss.size // len(loss))


def device_mesh(num: int | None = None, *, axis: str = "restart") -> Mesh:
    """A one-axis mesh over the first `num` devices (all, if None).

    For `over_devices`; with axis "batch" for data-parallel `victims.training`.
    """
    devices = jax.devices()
    if num is not None and not 1 <= num <= len(devices):
        raise InputError(f"num = {num} devices; there are {len(devices)}")
    return jax.make_mesh(
        (num or len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices[:num]
    )


def axis_size(mesh: Mesh, axis: str) -> int:
    """How many devices a mesh axis has; an InputError if the mesh lacks it."""
    if axis not in mesh.shape:
        raise InputError(f"axis = {axis!r} is not in the mesh; it has {', '.join(mesh.shape)}")
    return mesh.shape[axis]


def mapper(chunk: int | None) -> Callable[..., PyTree]:
    """`jax.lax.map` in groups of `chunk`: 1 for one after the other, None for all at once (vmap).

    Raises: InputError for chunk < 1.
    """
    if chunk is None:
        return lambda fn, xs: jax.vmap(fn)(xs)
    check.at_least(1, chunk=chunk)
    if chunk == 1:  # lax.map(batch_size=1) would still vmap a batch of one
        return _map
    return lambda fn, xs: lax.map(fn, xs, batch_size=chunk)


def _map(fn, xs):
    """`lax.map` whose body XLA compiles to the same bits whatever the length.

    A loop over a single element is dissolved into its surroundings and fused differently, which
    moves last bits. It is therefore run as the first of two, with a trip count XLA cannot see; that
    loop has no reverse mode, so differentiate a single run, not one restart.
    """
    if jax.tree.leaves(xs)[0].shape[0] != 1:
        return lax.map(fn, xs)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), xs)
    out = jax.eval_shape(fn, tree.take(xs, 0))
    results = jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), out)

    def body(i, results):
        result = fn(tree.take(twice, i))
        return jax.tree.map(lambda all_, one: all_.at[i].set(one), results, result)

    stop = lax.optimization_barrier(jnp.int32(1))
    results = lax.fori_loop(jnp.int32(0), stop, body, results)
    return jax.tree.map(lambda x: x[:1], results)


def _check_repeatable(process: Any) -> None:
    if isinstance(process, Streaming):
        raise InputError("a streamed training repeats itself: streamed_training(..., seeds=num)")


def _repeat(process, init, step, mapped) -> Any:
    """`mapped(fn)` is fn(state_r, data) of every restart."""
    if isinstance(process, Attack):
        score = process.score and mapped(process.score)
        again = {"init": init, "step": step, "poison": mapped(process.poison), "score": score}
        return process._replace(**again, single=process, generator=None, target=None)
    return Training(init, step, single=process)


def _scores(process, state, scenario):
    """[R, ...]; what is bound to one device or host may go to all of them."""
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state, scenario)))
    if jax.device_count() > 1 and not traced:
        state, scenario = hosts.fetch((state, scenario))
        return jnp.asarray(hosts.fetch(_score(process, state, scenario)))
    return _score(process, state, scenario)


@functools.partial(jax.jit, static_argnums=0)
def _score(process, state, scenario):
    return process.score(state, scenario)
