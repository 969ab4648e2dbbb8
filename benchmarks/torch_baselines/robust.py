"""A step of robust error-minimizing noise in PyTorch, eager: as published, and tuned.

What differs from the library's step is the draws alone. The published code freezes the weights
while it makes noise; tuned is that in channels_last, with autocast where asked. Crops are taken by
indexing a padded batch, all images at once.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import problems
from benchmarks.torch_baselines import steps

__all__ = ["robust_error_minimizing"]


def robust_error_minimizing(
    problem: Any, variables: Any, scenario: Any, work: Any, how: steps.Baseline
) -> steps.Running:
    """One step on the scenario's B rows: fresh noise for all of them, one update of the surrogate.

    Args:
      problem: see `benchmarks.problems`.
      variables: the surrogate's Variables to start from.
      scenario: the library's Scenario, all rows of which may change.
      work: see `benchmarks.bench_unlearnable.Robust`.
      how: the baseline.
    """
    pixels = np.asarray(scenario.train.image, np.float32) / 255
    model, clean, label = steps.setup(problem, variables, pixels, scenario.train.label, how)
    weights = list(model.parameters())
    update = steps.updater(model, problems.SURROGATE, how, weights)
    noise = [torch.zeros_like(clean)]

    def uniform(like, radius):
        return radius * (2 * torch.rand_like(like) - 1)

    def slope(image):
        image = image.detach().requires_grad_()
        with steps.precision(how, image.device):
            loss = F.cross_entropy(model(image).float(), label)
        return loss.detach(), torch.autograd.grad(loss, [image])[0]

    def worst(image):
        """The image, moved within the inner radius and the box."""
        moved = (image + uniform(image, work.near)).clamp(0, 1)
        for _ in range(work.climbs):
            moved = moved + work.near / 5 * slope(moved)[1].sign()
            moved = (image + (moved - image).clamp(-work.near, work.near)).clamp(0, 1)
        return moved

    def step():
        model.eval()
        for weight in weights:
            weight.requires_grad_(False)
        d = uniform(clean, problems.EPS)
        for _ in range(work.noise_steps):
            total, first = torch.zeros_like(clean), 0
            for _ in range(work.draws):
                own = (clean + d).clamp(0, 1).detach().requires_grad_()
                view = augmented(own, work.padding)
                loss, gradient = slope(worst(view.detach()))
                total += torch.autograd.grad(view, [own], gradient)[0]
                first = first + loss / work.draws
            d = (d - work.rate * total.sign()).clamp(-problems.EPS, problems.EPS)
        level = np.floor(255 * problems.EPS + 1e-3)
        grey = torch.round(255 * d).clamp(-level, level) / 255
        noise[0] = (clean + grey).clamp(0, 1) - clean
        view = worst(augmented((clean + noise[0]).clamp(0, 1), work.padding))
        for weight in weights:
            weight.requires_grad_(True)
        update(view, label)
        return first

    return steps.Running(step, model, lambda: noise[0].detach())


def augmented(image: torch.Tensor, padding: int) -> torch.Tensor:
    """A window of each padded image at a place of its own, mirrored with probability 1/2."""
    if padding == 0:
        return image
    num, _, height, width = image.shape
    device = image.device
    corner = torch.randint(0, 2 * padding + 1, (2, num), device=device)
    mirrored = torch.rand(num, device=device) < 0.5
    rows = corner[0][:, None] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(num, width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns) + corner[1][:, None]
    wide = F.pad(image, [padding] * 4).permute(0, 2, 3, 1)
    each = torch.arange(num, device=device)[:, None, None]
    found = wide[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return found.contiguous(memory_format=_form(image))


def _form(image: torch.Tensor) -> Any:
    last = image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
