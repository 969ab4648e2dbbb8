"""The jobs whose time to effect is measured, at the papers' scale; tiny ones to rehearse them.

Each is an attack with the numbers of its released code, selected on a held-out tenth of the
training set. See `effect` for what is measured.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import effect, parts
from jaxpoison import attacks, data, models
from jaxpoison.types import Attack, Dataset, InputError, Split, Victim
from jaxpoison.victims import Recipe, recipes

__all__ = ["deepconfuse_cifar10", "deepconfuse_mnist", "gue_cifar10"]

TINY = Recipe(1, 16, 0.01, source="a rehearsal")


def deepconfuse_mnist(options: parts.Options) -> dict[str, Any]:
    """Eps 0.3, until a fresh LeNet is as poor as in the paper, 0.25 +- 0.04 %."""
    split, victim = _start(options, "mnist", "lenet")
    recipe = TINY if options.smoke else recipes.deepconfuse_mnist()
    attack, round_steps = _deepconfuse(
        options,
        split,
        victim,
        generator="mnist_autoencoder",
        eps=0.3,
        batch_size=64,
        passes=1,
        trials=5,
        epochs=2,
    )
    job = effect.Job(
        attack=attack,
        eps=0.3,
        turn=4 * round_steps,
        turns=30,
        judges={"LeNet": effect.Judge(victim, recipe, recipe)},
        limits=(0.05, 0.01, 0.0029),
        goal_s=None,
    )
    return _measured(options, "deepconfuse_mnist", job, split)


def deepconfuse_cifar10(options: parts.Options) -> dict[str, Any]:
    """Eps 0.032, until a fresh surrogate is as poor as in the paper, 28.77 +- 2.80 %."""
    split, victim = _start(options, "cifar10", "cnn5")
    recipe = TINY if options.smoke else recipes.deepconfuse_cifar10()
    attack, round_steps = _deepconfuse(
        options,
        split,
        victim,
        generator="unet",
        eps=0.032,
        batch_size=256,
        passes=20,
        trials=2,
        epochs=10,
    )
    job = effect.Job(
        attack=attack,
        eps=0.032,
        turn=2 * round_steps,
        turns=40,
        judges={
            "CNN5": effect.Judge(victim, recipe, recipe),
            "ResNet-18": effect.Judge(_victim(options, split, "resnet18"), recipe, recipe),
        },
        limits=(0.5, 0.3157),
        goal_s=3600.0,
    )
    return _measured(options, "deepconfuse_cifar10", job, split)


def gue_cifar10(options: parts.Options) -> dict[str, Any]:
    """Eps 8/255, until a fresh ResNet-18 is below 20 %, then 12.76 +- 1.5 % (BridgePure)."""
    split, victim = _start(options, "cifar10", "resnet18")
    batch_size, passes, epochs = (16, 1, 1) if options.smoke else (256, 5, 5)
    every = passes * (len(split.train.label) // batch_size)
    job = effect.Job(
        attack=attacks.gue(
            victim,
            _generator(options, split, "unet"),
            eps=8 / 255,
            batch_size=batch_size,
            select_every=every,
            select_epochs=epochs,
        ),
        eps=8 / 255,
        turn=every + epochs,
        turns=10,
        judges={
            "ResNet-18": effect.Judge(
                victim,
                TINY if options.smoke else recipes.iss(epochs=20),
                TINY if options.smoke else recipes.bridgepure(),
            )
        },
        limits=(0.5, 0.2, 0.1426),
        goal_s=900.0,
    )
    return _measured(options, "gue_cifar10", job, split)


def _deepconfuse(
    options: parts.Options,
    split: Split,
    victim: Victim,
    *,
    generator: str,
    eps: float,
    batch_size: int,
    passes: int,
    trials: int,
    epochs: int,
) -> tuple[Attack, int]:
    """The attack, judged every so many trials after so many epochs; and the steps of a round."""
    if options.smoke:
        batch_size, passes, trials, epochs = 16, 1, 1, 1
    trial_steps = passes * (len(split.train.label) // batch_size)
    attack = attacks.deepconfuse(
        victim,
        _generator(options, split, generator),
        eps=eps,
        trial_steps=trial_steps,
        batch_size=batch_size,
        select_every=trials,
        select_epochs=epochs,
    )
    return attack, trials * trial_steps + epochs


def _measured(options: parts.Options, name: str, job: effect.Job, split: Split) -> dict[str, Any]:
    parts.keep_programs()
    if options.smoke:
        first = dict(list(job.judges.items())[:1])
        job = job._replace(turns=2, judges=first, limits=(0.5, 0.0))
    folder = options.runs / f"{name}-{'rehearsal' if options.smoke else options.dtype}"
    return effect.measure(job, split, folder, seeds=options.victims)


def _start(options: parts.Options, name: str, network: str) -> tuple[Split, Victim]:
    """The data and the surrogate; a rehearsal has 64 noise images of the same shape."""
    shape = (28, 28, 1) if name == "mnist" else (32, 32, 3)
    if options.smoke:
        random = np.random.default_rng(0)
        image = random.integers(0, 256, (64, *shape), dtype=np.uint8)
        noise = Dataset(image, random.integers(0, 10, 64, dtype=np.int32))
        split = Split(noise, noise)
    elif options.data_dir is None:
        raise InputError(f"--data-dir is needed, with {name}-train.npz and {name}-test.npz")
    else:
        split = Split(*(data.load(name, part, options.data_dir) for part in ("train", "test")))
    return split, _victim(options, split, network)


def _victim(options: parts.Options, split: Split, name: str) -> Victim:
    shape = split.train.image.shape[1:]
    if options.smoke:
        return models.logistic_regression(shape, 10)
    return models.create(name, shape, 10, dtype=jnp.dtype(options.dtype))


def _generator(options: parts.Options, split: Split, name: str) -> Any:
    shape = split.train.image.shape[1:]
    if options.smoke:
        return models.create_generator("mlp_generator", shape, hidden=(2,))
    return models.create_generator(name, shape, dtype=options.dtype)
