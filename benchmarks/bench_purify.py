"""Purifiers: D-VAE's fit and its pass against PyTorch, others against loops over images.

    python -m benchmarks.bench_purify [--repeats 12] [--problem NAME] [--smoke] [--out DIR]

D-VAE's fit is an epoch of a few updates (forward, backward, clip, Adam), as a run takes it; its
pass is that of stage two, subtract and reconstruct (two forward passes in eval mode), latent noise
and grey levels included. On a CPU the network has width 16, on an accelerator 64. JPEG and the
median compete with pillow image by image, as published transforms call it; orthogonal projection,
from grey levels to projected floats, with PyTorch. Without torch its columns are left out.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import bench_step, fixed_purifiers, harness
from jaxpoison import defenses, models
from jaxpoison.types import Dataset, InputError

__all__ = ["Problem", "main", "measure", "problems"]

CLASSES = 10


class Problem(NamedTuple):
    """A D-VAE on noise with random labels: its width, the image's side, B, updates of an epoch."""

    name: str
    width: int
    side: int
    batch: int
    updates: int


def problems(*, smoke: bool = False, accelerator: bool = False) -> list[Problem]:
    """D-VAEs that are measured on this kind of device."""
    if smoke:
        return [Problem("D-VAE, tiny", 2, 8, 4, 2)]
    if accelerator:
        return [Problem("D-VAE", 64, 32, 128, 16)]
    return [Problem("D-VAE of width 16", 16, 32, 32, 4)]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--problem", help="only the problems whose name contains this word")
    options = parser.parse_args(arguments)
    with harness.command(options):
        content = measure(options.repeats, smoke=options.smoke, only=options.problem or "")
        harness.write(options.out, "purify", content)


def measure(repeats: int, *, smoke: bool = False, only: str = "") -> dict[str, Any]:
    """The record: a row per problem, work and precision of this device."""
    accelerator = jax.default_backend() != "cpu"
    known = problems(smoke=smoke, accelerator=accelerator)
    names = [*(p.name for p in known), *fixed_purifiers.NAMES]
    wanted = [name for name in names if only.lower() in name.lower()]
    if not wanted:
        known_names = ", ".join(names)
        raise InputError(f"no problem's name contains {only!r}; there are: {known_names}")
    if not bench_step.has_torch():
        print(bench_step.PIP)
    rows = [
        row(problem, work, precision, repeats)
        for problem in known
        if problem.name in wanted
        for work in (fit, purification)
        for precision in (bench_step.ON_ACCELERATOR if accelerator else bench_step.ON_CPU)
    ]
    others = [name for name in fixed_purifiers.NAMES if name in wanted]
    rows += [with_rates(fixed_purifiers.row(name, repeats, smoke=smoke)) for name in others]
    return harness.record("purify", {"repeats": repeats}, rows, smoke=smoke)


def row(problem: Problem, work: Any, precision: Any, repeats: int) -> dict[str, Any]:
    """One line of D-VAE."""
    found = bench_step.compare(*work(problem, precision), precision, repeats)
    what = {
        "problem": problem.name,
        "work": work.__doc__.splitlines()[0].rstrip("."),
        "batch": problem.batch,
        "updates": problem.updates,
        "precision": precision.name,
    }
    return with_rates(what | found)


def with_rates(row: dict[str, Any]) -> dict[str, Any]:
    """A line with images per second by the median wall time."""
    images = row["batch"] * row.get("updates", 1)
    rates = {n: 1e3 * images / t["wall_ms"]["median"] for n, t in row["times"].items()}
    return row | {"images_per_s": {n: float(f"{rate:.6g}") for n, rate in rates.items()}}


def fit(problem: Problem, precision: Any) -> tuple[Any, Any]:
    """Fit."""
    network, dataset = _start(problem, precision)
    settings = defenses.DVAESettings(
        epochs=10**6, batch_size=problem.batch, kld_targets=(1.0,), mag_start_epoch=0,
        output="rec",
    )  # fmt: skip
    purifier = defenses.dvae(network, settings)
    key = jax.random.key(0)
    state = jax.jit(purifier.init)(key, dataset)
    start = jax.device_get(state.phi.variables)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(purifier.step, key, state, dataset, donate=(1,))

    def baseline(how):
        from benchmarks.torch_baselines import dvae, steps

        own = start, dataset.image / 255, dataset.label
        epoch = dvae.fit(*own, steps.Baseline(**how), batch_size=problem.batch)
        return functools.partial(bench_step.waited, epoch, steps.wait)

    return bench_step.running(program, key, state, dataset), baseline


def purification(problem: Problem, precision: Any) -> tuple[Any, Any]:
    """Purification."""
    network, dataset = _start(problem, precision)
    key = jax.random.key(0)
    variables = jax.jit(network.init)(key)

    def purify(key, variables, dataset):
        image = defenses.purified_images(
            network, variables, dataset, key=key, output="two_stage", batch_size=problem.batch
        )
        return jnp.mean(image.astype(jnp.float32))

    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(purify, key, variables, dataset)

    def step():
        return jax.block_until_ready(program.call(key, variables, dataset))

    def baseline(how):
        from benchmarks.torch_baselines import dvae, steps

        own = jax.device_get(variables), dataset.image / 255, dataset.label
        run = dvae.purification(*own, steps.Baseline(**how), batch_size=problem.batch)
        return functools.partial(bench_step.waited, run, steps.wait)

    return {"step": step, "cost": program.cost}, baseline


def _start(problem: Problem, precision: Any) -> tuple[Any, Dataset]:
    rng = np.random.default_rng(0)
    shape = (problem.side, problem.side, 3)
    num = problem.batch * problem.updates
    image = rng.integers(0, 256, (num, *shape)).astype(np.uint8)
    label = rng.integers(0, CLASSES, num).astype(np.int32)
    network = models.dvae(shape, CLASSES, width=problem.width, dtype=precision.dtype)
    return network, Dataset(jnp.asarray(image), jnp.asarray(label))


if __name__ == "__main__":
    main()
