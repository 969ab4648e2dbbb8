"""Decoders: networks from the features of an extractor back to the images they came from."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt_decoder, check_image_shape
from jaxpoison.models.generators import compute_dtype
from jaxpoison.models.layers import batch_norm, conv, dense, repeat_pixels
from jaxpoison.types import Decoder

__all__ = ["ConvDecoder", "MLPDecoder", "conv_decoder", "mlp_decoder"]


def conv_decoder(
    features: int,
    image_shape: Sequence[int],
    *,
    width: int = 64,
    stages: int = 3,
    dtype: Any = jnp.float32,
) -> Decoder:
    """Dense, `stages` times (nearest-up x2, conv 3x3, BN, ReLU), conv 3x3, sigmoid.

    With S stages: D -> H/2^S x W/2^S x 2^S w, then 2^(S-1) w, ..., w channels at twice the size
    each, then C. 5,753,411 parameters from 512 features to 32x32x3: 4x4x512, 8x8x256, 16x16x128,
    32x32x64. Convolutions before BatchNorm have no bias.

    Ours: the decoder of Lu et al. 2024 (decoder inversion) is not published.

    Args:
      features: D.
      image_shape: (H, W, C); H and W multiples of 2^stages.
      width: w, channels of the last stage.
      stages: S, at least 1.
      dtype: compute dtype; parameters, statistics and the sigmoid stay float32.

    Returns: a Decoder. Weights and biases start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    check.at_least(1, features=features, width=width, stages=stages)
    shape = check_image_shape(image_shape, divisor=2**stages, name="conv_decoder")
    module = ConvDecoder(shape, int(width), int(stages), compute_dtype(dtype))
    return adapt_decoder(module, features, shape)


def mlp_decoder(
    features: int,
    image_shape: Sequence[int],
    *,
    hidden: Sequence[int] = (128,),
    dtype: Any = jnp.float32,
) -> Decoder:
    """(dense, ReLU) per hidden layer, dense to H W C, sigmoid: of small images and of vectors.

    Args:
      features: D.
      image_shape: (H, W, C).
      hidden: widths of the hidden layers.
      dtype: compute dtype; parameters and the sigmoid stay float32.

    Returns: a Decoder without statistics. Weights and biases start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    check.at_least(1, features=features)
    for width in hidden:
        check.at_least(1, hidden=width)
    shape = check_image_shape(image_shape)
    module = MLPDecoder(shape, tuple(map(int, hidden)), compute_dtype(dtype))
    return adapt_decoder(module, features, shape)


class ConvDecoder(nn.Module):
    """See `conv_decoder`."""

    shape: tuple[int, int, int] = (32, 32, 3)
    width: int = 64
    stages: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b h w c"]:
        """[B, D] -> image [B, H, W, C] in [0, 1]."""
        height, width, channels = self.shape
        scale = 2**self.stages
        small = (height // scale, width // scale, scale * self.width)
        x = dense(x.astype(self.dtype), math.prod(small), dtype=self.dtype, name="first")
        x = x.reshape(-1, *small)
        for i in range(self.stages):
            x, wide = repeat_pixels(x), x.shape[-1] // 2
            x = conv(x, wide, 3, padding=1, use_bias=False, dtype=self.dtype, name=f"up{i + 1}")
            x = nn.relu(batch_norm(x, train=train, dtype=self.dtype, name=f"norm{i + 1}"))
        return _pixels(conv(x, channels, 3, padding=1, dtype=self.dtype, name="last"))


class MLPDecoder(nn.Module):
    """See `mlp_decoder`."""

    shape: tuple[int, int, int] = (8, 8, 1)
    hidden: tuple[int, ...] = (128,)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b h w c"]:
        """[B, D] -> image [B, H, W, C] in [0, 1]."""
        del train
        x = x.astype(self.dtype)
        for width in self.hidden:
            x = nn.relu(dense(x, width, dtype=self.dtype))
        x = dense(x, math.prod(self.shape), dtype=self.dtype)
        return _pixels(x).reshape(-1, *self.shape)


def _pixels(x: Float[Array, "b *d"]) -> Float[Array, "b *d"]:
    return nn.sigmoid(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
