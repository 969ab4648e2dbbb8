"""Unrolled hypergradients: memory and operations against K, with and without rematerialization.

    python -m benchmarks.bench_unroll [--problem NAME] [--smoke] [--out DIR]

The programs are compiled and not run: XLA's own plan says how much scratch memory they need.
`hypergrad.unrolled` of `poisoned_training`, SGD with momentum, batch 64, noise on every image.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import flops, harness, problems
from jaxpoison import hypergrad, perturb, victims
from jaxpoison.types import InputError

__all__ = ["main", "measure"]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("--problem", help="only the problems whose name contains this word")
    options = parser.parse_args(arguments)
    with harness.command(options):
        content = measure(smoke=options.smoke, only=options.problem or "")
        harness.write(options.out, "unroll", content)


def measure(*, smoke: bool = False, only: str = "") -> dict[str, Any]:
    """The record: one row per network and K, with and without remat side by side."""
    plan = _plan(smoke)
    wanted = [(p, steps) for p, steps in plan if only.lower() in p.name.lower()]
    if not wanted:
        known = ", ".join(p.name for p, _ in plan)
        raise InputError(f"no problem's name contains {only!r}; there are: {known}")
    rows = [row(problem, k) for problem, steps in wanted for k in steps]
    return harness.record("unroll", {"batch": wanted[0][0].batch}, rows, smoke=smoke)


def _plan(smoke: bool) -> list[tuple[problems.Problem, tuple[int, ...]]]:
    if smoke:
        return [(problems.small_cnn("avg", (4, 4, 1), 4, (2,)), (2,))]
    return [
        (problems.small_cnn("max", (28, 28, 1), 64, (32, 64, 128)), (1, 5, 20)),
        (problems.resnet18((32, 32, 3), 64), (2, 10)),
    ]


def row(problem: problems.Problem, steps: int) -> dict[str, Any]:
    """Costs of the estimate at K = `steps`, by whether inner steps are rematerialized."""
    scenario = problems.scenario(problem)
    cost = {}
    for name, remat in (("remat", True), ("no remat", False)):
        estimator = hypergrad.unrolled(_game(problem), steps=steps, remat=remat)
        key = jax.random.key(0)
        theta = jax.ShapeDtypeStruct(scenario.train.image.shape, jnp.float32)
        phi = jax.eval_shape(estimator.init, key, scenario)
        cost[name] = harness.compiled(estimator.estimate, key, theta, phi, scenario).cost
        counted = flops.gflop(estimator.estimate, key, theta, phi, scenario)
        cost[name]["gflop"] = float(f"{counted:.6g}")
    return {"problem": problem.name, "batch": problem.batch, "steps": steps, "cost": cost}


def _game(problem: problems.Problem) -> Any:
    """Poisoned training; the leader's loss is the follower's on clean images."""
    victim = problem.victim()
    learner = victims.learner(victim, optax.sgd(0.01, momentum=0.9))

    def outer_loss(key, theta, phi, scenario):
        del key, theta
        logits, _ = victim.apply(phi.variables, scenario.goal.image / 255, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, scenario.goal.label)
        return -jnp.mean(losses)

    space = perturb.per_sample(perturb.Budget("linf", problems.EPS))
    return hypergrad.poisoned_training(
        learner, space, batch_size=problem.batch, outer_loss=outer_loss
    )


if __name__ == "__main__":
    main()
