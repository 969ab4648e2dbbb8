"""The generators of DeepConfuse and GUE in PyTorch, parts named as the library names its own."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["generator"]


def generator(kind: str, image_shape: tuple[int, int, int], **options: Any) -> nn.Module:
    """A generator by `GameProblem.generator`, in NCHW: images -> [-1, 1]."""
    kinds = {"mlp_generator": MLPGenerator, "mnist_autoencoder": Autoencoder, "unet": UNet}
    return kinds[kind](image_shape, **options)


class MLPGenerator(nn.Module):
    """(dense, BN, ReLU) per hidden layer on the pixels in the order H, W, C; dense, BN, tanh."""

    def __init__(self, image_shape, *, hidden=(256, 256)):
        super().__init__()
        self.shape, self.depth = image_shape, len(hidden)
        inputs = outputs = math.prod(image_shape)
        for i, width in enumerate(hidden):
            setattr(self, f"Dense_{i}", nn.Linear(inputs, width, bias=False))
            setattr(self, f"BatchNorm_{i}", nn.BatchNorm1d(width))
            inputs = width
        setattr(self, f"Dense_{self.depth}", nn.Linear(inputs, outputs, bias=False))
        self.norm_last = nn.BatchNorm1d(outputs)

    def forward(self, x):
        """[B, C, H, W] -> [B, C, H, W]."""
        x = x.permute(0, 2, 3, 1).flatten(1)
        for i in range(self.depth):
            x = F.relu(getattr(self, f"BatchNorm_{i}")(getattr(self, f"Dense_{i}")(x)))
        x = self.norm_last(getattr(self, f"Dense_{self.depth}")(x)).tanh()
        return x.reshape(-1, *self.shape).permute(0, 3, 1, 2)


class UNet(nn.Module):
    """Three times down and up, skips; average pools, corner-aligned bilinear up-sampling."""

    def __init__(self, image_shape, *, width=64):
        super().__init__()
        channels = image_shape[2]
        one, two, four, eight = (width * factor for factor in (1, 2, 4, 8))
        self.down1, self.down2 = DoubleConv(channels, one), DoubleConv(one, two)
        self.down3, self.down4 = DoubleConv(two, four), DoubleConv(four, eight)
        self.up3, self.up2 = DoubleConv(eight + four, four), DoubleConv(four + two, two)
        self.up1 = DoubleConv(two + one, one)
        self.last, self.norm_last = nn.Conv2d(one, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x):
        """[B, C, H, W] -> [B, C, H, W]; H and W divisible by 8."""
        first = self.down1(x)
        second = self.down2(F.avg_pool2d(first, 2))
        third = self.down3(F.avg_pool2d(second, 2))
        x = self.down4(F.avg_pool2d(third, 2))
        x = self.up3(torch.cat([_twice(x), third], 1))
        x = self.up2(torch.cat([_twice(x), second], 1))
        x = self.up1(torch.cat([_twice(x), first], 1))
        return self.norm_last(self.last(x)).tanh()


class DoubleConv(nn.Module):
    """Twice (conv 3x3, BN, ReLU)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        """[B, I, H, W] -> [B, O, H, W]."""
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class Autoencoder(nn.Module):
    """DeepConfuse's generator of MNIST: 28 -> 10 -> 5 -> 3 -> 2 -> 5 -> 15 -> 28."""

    def __init__(self, image_shape):
        super().__init__()
        channels = image_shape[2]
        self.down1 = nn.Conv2d(channels, 16, 3, stride=3, padding=1)
        self.down2 = nn.Conv2d(16, 64, 3, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(64, 128, 3, stride=2)
        self.up2 = nn.ConvTranspose2d(128, 64, 5, stride=3, padding=1)
        self.up3 = nn.ConvTranspose2d(64, channels, 2, stride=2, padding=1)
        self.norm_down1, self.norm_down2 = nn.BatchNorm2d(16), nn.BatchNorm2d(64)
        self.norm_up1, self.norm_up2 = nn.BatchNorm2d(128), nn.BatchNorm2d(64)
        self.norm_last = nn.BatchNorm2d(channels)

    def forward(self, x):
        """[B, C, 28, 28] -> [B, C, 28, 28]."""
        x = F.max_pool2d(F.relu(self.norm_down1(self.down1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm_down2(self.down2(x))), 2, stride=1)
        x = F.relu(self.norm_up1(self.up1(x)))
        x = F.relu(self.norm_up2(self.up2(x)))
        return self.norm_last(self.up3(x)).tanh()


def _twice(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
