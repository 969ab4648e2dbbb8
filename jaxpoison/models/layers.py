"""Layers every shipped network is made of: canonical convolution, dense, BatchNorm, pools.

The functions are called inside a module's `nn.compact` method, as flax's own layers are.
Initialization: weights and biases uniform in +-1/sqrt(fan_in), unless an argument says otherwise.
A compute dtype below float32 is that of the operands and results of convolutions and dense layers:
biases are added, means taken and logits given in float32, and so are the sums of their derivatives.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Initializer
from jax import lax
from jaxtyping import Array, Float

from jaxpoison.models.conv import conv_general_dilated

__all__ = [
    "avg_pool",
    "batch_norm",
    "conv",
    "conv_norm",
    "dense",
    "depthwise_conv",
    "flatten",
    "global_mean",
    "he_fan_in",
    "he_fan_out",
    "logits",
    "max_pool",
    "repeat_pixels",
    "uniform_fan_in",
    "upsample",
]

uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv(
    x: Float[Array, "n h w i"],
    features: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    use_bias: bool = True,
    kernel_init: Initializer = uniform_fan_in,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> Float[Array, "n y z o"]:
    """A square convolution on the canonical primitive, n -> floor((n + 2p - k) / s) + 1.

    Init: uniform +-1/sqrt(fan_in) for the bias, and for the kernel unless told otherwise.
    """
    layer = nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=_uniform_bias(kernel * kernel * x.shape[-1]),
        dtype=dtype,
        promote_dtype=_wide_bias,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )
    return layer(x).astype(dtype)


def depthwise_conv(
    x: Float[Array, "n h w c"],
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    kernel_init: Initializer = uniform_fan_in,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> Float[Array, "n y z c"]:
    """One k x k kernel per channel, no bias, n -> floor((n + 2p - k) / s) + 1.

    On CPU the sum of k^2 shifted products, in derivatives too; elsewhere a grouped convolution.
    """
    layer = nn.Conv(
        x.shape[-1],
        (kernel, kernel),
        strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        feature_group_count=x.shape[-1],
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )
    return layer(x)


def conv_norm(
    x: Float[Array, "n h w i"],
    features: int,
    kernel: int,
    *,
    train: bool,
    stride: int = 1,
    kernel_init: Initializer = he_fan_out,
    dtype: Any = jnp.float32,
    name: str = "",
) -> Float[Array, "n y z o"]:
    """BatchNorm of a convolution without bias, n -> ceil(n / s): layers conv<name>, norm<name>."""
    x = conv(
        x,
        features,
        kernel,
        stride=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        name=f"conv{name}",
    )
    return batch_norm(x, train=train, dtype=dtype, name=f"norm{name}")


def dense(
    x: Float[Array, "*n d"], features: int, *, dtype: Any = jnp.float32, **options: Any
) -> Float[Array, "*n o"]:
    """X W + b in `dtype`; `options` as in `logits`."""
    return _dense(x, features, lax.dot_general, dtype=dtype, **options).astype(dtype)


def logits(
    x: Float[Array, "n d"], num_classes: int, *, dtype: Any = jnp.float32, **options: Any
) -> Float[Array, "n l"]:
    """Z = X W + b, the last layer: x and W rounded to `dtype`, sums and z at least float32.

    Options: `use_bias` (True), `zero_bias` (False), `kernel_init` (uniform +-1/sqrt(D)), `name`.
    Init of b: uniform +-1/sqrt(D) unless `zero_bias`.
    """
    product = functools.partial(lax.dot_general, preferred_element_type=_wide(dtype))
    return _dense(x, num_classes, product, dtype=dtype, **options)


def batch_norm(
    x: Float[Array, "n *space c"],
    *,
    train: bool,
    affine: bool = True,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> Float[Array, "n *space c"]:
    """BatchNorm, eps 1e-5; statistics <- 0.9 statistics + 0.1 batch (biased variance), float32.

    Without `affine` it has no scale and no shift of its own.
    """
    layer = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        use_scale=affine,
        use_bias=affine,
        name=name,
    )
    return layer(x)


def flatten(x: Float[Array, "n ..."]) -> Float[Array, "n d"]:
    """[N, ...] -> [N, D], the last axis fastest."""
    return x.reshape(x.shape[0], -1)


def global_mean(x: Float[Array, "n h w c"]) -> Float[Array, "n c"]:
    """Mean over the image, at least float32."""
    return jnp.mean(x, axis=(1, 2), dtype=_wide(x.dtype))


def max_pool(
    x: Float[Array, "n h w c"], window: int, *, stride: int | None = None
) -> Float[Array, "n y z c"]:
    """Maximum over square windows, n -> floor((n - window) / stride) + 1; stride = window if None.

    The maximum of window^2 strided slices, with no windowed reduction. Equal maxima share the
    gradient equally.
    """
    return _largest(x, window, stride or window)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _largest(x, window, stride):
    return functools.reduce(jnp.maximum, _window_slices(x, window, stride))


@_largest.defjvp
def _largest_jvp(window, stride, primals, tangents):
    """Shares: dy = sum_k m_k dx_k / sum_k m_k, m_k = (x_k == y); faster than nested maxima."""
    (x,), (tangent,) = primals, tangents
    y = _largest(x, window, stride)
    share = [(part == y).astype(x.dtype) for part in _window_slices(x, window, stride)]
    moves = _window_slices(tangent, window, stride)
    moved = functools.reduce(jnp.add, [m * t for m, t in zip(share, moves, strict=True)])
    return y, moved / functools.reduce(jnp.add, share)


def avg_pool(
    x: Float[Array, "n h w c"], window: int, *, stride: int | None = None
) -> Float[Array, "n y z c"]:
    """Mean over square windows, n -> floor((n - window) / stride) + 1; stride = window if None."""
    parts = _window_slices(x.astype(_wide(x.dtype)), window, stride or window)
    return (functools.reduce(jnp.add, parts) / window**2).astype(x.dtype)


def upsample(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Bilinear, twice the size, corners aligned: y = U_H x U_W^T per channel, U [2n, n] constant.

    Row o of U interpolates at o (n - 1) / (2 n - 1); taken in at least float32. Two matrix products
    and so are their derivatives, in loops too. `jax.image.resize` aligns the pixels' edges instead.
    """
    rows, columns = (_interpolation(n, _wide(x.dtype)) for n in x.shape[1:3])
    product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    y = product("yh,nhwc->nywc", rows, x.astype(_wide(x.dtype)))
    return product("xw,nywc->nyxc", columns, y).astype(x.dtype)


