"""A dense generator, for images as small as the digits of scikit-learn."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.models.generators import compute_dtype, direction, shipped
from jaxpoison.models.layers import batch_norm, dense, flatten
from jaxpoison.types import Generator

__all__ = ["MLPGenerator", "mlp_generator"]


def mlp_generator(
    image_shape: Sequence[int],
    *,
    hidden: Sequence[int] = (256, 256),
    dtype: Any = jnp.float32,
) -> Generator:
    """A generator on the flattened image: (dense, BN, ReLU) per hidden layer, dense, BN, tanh.

    99,456 parameters on 8x8x1. Ours: the network of the calibration runs on digits, without biases,
    which BatchNorm takes away again: their gradient is rounding, and Adam would make steps of it.

    Args:
      image_shape: (H, W, C), any size.
      hidden: widths of the hidden layers.
      dtype: compute dtype; parameters, statistics and the last BN and tanh stay float32.

    Returns: a Generator. Weights start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    for width in hidden:
        check.at_least(1, hidden=width)
    shape = check_image_shape(image_shape)
    hidden, dtype = tuple(map(int, hidden)), compute_dtype(dtype)
    module = MLPGenerator(hidden, dtype)
    return shipped("mlp_generator", module, shape, hidden=hidden, dtype=dtype)


class MLPGenerator(nn.Module):
    """See `mlp_generator`."""

    hidden: tuple[int, ...] = (256, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """[B, H, W, C] -> direction [B, H, W, C] in [-1, 1]."""
        shape = x.shape
        x = flatten(x.astype(self.dtype))
        for width in self.hidden:
            x = dense(x, width, use_bias=False, dtype=self.dtype)
            x = nn.relu(batch_norm(x, train=train, dtype=self.dtype))
        x = dense(x, math.prod(shape[1:]), use_bias=False, dtype=self.dtype)
        return direction(x, train=train).reshape(shape)
