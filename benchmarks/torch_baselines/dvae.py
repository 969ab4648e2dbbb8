"""D-VAE's fit and purification (stem_end_block 7, aux_input "z") in PyTorch, eager."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.torch_baselines.steps import Baseline, precision

__all__ = ["Network", "fit", "loss", "purification"]

BLOCKS = (("stage1_block1", 1), ("stage1_block2", 1), ("stage2_block1", 2))


class Network:
    """The library's variables as tensors in PyTorch's layouts.

    Attributes:
      params: {layer: {kernel, bias, ...}}, leaves that want gradients.
      stats: running statistics of BatchNorm.
    """

    def __init__(self, variables: Any, how: Baseline):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.how = how
        self.form = torch.channels_last if how.tuned else torch.contiguous_format
        self.params = self._tensors(variables.params, "")
        self.stats = self._tensors(variables.stats, "")

    def _tensors(self, tree: Any, name: str) -> Any:
        if isinstance(tree, dict):
            return {key: self._tensors(tree[key], f"{name}/{key}") for key in tree}
        value = torch.tensor(np.asarray(tree, np.float32), device=self.device)
        if value.ndim == 4:
            up = "_up" in name
            value = value.flip(0, 1).permute(2, 3, 0, 1) if up else value.permute(3, 2, 0, 1)
            value = value.contiguous(memory_format=self.form)
        return value

    def leaves(self) -> list[torch.Tensor]:
        """All parameters, wanting gradients."""
        found = []

        def walk(tree):
            for value in tree.values():
                if isinstance(value, dict):
                    walk(value)
                else:
                    found.append(value.requires_grad_())

        walk(self.params)
        return found

    def images(self, image: Any) -> torch.Tensor:
        """[B, H, W, C] in [0, 1] -> [B, C, H, W] on the device."""
        x = torch.tensor(np.asarray(image, np.float32), device=self.device).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self.form)

    def __call__(self, x: torch.Tensor, label: torch.Tensor, noise: Any, *, train: bool) -> Any:
        """(x^, p^, mean, log-variance); noise is drawn where it is None."""
        p = self.params
        h = F.relu(self._norm(_conv(x, p["conv_stem"], 1, 1), p, self.stats, "norm_stem", train))
        for name, stride in BLOCKS:
            h = self._block(h, name, stride, train)
        mean, log_variance = _conv(h, p["mean"]), _conv(h, p["log_variance"])
        noise = torch.randn_like(mean) if noise is None else noise
        z = _conv(mean + torch.exp(log_variance / 2) * noise, p["post"])
        own = p["embedding"][label].reshape(len(label), z.shape[2], z.shape[3], z.shape[1])
        made = torch.sigmoid(self._decode(z, "image").float())
        shift = self._decode(own.permute(0, 3, 1, 2) + z, "perturbation").float()
        return made, shift, mean.float(), log_variance.float()

    def _norm(self, x, params, stats, name, train):
        p, s = params[name], stats[name]
        return F.batch_norm(x, s["mean"], s["var"], p["scale"], p["bias"], train)

    def _block(self, x, name, stride, train):
        p, s = self.params[name], self.stats[name]
        y = F.relu(self._norm(_conv(x, p["conv1"], stride, 1), p, s, "norm1", train))
        y = self._norm(_conv(y, p["conv2"], 1, 1), p, s, "norm2", train)
        if stride != 1:
            x = self._norm(_conv(x, p["conv_shortcut"], stride), p, s, "norm_shortcut", train)
        return F.relu(x + y)

    def _decode(self, x, name):
        for i, stride in enumerate((2, 1, 1, 1), 1):
            p = self.params[f"{name}_up{i}"]
            x = F.conv_transpose2d(x, p["kernel"], p["bias"], stride=stride, padding=1)
            x = F.relu(F.instance_norm(x)) if i in (2, 3) else x
        return x


def loss(network: Network, image: torch.Tensor, label: torch.Tensor, noise: Any = None) -> Any:
    """L of stage one with all its terms."""
    made, shift, mean, log_variance = network(image, label, noise, train=True)
    inside = 1 + log_variance - mean**2 - log_variance.exp()
    rate = torch.clamp(torch.mean(-0.5 * inside.sum(1)), min=1.0)
    size = torch.clamp((shift**2).mean(), min=0.002)
    both = (made + shift).clamp(0, 1)
    return F.mse_loss(made, image) + F.mse_loss(both, image) + 0.01 * rate + size


def fit(variables: Any, image: Any, label: Any, how: Baseline, *, batch_size: int) -> Any:
    """() -> mean loss of an epoch: batches in random order; forward, backward, clip, Adam."""
    network = Network(variables, how)
    leaves = network.leaves()
    adam = torch.optim.Adam(leaves, lr=5e-3)
    x, y = _stored(network, image, label)

    def update(rows):
        with precision(how, network.device):
            value = loss(network, x[rows], y[rows])
        adam.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(leaves, 5.0)
        adam.step()
        return value.detach()

    def epoch():
        order = torch.randperm(len(y), device=network.device)
        return torch.stack([update(rows) for rows in order.split(batch_size)]).mean()

    return epoch


def purification(variables: Any, image: Any, label: Any, how: Baseline, *, batch_size: int) -> Any:
    """() -> mean grey level of all rows: subtract, then reconstruct (stage two), eval mode."""
    network = Network(variables, how)
    x, y = _stored(network, image, label)

    def batch(image, label):
        shifted = (image - network(image, label, None, train=False)[1]).clamp(0, 1)
        made = network(shifted, label, None, train=False)[0].clamp(0, 1)
        return (255 * made).to(torch.uint8)

    def run():
        with torch.no_grad(), precision(how, network.device):
            parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
            return torch.cat([batch(*part) for part in parts]).float().mean()

    return run


def _stored(network: Network, image: Any, label: Any) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.tensor(np.asarray(label), dtype=torch.long, device=network.device)
    return network.images(image), y


def _conv(x: torch.Tensor, p: Any, stride: int = 1, padding: int = 0) -> torch.Tensor:
    return F.conv2d(x, p["kernel"], p.get("bias"), stride=stride, padding=padding)
