"""Training step and EM step, ours against the same arithmetic in PyTorch, in one process by turns.

    python -m benchmarks.bench_step [--repeats 12] [--problem NAME] [--smoke] [--out DIR]

Without torch (`pip install "jaxpoison[bench]"`) only our own column is measured. On an accelerator
ours runs in float32 ("highest"), TF32 and bfloat16, each against the baseline of its precision.
"""

import functools
import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import harness, problems
from jaxpoison.types import InputError

__all__ = ["compare", "has_torch", "main", "measure", "running", "waited"]

PIP = 'no torch: the baselines are left out; add them by pip install "jaxpoison[bench]"'


class Precision(NamedTuple):
    """A compute dtype, JAX's matmul precision, and the baselines it is compared with."""

    name: str
    dtype: Any
    matmul: str | None
    baselines: tuple[dict[str, Any], ...]


PUBLISHED = {"name": "torch, as published", "tuned": False}
TUNED = {"name": "torch, tuned", "tuned": True}
ON_CPU = (Precision("float32", jnp.float32, None, (PUBLISHED, TUNED)),)
ON_ACCELERATOR = (
    Precision("float32", jnp.float32, "highest", (PUBLISHED, TUNED)),
    Precision("TF32", jnp.float32, "tensorfloat32", (TUNED | {"tf32": True},)),
    Precision("bfloat16", jnp.bfloat16, None, (TUNED | {"autocast": True, "tf32": True},)),
)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--problem", help="only the problems whose name contains this word")
    options = parser.parse_args(arguments)
    with harness.command(options):
        content = measure(options.repeats, smoke=options.smoke, only=options.problem or "")
        harness.write(options.out, "step", content)


def measure(repeats: int, *, smoke: bool = False, only: str = "") -> dict[str, Any]:
    """The record of all problems, both steps and all precisions of this device."""
    accelerator = jax.default_backend() != "cpu"
    wanted = problems.problems(smoke=smoke, accelerator=accelerator)
    wanted = [p for p in wanted if only.lower() in p.name.lower()]
    if not wanted:
        known = ", ".join(p.name for p in problems.problems())
        raise InputError(f"no problem's name contains {only!r}; there are: {known}")
    if not has_torch():
        print(PIP)
    rows = [
        row(problem, work, precision, repeats)
        for problem in wanted
        for work in (training_step, em_step)
        for precision in (ON_ACCELERATOR if accelerator else ON_CPU)
    ]
    return harness.record("step", {"repeats": repeats}, rows, smoke=smoke)


def row(problem: problems.Problem, work: Any, precision: Precision, repeats: int) -> dict[str, Any]:
    """One line: ours and the baselines of that precision, the ratios ours / baseline first."""
    return {
        "problem": problem.name,
        "work": work.__doc__.splitlines()[0].rstrip("."),
        "batch": problem.batch,
        "precision": precision.name,
        **compare(*work(problem, precision), precision, repeats),
    }


def compare(
    ours: dict[str, Any], baseline: Any, precision: Precision, repeats: int
) -> dict[str, Any]:
    """Ours and the baselines in turns: the ratios, times, first losses and costs of a row.

    Args:
      ours: {"step", "cost"}, see `running`.
      baseline: (settings of `steps.Baseline`) -> its step.
      precision: whose baselines run.
      repeats: timed rounds.
    """
    runs = {"jaxpoison": ours["step"]}
    if has_torch():
        for how in precision.baselines:
            runs[how["name"]] = baseline(how)
    losses = {name: float(run()) for name, run in runs.items()}
    times = harness.alternate(runs, repeats=repeats)
    names = list(runs)[1:]
    return {
        "ratio": {n: harness.ratio(times["jaxpoison"], times[n]) for n in names},
        "cpu_ratio": {n: harness.ratio(times["jaxpoison"], times[n], "cpu_ms") for n in names},
        "times": times,
        "first_loss": losses,
        "cost": {"jaxpoison": ours["cost"]},
    }


def training_step(problem: problems.Problem, precision: Precision) -> tuple[Any, Any]:
    """Training step."""
    learner, batch = problems.training(problem, precision.dtype)
    key = jax.random.key(0)
    phi = jax.jit(learner.init)(key)
    start = jax.device_get(phi.variables)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(learner.step, key, phi, batch, donate=(1,))

    def baseline(how):
        from benchmarks.torch_baselines import steps

        running = steps.training(problem, start, batch, steps.Baseline(**how))
        return functools.partial(waited, running.step, steps.wait)

    return running(program, key, phi, batch), baseline


def em_step(problem: problems.Problem, precision: Precision) -> tuple[Any, Any]:
    """EM step.

    A surrogate update, a sign step on every image, the stop test.
    """
    attack, scenario = problems.error_minimizing(problem, precision.dtype)
    key = jax.random.key(0)
    state = jax.jit(attack.init)(key, scenario)
    start = jax.device_get(state.phi.variables)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(attack.step, key, state, scenario, donate=(1,))

    def baseline(how):
        from benchmarks.torch_baselines import steps

        running = steps.error_minimizing(problem, start, scenario, steps.Baseline(**how))
        return functools.partial(waited, lambda: running.step()[0], steps.wait)

    return running(program, key, state, scenario), baseline


def has_torch() -> bool:
    """Whether the baselines can run."""
    return importlib.util.find_spec("torch") is not None


def running(program: harness.Program, key: Any, state: Any, data: Any) -> dict[str, Any]:
    """A step from where the last one ended; the state is donated."""
    held = [state]

    def step():
        held[0], info = program.call(key, held[0], data)
        jax.block_until_ready(held[0])
        return info.outer_loss

    return {"step": step, "cost": program.cost}


def waited(step: Any, wait: Any) -> Any:
    """One step of a baseline and its end on the device; the loss."""
    loss = step()
    wait()
    return loss


if __name__ == "__main__":
    main()
