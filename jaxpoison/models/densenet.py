"""DenseNets: every layer reads what all earlier layers of its block wrote."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import (
    avg_pool,
    batch_norm,
    conv,
    global_mean,
    he_fan_in,
    logits,
    uniform_fan_in,
)
from jaxpoison.models.stem import STEMS, stem
from jaxpoison.types import Victim

__all__ = ["DenseNet", "densenet121", "densenet121_growth12"]

_BLOCKS = (6, 12, 24, 16)
_SHRINK = {"cifar": 1, "tiny_imagenet": 2, "imagenet": 4}


def densenet121(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    growth: int = 32,
    stem: str = "cifar",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """DenseNet-121 of growth g: 6,956,298 parameters at g = 32 (32x32x3, 10 classes).

    conv 3x3 to 2g channels; blocks of 6, 12, 24 and 16 layers x <- [x, conv3x3 relu BN conv1x1
    relu BN x] that each add g channels (4g between the two); after each block but the last BN,
    ReLU, a 1x1 convolution to half the channels and an average-pool of 2; BN, ReLU, global
    average, linear. No bias in convolutions.

    Source: Huang et al. 2017, table 1 (with `stem="imagenet"` 7,978,856 parameters for 1000
    classes); CIFAR form as in the code of Feng et al. 2019 (DeepConfuse).

    Args:
      image_shape: (H, W, C); H and W at least 8, 16 or 32 for the three stems.
      num_classes: L, at least 2.
      growth: g, channels that each layer adds.
      stem: "cifar", 3x3; "tiny_imagenet", 7x7 of stride 2, BN, ReLU; "imagenet", the same and a
        3x3 max-pool of stride 2.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Weights and biases start uniform in +-1/sqrt(fan_in), as in that code, but
      convolutions of the two forms for larger images He normal (fan-in).
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, growth=growth)
    check.one_of(STEMS, stem=stem)
    smallest = 8 * _SHRINK[stem]
    shape = check_image_shape(image_shape, at_least=smallest, name=f"densenet121 (stem {stem})")
    module = DenseNet(num_classes, growth, _BLOCKS, stem, dtype)
    return adapt(module, shape, mean=mean, std=std)


def densenet121_growth12(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """`densenet121` of growth 12: 1,000,618 parameters, the "DenseNet121" of GUE (Liu et al. 2024).

    `densenet_cifar` in their released code. Arguments and errors as in `densenet121`.
    """
    return densenet121(image_shape, num_classes, growth=12, dtype=dtype, mean=mean, std=std)


class DenseNet(nn.Module):
    """See `densenet121`; `blocks` layers per block."""

    num_classes: int = 10
    growth: int = 32
    blocks: tuple[int, ...] = _BLOCKS
    stem: str = "cifar"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        norm = partial(batch_norm, train=train, dtype=self.dtype)
        init = uniform_fan_in if self.stem == "cifar" else he_fan_in
        layer = partial(conv, use_bias=False, kernel_init=init, dtype=self.dtype)
        x = x.astype(self.dtype)
        if self.stem == "cifar":
            x = layer(x, 2 * self.growth, 3, padding=1, name="conv")
        else:
            kind = {"kernel_init": init, "train": train, "dtype": self.dtype}
            x = stem(x, 2 * self.growth, self.stem, **kind)
        for block, layers in enumerate(self.blocks, 1):
            if block > 1:
                x = nn.relu(norm(x, name=f"transition{block - 1}_norm"))
                x = layer(x, x.shape[-1] // 2, 1, name=f"transition{block - 1}_conv")
                x = avg_pool(x, 2)
            for i in range(1, layers + 1):
                name = f"block{block}_layer{i}"
                y = nn.relu(norm(x, name=f"{name}_norm1"))
                y = layer(y, 4 * self.growth, 1, name=f"{name}_conv1")
                y = nn.relu(norm(y, name=f"{name}_norm2"))
                y = layer(y, self.growth, 3, padding=1, name=f"{name}_conv2")
                x = jnp.concatenate([x, y], axis=-1)
        x = nn.relu(norm(x, name="norm_last"))
        x = global_mean(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype, name="linear")
