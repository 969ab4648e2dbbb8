"""A whole sweep of setups as one process: the same attack, or victims' training, for each of them.

Setups share the training set and the surrogates; a device holds those once, and of every setup its
targets and rows. Keys are folded with the setup's own number, so that nothing depends on how setups
are grouped or over how many devices they are spread.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxpoison.over import axis_size, mapper
from jaxpoison.types import (
    Attack,
    Dataset,
    InputError,
    Replaced,
    Scenario,
    Streaming,
    Sweep,
    Training,
)

__all__ = ["numbered", "over_setups"]

PyTree = Any
Process = TypeVar("Process", Attack, Training)


def over_setups(
    process: Process, mesh: Mesh | None = None, *, axis: str = "setup", chunk: int | None = 1
) -> Process:
    """`process` for every setup of a Sweep: state and info leaves gain a leading axis S.

    Setup s draws fold_in(key, number_s) wherever the process of one setup draws from key. Restarts
    or seeds of each setup go inside: `over_setups(over_restarts(attack, num), mesh)`, leaves
    [S, R, ...].

    Args:
      process: an Attack, which then takes a Sweep of a Scenario, or a victim's Training, which
        takes a Sweep of a Replaced; each of its training sets is made in the step, one at a time.
      mesh: devices, of all hosts, that share the setups evenly (`device_mesh(axis="setup")`); None
        for one device. There is no communication between them.
      axis: name of its axis.
      chunk: setups side by side on a device, as in `over_restarts`.

    Returns: a process of the same type. An attack's `poison` gives the rows that each setup changes
      alone, in the order of its index: images [S, P, H, W, C], labels [S, P] (under restarts
      [S, R, P, ...]); S whole training sets would be mostly copies. It has no `single` and no
      `score`: choose among a setup's restarts with the attack of one setup,
      `best_of(restarts, state_s, info_s, scenario_s)`, state_s = tree.take(state, s).
    Raises: InputError for chunk < 1, a mesh without the axis, a Streaming; on tracing, for data
      that are no Sweep, leaves of another S, a number of setups that the axis does not divide.
    """
    if isinstance(process, Streaming):
        raise InputError("a streamed training cannot go through a sweep: its rows are on disk")
    size = 1 if mesh is None else axis_size(mesh, axis)
    each = mapper(chunk)

    def through(fn: Callable[..., Any], sweep: Any, *stacked: Any, key: Any = None) -> Any:
        """`fn(key_s, data_s, *stacked_s)` for every setup s."""
        if not isinstance(sweep, Sweep):
            kind = type(sweep).__name__
            raise InputError(f"the data are a {kind}; over_setups takes a Sweep")
        own, shared, data_of = _parts(sweep.data)
        _check(sweep, own, size, axis)

        def body(number, own, stacked, key, shared):
            def one(xs):
                s, own_s, stacked_s = xs
                key_s = None if key is None else jax.random.fold_in(key, s)
                return fn(key_s, data_of(own_s, shared), *stacked_s)

            return each(one, (number, own, stacked))

        if mesh is None:
            return body(sweep.number, own, stacked, key, shared)
        specs = (P(axis), P(axis), P(axis), P(), P())
        spread = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=P(axis), check_vma=False)
        return spread(sweep.number, own, stacked, key, shared)

    def init(key, sweep):
        return through(lambda key_s, data: process.init(key_s, _seen(data)), sweep, key=key)

    def step(key, state, sweep):
        def one(key_s, data, state_s):
            return process.step(key_s, state_s, _seen(data))

        return through(one, sweep, state, key=key)

    def poison(state, sweep):
        def one(_, scenario, state_s):
            return _changed(process, state_s, scenario)

        return through(one, sweep, state)

    made: Any = Training(init, step)
    if isinstance(process, Attack):
        again = {"init": init, "step": step, "poison": poison}
        made = process._replace(**again, single=None, generator=None, score=None)
    return made


@functools.cache
def numbered(process: Process) -> Process:
    """`process` for one setup of a sweep, by itself: it draws what `over_setups` draws for it.

    To the last bits it agrees with a sweep of one setup only, as XLA fuses a loop's body otherwise.

    Args:
      process: an Attack or a victim's Training, repeated or not.

    Returns: a process of the same type that takes Sweep(number, data), `number` a scalar and `data`
      what `process` takes; built once for each process.
    """

    def init(key, sweep):
        return process.init(jax.random.fold_in(key, sweep.number), sweep.data)

    def step(key, state, sweep):
        return process.step(jax.random.fold_in(key, sweep.number), state, sweep.data)

    if isinstance(process, Attack):
        score = process.score
        attack: Any = process._replace(
            init=init,
            step=step,
            poison=lambda state, sweep: process.poison(state, sweep.data),
            score=score and (lambda state, sweep: score(state, sweep.data)),
        )
        return attack
    training: Any = Training(init, step, single=process.single)
    return training


def _parts(data: Any) -> tuple[Any, Any, Callable[..., Any]]:
    """What each setup has of its own, what all share, and how the two make one setup's data."""
    if isinstance(data, Scenario):
        return (data.goal, data.index), (data.train, data.aux), _scenario
    if isinstance(data, Replaced):
        return (data.rows, data.image), data.split, _replaced
    if isinstance(getattr(data, "data", None), Replaced):
        inner, others = data.data, data._replace(data=())

        def with_others(own: Any, shared: Any) -> Any:
            (rows, image), others_s = own
            return others_s._replace(data=Replaced(shared, rows, image))

        return ((inner.rows, inner.image), others), inner.split, with_others
    raise InputError(f"sweep.data is a {type(data).__name__}; it must be a Scenario or a Replaced")


def _scenario(own: Any, shared: Any) -> Scenario:
    (goal, index), (train, aux) = own, shared
    return Scenario(train, goal, index, aux)


def _replaced(own: Any, shared: Any) -> Replaced:
    return Replaced(shared, *own)


def _seen(data: Any) -> Any:
    """One setup's data as the process takes them."""
    if isinstance(data, Replaced):
        return data.whole()
    if isinstance(getattr(data, "data", None), Replaced):
        return data._replace(data=data.data.whole())
    return data


def _changed(attack: Any, state: Any, scenario: Scenario) -> Dataset:
    """What an attack makes of the rows it may change."""
    whole, rows = attack.poison(state, scenario), scenario.index
    return Dataset(whole.image[..., rows, :, :, :], whole.label[..., rows])


def _check(sweep: Sweep, own: Any, size: int, axis: str) -> None:
    num = sweep.number.shape[0]
    lengths = {x.shape[:1] for x in jax.tree.leaves(own)}
    if not num or lengths != {(num,)}:
        raise InputError(
            f"the sweep has {num} numbers, but leaves of {sorted(lengths)} setups; it must have "
            "the same number of each, at least 1"
        )
    if num % size:
        raise InputError(
            f"{num} setups cannot be spread evenly over {size} devices of axis {axis!r}"
        )
