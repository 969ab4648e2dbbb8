"""The parts of `benchmarks.accelerator`: functions of `Options` that return what their JSON holds.

MFU is counted with 1.111 GFLOP for one image's forward pass through ResNet-18 and three times that
for training, against 790 TFLOP/s, what bfloat16 products of matrices reach on one H200.
"""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import (
    bench_generator,
    bench_indiscriminate,
    bench_mapping,
    bench_matching,
    bench_step,
    bench_unroll,
    harness,
    parity_check,
)
from jaxpoison import data, models, victims
from jaxpoison.types import Dataset, InputError, Split, Victim

__all__ = [
    "Options",
    "brew",
    "canceling",
    "deterministic_cost",
    "epoch_resnet18",
    "experiment",
    "generator_scaling",
    "generator_steps",
    "inversion",
    "keep_programs",
    "mapping",
    "matching_many",
    "matching_steps",
    "parity",
    "solving",
    "step",
    "unroll",
]

GFLOP_PER_IMAGE = 3 * 1.111
PEAK_TFLOPS = 790.0
GOALS = {"must_s": 1.0, "goal_s": 0.70, "moonshot_s": 0.57}
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
      smoke: tiny sizes.
      data_dir: folder of NAME-SPLIT.npz, or None.
      runs: run folders of the experiments.
      victims: per training set of an experiment.
      dtype: "float32" or "bfloat16", of an experiment's networks.
      repeats: timed rounds.
    """

    smoke: bool = False
    data_dir: pathlib.Path | None = None
    runs: pathlib.Path = pathlib.Path("runs/accelerator")
    victims: int = 3
    dtype: str = "bfloat16"
    repeats: int = 12

    def settings(self) -> dict[str, Any]:
        """Ready for JSON, without places."""
        return {"victims": self.victims, "dtype": self.dtype, "repeats": self.repeats}


def epoch_resnet18(options: Options) -> dict[str, Any]:
    """Seconds of one epoch in each precision; see `_epoch`."""
    rows = {p.name: _epoch(options, p) for p in bench_step.ON_ACCELERATOR}
    return {"goals_s": GOALS, "peak_tflops": PEAK_TFLOPS, "precisions": rows}


def deterministic_cost(options: Options) -> dict[str, Any]:
    """The bfloat16 epoch with and without deterministic operations, each in its own process."""
    flags = {"default": "", "deterministic": DETERMINISTIC}
    found = {name: _child(options, flag) for name, flag in flags.items()}
    medians = [found[name]["seconds"]["median"] for name in ("deterministic", "default")]
    return {"flag": DETERMINISTIC, "epochs": found, "ratio": round(medians[0] / medians[1], 4)}


def parity(options: Options) -> dict[str, Any]:
    """The check of `parity_check` on ResNet-18 and real images, where there are some."""
    steps = (0, 2) if options.smoke else (0, 50, 400)
    train, origin = _images(options)
    network = functools.partial(_network, options)
    return {"data": origin} | parity_check.measure(train, network, steps=steps)


def experiment(
    name: str, chosen: Mapping[str, Any] | None = None, **files: str
) -> Callable[[Options], dict[str, Any]]:
    """A part that runs `experiments.NAME` at full scale and returns its record.

    Args:
      name: of the script.
      chosen: settings of it other than its own; a rehearsal does without.
      **files: settings of it that are files in --data-dir; a rehearsal does without.
    """

    def run(options: Options) -> dict[str, Any]:
        if options.data_dir is None:
            found = "mnist" if name.startswith("mnist") else "cifar10"
            raise InputError(f"{name} needs --data-dir, with {found}-train.npz and -test.npz")
        module = importlib.import_module(f"experiments.{name}")
        settings: dict[str, Any] = {"data_dir": options.data_dir, "runs": options.runs}
        if "dtype" in [field.name for field in dataclasses.fields(module.Config)]:
            settings["dtype"] = options.dtype
        for setting, file in () if options.smoke else files.items():
            settings[setting] = options.data_dir / file
            if not settings[setting].exists():
                raise InputError(f"{name} needs {file} in --data-dir {options.data_dir}")
        settings |= {} if options.smoke else chosen or {}
        make = module.Config.smoke if options.smoke else module.Config
        keep_programs()
        return module.main(make(**settings, victims=options.victims))

    return run


def keep_programs() -> None:
    """A resumed experiment finds its programs: here compile time is not what is measured."""
    cache = pathlib.Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", "runs/compiled"))
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(cache.absolute()))


def _epoch(options: Options, precision: bench_step.Precision) -> dict[str, Any]:
    """One epoch of the library's own training: shuffling, sub-pixel shifts and flips included.

    Of its 50,000 images the last 336 are a batch of their own; one batch of test images is judged.
    """
    train, origin = _images(options)
    size, victim = 16 if options.smoke else 512, _network(options, precision.dtype)
    recipe = dataclasses.replace(victims.recipes.witches_brew(), batch_size=size)
    process = victims.victim_training(victim, recipe, len(train.label))
    split = Split(train, Dataset(train.image[:size], train.label[:size]))
    key = jax.random.key(0)
    phi = jax.jit(process.init)(key, split)
    with jax.default_matmul_precision(precision.matmul):
        program = harness.compiled(process.step, key, phi, split, donate=(1,))
    held = [phi]

    def step():
        held[0], info = program.call(key, held[0], split)
        return jax.block_until_ready((held[0], info))

    times = harness.alternate({"epoch": step}, repeats=options.repeats, warmup=1)["epoch"]
    seconds = harness.spread([t / 1e3 for t in times["wall_ms"]["values"]])
    tflops = GFLOP_PER_IMAGE * len(train.label) / seconds["median"] / 1e3
    return {
        "data": origin,
        "images": len(train.label),
        "batch": size,
        "seconds": seconds,
        "tflops": round(tflops, 3),
        "mfu": round(tflops / PEAK_TFLOPS, 4),
        "cost": program.cost,
    }


def _network(options: Options, dtype: Any) -> Victim:
    """ResNet-18; a tiny CNN where it is only shown that a part runs."""
    if options.smoke:
        return models.small_cnn((32, 32, 3), widths=(2,), dtype=dtype)
    return models.resnet18((32, 32, 3), dtype=dtype)


def _child(options: Options, flag: str) -> dict[str, Any]:
    """`_epoch` in bfloat16 in a process with that compiler flag."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    command = [sys.executable, "-m", "benchmarks.parts", str(int(options.smoke))]
    command += [str(options.repeats), str(options.data_dir or "")]
    done = subprocess.run(
        command, env=os.environ | {"XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise InputError(f"the epoch with {flag or 'no flag'} ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def _images(options: Options) -> tuple[Dataset, str]:
    """CIFAR-10's training set from npz, or noise of its shape; and which it is."""
    num = 40 if options.smoke else 50_000
    folder = options.data_dir
    if folder is not None and (folder / "cifar10-train.npz").exists():
        found = data.load("cifar10", f"train[:{num}]", folder)
        return Dataset(jnp.asarray(found.image), jnp.asarray(found.label)), "cifar10"
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    label = random.integers(0, 10, num, dtype=np.int32)
    return Dataset(jnp.asarray(image), jnp.asarray(label)), "noise"


def _of(measure: Callable[..., dict[str, Any]], timed: bool) -> Callable[..., dict[str, Any]]:
    def run(options: Options) -> dict[str, Any]:
        repeats = (options.repeats,) if timed else ()
        content = measure(*repeats, smoke=options.smoke)
        return {"settings": content["settings"], "rows": content["rows"]}

    return run


step, mapping = _of(bench_step.measure, True), _of(bench_mapping.measure, True)
unroll = _of(bench_unroll.measure, False)
generator_steps = _of(functools.partial(bench_generator.measure, part="steps"), True)
generator_scaling = _of(functools.partial(bench_generator.measure, part="scaling"), True)
matching_steps = _of(functools.partial(bench_matching.measure, part="steps"), True)
matching_many = _of(functools.partial(bench_matching.measure, part="many"), True)
brew = _of(functools.partial(bench_matching.measure, part="brew"), True)
canceling = _of(functools.partial(bench_indiscriminate.measure, part="canceling"), True)
solving = _of(functools.partial(bench_indiscriminate.measure, part="solving"), True)
inversion = _of(functools.partial(bench_indiscriminate.measure, part="inversion"), True)


if __name__ == "__main__":
    smoke, repeats, folder = sys.argv[1:]
    there = pathlib.Path(folder) if folder else None
    jax.config.update("jax_enable_compilation_cache", False)
    chosen = Options(smoke=smoke == "1", repeats=int(repeats), data_dir=there)
    print(json.dumps(_epoch(chosen, bench_step.ON_ACCELERATOR[-1])))
