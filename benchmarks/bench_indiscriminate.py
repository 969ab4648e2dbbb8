"""Attacks by added points, ours against PyTorch in one process.

    python -m benchmarks.bench_indiscriminate [--repeats 12] [--part NAME] [--smoke] [--out DIR]

A turn is several steps: ours in one program, as `run` has them, PyTorch's in a loop. Without torch
(`pip install "jaxpoison[bench]"`) only our own column is measured. On an accelerator every part is
measured in float32 ("highest"), TF32 and bfloat16.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import bench_step, flops, harness
from benchmarks import indiscriminate_problems as crafting
from jaxpoison import check

__all__ = ["PARTS", "main", "measure"]

STEPS_OF_AN_IMAGE = 1000  # of feature matching, as the attack has it by default


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--part", help=f"one of {', '.join(PARTS)}; default all")
    options = parser.parse_args(arguments)
    with harness.command(options):
        content = measure(options.repeats, smoke=options.smoke, part=options.part)
        harness.write(options.out, "indiscriminate", content)


def measure(repeats: int, *, smoke: bool = False, part: str | None = None) -> dict[str, Any]:
    """The record.

    Args:
      repeats: timed rounds.
      smoke: tiny sizes.
      part: of PARTS; None all.
    """
    check.one_of((*PARTS, None), part=part)
    accelerator = jax.default_backend() != "cpu"
    precisions = bench_step.ON_ACCELERATOR if accelerator else bench_step.ON_CPU
    if not bench_step.has_torch():
        print(bench_step.PIP)
    rows = []
    for name in [part] if part else PARTS:
        rows += [row | {"part": name} for p in precisions for row in PARTS[name](p, repeats, smoke)]
    return harness.record("indiscriminate", {"repeats": repeats}, rows, smoke=smoke)


def canceling(precision: Any, repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Steps of gradient canceling at every P and D, and on small networks in pixels."""
    found = crafting.canceling(smoke=smoke)
    return [canceling_row(work, precision, repeats) for work in found]


