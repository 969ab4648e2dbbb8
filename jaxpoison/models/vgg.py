"""VGG networks with BatchNorm in their CIFAR form: one linear layer after the convolutions."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import batch_norm, conv, flatten, global_mean, logits, max_pool
from jaxpoison.types import Victim

__all__ = ["VGG", "vgg11", "vgg13", "vgg16", "vgg19"]

_WIDTHS = (1, 2, 4, 8, 8)


def vgg11(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    bottleneck: int | None = None,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """VGG-11 with BatchNorm: 9,231,114 parameters (width 64, 3 channels, 10 classes).

    Five groups of 1, 1, 2, 2, 2 layers (conv 3x3 with bias, BN, ReLU), widths w, 2w, 4w, 8w, 8w,
    each group followed by a max-pool of 2; a sixth pool where they leave 2x2 pixels, as of 64x64;
    then the mean over what is left of the image (one pixel of 32x32 and 64x64) and a linear layer.
    `bottleneck=2` is the surrogate of DeepConfuse's released code, a 1x1 convolution to 2 channels
    before the linear layer: 9,227,040 parameters.

    Source: Simonyan and Zisserman 2015, table 1 A; CIFAR form as in the code of Geiping et al.
    2021, Liu et al. 2024 and Feng et al. 2019, the sixth pool as in the first of these ("VGG16-TI",
    for TinyImageNet). The mean is ours: it makes the same network fit images of other sizes.

    Args:
      image_shape: (H, W, C); H and W at least 32.
      num_classes: L, at least 2.
      width: w, channels of the first group.
      bottleneck: channels between the convolutions and the linear layer; None for no such layer.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Weights and biases start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    module = _vgg((1, 1, 2, 2, 2), num_classes, width, bottleneck, dtype)
    shape = check_image_shape(image_shape, at_least=32, name="vgg11")
    return adapt(module, shape, mean=mean, std=std)


def vgg13(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    bottleneck: int | None = None,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """VGG-13, groups of 2, 2, 2, 2, 2: 9,416,010 parameters. All else as in `vgg11`."""
    module = _vgg((2, 2, 2, 2, 2), num_classes, width, bottleneck, dtype)
    shape = check_image_shape(image_shape, at_least=32, name="vgg13")
    return adapt(module, shape, mean=mean, std=std)


def vgg16(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    bottleneck: int | None = None,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """VGG-16, groups of 2, 2, 3, 3, 3: 14,728,266 parameters. All else as in `vgg11`."""
    module = _vgg((2, 2, 3, 3, 3), num_classes, width, bottleneck, dtype)
    shape = check_image_shape(image_shape, at_least=32, name="vgg16")
    return adapt(module, shape, mean=mean, std=std)


def vgg19(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    bottleneck: int | None = None,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """VGG-19, groups of 2, 2, 4, 4, 4: 20,040,522 parameters. All else as in `vgg11`."""
    module = _vgg((2, 2, 4, 4, 4), num_classes, width, bottleneck, dtype)
    shape = check_image_shape(image_shape, at_least=32, name="vgg19")
    return adapt(module, shape, mean=mean, std=std)


def _vgg(
    layers: tuple[int, ...], num_classes: int, width: int, bottleneck: int | None, dtype: Any
) -> nn.Module:
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, width=width)
    if bottleneck is not None:
        check.at_least(1, bottleneck=bottleneck)
    return VGG(num_classes, width, layers, bottleneck, dtype)


class VGG(nn.Module):
    """See `vgg11`; `layers` convolutions per group."""

    num_classes: int = 10
    width: int = 64
    layers: tuple[int, ...] = (1, 1, 2, 2, 2)
    bottleneck: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        for factor, layers in zip(_WIDTHS, self.layers, strict=True):
            for _ in range(layers):
                x = conv(x, factor * self.width, 3, padding=1, dtype=self.dtype)
                x = nn.relu(batch_norm(x, train=train, dtype=self.dtype))
            x = max_pool(x, 2)
        if x.shape[1:3] == (2, 2):
            x = max_pool(x, 2)
        x = global_mean(x)[:, None, None]
        if self.bottleneck is not None:
            x = conv(x, self.bottleneck, 1, dtype=self.dtype, name="bottleneck")
        x = flatten(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype, name="linear")
