"""All that wants an accelerator, in named parts of at most eight minutes.

    python -m benchmarks.accelerator [PART ...] [--data-dir DIR] [--out DIR] [--runs DIR]

Each part runs in a process of its own and writes accelerator_PART.json as it ends; a part whose
JSON is there is skipped, so the same command again goes on where the last one was stopped. A part
that passes its limit is asked to stop: experiments save themselves and resume. Data are read from
NAME-SPLIT.npz in --data-dir; where there are none the timings take noise of CIFAR-10's shape.
Nothing is needed but jax, flax, optax, orbax, numpy and scikit-learn, unless --list says so.
Without names all parts run, in the order of --list. A device that is lent in short turns may be a
new machine each time: keep --out and --runs, and bring them back.
"""

import argparse
import importlib.util
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import harness, jobs, parts
from jaxpoison import check
from jaxpoison.types import InputError

__all__ = ["PARTS", "Part", "main", "run_part"]


class Part(NamedTuple):
    """One named piece of work.

    Attributes:
      run: (Options) -> what the JSON holds under "result"; see `benchmarks.parts`.
      minutes: estimate on one H200, compiling included; above 8 it takes several calls.
      what: one line for --list.
      needs: modules beyond those of a plain JAX machine, as {module: wheel to carry}.
    """

    run: Callable[[parts.Options], dict[str, Any]]
    minutes: float
    what: str
    needs: dict[str, str] = {}


SSIM = {"dm_pix": "dm-pix"}
SUBTABLE = {
    "attacks": ("error-minimizing", "error-maximizing", "lsp", "autoregressive", "one-pixel"),
    "defenses": ("grayscale", "jpeg-10", "dvae"),
}
PARTS: dict[str, Part] = {
    "epoch_resnet18": Part(
        parts.epoch_resnet18, 7, "epoch time and MFU: float32, TF32, bfloat16; batch 512"
    ),
    "parity_bf16": Part(parts.parity, 4, "gradients in TF32 and bfloat16 against float32"),
    "deterministic_cost": Part(
        parts.deterministic_cost, 5, "epoch time with and without deterministic operations"
    ),
    "bench_step": Part(parts.step, 7, "training and EM step against PyTorch"),
    "bench_mapping": Part(parts.mapping, 4, "seeds and arms: map, vmap, sequence"),
    "bench_unroll": Part(parts.unroll, 5, "memory of unrolled hypergradients against K"),
    "generator_steps": Part(
        parts.generator_steps, 7, "DeepConfuse and GUE steps against PyTorch; MFU, precisions"
    ),
    "generator_scaling": Part(
        parts.generator_scaling, 8, "the same in bfloat16 against batch size and T"
    ),
    "matching_steps": Part(
        parts.matching_steps, 6, "a crafting step of 500 poisons against PyTorch; MFU, precisions"
    ),
    "brew": Part(parts.brew, 8, "500 poisons, 250 steps, 8 restarts; must 45 s, goal 30 s"),
    "matching_many": Part(parts.matching_many, 8, "1 to 8 restarts and surrogates in bfloat16"),
    "canceling": Part(
        parts.canceling, 8, "canceling steps against PyTorch: points, features, small networks"
    ),
    "solving": Part(parts.solving, 6, "Hessian products and conjugate gradients against PyTorch"),
    "inversion": Part(parts.inversion, 5, "feature matching against PyTorch: CNN, ResNet-18"),
    "gue_cifar10": Part(jobs.gue_cifar10, 30, "time to effect; goal 15 min of crafting"),
    "deepconfuse_cifar10": Part(
        jobs.deepconfuse_cifar10, 90, "time to effect; goal 60 min of crafting"
    ),
    "deepconfuse_mnist": Part(jobs.deepconfuse_mnist, 30, "time to effect"),
    "cifar10_one_pixel": Part(parts.experiment("cifar10_one_pixel"), 15, "paper scale", SSIM),
    "cifar10_autoregressive": Part(
        parts.experiment("cifar10_autoregressive"), 15, "paper scale", SSIM
    ),
    "cifar10_convolution": Part(parts.experiment("cifar10_convolution"), 15, "paper scale", SSIM),
    "cifar10_lsp": Part(parts.experiment("cifar10_lsp"), 15, "paper scale", SSIM),
    "cifar10_error_minimizing": Part(
        parts.experiment("cifar10_error_minimizing"), 30, "paper scale", SSIM
    ),
    "cifar10_tap": Part(parts.experiment("cifar10_tap"), 40, "paper scale", SSIM),
    "cifar10_robust_error_minimizing": Part(
        parts.experiment("cifar10_robust_error_minimizing"), 480, "paper scale", SSIM
    ),
    "cifar10_self_ensemble": Part(
        parts.experiment("cifar10_self_ensemble"), 240, "paper scale", SSIM
    ),
    "cifar10_hypocritical": Part(
        parts.experiment("cifar10_hypocritical"), 240, "paper scale", SSIM
    ),
    "cifar10_defense_matrix": Part(
        parts.experiment("cifar10_defense_matrix", SUBTABLE),
        480,
        "EM, TAP, LSP, AR, OPS against gray, JPEG-10, D-VAE; all the table by the script itself",
        SSIM,
    ),
    "cifar10_gradient_matching": Part(
        parts.experiment("cifar10_gradient_matching"), 240, "paper scale, ten keys", SSIM
    ),
    "cifar10_poisoning_benchmark": Part(
        parts.experiment("cifar10_poisoning_benchmark", benchmark="cifar10_from_scratch.npz"),
        480,
        "paper scale, 100 setups",
        SSIM,
    ),
    "cifar10_ablation": Part(parts.experiment("cifar10_ablation"), 480, "paper scale", SSIM),
    "cifar10_method_comparison": Part(
        parts.experiment("cifar10_method_comparison"), 480, "paper scale", SSIM
    ),
    "cifar10_transfer": Part(
        parts.experiment("cifar10_transfer"), 360, "paper scale, every network", SSIM
    ),
    "mnist_gradient_canceling": Part(
        parts.experiment("mnist_gradient_canceling"), 60, "all of MNIST, three networks", SSIM
    ),
    "mnist_tgda": Part(parts.experiment("mnist_tgda"), 120, "all of MNIST, three networks", SSIM),
    "cifar10_feature_targeted": Part(
        parts.experiment("cifar10_feature_targeted"), 120, "ResNet-18, the same data", SSIM
    ),
    "transfer_feature_targeted": Part(
        parts.experiment("transfer_feature_targeted"), 120, "ResNet-18, other classes", SSIM
    ),
}
"""Every part by name. A new one is a function in `benchmarks.parts` and a row here."""


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(arguments)
    with harness.command(options):
        if options.list:
            _show()
            return
        check.at_least(1, repeats=options.repeats, victims=options.victims)
        check.positive(minutes=options.minutes)
        names = options.parts or list(PARTS)
        if unknown := [name for name in names if name not in PARTS]:
            raise InputError(
                f"no part {unknown[0]!r}{check.nearest(unknown[0], PARTS)}; "
                f"there are: {', '.join(PARTS)}"
            )
        if options.here:
            run_part(names[0], options.out, _options(options))
            return
        failed = [name for name in names if not _run_apart(name, options)]
        if failed:
            sys.exit(f"error: not done: {', '.join(failed)}")


