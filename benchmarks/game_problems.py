"""The fixed problems of generator attacks: a generator, a surrogate, and the attack's own numbers.

On a CPU small ones, on an accelerator those of the papers: the U-Net with the five-convolution
network CNN5 (DeepConfuse) and with ResNet-18 (GUE). Images are noise and labels random, as in
`problems`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from benchmarks.problems import NUM_CLASSES, scenario
from jaxpoison import attacks, models
from jaxpoison.types import Attack, Generator, Scenario, Victim

__all__ = ["GameProblem", "attack", "networks", "scaling", "steps"]

TRIAL_STEPS = 10**6  # so long that no timed step begins a trial anew


class GameProblem(NamedTuple):
    """One attack on one batch.

    Attributes:
      name: as the tables call it.
      method: "deepconfuse" or "gue".
      image_shape: (H, W, C).
      batch: B, also the number of rows there are.
      generator: name in `models.GENERATORS`, and options, the same in both frameworks.
      surrogate: name in `models.FACTORIES`, and options, likewise.
      eps: radius, pixel units.
      generator_rate: of Adam (DeepConfuse) or SGD (GUE).
      surrogate_rate: of SGD.
      inner_steps: T of GUE; None for DeepConfuse.
      inner_rate: of Adam in these steps.
      eta: GUE's barrier.
    """

    name: str
    method: str
    image_shape: tuple[int, int, int]
    batch: int
    generator: tuple[str, dict[str, Any]]
    surrogate: tuple[str, dict[str, Any]]
    eps: float
    generator_rate: float
    surrogate_rate: float = 0.01
    inner_steps: int | None = None
    inner_rate: float = 1e-4
    eta: float = 1.5


def deepconfuse(name: str, shape: tuple, batch: int, generator: Any, surrogate: Any) -> GameProblem:
    """With the rates of the released code."""
    eps = 0.3 if shape[2] == 1 else 0.032
    return GameProblem(name, "deepconfuse", shape, batch, generator, surrogate, eps, 1e-4)


def gue(name: str, shape: tuple, batch: int, generator: Any, surrogate: Any) -> GameProblem:
    """With the numbers of the released code, T = 10."""
    return GameProblem(
        name, "gue", shape, batch, generator, surrogate, 8 / 255, 0.1, inner_steps=10
    )


def steps(*, smoke: bool = False, accelerator: bool = False) -> list[GameProblem]:
    """Each attack at one batch size, on an accelerator that of its released code; GUE at T = 10."""
    perceptron = ("mlp_generator", {"hidden": (8,)} if smoke else {})
    bounded, free = ("mlp", {}), ("mlp", {"logits_norm": False})
    if smoke:
        tiny = gue("GUE, tiny", (4, 4, 1), 8, perceptron, free)
        return [
            deepconfuse("DeepConfuse, tiny", (4, 4, 1), 8, perceptron, bounded),
            tiny._replace(inner_steps=2),
        ]
    if accelerator:
        color, unet = (32, 32, 3), ("unet", {})
        return [
            deepconfuse("DeepConfuse, U-Net, CNN5", color, 256, unet, ("cnn5", {})),
            gue("GUE, U-Net, ResNet-18", color, 256, unet, ("resnet18", {})),
        ]
    autoencoder, narrow = ("mnist_autoencoder", {}), ("unet", {"width": 8})
    grey, net = "DeepConfuse, MNIST autoencoder, LeNet", ("small_cnn", {"widths": (16, 32)})
    return [
        deepconfuse("DeepConfuse, MLPs", (8, 8, 1), 32, perceptron, bounded),
        gue("GUE, MLPs", (8, 8, 1), 64, perceptron, free),
        deepconfuse(grey, (28, 28, 1), 64, autoencoder, ("lenet", {})),
        gue("GUE, U-Net of width 8, small CNN", (32, 32, 3), 32, narrow, net),
    ]


def scaling(*, smoke: bool = False, accelerator: bool = False) -> list[GameProblem]:
    """The last two of `steps` at a quarter and four times the batch; GUE at T = 0, 1, 5, 20."""
    first, second = steps(smoke=smoke, accelerator=accelerator)[-2:]
    factors, depths = ((2,), (0,)) if smoke else ((0.25, 4), (0, 1, 5, 20))
    return [
        *(p._replace(batch=int(factor * p.batch)) for p in (first, second) for factor in factors),
        *(second._replace(inner_steps=depth) for depth in depths),
    ]


def networks(problem: GameProblem, dtype: Any = jnp.float32) -> tuple[Victim, Generator]:
    """Surrogate and generator."""
    name, options = problem.surrogate
    victim = models.create(name, problem.image_shape, NUM_CLASSES, dtype=dtype, **options)
    name, options = problem.generator
    return victim, models.create_generator(name, problem.image_shape, dtype=dtype, **options)


def attack(problem: GameProblem, victim: Victim, generator: Generator) -> tuple[Attack, Scenario]:
    """The library's attack without selection, and B rows, all of which may change."""
    common = {
        "eps": problem.eps,
        "batch_size": problem.batch,
        "generator_rate": problem.generator_rate,
        "select_every": 0,
    }
    if problem.method == "deepconfuse":
        made = attacks.deepconfuse(
            victim,
            generator,
            trial_steps=TRIAL_STEPS,
            learning_rate=problem.surrogate_rate,
            **common,
        )
    else:
        made = attacks.gue(
            victim,
            generator,
            inner_steps=problem.inner_steps,
            inner_rate=problem.inner_rate,
            barrier=problem.eta,
            follower_rate=problem.surrogate_rate,
            **common,
        )
    return made, scenario(problem)
