"""One crafting step of gradient matching and a whole brew, ours against PyTorch in one process.

    python -m benchmarks.bench_matching [--repeats 12] [--problem NAME] [--smoke] [--out DIR]

PyTorch goes reverse over reverse, ours forward over reverse; the numbers are the same. Restarts and
ensembles are compared with as many single steps; what each of 1 to 4 devices has to do is counted,
not timed, as fake devices share the cores of one machine. MFU takes 7 forward passes of the
poisons as a step's useful work. Without torch only our own column is measured.
"""

import argparse
import functools
import json
from typing import Any

import jax

from benchmarks import bench_mapping, bench_step, flops, harness
from benchmarks import matching_problems as crafting
from jaxpoison import over
from jaxpoison.types import InputError

__all__ = ["devices", "main", "measure"]

NUMBERS = (1, 2, 4, 8)
DEVICES = (1, 2, 4)
UNITS = 7  # forward passes in a crafting step
PEAK_TFLOPS = 790.0


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--problem", help="only the problems whose name contains this word")
    parser.add_argument("--devices", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    with harness.command(options):
        if options.devices:
            print(json.dumps(devices(smoke=options.smoke)))
            return
        content = measure(options.repeats, smoke=options.smoke, only=options.problem or "")
        content["devices"] = devices_apart(smoke=options.smoke)
        harness.write(options.out, "matching", content)


def measure(
    repeats: int, *, smoke: bool = False, only: str = "", part: str | None = None
) -> dict[str, Any]:
    """The record: steps and brew in every precision of this device; restarts and ensembles.

    Args:
      repeats: timed rounds; of a brew a quarter.
      smoke: tiny sizes.
      only: a word of the names of the wanted problems.
      part: "steps", "brew" or "many" (restarts and ensembles); None all.
    """
    accelerator = jax.default_backend() != "cpu"
    precisions = bench_step.ON_ACCELERATOR if accelerator else bench_step.ON_CPU
    sizes = {"smoke": smoke, "accelerator": accelerator}
    found = crafting.steps(**sizes)
    wanted = [p for p in found if only.lower() in p.name.lower()]
    if not wanted:
        names = ", ".join(p.name for p in found)
        raise InputError(f"no problem's name contains {only!r}; there are: {names}")
    if not bench_step.has_torch():
        print(bench_step.PIP)
    rows, numbers = [], NUMBERS[:2] if smoke else NUMBERS
    if part in (None, "steps"):
        rows += [step_row(problem, p, repeats) for problem in wanted for p in precisions]
    if part in (None, "brew"):
        brew = crafting.brew(**sizes)
        if brew.problem.name in [p.name for p in wanted]:
            rows += [brew_row(brew, p, max(1, repeats // 4)) for p in precisions]
    if part in (None, "many"):
        for kind in ("restarts", "ensemble"):
            rows.append(many_row(wanted[0], kind, numbers, precisions[-1], repeats))
    return harness.record("matching", {"repeats": repeats}, rows, smoke=smoke)


def step_row(problem: Any, precision: Any, repeats: int) -> dict[str, Any]:
    """One crafting step: ours and the baselines of that precision, the ratios first."""
    attack, scenario = crafting.attack(problem, precision.dtype), crafting.scenario(problem)
    program, state = compiled(attack, scenario, precision)
    start = jax.device_get(state.theta)
    ours = bench_step.running(program, jax.random.key(0), state, scenario)

    def baseline(how):
        from benchmarks.torch_baselines import matching, steps

        running = matching.gradient_matching(problem, scenario, start, steps.Baseline(**how))
        return functools.partial(bench_step.waited, running.step, steps.wait)

    found = bench_step.compare(ours, baseline, precision, repeats)
    return described(problem, "crafting step", precision, found, problem.batch)


def brew_row(brew: crafting.Brew, precision: Any, repeats: int) -> dict[str, Any]:
    """A whole brew: all restarts and steps in one program, the same loops in PyTorch."""
    problem, scenario = brew.problem, crafting.scenario(brew.problem)
    attack = crafting.restarts(problem, precision.dtype, brew)
    key = jax.random.key(0)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(
            lambda key, scenario: run(attack, key, scenario, brew.steps), key, scenario
        )
    starts = jax.device_get(jax.jit(attack.init)(key, scenario).theta)

    def craft():
        _, info = jax.block_until_ready(program.call(key, scenario))
        return info.outer_loss[-1].min()

    def baseline(how):
        from benchmarks.torch_baselines import matching, steps

        running = matching.gradient_matching(problem, scenario, starts[0], steps.Baseline(**how))
        whole = functools.partial(matching.brew, running, starts, brew.steps)
        return functools.partial(bench_step.waited, lambda: whole().min(), steps.wait)

    found = bench_step.compare({"step": craft, "cost": program.cost}, baseline, precision, repeats)
    images = problem.batch * brew.restarts * brew.steps
    row = described(problem, "full brew", precision, found, images)
    return row | {"steps": brew.steps, "restarts": brew.restarts}


def many_row(
    problem: Any, kind: str, numbers: tuple[int, ...], precision: Any, repeats: int
) -> dict[str, Any]:
    """A step of R restarts, or of K surrogates, against R or K times a single one's."""
    runs, costs = {}, {}
    for num in numbers:
        members = num if kind == "ensemble" else 1
        attack = crafting.attack(problem, precision.dtype, ensemble=members)
        if kind == "restarts":
            attack = over.over_restarts(attack, num)
        scenario = crafting.scenario(problem, ensemble=members)
        program, state = compiled(attack, scenario, precision)
        ours = bench_step.running(program, jax.random.key(0), state, scenario)
        runs[str(num)], costs[str(num)] = ours["step"], program.cost
    times = harness.alternate(runs, repeats=repeats)

    def each(clock):
        """Time per restart or member, against a single step in the same round."""
        ratios = {n: harness.ratio(times[n], times[str(numbers[0])], clock) for n in runs}
        return {n: harness.spread([v / int(n) for v in r["values"]]) for n, r in ratios.items()}

    return {
        "problem": problem.name,
        "work": kind,
        "batch": problem.batch,
        "precision": precision.name,
        "ratio": each("wall_ms"),
        "cpu_ratio": each("cpu_ms"),
        "times": times,
        "cost": costs,
    }


def devices(*, smoke: bool = False, only: str = "") -> list[dict[str, Any]]:
    """What one of 1, 2 and 4 devices does when four restarts are spread over them.

    Of the problems whose name contains `only`.

    Raises: InputError with fewer than four devices.
    """
    most, key = DEVICES[-1], jax.random.key(0)
    if jax.device_count() < most:
        raise InputError(f"{jax.device_count()} devices; {most} are needed")
    found = []
    wanted = crafting.steps(smoke=smoke, accelerator=False)
    for problem in [p for p in wanted if only.lower() in p.name.lower()]:
        scenario, costs = crafting.scenario(problem), {}
        for num in DEVICES:
            attack = crafting.attack(problem)
            attack = over.over_devices(attack, over.device_mesh(num), most)
            state = jax.eval_shape(attack.init, key, scenario)
            program = harness.compiled(attack.step, key, state, scenario)
            messages = len(bench_mapping.COLLECTIVE.findall(program.call.as_text()))
            gflop = float(f"{flops.gflop(attack.step, key, state, scenario):.6g}")
            cost = program.cost | {"gflop": gflop}
            costs[str(num)] = {"restarts": most // num, "messages": messages, **cost}
        found.append({"problem": problem.name, "batch": problem.batch, "per_device": costs})
    return found


def devices_apart(*, smoke: bool) -> list[dict[str, Any]] | None:
    """`devices` in a process of its own with four fake ones; None on an accelerator."""
    if jax.default_backend() != "cpu":
        return devices(smoke=smoke) if jax.device_count() >= DEVICES[-1] else None
    return harness.on_fake_devices("benchmarks.bench_matching", DEVICES[-1], smoke=smoke)


def compiled(attack: Any, scenario: Any, precision: Any) -> tuple[harness.Program, Any]:
    """The donated step of an attack with products counted by hand, and its first state."""
    key = jax.random.key(0)
    state = jax.jit(attack.init)(key, scenario)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(attack.step, key, state, scenario, donate=(1,))
    program.cost["gflop"] = float(f"{flops.gflop(attack.step, key, state, scenario):.6g}")
    return program, state


def run(attack: Any, key: Any, scenario: Any, num_steps: int) -> Any:
    """As `jaxpoison.run`, to be compiled apart from running."""
    state = attack.init(key, scenario)

    def body(state, t):
        return attack.step(jax.random.fold_in(key, t), state, scenario)

    return jax.lax.scan(body, state, jax.numpy.arange(num_steps))


def described(problem, work, precision, found, images) -> dict[str, Any]:
    """A row: what was measured, the work in forward passes, and MFU on an accelerator."""
    victim = problem.victim()
    image = jax.ShapeDtypeStruct((1, *problem.image_shape), "float32")
    variables = jax.eval_shape(victim.init, jax.random.key(0))
    forward = flops.gflop(lambda v, x: victim.apply(v, x, train=False)[0], variables, image)
    seconds = found["times"]["jaxpoison"]["wall_ms"]["median"] / 1e3
    mfu = UNITS * forward * images / 1e3 / seconds / PEAK_TFLOPS
    on_cpu = jax.default_backend() == "cpu"
    rates = {n: images / t["wall_ms"]["median"] * 1e3 for n, t in found["times"].items()}
    return {
        "problem": problem.name,
        "work": work,
        "batch": problem.batch,
        "precision": precision.name,
        **found,
        "images_per_s": {n: float(f"{rate:.6g}") for n, rate in rates.items()},
        "mfu": None if on_cpu else round(mfu, 4),
    }


if __name__ == "__main__":
    main()
