"""The networks of `benchmarks.problems` in PyTorch, their parts named as the library names its own.

Equal names make the transfer of weights one walk over both trees, see `load`.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["flat", "load", "network", "parameters"]


def network(kind: str, image_shape: tuple[int, int, int], num_classes: int, **options: Any):
    """A network by `Problem.network` and `Problem.options`, in NCHW, weights not yet the wanted."""
    kinds = {
        "mlp": MLP,
        "small_cnn": SmallCNN,
        "lenet": LeNet,
        "cnn5": CNN5,
        "resnet18": ResNet18,
    }
    return kinds[kind](image_shape, num_classes, **options)


class MLP(nn.Module):
    """Dense, BN, ReLU per hidden layer on the pixels in the order H, W, C; dense, BN if wanted."""

    def __init__(self, image_shape, num_classes, *, hidden=(128, 128), norm=True, logits_norm=True):
        super().__init__()
        self.depth, inputs = len(hidden), math.prod(image_shape)
        for i, width in enumerate((*hidden, num_classes)):
            setattr(self, f"Dense_{i}", nn.Linear(inputs, width))
            if norm if i < self.depth else logits_norm:
                setattr(self, f"BatchNorm_{i}", nn.BatchNorm1d(width))
            inputs = width
        self.norm, self.logits_norm = norm, logits_norm

    def forward(self, x):
        """[B, C, H, W] -> logits [B, L]."""
        x = x.permute(0, 2, 3, 1).flatten(1)
        for i in range(self.depth):
            x = getattr(self, f"Dense_{i}")(x)
            x = F.relu(getattr(self, f"BatchNorm_{i}")(x) if self.norm else x)
        x = getattr(self, f"Dense_{self.depth}")(x)
        return getattr(self, f"BatchNorm_{self.depth}")(x) if self.logits_norm else x


class SmallCNN(nn.Module):
    """(conv 3x3, ReLU, 2x2 pool) per width, then linear on the features in the order H, W, C."""

    def __init__(self, image_shape, num_classes, *, widths, pool="avg"):
        super().__init__()
        height, wide, channels = image_shape
        self.pool = {"max": F.max_pool2d, "avg": F.avg_pool2d}[pool]
        self.depth = len(widths)
        for i, width in enumerate(widths):
            setattr(self, f"Conv_{i}", nn.Conv2d(channels, width, 3, padding=1))
            channels, height, wide = width, height // 2, wide // 2
        self.Dense_0 = nn.Linear(channels * height * wide, num_classes)

    def forward(self, x):
        """[B, C, H, W] -> logits [B, L]."""
        return self.Dense_0(self.features(x))

    def features(self, x):
        """[B, C, H, W] -> [B, D]."""
        for i in range(self.depth):
            x = self.pool(F.relu(getattr(self, f"Conv_{i}")(x)), 2)
        return x.permute(0, 2, 3, 1).flatten(1)


class LeNet(nn.Module):
    """Twice (conv 5x5, BN, ReLU, 2x2 mean), dense, BN, ReLU, dense, BN; features in H, W, C."""

    def __init__(self, image_shape, num_classes, *, first=20, second=50, hidden=500):
        super().__init__()
        height, wide, channels = image_shape
        self.Conv_0, self.BatchNorm_0 = nn.Conv2d(channels, first, 5), nn.BatchNorm2d(first)
        self.Conv_1, self.BatchNorm_1 = nn.Conv2d(first, second, 5), nn.BatchNorm2d(second)
        for _ in range(2):
            height, wide = (height - 4) // 2, (wide - 4) // 2
        self.Dense_0 = nn.Linear(second * height * wide, hidden)
        self.BatchNorm_2 = nn.BatchNorm1d(hidden)
        self.Dense_1, self.BatchNorm_3 = nn.Linear(hidden, num_classes), nn.BatchNorm1d(num_classes)

    def forward(self, x):
        """[B, C, H, W] -> logits [B, L]."""
        x = F.avg_pool2d(F.relu(self.BatchNorm_0(self.Conv_0(x))), 2)
        x = F.avg_pool2d(F.relu(self.BatchNorm_1(self.Conv_1(x))), 2)
        x = self.Dense_0(x.permute(0, 2, 3, 1).flatten(1))
        return self.BatchNorm_3(self.Dense_1(F.relu(self.BatchNorm_2(x))))


class CNN5(nn.Module):
    """Five times (conv 3x3, BN, ReLU, 2x2 maximum), 32-64-128-128-128, then linear."""

    def __init__(self, image_shape, num_classes):
        super().__init__()
        channels = image_shape[2]
        for i, width in enumerate((32, 64, 128, 128, 128)):
            setattr(self, f"Conv_{i}", nn.Conv2d(channels, width, 3, padding=1))
            setattr(self, f"BatchNorm_{i}", nn.BatchNorm2d(width))
            channels = width
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x):
        """[B, C, H, W] -> logits [B, L]."""
        for i in range(5):
            x = getattr(self, f"BatchNorm_{i}")(getattr(self, f"Conv_{i}")(x))
            x = F.max_pool2d(F.relu(x), 2)
        return self.linear(x.mean((2, 3)))


class ResNet18(nn.Module):
    """ResNet-18 in its CIFAR form."""

    def __init__(self, image_shape, num_classes, *, width=64):
        super().__init__()
        self.conv = nn.Conv2d(image_shape[2], width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = []
        channels = width
        for stage in range(4):
            for block in range(2):
                name = f"stage{stage + 1}_block{block + 1}"
                stride = 2 if stage and not block else 1
                setattr(self, name, BasicBlock(channels, width * 2**stage, stride))
                self.blocks.append(name)
                channels = width * 2**stage
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x):
        """[B, C, H, W] -> logits [B, L]."""
        return self.linear(self.features(x))

    def features(self, x):
        """[B, C, H, W] -> [B, D]."""
        x = F.relu(self.norm(self.conv(x)))
        for name in self.blocks:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


class BasicBlock(nn.Module):
    """relu(BN conv relu BN conv x + shortcut)."""

    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.shortcut = stride != 1 or inputs != features
        if self.shortcut:
            self.conv_shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.norm_shortcut = nn.BatchNorm2d(features)

    def forward(self, x):
        """[B, I, H, W] -> [B, O, H / stride, W / stride]."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.shortcut:
            x = self.norm_shortcut(self.conv_shortcut(x))
        return F.relu(x + y)


NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def load(model: nn.Module, variables: Any) -> nn.Module:
    """`model` with the library's `Variables`: kernels [K, K, I, O] -> [O, I, K, K], dense ones W^T.

    Every tensor of `model` is set and every array used, or an AssertionError says that the two
    networks differ.
    """
    wanted = {**flat(variables.params), **flat(variables.stats)}
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    for name, part in model.named_modules():
        if isinstance(part, nn.ConvTranspose2d):  # ours is flipped in space
            weight = wanted[f"{name}.weight"].transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
            wanted[f"{name}.weight"] = np.ascontiguousarray(weight)
    assert state.keys() == wanted.keys(), sorted(state.keys() ^ wanted.keys())
    model.load_state_dict({k: torch.tensor(v) for k, v in wanted.items()}, strict=False)
    return model


def parameters(model: nn.Module) -> dict[str, np.ndarray]:
    """Trainable arrays by torch's names, on the host."""
    return {k: v.detach().float().cpu().numpy() for k, v in model.named_parameters()}


def images(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """What `model` makes of [B, H, W, C]: [B, H, W, C] or logits [B, L], on the host."""
    with torch.no_grad():
        found = model(torch.tensor(image).permute(0, 3, 1, 2))
    return (found if found.ndim == 2 else found.permute(0, 2, 3, 1)).numpy()


def flat(tree: Any, path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """A tree of the library's arrays under torch's names and in torch's layout."""
    if not hasattr(tree, "items"):
        value = np.asarray(tree, np.float32)
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
        name = ".".join((*path[:-1], NAMES[path[-1]]))
        return {name: np.ascontiguousarray(value.transpose(axes))}
    return {k: v for name, part in tree.items() for k, v in flat(part, (*path, name)).items()}
