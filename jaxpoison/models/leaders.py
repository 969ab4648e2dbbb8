"""The leader networks of TGDA: an added point from its base image, and from its label or not."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.models.conv_transpose import ConvTranspose
from jaxpoison.models.layers import conv, dense, flatten
from jaxpoison.types import InputError, Leader, Variables

__all__ = ["ConvLeader", "MLPLeader", "adapt_leader", "conv_leader", "mlp_leader"]


def mlp_leader(
    image_shape: Sequence[int],
    *,
    hidden: Sequence[int] | None = None,
    slope: float = 0.2,
    dtype: Any = jnp.float32,
) -> Leader:
    """X = (1 + tanh(f([y, 2 b - 1]))) / 2, f dense with LeakyReLU: inside the box by construction.

    1 + D inputs, the label as a number and the base image in [-1, 1]; on 28x28x1 it is
    785-784-784-784 with 1,847,104 parameters.

    Source: Lu et al. 2022 (TGDA), released code, MNIST.

    Args:
      image_shape: (H, W, C).
      hidden: widths of the hidden layers; None for two of D = H W C.
      slope: of LeakyReLU below 0.
      dtype: compute dtype; parameters stay float32, and so does the tanh.

    Returns: a Leader. Weights and biases start uniform in +-1/sqrt(fan_in).
    Errors: InputError for a bad argument.
    """
    shape = check_image_shape(image_shape)
    widths = (math.prod(shape),) * 2 if hidden is None else tuple(hidden)
    for width in widths:
        check.at_least(1, hidden=width)
    check.number(least=0, most=1, slope=slope)
    return adapt_leader(MLPLeader(widths, slope, dtype), shape)


def conv_leader(image_shape: Sequence[int], *, width: int = 12, dtype: Any = jnp.float32) -> Leader:
    """X = (1 + f(2 b - 1)) / 2: convolutions k4 s2 p1 to w, 2w, 4w, then transposed ones back.

    ReLU between them, nothing behind the last: the box is the caller's (`perturb.Constraint`). The
    label is not read. On 32x32x3 at width 12: 3-12-24-48-24-12-3, 47,355 parameters.

    Source: Lu et al. 2022 (TGDA), released code, CIFAR-10.

    Args:
      image_shape: (H, W, C); H and W multiples of 8.
      width: w.
      dtype: compute dtype; parameters stay float32.

    Returns: a Leader. It starts as PyTorch's layers do.
    Errors: InputError for a bad argument.
    """
    check.at_least(1, width=width)
    shape = check_image_shape(image_shape, divisor=8, name="conv_leader")
    return adapt_leader(ConvLeader(shape[2], int(width), dtype), shape)


def adapt_leader(module: nn.Module, image_shape: Sequence[int]) -> Leader:
    """The pure functions of a linen network that makes added points.

    Args:
      module: its `__call__(self, image [B, H, W, C] in [0, 1], label [B])` returns images, without
        BatchNorm or dropout.
      image_shape: (H, W, C).

    Returns: a Leader; images are at least float32.
    Errors: InputError for a bad shape; when called, for collections other than params, images of
      another shape, or an output that is none.
    """
    shape, name = check_image_shape(image_shape), type(module).__name__

    def init(key):
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        label = jax.ShapeDtypeStruct((1,), jnp.int32)
        collections = unfreeze(module.lazy_init(key, image, label))
        if others := set(collections) - {"params", "intermediates"}:
            raise InputError(f"{name} has collections {sorted(others)}: a leader has params alone")
        return Variables(collections.get("params", {}), {})

    def apply(variables, image, label):
        if image.shape[1:] != shape:
            raise InputError(f"images are {image.shape}, the network takes (batch, *{shape})")
        made: Any = module.apply({"params": variables.params}, image, label)
        if made.shape != image.shape:
            raise InputError(f"{name} returns {made.shape} for images {image.shape}")
        return made.astype(jnp.promote_types(made.dtype, jnp.float32))

    return Leader(init, apply)


class MLPLeader(nn.Module):
    """See `mlp_leader`."""

    hidden: tuple[int, ...]
    slope: float = 0.2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], label: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """Base images in [0, 1] and labels -> images in [0, 1]."""
        pixels = 2 * flatten(image.astype(self.dtype)) - 1
        x = jnp.concatenate([label.astype(self.dtype)[:, None], pixels], axis=1)
        for width in self.hidden:
            x = nn.leaky_relu(dense(x, width, dtype=self.dtype), self.slope)
        x = dense(x, pixels.shape[1], dtype=self.dtype).reshape(image.shape)
        return (1 + jnp.tanh(x.astype(jnp.promote_types(x.dtype, jnp.float32)))) / 2


class ConvLeader(nn.Module):
    """See `conv_leader`."""

    channels: int
    width: int = 12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], label: Int[Array, " b"]
    ) -> Float[Array, "b h w c"]:
        """Base images in [0, 1] -> images; the label is not read."""
        del label
        x, w = 2 * image.astype(self.dtype) - 1, self.width
        for i, width in enumerate((w, 2 * w, 4 * w), 1):
            x = nn.relu(conv(x, width, 4, stride=2, padding=1, dtype=self.dtype, name=f"down{i}"))
        for i, width in enumerate((2 * w, w), 1):
            x = nn.relu(ConvTranspose(width, 4, 2, 1, dtype=self.dtype, name=f"up{i}")(x))
        x = ConvTranspose(self.channels, 4, 2, 1, dtype=self.dtype, name="up3")(x)
        return (1 + x) / 2
