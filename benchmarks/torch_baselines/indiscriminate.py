"""Attacks by added points in PyTorch: canceling, inversion of features, conjugate gradients.

Canceling as published: the gradient of the points' loss with its graph (`create_graph`), and
`backward()` through half its squared distance from cancellation, NCHW. Tuned: `autograd.grad` for
the points alone in channels_last, on a GPU bfloat16 autocast; a linear head without autograd, by
the closed form of its two gradients.

Feature matching as published leaves gradients of the extractor's weights behind; tuned, those are
frozen, in channels_last.

A Hessian product as published is a double backward from the network on; tuned, the graph of the
gradient stands and each product is one pass through it. Vectors are flat in both.

All take the same numbers as the library's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import indiscriminate_problems as settings
from benchmarks import problems
from benchmarks.torch_baselines.networks import load, network
from benchmarks.torch_baselines.steps import Baseline, precision

__all__ = ["Crafting", "feature_matching", "gradient_canceling", "solving"]


class Crafting(NamedTuple):
    """A baseline that has been set up.

    Attributes:
      step: () -> the loss before the step, a tensor on the device.
      value: () -> what it optimizes, [P, C, H, W].
    """

    step: Callable[[], torch.Tensor]
    value: Callable[[], torch.Tensor]


def gradient_canceling(problem: Any, scenario: Any, how: Baseline) -> Crafting:
    """Adam on J = ||r||^2 / 2, r = g_clean + (eps / P) sum_j d CE(x_j, y_j) / d w.

    Args:
      problem: see `benchmarks.problems`.
      scenario: of `indiscriminate_problems.scenario`, its target in `aux`.
      how: the baseline.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = torch.channels_last if how.tuned else torch.contiguous_format
    model = network(problem.network, problem.image_shape, problems.NUM_CLASSES, **problem.options)
    model = load(model, scenario.aux).to(device, memory_format=form).eval()
    weights = list(model.parameters())
    clean = torch.tensor(np.array(scenario.train.image)).permute(0, 3, 1, 2)
    clean = clean.contiguous(memory_format=form).to(device)
    label = torch.tensor(np.array(scenario.train.label), dtype=torch.long, device=device)
    with precision(how, device):
        loss = F.cross_entropy(model(clean).float(), label)
    held = [g.detach().float() for g in torch.autograd.grad(loss, weights)]
    point = clean.clone().requires_grad_()
    rule = torch.optim.Adam([point], lr=settings.RATE)
    share = len(point) / len(clean)

    def by_autograd():
        with precision(how, device):
            loss = share * F.cross_entropy(model(point).float(), label)
            found = torch.autograd.grad(loss, weights, create_graph=True)
            distance = sum(((a + b.float()) ** 2).sum() for a, b in zip(held, found, strict=True))
            distance = distance / 2
        if how.tuned:
            (point.grad,) = torch.autograd.grad(distance, [point])
        else:
            rule.zero_grad(set_to_none=True)
            model.zero_grad(set_to_none=True)
            distance.backward()
        return distance.detach()

    def in_closed_form():
        weight, bias = weights
        with torch.no_grad(), precision(how, device):
            x = point.flatten(1)
            chance = torch.softmax(F.linear(x, weight, bias).float(), 1)
            away = (share / len(x)) * (chance - F.one_hot(label, len(bias)))
            r, rho = held[0] + away.T @ x, held[1] + away.sum(0)
            along = F.linear(x, r, rho)
            along = (share / len(x)) * chance * (along - (chance * along).sum(1, keepdim=True))
            point.grad = (away @ r + along @ weight).view_as(point)
            return ((r * r).sum() + (rho * rho).sum()) / 2

    closed = how.tuned and problem.network == "mlp" and not problem.options["hidden"]
    slope = in_closed_form if closed else by_autograd

    def step():
        distance = slope()
        rule.step()
        return distance

    return Crafting(step, lambda: point.detach())


