"""The U-Net that DeepConfuse and GUE train as their generator on CIFAR images."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.models.generators import compute_dtype, direction, shipped
from jaxpoison.models.layers import avg_pool, batch_norm, conv, upsample
from jaxpoison.types import Generator

__all__ = ["DoubleConv", "UNet", "unet"]


def unet(image_shape: Sequence[int], *, width: int = 64, dtype: Any = jnp.float32) -> Generator:
    """U-Net of four levels: 7,788,681 parameters at width 64 and 3 channels.

    Down: (conv 3x3, BN, ReLU) twice at widths w, 2w, 4w, 8w, an average-pool of 2 between them. Up:
    bilinear to twice the size with aligned corners, joined as [up, skip], (conv 3x3, BN, ReLU)
    twice at 4w, 2w, w. Then conv 1x1 to C channels, BN, tanh.

    Source: Ronneberger et al. 2015 in the form of the released code of Feng et al. 2019
    (DeepConfuse, CIFAR-10) and Liu et al. 2024 (GUE).

    Args:
      image_shape: (H, W, C); H and W multiples of 8.
      width: w.
      dtype: compute dtype; parameters, statistics and the last BN and tanh stay float32.

    Returns: a Generator. Weights and biases start uniform in +-1/sqrt(fan_in). The last BN makes
      untrained directions about 0.55 in mean size in train mode; they are smaller in eval mode
      until the running statistics have followed.
    Errors: InputError for a bad argument.
    """
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape, divisor=8, name="unet")
    dtype = compute_dtype(dtype)
    module = UNet(shape[2], int(width), dtype)
    return shipped("unet", module, shape, width=int(width), dtype=dtype)


class UNet(nn.Module):
    """See `unet`."""

    channels: int = 3
    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """[B, H, W, C] -> direction [B, H, W, C] in [-1, 1]."""

        def block(x: Array, factor: int, name: str) -> Array:
            return DoubleConv(factor * self.width, self.dtype, name=name)(x, train=train)

        skips = [block(x.astype(self.dtype), 1, "down1")]
        for level, factor in ((2, 2), (3, 4), (4, 8)):
            skips.append(block(avg_pool(skips[-1], 2), factor, f"down{level}"))
        x = skips.pop()
        for level, factor in ((3, 4), (2, 2), (1, 1)):
            x = jnp.concatenate([upsample(x), skips.pop()], axis=-1)
            x = block(x, factor, f"up{level}")
        x = conv(x, self.channels, 1, dtype=self.dtype, name="last")
        return direction(x, train=train)


class DoubleConv(nn.Module):
    """Twice relu(BN(conv 3x3))."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w f"]:
        """[B, H, W, C] -> [B, H, W, features]."""
        for i in ("1", "2"):
            x = conv(x, self.features, 3, padding=1, dtype=self.dtype, name=f"conv{i}")
            x = nn.relu(batch_norm(x, train=train, dtype=self.dtype, name=f"norm{i}"))
        return x
