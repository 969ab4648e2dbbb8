"""Noise of unlearnable examples: AR for a whole training set, a step of REM and of SEM.

    python -m benchmarks.bench_unlearnable [--repeats 12] [--part NAME] [--smoke] [--out DIR]

AR: 50,000 noises of 32 x 32 x 3 from `attacks.autoregressive`, one scan of 34 x 34 entries for each
block of 512 images; and, image by image, channel by channel and pixel by pixel in Python, what the
published code does: three dot products of length three in PyTorch (without torch in NumPy). The
loop makes 2 images a turn and is extrapolated to all: its images do not depend on one another.

REM, SEM: `attacks.robust_error_minimizing(...).step` on a batch (fresh noise under crops and flips
against the inner perturbation, then one update of the surrogate on it), and the same arithmetic in
PyTorch, as published and tuned. Fewer steps within a step than the papers have: their cost is
proportional to passes over the batch, which a row counts.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import bench_step, harness, problems
from jaxpoison import attacks, check
from jaxpoison.attacks.autoregression_table import TEN_CLASSES
from jaxpoison.attacks.unlearnable.autoregressive import ar_noise
from jaxpoison.data import augment

__all__ = ["PARTS", "Robust", "looped", "main", "measure", "robust_step"]

IMAGES, SIDE, CROP = 50_000, 32, 4
LOOPED = 2  # images of the published loop in one turn


class Robust(NamedTuple):
    """A step of REM ("pgd") or SEM ("random") on B rows.

    Attributes:
      name: of the paper.
      inner: how the inner perturbation is found.
      noise_steps: K_u.
      draws: J.
      climbs: K_a; 0 for SEM.
      near: rho_a.
      rate: a_u.
      padding: of crops; 0 for no augmentation.
    """

    name: str
    inner: Literal["pgd", "random"]
    noise_steps: int = 2
    draws: int = 2
    climbs: int = 2
    near: float = 4 / 255
    rate: float = 1.6 / 255
    padding: int = 4

    @property
    def passes(self) -> int:
        """Forward and backward, over the batch."""
        return self.noise_steps * self.draws * (self.climbs + 1) + self.climbs + 1


WORKS = (Robust("REM step", "pgd"), Robust("SEM step", "random", climbs=0))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = harness.parser(__doc__)
    parser.add_argument("--part", help=f"one of {', '.join(PARTS)}; default all")
    options = parser.parse_args(arguments)
    with harness.command(options):
        content = measure(options.repeats, smoke=options.smoke, part=options.part)
        harness.write(options.out, "unlearnable", content)


def measure(repeats: int, *, smoke: bool = False, part: str | None = None) -> dict[str, Any]:
    """The record.

    Args:
      repeats: timed rounds; AR, whose turn takes seconds, has a quarter of them.
      smoke: tiny sizes.
      part: of PARTS; None all.
    """
    check.one_of((*PARTS, None), part=part)
    if not bench_step.has_torch():
        print(bench_step.PIP)
    rows = [row for name in ([part] if part else PARTS) for row in PARTS[name](repeats, smoke)]
    return harness.record("unlearnable", {"repeats": repeats}, rows, smoke=smoke)


def autoregressive(repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """Noise for all images; the loop's time is that of `LOOPED`, as often as it takes."""
    num = 20 if smoke else IMAGES
    table = jnp.asarray(TEN_CLASSES, jnp.float32)
    rows = jnp.arange(num, dtype=jnp.int32)
    arguments = jax.random.key(0), rows, rows % 10, table

    def noise(key, rows, label, coefficients):
        size = {"image_shape": (SIDE, SIDE, 3), "crop": CROP}
        return ar_noise(key, rows, label, coefficients=coefficients, **size)

    program = harness.compiled(noise, *arguments)
    kind = "torch" if bench_step.has_torch() else "numpy"
    runs = {"jaxpoison": lambda: program.call(*arguments), "loop": lambda: looped(kind)}
    found = harness.alternate(runs, repeats=max(1, repeats // 4), warmup=1)
    theirs = f"{kind} loop, extrapolated from {LOOPED} images"
    times = {"jaxpoison": found["jaxpoison"]}
    times[theirs] = {
        clock: harness.spread([num / LOOPED * ms for ms in found["loop"][clock]["values"]])
        for clock in found["loop"]
    }
    row = {
        "problem": "32 x 32 x 3",
        "work": "AR noise",
        "images": num,
        "precision": "float32",
        "passes": None,
        "looped_images": LOOPED,
    }
    ratios = {
        name: {theirs: harness.ratio(times["jaxpoison"], times[theirs], clock)}
        for name, clock in (("ratio", "wall_ms"), ("cpu_ratio", "cpu_ms"))
    }
    row["times_as_long"] = {  # theirs / ours: the ratio has too few digits
        clock: harness.ratio(times[theirs], times["jaxpoison"], clock)
        for clock in ("wall_ms", "cpu_ms")
    }
    return [row | ratios | {"times": times, "cost": {"jaxpoison": program.cost}}]


def looped(kind: str) -> list[np.ndarray]:
    """`LOOPED` noises [3, 32, 32], entry by entry, by "torch" or "numpy"."""
    if kind == "torch":
        import torch

        def vector(x):
            return torch.tensor(x, dtype=torch.float32)

        dot = torch.dot
    else:
        vector, dot = np.float32, np.dot
    rng, size = np.random.RandomState(0), SIDE + CROP
    kernel, made = vector(np.asarray(TEN_CLASSES[0])), []
    for _ in range(LOOPED):
        signal = vector(rng.randn(3, size, size))
        for c in range(3):
            for i in range(size - 2):
                for j in range(size - 2):
                    new = sum(dot(signal[c, i + a, j : j + 3], kernel[c, a]) for a in range(3))
                    signal[c, i + 2, j + 2] = new
        part = np.asarray(signal[:, CROP:, CROP:])
        made.append(part / np.linalg.norm(part))
    return made


def robust(repeats: int, smoke: bool) -> list[dict[str, Any]]:
    """A step of each on the small CNN with average pools; on an accelerator on ResNet-18."""
    accelerator = jax.default_backend() != "cpu"
    known = problems.problems(smoke=smoke, accelerator=accelerator)
    problem = known[2] if accelerator else known[1]
    precisions = bench_step.ON_ACCELERATOR if accelerator else bench_step.ON_CPU
    found = []
    for work in WORKS:
        work = work._replace(padding=1) if smoke else work
        for precision in precisions:
            row = {
                "problem": problem.name,
                "work": work.name,
                "images": problem.batch,
                "precision": precision.name,
                "passes": work.passes,
                **work._asdict(),
            }
            both = robust_step(problem, work, precision)
            found.append(row | bench_step.compare(*both, precision, repeats) | {"name": work.name})
    return found


def robust_step(problem: problems.Problem, work: Robust, precision: Any) -> tuple[Any, Any]:
    """Ours and how a baseline is made, as `bench_step.compare` takes them."""
    moves = [] if work.padding == 0 else [augment.crop(padding=work.padding), augment.flip()]
    attack = attacks.robust_error_minimizing(
        problem.victim(precision.dtype),
        eps=problems.EPS,
        adversarial_eps=work.near,
        inner=work.inner,
        steps=10**6,  # no step of the run is the last, which visits all rows
        noise_steps=work.noise_steps,
        step_size=work.rate,
        draws=work.draws,
        adversarial_steps=max(1, work.climbs),
        augment=augment.compose(*moves),
        tx=problems.optimizer(problems.SURROGATE),
        batch_size=problem.batch,
    )
    key, scenario = jax.random.key(0), problems.scenario(problem)
    state = jax.jit(attack.init)(key, scenario)
    start = jax.device_get(state.phi.variables)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(attack.step, key, state, scenario, donate=(1,))

    def baseline(how):
        from benchmarks.torch_baselines import robust, steps

        own = robust.robust_error_minimizing(problem, start, scenario, work, steps.Baseline(**how))
        return functools.partial(bench_step.waited, own.step, steps.wait)

    return bench_step.running(program, key, state, scenario), baseline


PARTS = {"ar": autoregressive, "rem": robust}
"""What is measured: (repeats, smoke) -> rows."""


if __name__ == "__main__":
    main()
