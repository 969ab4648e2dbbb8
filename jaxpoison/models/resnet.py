"""Residual networks of basic and bottleneck blocks, with a stem for small or for large images."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import conv_norm, global_mean, he_fan_out, logits
from jaxpoison.models.repeat import repeat
from jaxpoison.models.stem import STEMS, stem
from jaxpoison.types import Victim

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]


def resnet18(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ResNet-18: 11,173,962 parameters at width 64, 701,466 at 16 (32x32x3, 10 classes).

    Stem conv 3x3, BN, ReLU; four stages of two basic blocks, widths w, 2w, 4w, 8w, strides 1, 2,
    2, 2; global average; linear. The stem takes as many channels as the images have.

    Source: He et al. 2016, CIFAR form as in the code of Geiping et al. 2021 and Liu et al. 2024;
    with `stem="imagenet"` their table 1 (11,689,512 parameters for 1000 classes).

    Args:
      image_shape: (H, W, C).
      num_classes: L, at least 2.
      width: w, channels of the first stage.
      stem: "cifar", 3x3; "tiny_imagenet", 7x7 of stride 2; "imagenet", the same and a 3x3
        max-pool of stride 2.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Convolutions start He normal (fan-out), the linear layer uniform in
      +-1/sqrt(fan_in), its bias too, as in the code of Geiping et al.; Liu et al. start it at zero.
    Errors: InputError for a bad argument.
    """
    module = _resnet((2, 2, 2, 2), BasicBlock, num_classes, width, stem, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


def resnet20(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 16,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ResNet-20, three stages of 3 basic blocks, widths w, 2w, 4w: 272,474 parameters at w = 16.

    He et al. 2016, section 4.2, with projection shortcuts (Geiping et al. 2021, released code).
    All else as in `resnet18`.
    """
    module = _resnet((3, 3, 3), BasicBlock, num_classes, width, stem, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


def resnet34(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ResNet-34, 3, 4, 6, 3 basic blocks: 21,282,122 parameters (32x32x3, 10 classes).

    21,797,672 with the ImageNet stem and 1000 classes. All else as in `resnet18`.
    """
    module = _resnet((3, 4, 6, 3), BasicBlock, num_classes, width, stem, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


def resnet50(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ResNet-50, 3, 4, 6, 3 bottleneck blocks: 23,520,842 parameters (32x32x3, 10 classes).

    25,557,032 with the ImageNet stem and 1000 classes. All else as in `resnet18`.
    """
    module = _resnet((3, 4, 6, 3), Bottleneck, num_classes, width, stem, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


def resnet101(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ResNet-101, 3, 4, 23, 3 bottleneck blocks: 42,512,970 parameters (32x32x3, 10 classes).

    44,549,160 with the ImageNet stem and 1000 classes. All else as in `resnet18`.
    """
    module = _resnet((3, 4, 23, 3), Bottleneck, num_classes, width, stem, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


def resnet152(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ResNet-152, 3, 8, 36, 3 bottleneck blocks: 58,156,618 parameters (32x32x3, 10 classes).

    60,192,808 with the ImageNet stem and 1000 classes. All else as in `resnet18`.
    """
    module = _resnet((3, 8, 36, 3), Bottleneck, num_classes, width, stem, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


def _resnet(
    blocks: tuple[int, ...],
    block: type[nn.Module],
    num_classes: int,
    width: int,
    stem: str,
    dtype: Any,
) -> nn.Module:
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, width=width)
    check.one_of(STEMS, stem=stem)
    return ResNet(num_classes, width, blocks, block, stem, dtype)


class ResNet(nn.Module):
    """See `resnet18`; `blocks` of the class `block` per stage, strides 1, 2, 2, ...

    The blocks of a stage but its first are repeated (`models.repeat`): scanned in the long stages
    of ResNet-101 and ResNet-152.
    """

    num_classes: int = 10
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    block: type[nn.Module] | None = None
    stem: str = "cifar"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        block = self.block or BasicBlock
        x = stem(x.astype(self.dtype), self.width, self.stem, train=train, dtype=self.dtype)
        for stage, num in enumerate(self.blocks, 1):
            features = self.width * 2 ** (stage - 1)
            stride = 1 if stage == 1 else 2
            name = f"stage{stage}_block"
            x = block(features, stride, dtype=self.dtype, name=f"{name}1")(x, train=train)
            rest = partial(block, features, dtype=self.dtype)
            x = repeat(rest, num - 1, x, train=train, name=name, first=2)
        x = global_mean(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype, name="linear")


class BasicBlock(nn.Module):
    """relu(BN conv relu BN conv x + x), 3x3; BN conv1x1 x is added instead where shapes differ."""

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: Initializer = he_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b y z f"]:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        kind = {"train": train, "dtype": self.dtype, "kernel_init": self.kernel_init}
        y = nn.relu(conv_norm(x, self.features, 3, stride=self.stride, name="1", **kind))
        y = conv_norm(y, self.features, 3, name="2", **kind)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv_norm(x, self.features, 1, stride=self.stride, name="_shortcut", **kind)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """`BasicBlock` of convolutions 1x1, 3x3 (the strided one) and 1x1, the last 4 times as wide."""

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b y z f4"]:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), 4 features]."""
        kind = {"train": train, "dtype": self.dtype}
        y = nn.relu(conv_norm(x, self.features, 1, name="1", **kind))
        y = nn.relu(conv_norm(y, self.features, 3, stride=self.stride, name="2", **kind))
        y = conv_norm(y, 4 * self.features, 1, name="3", **kind)
        if self.stride != 1 or x.shape[-1] != 4 * self.features:
            x = conv_norm(x, 4 * self.features, 1, stride=self.stride, name="_shortcut", **kind)
        return nn.relu(x + y)
