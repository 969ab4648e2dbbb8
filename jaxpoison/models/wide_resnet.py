"""Wide residual networks of pre-activation blocks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import batch_norm, conv, global_mean, he_fan_in, logits
from jaxpoison.models.repeat import repeat
from jaxpoison.models.stem import STEMS, stem
from jaxpoison.types import InputError, Victim

__all__ = ["PreActivationBlock", "WideResNet", "wide_resnet28_10"]


def wide_resnet28_10(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    depth: int = 28,
    widen: int = 10,
    dropout: float = 0.0,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """WRN-28-10: 36,479,194 parameters (32x32x3, 10 classes); other depths and widths by keyword.

    conv 3x3 to 16 channels; three stages of (depth - 4) / 6 pre-activation blocks, widths 16k,
    32k, 64k for k = `widen`, strides 1, 2, 2; BN, ReLU; global average; linear.

    Source: Zagoruyko and Komodakis 2016, as in the code of Liu et al. 2024; with
    another stem than "cifar", relu(BN(conv)) in the shape of `resnet18` comes first, which is ours.

    Args:
      image_shape: (H, W, C).
      num_classes: L, at least 2.
      depth: layers, 6 n + 4 for n blocks in a stage.
      widen: k, how many times as wide as a ResNet.
      dropout: rate between the two convolutions of a block; 0 for none, as in the source.
      stem: "cifar", "tiny_imagenet" (7x7 of stride 2) or "imagenet" (and a max-pool).
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim; it needs a key in train mode if `dropout` is above 0. Convolutions (no bias)
      start He normal (fan-in), the linear layer uniform in +-1/sqrt(fan_in) and its bias at zero.
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, widen=widen)
    check.at_least(10, depth=depth)
    if (depth - 4) % 6:
        raise InputError(f"depth = {depth}; it must be 6 n + 4, as in 10, 16, 22, 28, 40")
    check.number(least=0, below=1, dropout=dropout)
    check.one_of(STEMS, stem=stem)
    module = WideResNet(num_classes, (depth - 4) // 6, widen, float(dropout), stem, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


class WideResNet(nn.Module):
    """See `wide_resnet28_10`; `blocks` per stage."""

    num_classes: int = 10
    blocks: int = 4
    widen: int = 10
    dropout: float = 0.0
    stem: str = "cifar"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        if self.stem == "cifar":
            x = _conv(x, 16, 3, 1, self.dtype, "conv")
        else:
            kind = {"kernel_init": he_fan_in, "train": train, "dtype": self.dtype}
            x = stem(x, 16, self.stem, **kind)
        for stage in range(3):
            block = partial(
                PreActivationBlock,
                16 * self.widen * 2**stage,
                dropout=self.dropout,
                dtype=self.dtype,
            )
            name = f"stage{stage + 1}_block"
            x = block(stride=1 if stage == 0 else 2, name=f"{name}1")(x, train=train)
            x = repeat(block, self.blocks - 1, x, train=train, name=name, first=2)
        x = nn.relu(batch_norm(x, train=train, dtype=self.dtype, name="norm_last"))
        x = global_mean(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, zero_bias=True, dtype=self.dtype, name="linear")


class PreActivationBlock(nn.Module):
    """x + conv dropout relu BN conv a with a = relu BN x; conv1x1 a for x where shapes differ."""

    features: int
    stride: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b y z f"]:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        a = nn.relu(batch_norm(x, train=train, dtype=self.dtype, name="norm1"))
        y = _conv(a, self.features, 3, self.stride, self.dtype, "conv1")
        y = nn.relu(batch_norm(y, train=train, dtype=self.dtype, name="norm2"))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = _conv(y, self.features, 3, 1, self.dtype, "conv2")
        if self.stride != 1 or x.shape[-1] != self.features:
            x = _conv(a, self.features, 1, self.stride, self.dtype, "conv_shortcut")
        return x + y


def _conv(x: Array, features: int, kernel: int, stride: int, dtype: Any, name: str) -> Array:
    return conv(
        x,
        features,
        kernel,
        stride=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=he_fan_in,
        dtype=dtype,
        name=name,
    )
