"""Several seeds and several arms: one after another, side by side, in groups, over devices.

    python -m benchmarks.bench_mapping [--repeats 12] [--smoke] [--out DIR]

Seeds: `over_restarts` of a training process with chunk = 1 (`lax.map`), 2 and None (vmap). Arms x
seeds: two training sets in one program (a `lax.map` or vmap around the seeds) against one compiled
program called once per set. Devices: `over_devices` on four, as what each has to do and not as
time, since four fake devices share the cores of one machine.
"""

import argparse
import functools
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks import harness, problems
from jaxpoison import models, over
from jaxpoison.types import InputError, Learner, Training, Victim

__all__ = ["devices", "main", "measure"]

SEEDS, ARMS, DEVICES = 4, 2, 4
COLLECTIVE = re.compile(r"= \S+ (all-reduce|all-gather|all-to-all|collective-permute)\(")


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--devices", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    with harness.command(options):
        if options.devices:
            print(json.dumps(devices(smoke=options.smoke)))
            return
        content = measure(options.repeats, smoke=options.smoke)
        content["devices"] = _devices_apart(smoke=options.smoke)
        harness.write(options.out, "mapping", content)


def measure(repeats: int, *, smoke: bool = False, only: str = "") -> dict[str, Any]:
    """The record: per network whose name contains `only` the seeds, and the arms x seeds."""
    rows = []
    for name, process, batch in networks(smoke):
        if only.lower() not in name.lower():
            continue
        rows.append(_seeds(name, process, batch, repeats))
        rows.append(_arms(name, process, batch, repeats))
    settings = {"repeats": repeats, "seeds": SEEDS, "arms": ARMS}
    return harness.record("mapping", settings, rows, smoke=smoke)


def networks(smoke: bool) -> list[tuple[str, Training, Any]]:
    """An MLP and the small CNN, as processes of a few updates a step, and their batch of 64."""
    shape, batch, widths = ((4, 4, 1), 4, (2,)) if smoke else ((28, 28, 1), 64, (32, 64, 128))
    cnn = problems.small_cnn("max", shape, batch, widths)
    mlp = cnn._replace(
        name="MLP 128, 128", victim=functools.partial(_mlp, shape, () if smoke else (128, 128))
    )
    found = []
    for problem, updates in ((mlp, 2 if smoke else 50), (cnn, 1)):
        learner, data = problems.training(problem)
        found.append((problem.name, _process(learner, updates), data))
    return found


def devices(*, smoke: bool = False, only: str = "") -> list[dict[str, Any]]:
    """Per network as in `measure`, what one of four devices does: members, memory, messages.

    Raises: InputError with fewer than four devices.
    """
    if jax.device_count() < DEVICES:
        raise InputError(f"{jax.device_count()} devices; {DEVICES} are needed")
    found = []
    for name, process, batch in networks(smoke):
        if only.lower() not in name.lower():
            continue
        costs = {}
        for num in (1, DEVICES):
            spread = over.over_devices(process, over.device_mesh(num), SEEDS)
            state = jax.eval_shape(spread.init, jax.random.key(0), batch)
            program = harness.compiled(spread.step, jax.random.key(0), state, batch)
            messages = len(COLLECTIVE.findall(program.call.as_text()))
            costs[str(num)] = {"members": SEEDS // num, "messages": messages, **program.cost}
        found.append({"problem": name, "per_device": costs})
    return found


def _devices_apart(*, smoke: bool) -> list[dict[str, Any]] | None:
    """`devices` in a process of its own with four fake ones; None on an accelerator."""
    if jax.default_backend() != "cpu":
        return devices(smoke=smoke) if jax.device_count() >= DEVICES else None
    return harness.on_fake_devices("benchmarks.bench_mapping", DEVICES, smoke=smoke)


def _mlp(shape: tuple[int, ...], hidden: tuple[int, ...], dtype: Any = jnp.float32) -> Victim:
    return models.mlp(shape, problems.NUM_CLASSES, hidden=hidden, dtype=dtype)


def _process(learner: Learner, updates: int) -> Training:
    """A step is `updates` updates on one batch."""

    def step(key, phi, batch):
        def update(phi, number):
            return learner.step(jax.random.fold_in(key, number), phi, batch)

        phi, info = lax.scan(update, phi, jnp.arange(updates))
        return phi, jax.tree.map(lambda x: x[-1], info)

    return Training(lambda key, batch: learner.init(key), step)


def _seeds(name: str, process: Training, batch: Any, repeats: int) -> dict[str, Any]:
    """Four seeds by `over_restarts`; `map` is the library's default."""
    chunks = {"map": 1, "chunks of 2": 2, "vmap": None}
    key, runs, cost = jax.random.key(0), {}, {}
    for form, chunk in chunks.items():
        many = over.over_restarts(process, SEEDS, chunk=chunk)
        state = jax.jit(many.init)(key, batch)
        program = harness.compiled(many.step, key, state, batch, donate=(1,))
        runs[form], cost[form] = _stepper(program, key, state, batch), program.cost
    return _row(name, f"{SEEDS} seeds", runs, cost, repeats)


def _arms(name: str, process: Training, batch: Any, repeats: int) -> dict[str, Any]:
    """Two training sets, `SEEDS` seeds each."""
    many, key = over.over_restarts(process, SEEDS), jax.random.key(0)
    wide = over.over_restarts(process, SEEDS, chunk=None)
    both = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), batch)
    start = jax.jit(many.init)(key, batch)
    runs, cost = {}, {}
    single = harness.compiled(many.step, key, start, batch, donate=(1,))
    cost["in sequence"] = single.cost
    steppers = [
        _stepper(single, key, _copy(start), jax.tree.map(lambda x, i=i: x[i], both))
        for i in range(ARMS)
    ]
    runs["in sequence"] = lambda: [step() for step in steppers]
    together = jax.tree.map(lambda x: jnp.stack([x] * ARMS), start)

    def one_program(key, state, data):
        return lax.map(lambda arm: many.step(key, *arm), (state, data))

    def side_by_side(key, state, data):
        return jax.vmap(functools.partial(wide.step, key))(state, data)

    for form, fn in (("one program, map", one_program), ("one program, vmap", side_by_side)):
        program = harness.compiled(fn, key, together, both, donate=(1,))
        runs[form], cost[form] = _stepper(program, key, _copy(together), both), program.cost
    return _row(name, f"{ARMS} arms x {SEEDS} seeds", runs, cost, repeats)


def _row(name: str, work: str, runs: Any, cost: Any, repeats: int) -> dict[str, Any]:
    times = harness.alternate(runs, repeats=repeats)
    first, *others = runs
    return {
        "problem": name,
        "work": work,
        "against": first,
        "ratio": {n: harness.ratio(times[n], times[first]) for n in others},
        "cpu_ratio": {n: harness.ratio(times[n], times[first], "cpu_ms") for n in others},
        "times": times,
        "cost": cost,
    }


def _stepper(program: harness.Program, key: Any, state: Any, batch: Any) -> Any:
    held = [state]

    def step():
        held[0], info = program.call(key, held[0], batch)
        jax.block_until_ready(held[0])
        return info.outer_loss

    return step


def _copy(state: Any) -> Any:
    """Donated states must not share buffers."""
    return jax.tree.map(jnp.copy, state)


if __name__ == "__main__":
    main()
