"""Transposed convolution for generators and decoders, on the canonical convolution."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison.models.conv import conv_general_dilated

__all__ = ["ConvTranspose"]


class ConvTranspose(nn.Module):
    """Transposed convolution in PyTorch's padding: n -> (n - 1) stride - 2 padding + kernel.

    y[s q + k - p] += x[q] w[k], written as a convolution of the dilated image with the kernel
    flipped in space: the parameter `kernel` [K, K, I, O] is that flipped kernel, so a PyTorch
    weight [I, O, K, K] enters as `weight.transpose(2, 3, 0, 1)[::-1, ::-1]`.

    Attributes:
      features: output channels O.
      kernel: side K of the kernel.
      stride: s.
      padding: p, rows cut from each side of the full output.
      use_bias: add a bias per channel.
      dtype: compute dtype; parameters are float32.

    Init: kernel and bias uniform in +-1/sqrt(O K K), PyTorch's default.
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n y z o"]:
        """[N, H, W, I] -> [N, (H-1)s-2p+K, (W-1)s-2p+K, O]."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        kernel = self.param("kernel", uniform, shape)
        pad = self.kernel - 1 - self.padding
        y = conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            [(pad, pad)] * 2,
            lhs_dilation=(self.stride,) * 2,
        )
        if self.use_bias:
            bound = (self.features * self.kernel**2) ** -0.5
            bias = self.param(
                "bias",
                lambda key, n: jax.random.uniform(key, n, minval=-bound, maxval=bound),
                (self.features,),
            )
            wide = jnp.promote_types(self.dtype, jnp.float32)  # the bias's gradient is a long sum
            y = (y + bias.astype(wide).reshape(1, 1, 1, -1)).astype(self.dtype)
        return y
