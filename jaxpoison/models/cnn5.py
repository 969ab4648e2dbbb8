"""The surrogate of DeepConfuse on natural images: five convolutions and a linear layer."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import batch_norm, conv, global_mean, logits, max_pool
from jaxpoison.types import Victim

__all__ = ["CNN5", "cnn5"]


def cnn5(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 32,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """Five times (conv 3x3, BN, ReLU, max-pool 2), widths w, 2w, 4w, 4w, 4w, then linear.

    390,666 parameters at width 32, 3 channels and 10 classes. What the pools leave is averaged:
    nothing of 32x32 images (one pixel is left), an average-pool of 7 on 224x224, as in the source.

    Source: Feng et al. 2019 (DeepConfuse), section 5.1, with the BN of the released ImageNet code;
    its "small" and "large" are `width=16` and `width=64`.

    Args:
      image_shape: (H, W, C); H and W at least 32.
      num_classes: L, at least 2.
      width: w, channels of the first convolution.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Weights and biases start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape, at_least=32, name="cnn5")
    return adapt(CNN5(num_classes, width, dtype), shape, mean=mean, std=std)


class CNN5(nn.Module):
    """See `cnn5`."""

    num_classes: int = 10
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = x.astype(self.dtype)
        for factor in (1, 2, 4, 4, 4):
            x = conv(x, factor * self.width, 3, padding=1, dtype=self.dtype)
            x = max_pool(nn.relu(batch_norm(x, train=train, dtype=self.dtype)), 2)
        x = global_mean(x)
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, dtype=self.dtype, name="linear")
