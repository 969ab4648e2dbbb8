"""The training step and the EM step in PyTorch, eager: as published, and tuned.

As published: NCHW, float32, gradients by `backward()`. Tuned: channels_last, `autograd.grad` for
exactly what is wanted, autocast where asked. Both do what the library's steps do, number for
number, but for the batch variance that enters the running statistics: torch divides by n - 1, the
library by n.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import problems
from benchmarks.torch_baselines.networks import load, network

__all__ = [
    "Baseline",
    "PUBLISHED",
    "TUNED",
    "Running",
    "error_minimizing",
    "precision",
    "scratch_mib",
    "setup",
    "training",
    "updater",
    "wait",
]


class Baseline(NamedTuple):
    """One way to write it.

    Attributes:
      name: as the tables call it.
      tuned: channels_last and `autograd.grad`.
      autocast: bfloat16 in convolutions and linear layers.
      tf32: whether float32 products may round their operands to TF32 (GPU).
    """

    name: str
    tuned: bool
    autocast: bool = False
    tf32: bool = False


PUBLISHED = Baseline("torch, as published", tuned=False)
TUNED = Baseline("torch, tuned", tuned=True)


class Running(NamedTuple):
    """A baseline that has been set up.

    Attributes:
      step: () -> the loss, a tensor on the device; one step from where the last one ended.
      model: the network it changes.
      delta: () -> the noise [N, C, H, W], of the EM step.
    """

    step: Callable[[], torch.Tensor]
    model: nn.Module
    delta: Callable[[], torch.Tensor] | None = None


def training(problem: Any, variables: Any, batch: Any, how: Baseline) -> Running:
    """Forward, backward, clip, SGD with momentum and weight decay, on one batch.

    Args:
      problem: see `benchmarks.problems`.
      variables: the library's Variables to start from.
      batch: the library's Batch.
      how: the baseline.
    """
    model, images, label = setup(problem, variables, batch.image, batch.label, how)
    update = updater(model, problems.TRAIN, how, list(model.parameters()))
    return Running(lambda: update(images, label), model)


def error_minimizing(
    problem: Any, variables: Any, scenario: Any, how: Baseline, *, frozen: bool = False
) -> Running:
    """One EM round on the scenario's B rows: surrogate update, sign step, stop test.

    Args:
      problem: see `benchmarks.problems`.
      variables: the surrogate's Variables to start from.
      scenario: the library's Scenario, all rows of which may change.
      how: the baseline.
      frozen: whether the last layer alone is trained, all else in eval mode.
    """
    pixels = np.asarray(scenario.train.image, np.float32) / 255
    model, clean, label = setup(problem, variables, pixels, scenario.train.label, how)
    weights = list(model.parameters())
    if frozen:
        last = list(model.children())[-1]
        weights = list(last.parameters())
        model.requires_grad_(False)
        last.requires_grad_(True)
    update = updater(model, problems.SURROGATE, how, weights, train=not frozen)
    noise = [torch.zeros_like(clean)]

    def step():
        update(clean + noise[0], label)
        model.eval()
        for weight in weights:
            weight.requires_grad_(False)
        delta = noise[0].requires_grad_()
        with precision(how, clean.device):
            loss = F.cross_entropy(model(clean + delta).float(), label)
        if how.tuned:
            (gradient,) = torch.autograd.grad(loss, [delta])
        else:
            loss.backward()
            gradient = delta.grad
        with torch.no_grad(), precision(how, clean.device):
            moved = delta - problems.STEP_SIZE * gradient.sign()
            moved = moved.clamp(-problems.EPS, problems.EPS)
            noise[0] = (clean + moved).clamp(0, 1) - clean
            wrong = (model(clean + noise[0]).argmax(1) != label).float().mean()
        for weight in weights:
            weight.requires_grad_(True)
        return torch.stack([loss.detach(), wrong])

    return Running(step, model, lambda: noise[0].detach())


def wait() -> None:
    """Until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def scratch_mib(step: Callable[[], torch.Tensor]) -> float | None:
    """MiB that one step takes at the most beside what is held already; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    step()
    wait()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    wait()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)


def setup(problem: Any, variables: Any, image: Any, label: Any, how: Baseline) -> tuple:
    """(model, images [B, C, H, W], labels) on the device, in the layout of `how`.

    Args:
      problem: see `benchmarks.problems`.
      variables: the library's Variables to start from.
      image: [B, H, W, C] pixels in [0, 1].
      label: [B].
      how: the baseline.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = network(problem.network, problem.image_shape, problems.NUM_CLASSES, **problem.options)
    form = torch.channels_last if how.tuned else torch.contiguous_format
    model = load(model, variables).to(device, memory_format=form)
    images = torch.tensor(np.asarray(image, np.float32)).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=form).to(device)
    return model, images, torch.tensor(np.asarray(label), dtype=torch.long, device=device)


def updater(model: Any, rule: Any, how: Baseline, weights: list, *, train: bool = True) -> Any:
    """(images, labels) -> loss: one update of the weights by a `problems.Rule`."""
    optimizer = torch.optim.SGD(
        weights, lr=rule.rate, momentum=rule.momentum, weight_decay=rule.decay
    )

    def update(images, label):
        model.train(train)
        with precision(how, images.device):
            loss = F.cross_entropy(model(images).float(), label)
        optimizer.zero_grad(set_to_none=True)
        if how.tuned:
            gradients = torch.autograd.grad(loss, weights)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
        else:
            loss.backward()
        nn.utils.clip_grad_norm_(weights, rule.clip)
        optimizer.step()
        return loss.detach()

    return update


@contextlib.contextmanager
def precision(how: Baseline, device: torch.device):
    """The arithmetic of `how`."""
    torch.backends.cuda.matmul.allow_tf32 = how.tf32
    torch.backends.cudnn.allow_tf32 = how.tf32
    with torch.autocast(device.type, torch.bfloat16, enabled=how.autocast):
        yield
