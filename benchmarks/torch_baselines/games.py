"""One step of DeepConfuse and one mini-batch of GUE in PyTorch, eager: as published, and tuned.

As published: NCHW, float32; DeepConfuse by `backward()` through the pseudo-step, so that gradients
of the surrogate are made too; GUE with the noise made anew in every one of its T + 2 losses, each
differentiated through the generator in the inner loop as well, and the payoff as L - 1 cross
entropies. Tuned: channels_last, autocast where asked, `autograd.grad` of exactly what is wanted,
noise once a mini-batch, the frozen generator without a graph, its gradient taken at the images and
pulled through the generator once, the payoff by its closed form.
Neither builds networks inside a step, as the released code does, prints, or copies to the host.
"""

import copy
import functools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from benchmarks import problems
from benchmarks.torch_baselines.generators import generator
from benchmarks.torch_baselines.networks import network
from benchmarks.torch_baselines.steps import Baseline, Running, precision

__all__ = ["deepconfuse", "gue", "networks", "start"]


def start(problem: Any, data: Any, how: Baseline) -> Running:
    """`deepconfuse` or `gue` from fresh weights, PyTorch's own."""
    torch.manual_seed(problems.SEED)
    surrogate, attacker = networks(problem)
    method = {"deepconfuse": deepconfuse, "gue": gue}[problem.method]
    return method(problem, attacker, surrogate, data, how)


def networks(problem: Any) -> tuple[nn.Module, nn.Module]:
    """Surrogate and generator of `problem`."""
    name, options = problem.surrogate
    surrogate = network(name, problem.image_shape, problems.NUM_CLASSES, **options)
    name, options = problem.generator
    return surrogate, generator(name, problem.image_shape, **options)


def deepconfuse(problem: Any, attacker: Any, surrogate: Any, data: Any, how: Baseline) -> Running:
    """Generator step and surrogate step, Algorithm 2 (a) and (b), on one batch.

    Args:
      problem: `benchmarks.game_problems.GameProblem`; its eps and rates are read.
      attacker: the torch generator to start from.
      surrogate: likewise; copied, both.
      data: the library's Dataset of one batch.
      how: the baseline.
    """
    images, label = _placed(data, how)
    learning, frozen = _copied(attacker, how), _copied(attacker, how).eval()
    model = _copied(surrogate, how)
    weights, rate = list(model.parameters()), problem.surrogate_rate
    names = [name for name, _ in model.named_parameters()]
    adam = _adam(learning, problem.generator_rate, how)
    sgd = torch.optim.SGD(weights, lr=rate)

    def step():
        poison = _poison(learning, images, problem, how)
        loss = F.cross_entropy(_logits(model, poison, how), label)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        moved = (w - rate * g for w, g in zip(weights, gradients, strict=True))
        ahead = functools.partial(functional_call, model, dict(zip(names, moved, strict=True)))
        outer = -F.cross_entropy(_logits(ahead, images, how), label)
        _descend(adam, outer, how)
        with torch.set_grad_enabled(not how.tuned):
            poison = _poison(frozen, images, problem, how)
        _descend(sgd, F.cross_entropy(_logits(model, poison, how), label), how)
        return outer.detach()

    return Running(step, learning)


def gue(problem: Any, attacker: Any, surrogate: Any, data: Any, how: Baseline) -> Running:
    """T Adam steps of a copy, leader and constraint gradients, the multiplier, both updates.

    Args:
      problem: `benchmarks.game_problems.GameProblem`; eps, rates, eta and T are read.
      attacker: as in `deepconfuse`.
      surrogate: as there.
      data: as there.
      how: the baseline.
    """
    images, label = _placed(data, how)
    attacker = _copied(attacker, how)
    model, trial = _copied(surrogate, how), _copied(surrogate, how)
    theta, xi = list(model.parameters()), list(attacker.parameters())
    leader = torch.optim.SGD(xi, lr=problem.generator_rate)
    follower = torch.optim.SGD(theta, lr=problem.surrogate_rate)
    gradients = _tuned_gradients if how.tuned else _published_gradients

    def step():
        trial.load_state_dict(model.state_dict())
        adam = _adam(trial, problem.inner_rate, how)
        payoff, leader_theta, by_theta, by_xi = gradients(
            problem, attacker, model, trial, adam, images, label, how
        )
        norm = sum(g.square().sum() for g in (*by_theta, *by_xi))
        product = sum((f * g).sum() for f, g in zip(leader_theta, by_theta, strict=True))
        multiplier = F.relu((problem.eta * norm - product) / (norm + 1e-8))
        for weight, g in zip(xi, by_xi, strict=True):
            weight.grad = multiplier * g
        for weight, f, g in zip(theta, leader_theta, by_theta, strict=True):
            weight.grad = f + multiplier * g
        leader.step()
        follower.step()
        return payoff.detach()

    return Running(step, attacker)