def repeat_pixels(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Nearest neighbor, twice the size: every pixel becomes a block of four."""
    n, h, w, c = x.shape
    blocks = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return blocks.reshape(n, 2 * h, 2 * w, c)


def _interpolation(n: int, dtype: Any) -> Array:
    """U [2n, n]: weight 1 - t on floor and t on floor + 1 of the position, t its fraction."""
    position = np.arange(2 * n) * (n - 1) / (2 * n - 1)
    return jnp.asarray(np.maximum(0, 1 - abs(position[:, None] - np.arange(n))), dtype)


def _window_slices(x: Array, window: int, stride: int) -> list[Array]:
    n, h, w, c = x.shape
    last_h, last_w = (h - window) // stride * stride, (w - window) // stride * stride
    steps = (1, stride, stride, 1)
    return [
        lax.slice(x, (0, i, j, 0), (n, i + last_h + 1, j + last_w + 1, c), steps)
        for i in range(window)
        for j in range(window)
    ]


def _dense(
    x: Array,
    features: int,
    product: Callable[..., Array],
    *,
    use_bias: bool = True,
    zero_bias: bool = False,
    kernel_init: Initializer = uniform_fan_in,
    dtype: Any = jnp.float32,
    name: str | None = None,
) -> Array:
    layer = nn.Dense(
        features,
        use_bias=use_bias,
        kernel_init=kernel_init,
        bias_init=nn.initializers.zeros if zero_bias else _uniform_bias(x.shape[-1]),
        dtype=dtype,
        promote_dtype=_wide_bias,
        dot_general=product,
        name=name,
    )
    return layer(x)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def _wide_bias(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Flax's promotion of (x, kernel, bias) but for the bias, whose sums stay at least float32."""
    *operands, bias = args
    wide = None if bias is None else bias.astype(_wide(dtype))
    return [*promote_dtype(*operands, dtype=dtype, inexact=inexact), wide]


def _uniform_bias(fan_in: int) -> Callable[..., Array]:
    bound = fan_in**-0.5

    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
