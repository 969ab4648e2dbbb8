"""The ConvNet of MetaPoison: five small convolutions and a linear layer."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models import layers
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import conv, flatten, logits, max_pool
from jaxpoison.types import Victim

__all__ = ["MetaPoisonConvNet", "metapoison_convnet"]


def metapoison_convnet(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 16,
    batch_norm: bool = False,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """Five times (conv 3x3, ReLU, max-pool 2), widths w, 2w, 2w, 4w, 4w, then linear.

    With `batch_norm` a BatchNorm stands behind each ReLU. Convolutions have a bias. 70,410
    parameters on 32x32x3 with 10 classes, 70,826 with BatchNorm; 2.65 M multiply-adds per image.

    Source: "alexnet-mp" and "alexnet-mp-bn" of Geiping et al. 2021 (Witches' Brew), released code,
    after the network of Huang et al. 2020 (MetaPoison), whose own TensorFlow form has BatchNorm
    before ReLU, Xavier initialization and no bias in its convolutions.

    Args:
      image_shape: (H, W, C); H and W at least 32.
      num_classes: L, at least 2.
      width: w, channels of the first convolution.
      batch_norm: BatchNorm behind each ReLU.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim, without statistics unless `batch_norm`. Weights and biases start uniform in
      +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape, at_least=32, name="metapoison_convnet")
    module = MetaPoisonConvNet(num_classes, width, batch_norm=batch_norm, dtype=dtype)
    return adapt(module, shape, mean=mean, std=std)


class MetaPoisonConvNet(nn.Module):
    """See `metapoison_convnet`."""

    num_classes: int = 10
    width: int = 16
    batch_norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        for factor in (1, 2, 2, 4, 4):
            x = nn.relu(conv(x, factor * self.width, 3, padding=1, dtype=self.dtype))
            if self.batch_norm:
                x = layers.batch_norm(x, train=train, dtype=self.dtype)
            x = max_pool(x, 2)
        x = flatten(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype)