def feature_matching(problem: Any, scenario: Any, wanted: Any, how: Baseline) -> Crafting:
    """Adam on ||f(x) - zeta||^2 + beta ||x - x_base||^2, every point by itself; then the box.

    Args:
      problem: its network's features are f.
      scenario: of `indiscriminate_problems.matching`; points start at its images.
      wanted: zeta [P, D].
      how: the baseline.

    Returns: as `gradient_canceling`; the loss is the mean over points.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = torch.channels_last if how.tuned else torch.contiguous_format
    model = network(problem.network, problem.image_shape, problems.NUM_CLASSES, **problem.options)
    model = load(model, scenario.aux.stats["extractor"]).to(device, memory_format=form).eval()
    if how.tuned:
        model.requires_grad_(False)
    base = torch.tensor(np.array(scenario.train.image)).permute(0, 3, 1, 2)
    base = base.contiguous(memory_format=form).to(device)
    aim = torch.tensor(np.array(wanted), device=device)
    point = base.clone().requires_grad_()
    rule = torch.optim.Adam([point], lr=settings.RATE)

    def step():
        with precision(how, device):
            apart = (model.features(point).float() - aim).square().sum()
            total = apart + settings.BETA * (point - base).square().sum()
        if how.tuned:
            (point.grad,) = torch.autograd.grad(total, [point])
        else:
            rule.zero_grad(set_to_none=True)
            model.zero_grad(set_to_none=True)
            total.backward()
        rule.step()
        with torch.no_grad():
            point.clamp_(0, 1)
        return total.detach() / len(point)

    return Crafting(step, lambda: point.detach())


def solving(problem: Any, scenario: Any, work: Any, how: Baseline) -> Callable[[], torch.Tensor]:
    """() -> ||v|| of a solve at the target of the scenario; see `indiscriminate_problems.solve`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    form = torch.channels_last if how.tuned else torch.contiguous_format
    model = network(problem.network, problem.image_shape, problems.NUM_CLASSES, **problem.options)
    model = load(model, scenario.aux).to(device, memory_format=form).eval()
    weights = list(model.parameters())
    image = torch.tensor(np.array(scenario.train.image)).permute(0, 3, 1, 2)
    image = image.contiguous(memory_format=form).to(device)
    label = torch.tensor(np.array(scenario.train.label), dtype=torch.long, device=device)

    def slope():
        with precision(how, device):
            loss = F.cross_entropy(model(image).float(), label)
            return flat(torch.autograd.grad(loss, weights, create_graph=True))

    def product(gradient, p):
        again = torch.autograd.grad(gradient, weights, p, retain_graph=how.tuned)
        return flat(again) + work.damping * p

    def run():
        gradient = slope()
        b = gradient.detach()

        def matvec(p):
            return product(gradient if how.tuned else slope(), p)

        return METHODS[work.method](matvec, b, work.iterations).norm()

    return run


def flat(tensors):
    """One vector of all entries."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def power(matvec, b, iterations):
    """Of p <- H p / ||H p|| the last H p."""
    for _ in range(iterations):
        moved = matvec(b)
        b = moved / moved.norm()
    return moved


def cg(matvec, b, iterations):
    """(H + damping I) v = b, one product an iteration; no look at the residual on the host."""
    v, r, p = torch.zeros_like(b), b, b
    square = r @ r
    for _ in range(iterations):
        moved = matvec(p)
        length = square / (p @ moved)
        v, r = v + length * p, r - length * moved
        ahead = r @ r
        p, square = r + ahead / square * p, ahead
    return v


def normal_cg(matvec, b, iterations):
    """H^2 v = H b, two products an iteration."""
    v, r, slope = torch.zeros_like(b), b, matvec(b)
    p, square = slope, slope @ slope
    for _ in range(iterations):
        moved = matvec(p)
        length = square / (moved @ moved)
        v, r = v + length * p, r - length * moved
        slope = matvec(r)
        ahead = slope @ slope
        p, square = slope + ahead / square * p, ahead
    return v


METHODS = {"Hessian products": power, "cg": cg, "normal_cg": normal_cg}
