"""Layers: pools against XLA's windowed reduction and by hand; which sums bfloat16 leaves alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxpoison.models.layers import avg_pool, conv, dense, global_mean, logits, max_pool

pytestmark = pytest.mark.usefixtures("quick_module")


def stock(x, window, stride):
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), "VALID"
    )


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 3), (3, 2), (2, 1)])
def test_the_gradient_of_a_maximum_is_that_of_the_windowed_reduction(window, stride, strict_dtypes):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.permutation(2 * 7 * 8 * 3).reshape(2, 7, 8, 3).astype(np.float32))

    def energy(pool):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(0.1 * pool(x)))))(x)

    ours = energy(lambda x: max_pool(x, window, stride=stride))
    np.testing.assert_allclose(ours, energy(lambda x: stock(x, window, stride)), atol=1e-6)


def test_equal_maxima_share_the_gradient_equally():
    x = jnp.array([[3.0, 3.0], [1.0, 3.0]]).reshape(1, 2, 2, 1)
    shared = jax.grad(lambda x: jnp.sum(max_pool(x, 2)))(x)
    np.testing.assert_allclose(shared.ravel(), [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    assert np.isnan(jax.grad(lambda x: jnp.sum(max_pool(x, 2)))(x.at[0, 0, 0].set(jnp.nan))).any()


def test_a_derivative_of_the_gradient_of_a_maximum_is_central_differences(x64):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 5, 2)))
    v = jnp.cos(7 * x)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.tanh(max_pool(x, 3, stride=2)) ** 2))(x)

    exact = jax.jvp(gradient, (x,), (v,))[1]
    numeric = (gradient(x + 1e-6 * v) - gradient(x - 1e-6 * v)) / 2e-6
    np.testing.assert_allclose(exact, numeric, atol=1e-8)
    twice = jax.grad(lambda x: jnp.sum(gradient(x) * v))(x)
    np.testing.assert_allclose(twice, exact, atol=1e-12)  # the Hessian is symmetric


class One(nn.Module):
    layer: partial

    @nn.compact
    def __call__(self, x):
        return self.layer(x, dtype=jnp.bfloat16, name="one")


ONES = {
    "conv": (partial(conv, features=1, kernel=1), (1001, 1, 1, 2), jnp.bfloat16),
    "dense": (partial(dense, features=1), (1001, 2), jnp.bfloat16),
    "logits": (partial(logits, num_classes=1), (1001, 2), jnp.float32),
}


@pytest.mark.parametrize("name", ONES)
def test_the_gradient_of_a_bias_is_summed_in_float32(name):
    layer, shape, dtype = ONES[name]
    x = jnp.full(shape, 1 + 2**-7, jnp.bfloat16)
    params = {"one": {"kernel": jnp.full((*(1,) * (len(shape) - 2), 2, 1), 1 + 2**-7)}}
    params["one"]["bias"] = jnp.full((1,), 2.0**-14)

    def total(params):
        y = One(layer).apply({"params": params}, x)
        assert y.dtype == dtype
        return jnp.sum(y.astype(jnp.float32)), y

    grads, y = jax.jit(jax.grad(total, has_aux=True))(params)
    assert grads["one"]["bias"] == 1001  # 1000 in bfloat16
    exact = 2 * (1 + 2**-7) ** 2 + 2**-14
    assert (y == (exact if dtype == jnp.float32 else jnp.bfloat16(exact))).all()


def test_means_are_taken_in_float32():
    x = jnp.array([256, 1, 1, 2], jnp.bfloat16).reshape(1, 2, 2, 1)
    assert avg_pool(x, 2).dtype == jnp.bfloat16 and avg_pool(x, 2) == 65  # 64.5 otherwise
    mean = global_mean(jnp.array([1, 0, 0], jnp.bfloat16).reshape(1, 3, 1, 1))
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, [[1 / 3]], rtol=1e-6)
