"""The fixed problems: two networks, their batches, and the two steps that every attack is made of.

`small CNN`: three times (conv 3x3, ReLU, 2x2 pool), widths 32, 64, 128, on 28x28x1, batch 128.
`ResNet-18`: CIFAR form on 32x32x3, batch 32 on a CPU and 512 on an accelerator.
Images are uniform noise and labels random: a step costs the same on any data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxpoison import attacks, models, victims
from jaxpoison.models.layers import conv, dense, flatten, max_pool
from jaxpoison.types import Attack, Batch, Dataset, Learner, Scenario, Victim, as_float

__all__ = [
    "EPS",
    "STEP_SIZE",
    "SURROGATE",
    "TRAIN",
    "Problem",
    "Rule",
    "error_minimizing",
    "problems",
    "resnet18",
    "scenario",
    "small_cnn",
    "training",
]

SEED = 20261121


class Rule(NamedTuple):
    """SGD with momentum, coupled weight decay and a clip of the gradient norm, in that order."""

    rate: float
    momentum: float = 0.9
    decay: float = 5e-4
    clip: float = 5.0


TRAIN = Rule(0.01)
# EM at a small rate and a small step: the surrogate never fits the noise, so no round is skipped.
SURROGATE = Rule(1e-4)
EPS, STEP_SIZE, NUM_CLASSES = 8 / 255, 8 / 255 / 1000, 10


class Problem(NamedTuple):
    """One network and the batch it is measured on.

    Attributes:
      name: as the tables call it.
      image_shape: (H, W, C).
      batch: B, rows of a training batch and of the EM scenario.
      network: "small_cnn" or "resnet18", which torch network it is compared with.
      options: of that network, such as widths, the same in both frameworks.
      victim: (dtype) -> Victim.
    """

    name: str
    image_shape: tuple[int, int, int]
    batch: int
    network: str
    options: dict[str, Any]
    victim: Callable[..., Victim]


def problems(*, smoke: bool = False, accelerator: bool = False) -> list[Problem]:
    """The small CNN with max and with average pools, and ResNet-18; tiny ones for `smoke`."""
    if smoke:
        side, batch, widths, width, images = 4, 4, (2,), 2, 4
    else:
        side, batch, widths, width, images = 28, 128, (32, 64, 128), 64, 32
    resnet_side = 4 if smoke else 32
    resnet_batch = 512 if accelerator and not smoke else images
    return [
        *(small_cnn(pool, (side, side, 1), batch, widths) for pool in ("max", "avg")),
        resnet18((resnet_side, resnet_side, 3), resnet_batch, width),
    ]


def small_cnn(pool: str, shape: tuple[int, int, int], batch: int, widths: tuple) -> Problem:
    """`models.small_cnn`, which has average pools, or the same net with max pools."""

    def victim(dtype=jnp.float32):
        if pool == "avg":
            return models.small_cnn(shape, NUM_CLASSES, widths=widths, dtype=dtype)
        return models.adapt(MaxPoolCNN(NUM_CLASSES, widths, dtype), shape)

    name = f"small CNN, {pool} pool"
    return Problem(name, shape, batch, "small_cnn", {"widths": widths, "pool": pool}, victim)


def resnet18(shape: tuple[int, int, int], batch: int, width: int = 64) -> Problem:
    """ResNet-18 in its CIFAR form."""

    def victim(dtype=jnp.float32):
        return models.resnet18(shape, NUM_CLASSES, width=width, dtype=dtype)

    return Problem("ResNet-18", shape, batch, "resnet18", {"width": width}, victim)


class MaxPoolCNN(nn.Module):
    """(conv 3x3, ReLU, max-pool 2) per width, then linear: a victim of the user's own, adapted."""

    num_classes: int
    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        """[B, H, W, C] -> logits [B, L]."""
        del train
        for width in self.widths:
            x = max_pool(nn.relu(conv(x, width, 3, padding=1, dtype=self.dtype)), 2)
        return dense(flatten(x), self.num_classes, dtype=self.dtype)


def scenario(problem: Problem) -> Scenario:
    """B noise images with random labels, all of which may change."""
    random = np.random.default_rng(SEED)
    image = random.integers(0, 256, (problem.batch, *problem.image_shape), dtype=np.uint8)
    label = random.integers(0, NUM_CLASSES, problem.batch, dtype=np.int32)
    data = Dataset(jnp.asarray(image), jnp.asarray(label))
    return Scenario(data, data, jnp.arange(problem.batch, dtype=jnp.int32))


def training(problem: Problem, dtype: Any = jnp.float32) -> tuple[Learner, Batch]:
    """The library's training step, and the batch it is measured on."""
    data = scenario(problem).train
    weight = jnp.ones(problem.batch, jnp.float32)
    rows = jnp.arange(problem.batch, dtype=jnp.int32)
    learner = victims.learner(problem.victim(dtype), optimizer(TRAIN))
    return learner, Batch(as_float(data.image), data.label, weight, rows)


def error_minimizing(problem: Problem, dtype: Any = jnp.float32) -> tuple[Attack, Scenario]:
    """One round of EM on B rows: a surrogate update, a sign step on every image, the stop test."""
    attack = attacks.error_minimizing(
        problem.victim(dtype),
        eps=EPS,
        num_classes=NUM_CLASSES,
        train_steps=1,
        sweep_steps=1,
        step_size=STEP_SIZE,
        stop_error=0.0,
        tx=optimizer(SURROGATE),
        batch_size=problem.batch,
    )
    return attack, scenario(problem)


def optimizer(rule: Rule) -> optax.GradientTransformation:
    """The optax form of a rule."""
    return optax.chain(
        optax.clip_by_global_norm(rule.clip),
        optax.add_decayed_weights(rule.decay),
        optax.sgd(rule.rate, rule.momentum),
    )