def run_part(name: str, out: pathlib.Path, options: parts.Options) -> dict[str, Any]:
    """Run one part in this process and write its JSON.

    Raises: InputError if a module it needs is not installed.
    """
    part = PARTS[name]
    for module, wheel in part.needs.items():
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{name} needs {module}: carry the wheel of {wheel}")
    result = part.run(options)  # before anything claims the device: a part may start processes
    content = harness.record(f"accelerator_{name}", options.settings(), [], smoke=options.smoke)
    del content["rows"]
    content["result"] = result
    harness.write(out, f"accelerator_{name}", content)
    return content


def _run_apart(name: str, options: argparse.Namespace) -> bool:
    """Run a part in a process of its own, unless its JSON is there; whether it is there now."""
    path = options.out / f"accelerator_{name}.json"
    if path.exists():
        print(f"{name}: done, {path} is there")
        return True
    command = [sys.executable, "-m", "benchmarks.accelerator", name, "--here"]
    for option in ("out", "runs", "data_dir", "victims", "dtype", "repeats"):
        value = getattr(options, option)
        if value is not None:
            command += [f"--{option.replace('_', '-')}", str(value)]
    command += ["--smoke"] if options.smoke else []
    print(f"{name}: {PARTS[name].what}", flush=True)
    process = subprocess.Popen(command)
    try:
        process.wait(60 * options.minutes)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(f"{name}: stopped after {options.minutes:g} minutes; run it again to go on")
        return False
    return process.returncode == 0 and path.exists()


def _options(options: argparse.Namespace) -> parts.Options:
    fields = ("smoke", "data_dir", "runs", "victims", "dtype", "repeats")
    return parts.Options(**{name: getattr(options, name) for name in fields})


def _show() -> None:
    """One line per part."""
    for name, part in PARTS.items():
        needs = "".join(f"; needs {wheel}" for wheel in part.needs.values())
        print(f"{name:26} {part.minutes:3g} min  {part.what}{needs}")


def _parser() -> argparse.ArgumentParser:
    parser = harness.parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="see --list")
    parser.add_argument("--list", action="store_true", help="the parts and their minutes")
    parser.add_argument(
        "--data-dir",
        type=pathlib.Path,
        help="folder of NAME-train.npz and NAME-test.npz, mostly of cifar10",
    )
    parser.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("runs/accelerator"),
        help="run folders of the experiments; keep it between calls (default runs/accelerator)",
    )
    parser.add_argument("--victims", type=int, default=3, help="per training set (default 3)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="networks of the experiments compute in it (default bfloat16)",
    )
    parser.add_argument("--minutes", type=float, default=8, help="limit of a part (default 8)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
