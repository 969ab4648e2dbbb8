"""The first layers of residual and dense networks, for small and for large images."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jaxtyping import Array, Float

from jaxpoison.models.layers import conv_norm, he_fan_out, max_pool

__all__ = ["STEMS", "stem"]

STEMS = ("cifar", "tiny_imagenet", "imagenet")
"""How far the first layers shrink an image: not at all, by 2, by 4."""


def stem(
    x: Float[Array, "n h w c"],
    features: int,
    form: str,
    *,
    train: bool,
    dtype: Any,
    kernel_init: Initializer = he_fan_out,
) -> Float[Array, "n y z f"]:
    """relu(BN(conv x)): 3x3 for "cifar"; 7x7 of stride 2 else; for "imagenet" then a max-pool.

    Args:
      x: [N, H, W, C].
      features: F, channels of the convolution.
      form: one of STEMS. The pool is 3x3 of stride 2 with padding 1.
      train: batch statistics in BatchNorm, or running ones.
      dtype: compute dtype.
      kernel_init: of the convolution.

    Returns: [N, ceil(H / s), ceil(W / s), F] with s = 1, 2 or 4.
    Source: He et al. 2016 ("imagenet", and "cifar" of its section 4.2); Geiping et al. 2021,
      released code, for TinyImageNet.
    """
    kernel, stride = (3, 1) if form == "cifar" else (7, 2)
    kind = {"kernel_init": kernel_init, "train": train, "dtype": dtype}
    x = nn.relu(conv_norm(x, features, kernel, stride=stride, **kind))
    if form != "imagenet":
        return x
    # After a ReLU a padding of zeros equals one of minus infinity.
    return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, stride=2)