def _published_gradients(problem, attacker, model, trial, adam, images, label, how):
    """Payoff and gradients of f by theta, of g1 by theta, of g1 - g2 by xi."""
    theta, xi = list(model.parameters()), list(attacker.parameters())

    def follower_loss(network):
        poison = _poison(attacker, images, problem, how)
        return F.cross_entropy(_logits(network, poison, how), label)

    for _ in range(problem.inner_steps):
        loss = follower_loss(trial)
        adam.zero_grad()
        loss.backward()
        adam.step()
    logits = _logits(model, images, how)
    classes = logits.shape[1]
    wrong = [
        F.cross_entropy(logits, (label + i) % classes, reduction="none") for i in range(1, classes)
    ]
    payoff = torch.stack(wrong).max(0)[0].mean()
    leader_theta = torch.autograd.grad(payoff, theta)
    first, second = follower_loss(model), follower_loss(trial)
    by_xi = torch.autograd.grad(first - second, xi, retain_graph=True)
    by_theta = torch.autograd.grad(first, theta)
    return payoff, leader_theta, by_theta, by_xi


def _tuned_gradients(problem, attacker, model, trial, adam, images, label, how):
    """The same with the noise made once."""
    theta, xi = list(model.parameters()), list(attacker.parameters())
    weights = list(trial.parameters())
    poison = _poison(attacker, images, problem, how)
    leaf = poison.detach()
    for _ in range(problem.inner_steps):
        loss = F.cross_entropy(_logits(trial, leaf, how), label)
        for weight, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = g
        adam.step()
    logits = _logits(model, images, how)
    right = F.one_hot(label, logits.shape[1]).bool()
    lowest = logits.masked_fill(right, torch.inf).amin(1)
    payoff = (logits.logsumexp(1) - lowest).mean()
    leader_theta = torch.autograd.grad(payoff, theta)
    leaf.requires_grad_()
    first = F.cross_entropy(_logits(model, leaf, how), label)
    by_image, *by_theta = torch.autograd.grad(first, [leaf, *theta])
    second = F.cross_entropy(_logits(trial, leaf, how), label)
    (other,) = torch.autograd.grad(second, [leaf])
    by_xi = torch.autograd.grad(poison, xi, by_image - other)
    return payoff, leader_theta, by_theta, by_xi


def _poison(network, images, problem, how):
    return (images + problem.eps * _logits(network, images, how)).clamp(0, 1)


def _logits(network, images, how):
    """In float32; each in a context of its own, which holds on to the rounded weights."""
    with precision(how, images.device):
        return network(images).float()


def _adam(network, rate, how):
    on_gpu = torch.cuda.is_available()
    return torch.optim.Adam(network.parameters(), lr=rate, fused=how.tuned and on_gpu or None)


def _descend(optimizer, loss, how):
    """One update: gradients of the optimizer's own weights, or of all that have one."""
    weights = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    if how.tuned:
        for weight, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = g
    else:
        loss.backward()
    optimizer.step()


def _placed(data, how):
    pixels = torch.tensor(np.asarray(data.image, np.float32) / 255).permute(0, 3, 1, 2)
    images = pixels.contiguous(memory_format=_form(how)).to(_device())
    return images, torch.tensor(np.asarray(data.label), dtype=torch.long, device=_device())


def _copied(network, how):
    """A copy on the device, in train mode."""
    return copy.deepcopy(network).to(_device(), memory_format=_form(how)).train()


def _form(how):
    return torch.channels_last if how.tuned else torch.contiguous_format


def _device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
