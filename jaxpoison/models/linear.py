"""Dense victims: logistic regression, and an MLP with BatchNorm, its logits included or not."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import batch_norm, dense, flatten, logits
from jaxpoison.types import Victim

__all__ = ["MLP", "logistic_regression", "mlp"]


def logistic_regression(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    bias: bool = True,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """Multinomial logistic regression: z = W vec(x) + b; the linear head of features [B, 1, 1, D].

    Args:
      image_shape: (H, W, C).
      num_classes: L, at least 2.
      bias: whether there is a b.
      dtype: compute dtype; parameters and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim without statistics; features are the normalized pixels.
    Errors: InputError for a bad argument.
    """
    return mlp(
        image_shape,
        num_classes,
        hidden=(),
        batch_norm=False,
        bias=bias,
        dtype=dtype,
        mean=mean,
        std=std,
    )


def mlp(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    hidden: Sequence[int] = (128, 128),
    batch_norm: bool = True,
    logits_norm: bool | None = None,
    logits_affine: bool = True,
    slope: float = 0.0,
    bias: bool = True,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """An MLP on the flattened image: (dense, BatchNorm, ReLU) per hidden layer, dense, BatchNorm.

    BatchNorm on the logits bounds them, which keeps one-step pseudo-updates well scaled; it is
    what the MNIST networks of DeepConfuse (Feng et al. 2019, released code) do. With
    `logits_norm=False` the logits are those of an ordinary network. TGDA (Lu et al. 2022, released
    code) attacks 784-784-784-10 without BatchNorm and with slope 0.2 on MNIST.

    Args:
      image_shape: (H, W, C).
      num_classes: L, at least 2.
      hidden: widths of the hidden layers.
      batch_norm: BatchNorm after every hidden layer.
      logits_norm: BatchNorm on the logits; None for as `batch_norm`.
      logits_affine: whether that one has a scale and a shift of its own.
      slope: of the activation below 0: 0 is ReLU, above it LeakyReLU.
      bias: whether the last layer has one.
      dtype: compute dtype; parameters, statistics and logits stay float32.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim. Weights start uniform in +-1/sqrt(fan_in), biases at zero.
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    for width in hidden:
        check.at_least(1, hidden=width)
    check.number(least=0, most=1, slope=slope)
    shape = check_image_shape(image_shape)
    on_logits = batch_norm if logits_norm is None else logits_norm
    norms = batch_norm, on_logits, logits_affine
    module = MLP(num_classes, tuple(hidden), *norms, slope, bias, dtype)
    return adapt(module, shape, mean=mean, std=std)


class MLP(nn.Module):
    """See `mlp`."""

    num_classes: int = 10
    hidden: tuple[int, ...] = (128, 128)
    batch_norm: bool = True
    logits_norm: bool = True
    logits_affine: bool = True
    slope: float = 0.0
    bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = flatten(x.astype(self.dtype))
        for width in self.hidden:
            x = dense(x, width, zero_bias=True, dtype=self.dtype)
            if self.batch_norm:
                x = batch_norm(x, train=train, dtype=self.dtype)
            x = nn.leaky_relu(x, self.slope) if self.slope else nn.relu(x)
        self.sow("intermediates", "features", x)
        x = logits(x, self.num_classes, use_bias=self.bias, zero_bias=True, dtype=self.dtype)
        if not self.logits_norm:
            return x
        return batch_norm(x, train=train, affine=self.logits_affine, dtype=x.dtype)
