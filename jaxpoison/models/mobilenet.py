"""MobileNetV2: inverted residual blocks with depthwise convolutions."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import (
    batch_norm,
    conv_norm,
    depthwise_conv,
    global_mean,
    he_fan_out,
    logits,
    uniform_fan_in,
)
from jaxpoison.types import Victim

__all__ = ["InvertedResidual", "MobileNetV2", "mobilenet_v2"]

# (expansion, channels, blocks, stride on large images) per stage; small images keep their size
# in the stem and in the second stage
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: float = 1.0,
    stem: str = "cifar",
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """MobileNetV2: 2,296,922 parameters (32x32x3, 10 classes).

    Stem conv 3x3 to 32 channels; 17 inverted residual blocks; conv 1x1 to 1280; global average;
    linear. The form for small images shrinks them by 8, has ReLUs and a shortcut (a projection
    where channels differ) around every block of stride 1. The form for large images is the
    paper's: it shrinks them by 32, has ReLU6, no expansion in the first block and shortcuts only
    between equal shapes; 3,504,872 parameters for 1000 classes. It is so at `width` 1: other widths
    scale every layer, where the paper's rounds to multiples of 8 and keeps the last 1280 channels.

    Source: Sandler et al. 2018, table 2; "cifar" as in the code of Geiping et al. 2021.

    Args:
      image_shape: (H, W, C).
      num_classes: L, at least 2.
      width: factor on every number of channels, each rounded to a whole one, at least 1.
      stem: "cifar" or "imagenet".
      dropout: rate before the linear layer; 0 for none, as in "cifar"'s source (0.2 in the paper's
        ImageNet training).
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Weights and biases start uniform in +-1/sqrt(fan_in), but convolutions of
      the form for large images He normal (fan-out). On CPU depthwise convolutions are sums of
      shifted products, which XLA may add up in another order in another program: members on devices
      equal members in a row to rounding there, not to the bit.
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.positive(width=width)
    check.one_of(("cifar", "imagenet"), stem=stem)
    check.number(least=0, below=1, dropout=dropout)
    module = MobileNetV2(num_classes, float(width), stem, float(dropout), _STAGES, dtype)
    return adapt(module, check_image_shape(image_shape), mean=mean, std=std)


class MobileNetV2(nn.Module):
    """See `mobilenet_v2`; `stages` of (expansion, channels, blocks, stride on large images)."""

    num_classes: int = 10
    width: float = 1.0
    stem: str = "cifar"
    dropout: float = 0.0
    stages: tuple[tuple[int, int, int, int], ...] = _STAGES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        large = self.stem == "imagenet"
        act = nn.relu6 if large else nn.relu
        layer = partial(conv_norm, kernel_init=_init(large), train=train, dtype=self.dtype)
        x = x.astype(self.dtype)
        x = act(layer(x, self._channels(32), 3, stride=2 if large else 1, name="_stem"))
        for stage, (expansion, channels, blocks, stride) in enumerate(self.stages, 1):
            for block in range(1, blocks + 1):
                first = stride if block == 1 and (large or stage != 2) else 1
                x = InvertedResidual(
                    self._channels(channels),
                    expansion,
                    first,
                    large=large,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x, train=train)
        x = act(layer(x, self._channels(1280), 1, name="_last"))
        x = global_mean(x)
        self.sow("intermediates", "features", x)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return logits(x, self.num_classes, dtype=self.dtype, name="linear")

    def _channels(self, num: int) -> int:
        return max(1, round(num * self.width))


class InvertedResidual(nn.Module):
    """BN conv1x1 act BN depthwise3x3 act BN conv1x1 x, plus x or its projection at stride 1.

    The form for large images adds only an x of the same shape, and at expansion 1 it leaves the
    first convolution out.
    """

    features: int
    expansion: int
    stride: int = 1
    large: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b y z f"]:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        act = nn.relu6 if self.large else nn.relu
        init = _init(self.large)
        layer = partial(conv_norm, kernel_init=init, train=train, dtype=self.dtype)
        inputs = x.shape[-1]
        y = x
        if self.expansion > 1 or not self.large:
            y = act(layer(y, inputs * self.expansion, 1, name="_expand"))
        y = depthwise_conv(
            y,
            3,
            stride=self.stride,
            padding=1,
            kernel_init=init,
            dtype=self.dtype,
            name="conv_depth",
        )
        y = act(batch_norm(y, train=train, dtype=self.dtype, name="norm_depth"))
        y = layer(y, self.features, 1, name="_project")
        if self.stride != 1:
            return y
        if inputs == self.features:
            return x + y
        return y if self.large else y + layer(x, self.features, 1, name="_shortcut")


def _init(large: bool) -> Initializer:
    return he_fan_out if large else uniform_fan_in
