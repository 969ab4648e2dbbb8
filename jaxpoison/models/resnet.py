"""ResNet-18 in its CIFAR form: a 3x3 stem, no max-pool, basic blocks."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import batch_norm, conv, dense
from jaxpoison.types import Victim

__all__ = ["BasicBlock", "ResNet", "resnet18"]


def resnet18(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ResNet-18 for small images: 11,173,962 parameters at width 64, 701,466 at 16 (32x32x3).

    Stem conv 3x3, BN, ReLU; four stages of two basic blocks, widths w, 2w, 4w, 8w, strides 1, 2,
    2, 2; global average; linear. The stem takes as many channels as the images have.

    Source: He et al. 2016, CIFAR form as in the code of Geiping et al. 2021 and Liu et al. 2024.

    Args:
      image_shape: (H, W, C).
      num_classes: L, at least 2.
      width: w, channels of the first stage.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Convolutions start He normal (fan-out), the linear layer uniform in
      +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape)
    module = ResNet(num_classes=num_classes, width=width, dtype=dtype)
    return adapt(module, shape, mean=mean, std=std)


class ResNet(nn.Module):
    """See `resnet18`; `blocks` basic blocks per stage, strides 1, 2, 2, ..."""

    num_classes: int = 10
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        x = conv(
            x,
            self.width,
            3,
            padding=1,
            use_bias=False,
            he_normal=True,
            dtype=self.dtype,
            name="conv",
        )
        x = nn.relu(batch_norm(x, train=train, dtype=self.dtype, name="norm"))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = BasicBlock(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        x = jnp.mean(x, axis=(1, 2))
        self.sow("intermediates", "features", x)
        return dense(x, self.num_classes, dtype=self.dtype, name="linear")


class BasicBlock(nn.Module):
    """relu(BN conv relu BN conv x + x), 3x3; BN conv1x1 x is added instead where shapes differ."""

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b y z f"]:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""

        def conv_bn(x: Array, kernel: int, stride: int, name: str) -> Array:
            x = conv(
                x,
                self.features,
                kernel,
                stride=stride,
                padding=kernel // 2,
                use_bias=False,
                he_normal=True,
                dtype=self.dtype,
                name=f"conv{name}",
            )
            return batch_norm(x, train=train, dtype=self.dtype, name=f"norm{name}")

        y = nn.relu(conv_bn(x, 3, self.stride, "1"))
        y = conv_bn(y, 3, 1, "2")
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv_bn(x, 1, self.stride, "_shortcut")
        return nn.relu(x + y)
