"""The two auto-encoders that DeepConfuse trains as its generators: of MNIST and of ImageNet."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.models.conv_transpose import ConvTranspose
from jaxpoison.models.generators import compute_dtype, direction, shipped
from jaxpoison.models.layers import batch_norm, conv, max_pool
from jaxpoison.types import Generator, InputError

__all__ = ["Autoencoder4x4", "MNISTAutoencoder", "autoencoder4x4", "mnist_autoencoder"]


def mnist_autoencoder(
    image_shape: Sequence[int], *, width: int = 16, dtype: Any = jnp.float32
) -> Generator:
    """The MNIST generator of DeepConfuse: 288,963 parameters at width 16 and one channel.

    Encoder: conv k3 s3 p1 to w, BN, ReLU, max-pool 2; conv k3 s2 p1 to 4w, BN, ReLU, max-pool 2 of
    stride 1. Decoder, transposed: k3 s2 p0 to 8w, BN, ReLU; k5 s3 p1 to 4w, BN, ReLU; k2 s2 p1 to C
    channels, BN, tanh. 28x28 becomes 10, 5, 3, 2, then 5, 15, 28.

    Source: Feng et al. 2019, released MNIST code (class Autoencoder).

    Args:
      image_shape: (H, W, C); H and W each 12 n + 4 with n >= 1, as in 16, 28, 40: only those come
        back in their own size.
      width: w.
      dtype: compute dtype; parameters, statistics and the last BN and tanh stay float32.

    Returns: a Generator. Weights and biases start uniform in +-1/sqrt(fan_in), those of the
      transposed convolutions in +-1/sqrt(O K K).
    Errors: InputError for a bad argument.
    """
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape, at_least=16, name="mnist_autoencoder")
    if any(n % 12 != 4 for n in shape[:2]):
        raise InputError(
            f"image_shape = {shape}; height and width must be 16, 28, 40 or another 12 n + 4 for "
            "mnist_autoencoder"
        )
    dtype = compute_dtype(dtype)
    module = MNISTAutoencoder(shape[2], int(width), dtype)
    return shipped("mnist_autoencoder", module, shape, width=int(width), dtype=dtype)


def autoencoder4x4(
    image_shape: Sequence[int], *, width: int = 16, dtype: Any = jnp.float32
) -> Generator:
    """The ImageNet generator of DeepConfuse: 346,659 parameters at width 16 and 3 channels.

    Convolutions k4 s2 p1 to w, 2w, 4w, 8w channels, then transposed ones to 4w, 2w, w and C, BN and
    ReLU after all but the last, which tanh follows.

    Source: Feng et al. 2019, section 5.1 and the released ImageNet code.

    Args:
      image_shape: (H, W, C); H and W multiples of 16.
      width: w.
      dtype: compute dtype; parameters, statistics and the tanh stay float32.

    Returns: a Generator; it starts as `mnist_autoencoder`.
    Errors: InputError for a bad argument.
    """
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape, divisor=16, name="autoencoder4x4")
    dtype = compute_dtype(dtype)
    module = Autoencoder4x4(shape[2], int(width), dtype)
    return shipped("autoencoder4x4", module, shape, width=int(width), dtype=dtype)


class MNISTAutoencoder(nn.Module):
    """See `mnist_autoencoder`."""

    channels: int = 1
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """[B, H, W, C] -> direction [B, H, W, C] in [-1, 1]."""
        w, x = self.width, x.astype(self.dtype)

        def active(x: Array, name: str) -> Array:
            return nn.relu(batch_norm(x, train=train, dtype=self.dtype, name=name))

        def up(x: Array, features: int, kernel: int, stride: int, padding: int, i: int) -> Array:
            layer = ConvTranspose(
                features, kernel, stride, padding, dtype=self.dtype, name=f"up{i}"
            )
            return layer(x)

        x = conv(x, w, 3, stride=3, padding=1, dtype=self.dtype, name="down1")
        x = max_pool(active(x, "norm_down1"), 2)
        x = conv(x, 4 * w, 3, stride=2, padding=1, dtype=self.dtype, name="down2")
        x = max_pool(active(x, "norm_down2"), 2, stride=1)
        x = active(up(x, 8 * w, 3, 2, 0, 1), "norm_up1")
        x = active(up(x, 4 * w, 5, 3, 1, 2), "norm_up2")
        return direction(up(x, self.channels, 2, 2, 1, 3), train=train)


class Autoencoder4x4(nn.Module):
    """See `autoencoder4x4`."""

    channels: int = 3
    width: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """[B, H, W, C] -> direction [B, H, W, C] in [-1, 1]."""
        x = x.astype(self.dtype)

        def active(x: Array, name: str) -> Array:
            return nn.relu(batch_norm(x, train=train, dtype=self.dtype, name=name))

        def up(x: Array, features: int, i: int) -> Array:
            return ConvTranspose(features, 4, 2, 1, dtype=self.dtype, name=f"up{i}")(x)

        for i, factor in enumerate((1, 2, 4, 8), 1):
            width = factor * self.width
            x = conv(x, width, 4, stride=2, padding=1, dtype=self.dtype, name=f"down{i}")
            x = active(x, f"norm_down{i}")
        for i, factor in enumerate((4, 2, 1), 1):
            x = active(up(x, factor * self.width, i), f"norm_up{i}")
        return direction(up(x, self.channels, 4), train=train, norm=False)
