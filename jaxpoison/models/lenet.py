"""Two 5x5 convolutions: DeepConfuse's MNIST classifiers with BatchNorm, and LeNet-5 without."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import avg_pool, batch_norm, conv, dense, flatten, logits, max_pool
from jaxpoison.types import Victim

__all__ = ["LeNet", "LeNet5", "lenet", "lenet5"]

_SIZES = {"small": (10, 25, 250), "normal": (20, 50, 500), "large": (40, 100, 1000)}


def lenet(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    size: str = "normal",
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """LeNet with BatchNorm: twice (conv 5x5, BN, ReLU, average-pool 2), dense, BN, ReLU, dense, BN.

    Source: Feng et al. 2019 (DeepConfuse), released MNIST code. On 28x28x1 the sizes small,
    normal and large have 109,885, 432,240 and 1,714,450 parameters.

    Args:
      image_shape: (H, W, C); H and W at least 16.
      num_classes: L, at least 2.
      size: "small", "normal" or "large": channels (10, 25), (20, 50) or (40, 100) and 250, 500 or
        1000 hidden units.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Weights and biases start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.one_of(_SIZES, size=size)
    shape = check_image_shape(image_shape, at_least=16, name="lenet")
    return adapt(LeNet(num_classes, *_SIZES[size], dtype=dtype), shape, mean=mean, std=std)


def lenet5(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """LeNet-5 with ReLU: twice (conv 5x5, ReLU, max-pool 2), 6 and 16 channels, dense 120, 84.

    62,006 parameters on 32x32x3.

    Source: Lu et al. 2022 (TGDA), released CIFAR-10 code; after LeCun et al. 1998.

    Args:
      image_shape: (H, W, C); H and W at least 16.
      num_classes: L, at least 2.
      dtype: compute dtype; parameters and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim without statistics. Weights and biases start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    shape = check_image_shape(image_shape, at_least=16, name="lenet5")
    return adapt(LeNet5(num_classes, dtype), shape, mean=mean, std=std)


class LeNet(nn.Module):
    """See `lenet`."""

    num_classes: int = 10
    first: int = 20
    second: int = 50
    hidden: int = 500
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        for width in (self.first, self.second):
            x = batch_norm(conv(x, width, 5, dtype=self.dtype), train=train, dtype=self.dtype)
            x = avg_pool(nn.relu(x), 2)
        x = dense(flatten(x), self.hidden, dtype=self.dtype)
        x = nn.relu(batch_norm(x, train=train, dtype=self.dtype))
        self.sow("intermediates", "features", x)
        x = logits(x, self.num_classes, dtype=self.dtype)
        return batch_norm(x, train=train, dtype=x.dtype)


class LeNet5(nn.Module):
    """See `lenet5`."""

    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        del train
        x = x.astype(self.dtype)
        for width in (6, 16):
            x = max_pool(nn.relu(conv(x, width, 5, dtype=self.dtype)), 2)
        x = flatten(x)
        for width in (120, 84):
            x = nn.relu(dense(x, width, dtype=self.dtype))
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype)
