"""A convolution whose derivatives, of any order and mode, are the same convolution again.

y[n, p, o] = sum_{k, i} x~[n, s p + r k, i] w[k, i, o], with x~ the image after dilation by l and
padding by (lo, hi); layouts are [N, X, .., I], [K, .., I, O] and [N, Y, .., O].

XLA on CPU is fast for exactly this layout; a stock convolution's weight gradient has another one,
and inside a loop it falls to a naive loop nest (60-70 times slower, jax issue 12868). The map is
bilinear, and both of its transposes are the map itself with other strides, paddings and
dilations, so that gradients, Hessian-vector products and unrolled training stay fast in loops.
On other platforms the stock convolution is used, derivatives included.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from jaxpoison.types import InputError

__all__ = ["conv_general_dilated"]

Sizes = tuple[int, ...]


class _Window(NamedTuple):
    """How the kernel meets the image, one entry per spatial axis: s, (lo, hi), l, r."""

    strides: Sizes
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Sizes
    rhs_dilation: Sizes


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`lax.conv_general_dilated` in the channels-last layout, fast under loops on CPU.

    For `flax.linen.Conv(conv_general_dilated=conv_general_dilated)`.

    Args:
      lhs: [N, X, .., I] images.
      rhs: [K, .., I, O] kernels, same dtype; [K, .., 1, O] when depthwise.
      window_strides: one stride per spatial axis.
      padding: "SAME", "VALID", or (low, high) per spatial axis.
      lhs_dilation: dilation of the image, ones by default.
      rhs_dilation: dilation of the kernel, ones by default.
      dimension_numbers: None or the channels-last layout; any other is refused.
      feature_group_count: 1, or I (depthwise: a sum of shifted products).
      precision: as in `lax`.

    Returns: [N, Y, .., O], dtype of lhs.
    Errors: InputError for another layout, another group count or a kernel larger than the image.
    Cost: as the stock convolution; each derivative is one more convolution of the same cost.
    """
    rank = lhs.ndim - 2
    ones = (1,) * rank
    lhs_dilation, rhs_dilation = tuple(lhs_dilation or ones), tuple(rhs_dilation or ones)
    _check_layout(lhs.shape, rhs.shape, dimension_numbers)
    if isinstance(padding, str):
        reach = [_dilated(k, r) for k, r in zip(rhs.shape[:rank], rhs_dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], reach, tuple(window_strides), padding)
    pads = tuple((int(lo), int(hi)) for lo, hi in padding)
    window = _Window(tuple(window_strides), pads, lhs_dilation, rhs_dilation)
    if min(_output_size(lhs.shape, rhs.shape, window)) < 1:
        raise InputError(
            f"a {rhs.shape[:rank]} kernel does not fit the image {lhs.shape[1:-1]} with padding "
            f"{pads}: use larger images or a smaller network"
        )
    if feature_group_count == 1:
        canonical = partial(_bilinear_conv.bind, window=window, precision=precision)
    elif feature_group_count == lhs.shape[-1]:
        canonical = partial(_shifted_products, window=window)
    else:
        raise InputError(
            f"feature_group_count={feature_group_count} with {lhs.shape[-1]} channels: "
            "only 1 and the number of channels (depthwise) are supported"
        )
    plain = partial(_plain_conv, window=window, precision=precision, groups=feature_group_count)
    lhs, rhs = _equally_varying(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=canonical, default=plain)


def _check_layout(x: Sizes, w: Sizes, dimension_numbers: Any) -> None:
    n = len(x)
    image = (0, n - 1, *range(1, n - 1))
    kernel = (n - 1, n - 2, *range(n - 2))
    if dimension_numbers is not None:
        numbers = lax.conv_dimension_numbers(x, w, dimension_numbers)
        if (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec) != (image, kernel, image):
            raise InputError(f"dimension_numbers = {dimension_numbers}; it must be channels-last")


def _dilated(n: int, d: int) -> int:
    """D(n, d) = (n - 1) d + 1, the length of n entries at distance d."""
    return (n - 1) * d + 1 if n else 0


def _output_size(x: Sizes, w: Sizes, window: _Window) -> Sizes:
    """Y = floor((D(X, l) + lo + hi - D(K, r)) / s) + 1, per spatial axis."""
    axes = zip(x[1:-1], w[:-2], *window, strict=True)
    return tuple(
        (_dilated(n, d) + lo + hi - _dilated(k, r)) // s + 1 for n, k, s, (lo, hi), d, r in axes
    )