def sweep(precision: Any, repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """The same against P and against D."""
    found = crafting.sweep(smoke=smoke)
    return [canceling_row(work, precision, repeats) for work in found]


def solving(precision: Any, repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Hessian products and conjugate gradients at one place, all of a solve in one program."""
    found = crafting.solving(smoke=smoke)
    return [solving_row(work, precision, repeats) for work in found]


def solving_row(work: crafting.Solving, precision: Any, repeats: int) -> dict[str, Any]:
    """One solve: ours and the baselines of that precision, the ratios first."""
    problem = work.problem
    scenario, solve = crafting.scenario(problem), crafting.solve(work, precision.dtype)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(solve, scenario)

    def baseline(how):
        from benchmarks.torch_baselines import indiscriminate
        from benchmarks.torch_baselines.steps import Baseline, wait

        run = indiscriminate.solving(problem, scenario, work, Baseline(**how))
        return functools.partial(bench_step.waited, run, wait)

    ours = {"step": lambda: program.call(scenario), "cost": program.cost}
    found = bench_step.compare(ours, baseline, precision, repeats)
    return described(problem, work.method, precision, work.iterations, found)


def canceling_row(work: crafting.Canceling, precision: Any, repeats: int) -> dict[str, Any]:
    """Steps of one problem: ours and the baselines of that precision, the ratios first."""
    problem, steps = work
    attack, scenario = crafting.attack(problem, precision.dtype), crafting.scenario(problem)
    ours = running(attack, scenario, steps, precision)

    def baseline(how):
        from benchmarks.torch_baselines import indiscriminate
        from benchmarks.torch_baselines.steps import Baseline, wait

        held = [indiscriminate.gradient_canceling(problem, scenario, Baseline(**how))]
        return functools.partial(bench_step.waited, several(held[0].step, steps), wait)

    found = bench_step.compare(ours, baseline, precision, repeats)
    return described(problem, "canceling step", precision, steps, found)


def inversion(precision: Any, repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Steps of feature matching, the third stage of the feature-targeted attack."""
    accelerator = jax.default_backend() != "cpu"
    found = crafting.inversion(smoke=smoke, accelerator=accelerator)
    return [inversion_row(work, precision, repeats) for work in found]


def inversion_row(work: crafting.Inversion, precision: Any, repeats: int) -> dict[str, Any]:
    """One problem: ours and the baselines of that precision; images inverted a second."""
    problem, steps = work
    attack, scenario = crafting.matching(work, precision.dtype)
    key = jax.random.key(0)
    state, _ = jax.jit(attack.step)(key, jax.jit(attack.init)(key, scenario), scenario)
    wanted = jax.device_get(state.feature.theta.value).reshape(problem.batch, -1)
    ours = running(attack, scenario, steps, precision, state)

    def baseline(how):
        from benchmarks.torch_baselines import indiscriminate
        from benchmarks.torch_baselines.steps import Baseline, wait

        found = indiscriminate.feature_matching(problem, scenario, wanted, Baseline(**how))
        return functools.partial(bench_step.waited, several(found.step, steps), wait)

    found = bench_step.compare(ours, baseline, precision, repeats)
    row = described(problem, "matching step", precision, steps, found)
    rates = {n: problem.batch * rate / STEPS_OF_AN_IMAGE for n, rate in row["per_s"].items()}
    return row | {"images_per_s": {n: float(f"{rate:.6g}") for n, rate in rates.items()}}


def noise(precision: Any, repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Rounds of error-minimizing noise for a head on a frozen extractor."""
    accelerator = jax.default_backend() != "cpu"
    found = crafting.noise(smoke=smoke, accelerator=accelerator)
    return [noise_row(problem, precision, repeats) for problem in found]


def noise_row(problem: Any, precision: Any, repeats: int) -> dict[str, Any]:
    """One problem: ours and the baselines of that precision."""
    attack, scenario = crafting.frozen_noise(problem, precision.dtype)
    state = jax.jit(attack.init)(jax.random.key(0), scenario)
    start = jax.device_get(crafting.with_head(state))
    ours = running(attack, scenario, 1, precision, state)

    def baseline(how):
        from benchmarks.torch_baselines import steps

        found = steps.error_minimizing(problem, start, scenario, steps.Baseline(**how), frozen=True)
        return functools.partial(bench_step.waited, lambda: found.step()[0], steps.wait)

    found = bench_step.compare(ours, baseline, precision, repeats)
    return described(problem, "noise for a head", precision, 1, found)


def described(problem: Any, work: str, precision: Any, steps: int, found: Any) -> dict[str, Any]:
    """A row: what was measured, and how many of it a second."""
    rates = {n: 1e3 * steps / t["wall_ms"]["median"] for n, t in found["times"].items()}
    return {
        "problem": problem.name,
        "work": work,
        "points": problem.batch,
        "values": math.prod(problem.image_shape),
        "precision": precision.name,
        "steps": steps,
        **found,
        "per_s": {n: float(f"{rate:.6g}") for n, rate in rates.items()},
    }


def running(
    attack: Any, scenario: Any, steps: int, precision: Any, state: Any = None
) -> dict[str, Any]:
    """Steps of an attack in one program, from where the last ones ended; cost is that of a step."""
    key = jax.random.key(0)
    state = jax.jit(attack.init)(key, scenario) if state is None else state

    def body(key, state, scenario):
        def step(state, t):
            return attack.step(jax.random.fold_in(key, t), state, scenario)

        return jax.lax.scan(step, state, jnp.arange(steps))

    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(body, key, state, scenario, donate=(1,))
    gflop = flops.gflop(attack.step, key, state, scenario)
    program.cost["gflop"] = float(f"{gflop:.6g}")
    held = [state]

    def taken():
        held[0], info = program.call(key, held[0], scenario)
        return jax.block_until_ready(info).outer_loss[0]

    return {"step": taken, "cost": program.cost}


def several(step: Any, count: int) -> Any:
    """`count` steps in a row; the loss of the first."""

    def taken():
        first = step()
        for _ in range(count - 1):
            step()
        return first

    return taken


PARTS = {
    "canceling": canceling,
    "solving": solving,
    "inversion": inversion,
    "noise": noise,
    "sweep": sweep,
}
"""What is measured: (precision, repeats, smoke) -> rows."""


if __name__ == "__main__":
    main()
