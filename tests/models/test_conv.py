"""The canonical convolution against `lax.conv_general_dilated`, and its layout in lowered code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpoison.models.conv import conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")
plain = partial(lax.conv_general_dilated, dimension_numbers=NHWC)

# (image, kernel, strides, padding, lhs_dilation, rhs_dilation)
CASES = [
    ((7, 6), (3, 3), (1, 1), "SAME", (1, 1), (1, 1)),
    ((8, 8), (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), (1, 1)),
    ((7, 9), (1, 1), (2, 2), "VALID", (1, 1), (1, 1)),
    ((9, 8), (5, 4), (3, 2), "SAME", (1, 1), (1, 1)),
    ((8, 7), (2, 3), (3, 3), [(0, 2), (3, 1)], (1, 1), (1, 1)),
    ((7, 8), (5, 5), (2, 1), "VALID", (1, 1), (1, 1)),
    ((5, 4), (3, 3), (1, 2), [(2, 1), (0, 3)], (2, 3), (1, 1)),
    ((9, 9), (3, 2), (2, 1), [(2, 2), (1, 0)], (1, 1), (2, 3)),
]


def arrays(image, kernel, channels=(2, 3), seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, *image, channels[0])).astype(dtype)
    w = random.normal(size=(*kernel, *channels)).astype(dtype)
    return jnp.asarray(x), jnp.asarray(w)


def derivatives(conv, x, w):
    """Value, both gradients, gradient of a gradient and jvp of a gradient, all in (x, w)."""

    def energy(x, w):
        return jnp.sum(jnp.sin(conv(x, w)))

    first = jax.grad(energy, (0, 1))

    def norm(x, w):
        return sum(jnp.sum(g * jnp.cos(g)) for g in first(x, w))

    second = jax.grad(norm, (0, 1))(x, w)
    tangent = jax.jvp(first, (x, w), (jnp.cos(x), jnp.sin(w)))[1]
    return conv(x, w), first(x, w), second, tangent


def close(a, b, rtol=1e-5):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert u.shape == v.shape and u.dtype == v.dtype
        np.testing.assert_allclose(u, v, rtol=rtol, atol=rtol * (1 + float(jnp.abs(v).max())))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_derivative_equals_the_stock_convolution(case, strict_dtypes):
    image, kernel, *settings = case
    x, w = arrays(image, kernel)
    ours = jax.jit(partial(derivatives, lambda x, w: conv_general_dilated(x, w, *settings)))(x, w)
    close(ours, jax.jit(partial(derivatives, lambda x, w: plain(x, w, *settings)))(x, w))