def _plain_conv(x, w, *, window, precision, groups=1):
    n = x.ndim
    image = (0, n - 1, *range(1, n - 1))
    numbers = lax.ConvDimensionNumbers(image, (n - 1, n - 2, *range(n - 2)), image)
    return lax.conv_general_dilated(
        x,
        w,
        window.strides,
        window.padding,
        window.lhs_dilation,
        window.rhs_dilation,
        numbers,
        groups,
        precision=precision,
    )


def _shifted_products(x, w, *, window):
    """Depthwise: y[n, p, (c, j)] = sum_k x~[n, s p + r k, c] w[k, 1, (c, j)]."""
    out = _output_size(x.shape, w.shape, window)
    channels, rank = x.shape[-1], x.ndim - 2
    pads = [
        (lo, hi, d - 1) for (lo, hi), d in zip(window.padding, window.lhs_dilation, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    w = w.reshape(*w.shape[:-2], *(1,) * (rank + 1), channels, -1)
    parts = []
    for k in np.ndindex(*w.shape[:rank]):
        low = [i * r for i, r in zip(k, window.rhs_dilation, strict=True)]
        high = [a + _dilated(n, s) for a, n, s in zip(low, out, window.strides, strict=True)]
        part = lax.slice(x, [0, *low, 0], [x.shape[0], *high, channels], [1, *window.strides, 1])
        parts.append(part[..., None] * w[k])
    return reduce(jnp.add, parts).reshape(x.shape[0], *out, -1)


# --- the primitive -------------------------------------------------------------------------------

LONGEST_SUM = 2048  # products per output that one convolution adds up at once
FEW_OUTPUTS = 16  # up to here XLA's long sums are fast as they are


def _cpu_conv(x, w, *, window, precision):
    """The convolution as it is fastest on CPU; its derivatives are those of the primitive.

    Second derivatives convolve an image as small as a kernel with a kernel as large as an image.
    A convolution is symmetric in the two, and costs (outputs) x (size of the kernel): so the larger
    one is taken as the image.
    """
    if math.prod(w.shape[:-2]) <= math.prod(x.shape[1:-1]):
        return _grouped_conv(x, w, window=window, precision=precision)
    images, kernels = jnp.moveaxis(w, -1, 0), jnp.moveaxis(x, 0, -1)
    back = _exchanged(x.shape, w.shape, window)
    y = _grouped_conv(images, kernels, window=back, precision=precision)
    return lax.rev(y, tuple(range(1, y.ndim - 1))).swapaxes(0, -1)


def _exchanged(x: Sizes, w: Sizes, window: _Window) -> _Window:
    """The window of image and kernel exchanged; it gives the outputs in reverse order.

    l a = s p + r q - lo of output p, image a, kernel q is r q = s p' + l a - lo' of p' = P - 1 - p
    and lo' = s (P - 1) - lo.
    """
    pads = []
    axes = zip(x[1:-1], w[:-2], _output_size(x, w, window), *window, strict=True)
    for n, k, outputs, s, (lo, _), d, r in axes:
        low = s * (outputs - 1) - lo
        pads.append((low, s * (outputs - 1) + _dilated(n, d) - _dilated(k, r) - low))
    return _Window(window.strides, tuple(pads), window.rhs_dilation, window.lhs_dilation)


def _grouped_conv(x, w, *, window, precision):
    """The convolution, in groups of input channels where that is faster on CPU.

    The gradient in w is a convolution whose "channels" are the batch and whose kernel is as large
    as the image: sums of N Y Y' products, up to 10^5 where the layers of a network are wide in
    space. XLA is slow on sums that long; a loop over groups of images, each with a sum of about
    `LONGEST_SUM` products, takes a quarter to a half of the time (benchmarks/bench_conv.py).
    """
    size = _group_size(x.shape, w.shape, window)
    channels = x.shape[-1]
    if size >= channels:
        return _plain_conv(x, w, window=window, precision=precision)
    groups = -(-channels // size)
    size = -(-channels // groups)
    rest = groups * size - channels

    # Channels lead: beside the transposes of the gradient in w these two cost nothing.
    def grouped(a):
        a = lax.pad(a, jnp.zeros((), a.dtype), [(0, rest, 0)] + [(0, 0, 0)] * (a.ndim - 1))
        return a.reshape(groups, size, *a.shape[1:])

    def add(total, part):
        images, kernels = part[0].swapaxes(0, -1), jnp.moveaxis(part[1], 0, -2)
        more = _plain_conv(images, kernels, window=window, precision=precision)
        return total + more.astype(total.dtype), None

    parts = grouped(x.swapaxes(0, -1)), grouped(jnp.moveaxis(w, -2, 0))
    shape = (x.shape[0], *_output_size(x.shape, w.shape, window), w.shape[-1])
    zero = jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))
    total, _ = lax.scan(add, _equally_varying(zero, x)[0], parts)
    return total.astype(x.dtype)


def _group_size(x: Sizes, w: Sizes, window: _Window) -> int:
    """Input channels per group; all of them unless it is a long sum for a small output."""
    kernel = math.prod(w[:-2])
    few = w[-1] <= FEW_OUTPUTS or kernel <= math.prod(_output_size(x, w, window))
    return x[-1] if few else max(1, LONGEST_SUM // kernel)


_bilinear_conv = Primitive("bilinear_conv")
_bilinear_conv.def_impl(_cpu_conv)
mlir.register_lowering(_bilinear_conv, mlir.lower_fun(_cpu_conv, multiple_results=False))


@_bilinear_conv.def_abstract_eval
def _abstract(x, w, *, window, precision):
    del precision
    if x.dtype != w.dtype or x.shape[-1] != w.shape[-2]:
        raise TypeError(f"cannot convolve {x.dtype}{x.shape} with {w.dtype}{w.shape}")
    shape = (x.shape[0], *_output_size(x.shape, w.shape, window), w.shape[-1])
    return x.update(shape=shape, weak_type=False)


def _transpose_x(ct, x, w, *, window, precision):
    """The transpose in x: ct with w flipped in space, I and O exchanged."""
    pads = []
    for n, k, y, s, (lo, _), d, r in zip(
        x.aval.shape[1:-1], w.shape[:-2], ct.shape[1:-1], *window, strict=True
    ):
        low = _dilated(k, r) - 1 - lo
        pads.append((low, _dilated(n, d) + _dilated(k, r) - 1 - _dilated(y, s) - low))
    flipped = lax.rev(w, tuple(range(w.ndim - 2))).swapaxes(-1, -2)
    back = _Window(window.lhs_dilation, tuple(pads), window.strides, window.rhs_dilation)
    return _bilinear_conv.bind(ct, flipped, window=back, precision=precision)


def _transpose_w(ct, x, w, *, window, precision):
    """The transpose in w: x and ct with batch and channels exchanged, ct as the kernel."""
    pads = tuple(
        (lo, _dilated(k, r) - 1 + _dilated(y, s) - _dilated(n, d) - lo)
        for n, k, y, s, (lo, _), d, r in zip(
            x.shape[1:-1], w.aval.shape[:-2], ct.shape[1:-1], *window, strict=True
        )
    )
    back = _Window(window.rhs_dilation, pads, window.lhs_dilation, window.strides)
    images, kernels = x.swapaxes(0, -1), jnp.moveaxis(ct, 0, -2)
    grad = _bilinear_conv.bind(images, kernels, window=back, precision=precision)
    return jnp.moveaxis(grad, 0, -2)


def _batch(args, axes, **settings):
    """X alone folds into N, w alone into O; both together: one convolution per member."""
    (x, w), (x_axis, w_axis) = args, axes
    bind = partial(_bilinear_conv.bind, **settings)
    if w_axis is None:
        x = jnp.moveaxis(x, x_axis, 0)
        y = bind(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), w)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    if x_axis is None:
        w = jnp.moveaxis(w, w_axis, -2)
        y = bind(x, w.reshape(*w.shape[:-2], -1))
        return y.reshape(*y.shape[:-1], *w.shape[-2:]), y.ndim - 1
    x, w = jnp.moveaxis(x, x_axis, 0), jnp.moveaxis(w, w_axis, 0)
    return jnp.stack([bind(x[m], w[m]) for m in range(x.shape[0])]), 0


ad.defbilinear(_bilinear_conv, _transpose_x, _transpose_w)
batching.primitive_batchers[_bilinear_conv] = _batch


def _equally_varying(x: Array, w: Array) -> tuple[Array, Array]:
    """Inside `shard_map`, marks both operands as varying over the union of their mesh axes."""

    def axes(a: Array) -> frozenset:
        aval = jax.typeof(a)
        manual = getattr(aval, "manual_axis_type", None)
        return getattr(aval, "vma", frozenset()) if manual is None else manual.varying

    both = axes(x) | axes(w)

    def cast(a: Array) -> Array:
        missing = tuple(sorted(both - axes(a), key=str))
        return lax.pcast(a, missing, to="varying") if missing else a

    return cast(x), cast(w)
