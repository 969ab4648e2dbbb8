"""The crafting step of gradient matching in PyTorch, reverse over reverse.

As published: NCHW, `backward()` through the matching loss, which leaves gradients of the weights
behind as well. Tuned: channels_last, `autograd.grad` for the perturbation alone, autocast where
asked. Both draw their shifts anew in each step and take the same numbers as the library's step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import matching_problems as settings
from benchmarks import problems
from benchmarks.torch_baselines.networks import load, network
from benchmarks.torch_baselines.steps import Baseline, precision

__all__ = ["Crafting", "brew", "gradient_matching", "shift_flip"]


class Crafting(NamedTuple):
    """A baseline that has been set up.

    Attributes:
      step: () -> B before the step, a tensor on the device.
      delta: () -> the perturbation [N, C, H, W].
      reset: (delta [N, H, W, C]) -> None; optimizer and perturbation as at the start.
    """

    step: Callable[[], torch.Tensor]
    delta: Callable[[], torch.Tensor]
    reset: Callable[[Any], None]


def gradient_matching(
    problem: Any, scenario: Any, start: Any, how: Baseline, *, shifts: bool = True
) -> Crafting:
    """Sign-Adam on 1 - cos(t, p), the ball and the box after each step.

    Args:
      problem: see `benchmarks.problems`.
      scenario: of `matching_problems.scenario`, one surrogate.
      start: perturbation [N, H, W, C] to start from.
      how: the baseline.
      shifts: whether poisons are augmented.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = torch.channels_last if how.tuned else torch.contiguous_format
    model = network(problem.network, problem.image_shape, problems.NUM_CLASSES, **problem.options)
    model = load(model, scenario.aux).to(device, memory_format=form).eval()
    weights = list(model.parameters())

    def images(array):
        tensor = torch.tensor(np.asarray(array, np.float32)).permute(0, 3, 1, 2)
        return tensor.contiguous(memory_format=form).to(device)

    def labels(array):
        return torch.tensor(np.asarray(array), dtype=torch.long, device=device)

    clean, label = images(np.asarray(scenario.train.image) / 255), labels(scenario.train.label)
    target, wanted = images(np.asarray(scenario.goal.image) / 255), labels(scenario.goal.label)
    with precision(how, device):
        aimed = F.cross_entropy(model(target).float(), wanted)
    t = [g.detach().float() for g in torch.autograd.grad(aimed, weights)]
    size = torch.sqrt(sum((g * g).sum() for g in t))
    held: dict[str, Any] = {}

    def reset(delta):
        held["delta"] = images(delta).requires_grad_()
        held["rule"] = torch.optim.Adam([held["delta"]], lr=settings.TAU * settings.STD)

    def step():
        delta, rule = held["delta"], held["rule"]
        rule.zero_grad(set_to_none=True)
        model.zero_grad(set_to_none=True)
        with precision(how, device):
            poisoned = clean + delta
            if shifts:
                u = torch.rand(3, len(clean), device=device)
                poisoned = shift_flip(poisoned, *u)
            loss = F.cross_entropy(model(poisoned).float(), label)
            p = torch.autograd.grad(loss, weights, create_graph=True)
            inner = sum((a * b.float()).sum() for a, b in zip(t, p, strict=True))
            length = torch.sqrt(sum((b.float() * b.float()).sum() for b in p))
            matching = 1 - inner / (size * length)
        if how.tuned:
            (gradient,) = torch.autograd.grad(matching, [delta])
        else:
            matching.backward()
            gradient = delta.grad
        delta.grad = gradient.sign()
        rule.step()
        with torch.no_grad():
            delta.clamp_(-settings.EPS, settings.EPS)
            delta.copy_((clean + delta).clamp(0, 1) - clean)
        return matching.detach()

    reset(start)
    return Crafting(step, lambda: held["delta"].detach(), reset)


def brew(crafting: Crafting, starts: Any, num_steps: int) -> torch.Tensor:
    """Restarts one after another, each of `num_steps` steps; their last losses.

    The rate stays as it begins, unlike in ours: that changes losses, not the time of a step.
    """
    losses = []
    for start in starts:
        crafting.reset(start)
        for _ in range(num_steps):
            loss = crafting.step()
        losses.append(loss)
    return torch.stack(losses)


def shift_flip(image, u0, u1, u2, fill=settings.FILL):
    """`data.augment.shift_flip_at` by grid sampling, [B, C, H, W]."""
    height, width = image.shape[2:]
    y = torch.linspace(-1, 1, height, device=image.device)
    x = torch.linspace(-1, 1, width, device=image.device)
    down = (2 * u1 - 1) * (height / 4) / (height - 1)
    right = (2 * u0 - 1) * (width / 4) / (width - 1)
    x = x[None] + right[:, None]
    x = torch.where(u2[:, None] > 0.5, -x, x)
    y = y[None] + down[:, None]
    shape = (len(image), height, width)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    moved = F.grid_sample(image.float() - fill, grid, align_corners=True)
    return moved + fill
