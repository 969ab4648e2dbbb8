"""What a training-time defense adds to a training step, against the plain step.

    python -m benchmarks.bench_defenses [--repeats 12] [--problem NAME] [--smoke] [--out DIR]

The counts of passes say what to expect: mixup, CutMix, cutout and RandAugment change the batch
alone; UEraser with K copies adds K forward passes, (K + 3) / 3 steps, where taking the gradient of
all copies costs K; PGD-10 is 11 steps.
"""

from typing import Any

import jax

from benchmarks import bench_step, harness, problems
from jaxpoison import defenses, victims
from jaxpoison.types import InputError
from jaxpoison.victims.learner import cross_entropy

__all__ = ["FORMS", "main", "measure"]

FORMS = {
    "plain": defenses.compose(),
    "cutout": defenses.cutout(),
    "mixup": defenses.mixup(),
    "CutMix": defenses.cutmix(),
    "RandAugment": defenses.randaugment(),
    "UEraser lite": defenses.ueraser("lite"),
    "UEraser max, K = 5": defenses.ueraser("max"),
    "PGD-10": defenses.adversarial(),
}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--problem", help="only the problems whose name contains this word")
    options = parser.parse_args(arguments)
    with harness.command(options):
        content = measure(options.repeats, smoke=options.smoke, only=options.problem or "")
        harness.write(options.out, "defenses", content)


def measure(repeats: int, *, smoke: bool = False, only: str = "") -> dict[str, Any]:
    """The record of the small CNN (average pools) and ResNet-18."""
    accelerator = jax.default_backend() != "cpu"
    known = problems.problems(smoke=smoke, accelerator=accelerator)[1:]
    wanted = [p for p in known if only.lower() in p.name.lower()]
    if not wanted:
        names = ", ".join(p.name for p in known)
        raise InputError(f"no problem's name contains {only!r}; there are: {names}")
    rows = [_row(problem, repeats) for problem in wanted]
    return harness.record("defenses", {"repeats": repeats}, rows, smoke=smoke)


def _row(problem: problems.Problem, repeats: int) -> dict[str, Any]:
    _, batch = problems.training(problem)
    key, runs, cost = jax.random.key(0), {}, {}
    for form, defense in FORMS.items():
        tx, losses = problems.optimizer(problems.TRAIN), defense(cross_entropy)
        learner = victims.learner(problem.victim(), tx, losses=losses)
        phi = jax.jit(learner.init)(key)
        program = harness.compiled(learner.step, key, phi, batch, donate=(1,))
        running = bench_step.running(program, key, phi, batch)
        runs[form], cost[form] = running["step"], running["cost"]
    times = harness.alternate(runs, repeats=repeats)
    others = [form for form in FORMS if form != "plain"]
    return {
        "problem": problem.name,
        "work": f"training step, {problem.batch} rows",
        "against": "plain",
        "ratio": {f: harness.ratio(times[f], times["plain"]) for f in others},
        "cpu_ratio": {f: harness.ratio(times[f], times["plain"], "cpu_ms") for f in others},
        "times": times,
        "cost": cost,
    }


if __name__ == "__main__":
    main()
