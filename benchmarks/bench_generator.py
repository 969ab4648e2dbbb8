"""One DeepConfuse step and one GUE mini-batch, ours against the same arithmetic in PyTorch.

    python -m benchmarks.bench_generator [--repeats 12] [--problem NAME] [--smoke] [--out DIR]

A DeepConfuse step is Algorithm 2 (a) and (b): pseudo-step, hypergradient, Adam, and the surrogate's
own step. A GUE mini-batch is T inner Adam steps, both gradients, payoff, multiplier and both
updates. Without torch (`pip install "jaxpoison[bench]"`) only our own column is measured. On an
accelerator the networks are those of the papers, in float32 ("highest"), TF32 and bfloat16.
"""

import functools
from typing import Any

import jax

from benchmarks import bench_step, flops, game_problems, harness
from jaxpoison.types import InputError

__all__ = ["main", "measure"]

WORK = {"deepconfuse": "DeepConfuse step", "gue": "GUE mini-batch"}
PEAK_TFLOPS = 790.0


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--problem", help="only the problems whose name contains this word")
    options = parser.parse_args(arguments)
    with harness.command(options):
        content = measure(options.repeats, smoke=options.smoke, only=options.problem or "")
        harness.write(options.out, "generator", content)


def measure(
    repeats: int, *, smoke: bool = False, only: str = "", part: str | None = None
) -> dict[str, Any]:
    """The record: a row per problem, batch size, T and precision of this device.

    Args:
      repeats: timed rounds.
      smoke: tiny sizes.
      only: a word of the names of the wanted problems.
      part: "steps", in every precision; "scaling", over batch sizes and T in the last; None both.
    """
    accelerator = jax.default_backend() != "cpu"
    precisions = bench_step.ON_ACCELERATOR if accelerator else bench_step.ON_CPU
    sizes = {"smoke": smoke, "accelerator": accelerator}
    plan = []
    if part != "scaling":
        plan += [(problem, p) for problem in game_problems.steps(**sizes) for p in precisions]
    if part != "steps":
        plan += [(problem, precisions[-1]) for problem in game_problems.scaling(**sizes)]
    wanted = [(problem, p) for problem, p in plan if only.lower() in problem.name.lower()]
    if not wanted:
        names = ", ".join(dict.fromkeys(problem.name for problem, _ in plan))
        raise InputError(f"no problem's name contains {only!r}; there are: {names}")
    if not bench_step.has_torch():
        print(bench_step.PIP)
    rows = [row(problem, precision, repeats) for problem, precision in wanted]
    return harness.record("generator", {"repeats": repeats}, rows, smoke=smoke)


def row(problem: game_problems.GameProblem, precision: Any, repeats: int) -> dict[str, Any]:
    """One line: ours and the baselines of that precision, the ratios ours / baseline first."""
    victim, generator = game_problems.networks(problem, precision.dtype)
    attack, scenario = game_problems.attack(problem, victim, generator)
    key = jax.random.key(0)
    state = jax.jit(attack.init)(key, scenario)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(attack.step, key, state, scenario, donate=(1,))
    gflop = flops.gflop(attack.step, key, state, scenario)
    program.cost["gflop"] = float(f"{gflop:.6g}")
    ours = bench_step.running(program, key, state, scenario)

    scratch: dict[str, Any] = {}

    def baseline(how):
        from benchmarks.torch_baselines import games, steps

        running = games.start(problem, scenario.train, steps.Baseline(**how))
        scratch[how["name"]] = {"temp_mib": steps.scratch_mib(running.step)}
        return functools.partial(bench_step.waited, running.step, steps.wait)

    found = bench_step.compare(ours, baseline, precision, repeats)
    found["cost"] |= scratch
    rates = {n: 1e3 / t["wall_ms"]["median"] for n, t in found["times"].items()}
    tflops = gflop * rates["jaxpoison"] / 1e3
    on_cpu = jax.default_backend() == "cpu"
    return {
        "problem": problem.name,
        "work": WORK[problem.method],
        "batch": problem.batch,
        "inner_steps": problem.inner_steps,
        "precision": precision.name,
        **found,
        "steps_per_s": {n: float(f"{rate:.6g}") for n, rate in rates.items()},
        "images_per_s": {n: float(f"{problem.batch * r:.6g}") for n, r in rates.items()},
        "mfu": None if on_cpu else round(tflops / PEAK_TFLOPS, 4),
    }


if __name__ == "__main__":
    main()
