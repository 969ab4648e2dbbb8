"""How everything here is measured: one process, competitors in turn, compiling and memory apart.

A record (JSON) is {benchmark, smoke, date, versions, device, environment, settings, rows}. A timing
is {wall_ms, cpu_ms}, each {median, low, high, values}: low and high are the quartiles of all
repeats. CPU time is that of the whole process, all threads. A ratio is the median of the ratios
within each round of turns, so that a busy moment meets all competitors alike.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jaxpoison import check
from jaxpoison.checkpoint import write_json
from jaxpoison.data.manifest import device, versions
from jaxpoison.types import InputError

__all__ = [
    "Program",
    "RESULTS",
    "alternate",
    "command",
    "compiled",
    "environment",
    "on_fake_devices",
    "ratio",
    "record",
    "write",
]

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
MIB = 2**20


class Program(NamedTuple):
    """A compiled function and what compiling it took.

    Attributes:
      call: takes the arguments it was compiled for; donated ones are gone afterwards.
      cost: {lower_s, compile_s, temp_mib, argument_mib, gflop}: seconds of tracing and lowering and
        of XLA; scratch memory and arguments as XLA plans them; XLA's count of operations, null
        where it has none (a loop's body counts once).
    """

    call: Callable[..., Any]
    cost: dict[str, float | None]


def compiled(fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Program:
    """`fn` jitted for `args` (arrays or shapes), compiled from nothing, with its costs."""
    start = time.perf_counter()
    lowered = jax.jit(fn, donate_argnums=donate).lower(*args)
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    memory, counted = program.memory_analysis(), program.cost_analysis() or {}
    flop = counted.get("flops")
    return Program(
        program,
        {
            "lower_s": round(middle - start, 3),
            "compile_s": round(end - middle, 3),
            "temp_mib": _mib(memory, "temp_size_in_bytes"),
            "argument_mib": _mib(memory, "argument_size_in_bytes"),
            "gflop": None if flop is None else round(flop / 1e9, 4),
        },
    )


def alternate(
    competitors: dict[str, Callable[[], Any]], *, repeats: int, warmup: int = 2
) -> dict[str, dict[str, Any]]:
    """Time each competitor once per round, A B C A B C ..., after `warmup` untimed rounds.

    Args:
      competitors: name -> one step; what it returns is waited for.
      repeats: rounds, at least 1.
      warmup: rounds that do not count.

    Returns: name -> {wall_ms, cpu_ms}.
    """
    check.at_least(1, repeats=repeats)
    check.at_least(0, warmup=warmup)
    names = ", ".join(competitors)
    print(f"{datetime.datetime.now():%H:%M:%S} {repeats} rounds of: {names}", flush=True)
    wall = {name: [] for name in competitors}
    cpu = {name: [] for name in competitors}
    for turn in range(warmup + repeats):
        for name, step in competitors.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            jax.block_until_ready(step())
            wall_end, cpu_end = time.perf_counter(), time.process_time()
            if turn >= warmup:
                wall[name].append(1e3 * (wall_end - wall_start))
                cpu[name].append(1e3 * (cpu_end - cpu_start))
    return {
        name: {"wall_ms": spread(wall[name]), "cpu_ms": spread(cpu[name])} for name in competitors
    }


def ratio(ours: dict[str, Any], other: dict[str, Any], clock: str = "wall_ms") -> dict[str, Any]:
    """Ours / other, round by round: below 1 is faster. Both are timings of one `alternate`."""
    pairs = zip(ours[clock]["values"], other[clock]["values"], strict=True)
    return spread([a / b for a, b in pairs if b > 0])


def spread(values: list[float]) -> dict[str, Any]:
    """{median, low, high, values}: low and high are the quartiles; all None of no values."""
    if not values:
        return {"median": None, "low": None, "high": None, "values": []}
    quartiles = [values[0]] * 3
    if len(values) > 1:
        quartiles = statistics.quantiles(values, n=4, method="inclusive")
    low, median, high = (round(q, 4) for q in quartiles)
    return {"median": median, "low": low, "high": high, "values": [round(v, 4) for v in values]}


def environment() -> dict[str, Any]:
    """What else decides a timing: load averages, cores, thread settings, compiler flags."""
    names = ("XLA_FLAGS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "JAX_DEFAULT_MATMUL_PRECISION")
    torch = sys.modules.get("torch")
    return {
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch": None if torch is None else torch.__version__,
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in names if name in os.environ},
    }


def record(
    benchmark: str, settings: dict[str, Any], rows: list[dict[str, Any]], *, smoke: bool
) -> dict[str, Any]:
    """The whole record, ready for JSON; keys as in the module docstring."""
    return {
        "benchmark": benchmark,
        "smoke": smoke,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "versions": versions(),
        "device": device(),
        "environment": environment(),
        "settings": settings,
        "rows": rows,
    }


def write(out: pathlib.Path, name: str, content: dict[str, Any]) -> pathlib.Path:
    """`content` as `out`/`name`.json, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    write_json(path, content)
    print(f"wrote {path}")
    return path


def parser(doc: str | None, *, timed: bool = True) -> argparse.ArgumentParser:
    """The options all benchmarks share; --repeats where something is timed."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--smoke", action="store_true", help="tiny sizes: shows that it runs, measures nothing"
    )
    if timed:
        result.add_argument("--repeats", type=int, default=12, help="timed rounds (default 12)")
    result.add_argument(
        "--out", type=pathlib.Path, default=RESULTS, help="folder of the JSON (default: results/)"
    )
    return result


@contextlib.contextmanager
def command(options: argparse.Namespace | None = None) -> Iterator[None]:
    """The edge of a benchmark's command: compile times are cold, and errors are one line."""
    try:
        if options is not None and options.smoke and options.out.resolve() == RESULTS:
            raise InputError("--smoke measures nothing: give it an --out of its own")
        if options is not None and not getattr(options, "list", False):
            _probe(options.out)
        # Passive waiting: idle threads of the other framework must not count as its work.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        jax.config.update("jax_enable_compilation_cache", False)
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.strerror}: {error.filename}" if error.filename else str(error))


def on_fake_devices(module: str, num: int, *, smoke: bool) -> Any:
    """What `python -m module --devices` prints as JSON, in a process with `num` fake devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num}"
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", module, "--devices", "--out", out]
        command += ["--smoke"] if smoke else []
        done = subprocess.run(
            command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True
        )
    if done.returncode:
        raise InputError(f"{' '.join(command)} ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _probe(out: pathlib.Path) -> None:
    """InputError unless files can be made in `out` or in what is there of its parents."""
    place = out.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot write to --out {out}: {place} is no folder")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise InputError(f"cannot write to --out {out}: {check.one_line(error)}") from error


def _mib(memory: Any, field: str) -> float | None:
    size = getattr(memory, field, None)
    return None if size is None else round(size / MIB, 2)
