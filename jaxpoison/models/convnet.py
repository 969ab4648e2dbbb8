"""Convolutional victims: fast nets of two layers, and the ConvNets of gradient matching."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models import layers
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import avg_pool, conv, flatten, logits, max_pool
from jaxpoison.types import Victim

__all__ = ["ConvNet", "DropoutCNN", "SmallCNN", "convnet", "dropout_cnn", "small_cnn"]


def small_cnn(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    widths: Sequence[int] = (16, 32),
    kernel: int = 3,
    pool: str = "average",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """The victim for two CPU cores: (conv, ReLU, pool 2) per width, then linear.

    Average pools keep it cheap: about 26 ms of CPU time a training step at 125 images of 28x28x1.
    With `kernel=5, pool="max"` it is the MNIST CNN of TGDA (Lu et al. 2022, released code).

    Args:
      image_shape: (H, W, C); H and W at least 2^len(widths).
      num_classes: L, at least 2.
      widths: channels of each convolution.
      kernel: side of each, odd; they keep the size of the image.
      pool: "average" or "max", over 2x2.
      dtype: compute dtype; parameters and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim without statistics.
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    for width in widths:
        check.at_least(1, widths=width)
    check.one_of((1, 3, 5, 7), kernel=kernel)
    check.one_of(tuple(_POOLS), pool=pool)
    shape = check_image_shape(image_shape, at_least=2 ** len(widths), name="small_cnn")
    module = SmallCNN(num_classes, tuple(widths), kernel, pool, dtype)
    return adapt(module, shape, mean=mean, std=std)


def convnet(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    batch_norm: bool = False,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """The ConvNet of gradient matching: conv w, 2w, 2w, 4w, pool 3, conv 4w, pool 3, linear.

    With `batch_norm` ConvNetBN: conv w, 2w, 2w, 4w, 4w, 4w, pool 3, conv 4w, 4w, pool 3, linear,
    and BatchNorm before each ReLU. Pools take the maximum of 3x3; convolutions have a bias.

    Source: Geiping et al. 2021 (Witches' Brew), released code, at width 64: ConvNet64 has 1,131,530
    parameters on 32x32x3 (289,290 at width 32), ConvNetBN 2,904,970.

    Args:
      image_shape: (H, W, C); H and W at least 9.
      num_classes: L, at least 2.
      width: w, channels of the first convolution.
      batch_norm: the deeper network, with BatchNorm.
      dtype: compute dtype; parameters and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim, without statistics unless `batch_norm`.
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape, at_least=9, name="convnet")
    module = ConvNet(num_classes, width, batch_norm=batch_norm, dtype=dtype)
    return adapt(module, shape, mean=mean, std=std)


def dropout_cnn(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """The MNIST network of PyTorch's example, which gradient canceling is shown on.

    Conv 3x3 (32), ReLU, conv 3x3 (64), ReLU, both without padding, max-pool 2, dropout 0.25,
    dense 128, ReLU, dropout 0.5, dense: 1,199,882 parameters on 28x28x1.

    Args:
      image_shape: (H, W, C); H and W at least 6.
      num_classes: L, at least 2.
      dtype: compute dtype; parameters and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim without statistics.
    Errors: InputError for a bad argument.
    Source: Lu et al. 2023 (gradient canceling), released code.
    """
    check.at_least(2, num_classes=num_classes)
    shape = check_image_shape(image_shape, at_least=6, name="dropout_cnn")
    return adapt(DropoutCNN(num_classes, dtype), shape, mean=mean, std=std)


_POOLS = {"average": avg_pool, "max": max_pool}


class SmallCNN(nn.Module):
    """See `small_cnn`."""

    num_classes: int = 10
    widths: tuple[int, ...] = (16, 32)
    kernel: int = 3
    pool: str = "average"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        del train
        x = x.astype(self.dtype)
        for width in self.widths:
            x = conv(x, width, self.kernel, padding=self.kernel // 2, dtype=self.dtype)
            x = _POOLS[self.pool](nn.relu(x), 2)
        x = flatten(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype)


class DropoutCNN(nn.Module):
    """See `dropout_cnn`."""

    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        for width in (32, 64):
            x = nn.relu(conv(x, width, 3, dtype=self.dtype))
        x = nn.Dropout(0.25, deterministic=not train)(max_pool(x, 2))
        x = nn.relu(layers.dense(flatten(x), 128, dtype=self.dtype))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype)


class ConvNet(nn.Module):
    """See `convnet`."""

    num_classes: int = 10
    width: int = 64
    batch_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        groups = ((1, 2, 2, 4, 4, 4), (4, 4)) if self.batch_norm else ((1, 2, 2, 4), (4,))
        for factors in groups:
            for factor in factors:
                x = conv(x, factor * self.width, 3, padding=1, dtype=self.dtype)
                if self.batch_norm:
                    x = layers.batch_norm(x, train=train, dtype=self.dtype)
                x = nn.relu(x)
            x = max_pool(x, 3)
        x = flatten(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype)
