"""`adapt` on modules of a user's own, and its one-line errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpoison.models import adapt, num_params
from jaxpoison.models.adapt import standardize
from jaxpoison.types import InputError

pytestmark = pytest.mark.usefixtures("quick_module")
SHAPE = (4, 3, 2)
x = jnp.asarray(np.random.default_rng(0).uniform(size=(5, *SHAPE)), jnp.float32)


class Plain(nn.Module):
    """No features, no statistics, no dropout."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x.reshape(len(x), -1))


class Full(nn.Module):
    """BatchNorm, dropout, and features of four axes."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        self.sow("intermediates", "features", x)
        return nn.Dense(3, name="last")(x.reshape(len(x), -1))


def test_the_triple_of_a_module_without_statistics(strict_dtypes):
    victim = adapt(Plain(), SHAPE)
    variables = victim.init(jax.random.key(0))
    assert type(variables.params) is dict and variables.stats == {}
    assert num_params(victim) == 24 * 3 + 3
    logits, stats = victim.apply(variables, x, train=True)
    kernel, bias = variables.params["Dense_0"]["kernel"], variables.params["Dense_0"]["bias"]
    np.testing.assert_allclose(logits, x.reshape(5, -1) @ kernel + bias.reshape(1, -1), rtol=1e-5)
    assert stats == {} and logits.dtype == jnp.float32
    with pytest.raises(InputError, match="Plain gives no features: call self.sow"):
        jax.jit(victim.features)(variables, x)


def test_batch_statistics_in_train_mode_only():
    victim = adapt(Full(), SHAPE)
    variables = victim.init(jax.random.key(0))
    _, same = victim.apply(variables, x, train=False)
    assert same is variables.stats
    _, new = victim.apply(variables, x, train=True, key=jax.random.key(1))
    np.testing.assert_allclose(
        new["BatchNorm_0"]["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5, atol=1e-7
    )
    assert jax.tree.structure(new) == jax.tree.structure(variables.stats)


def test_dropout_follows_the_key():
    victim = adapt(Full(), SHAPE)
    variables = victim.init(jax.random.key(0))
    a, b, c = (victim.apply(variables, x, train=True, key=jax.random.key(k))[0] for k in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert jnp.abs(a - c).max() > 0
    with pytest.raises(InputError, match="Full draws random numbers in train mode: pass key="):
        victim.apply(variables, x, train=True)


class Flax(nn.Module):
    """In flax's own words: the opposite of `train`."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.BatchNorm(use_running_average=deterministic)(x)
        x = nn.Dropout(0.5)(x, deterministic=deterministic)
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_deterministic_is_the_opposite_of_train():
    victim = adapt(Flax(), SHAPE)
    variables = victim.init(jax.random.key(0))
    a, same = victim.apply(variables, x, train=False)
    b, new = victim.apply(variables, x, train=True, key=jax.random.key(0))
    assert same is variables.stats and jnp.abs(a - b).max() > 0
    assert jnp.abs(new["BatchNorm_0"]["mean"]).max() > 0


def test_features_are_flat_and_in_eval_mode():
    victim = adapt(Full(), SHAPE)
    variables = victim.init(jax.random.key(0))
    features = victim.features(variables, x)
    last = variables.params["last"]
    logits = features @ last["kernel"] + last["bias"].reshape(1, -1)
    np.testing.assert_allclose(logits, victim.apply(variables, x, train=False)[0], atol=1e-5)


def test_normalization_is_inside():
    mean, std = (0.4, 0.5), (0.2, 0.25)
    inside, outside = adapt(Plain(), SHAPE, mean=mean, std=std), adapt(Plain(), SHAPE)
    variables = inside.init(jax.random.key(0))
    z = (x - np.float32(mean).reshape(1, 1, 1, 2)) / np.float32(std).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(
        inside.apply(variables, x, train=False)[0],
        outside.apply(variables, z, train=False)[0],
        atol=1e-5,
    )
    assert standardize(x, None, None) is x


def test_works_under_the_transformations():
    victim = adapt(Full(), SHAPE)
    keys = jax.random.split(jax.random.key(0), 3)
    members = jax.jit(jax.vmap(victim.init))(keys)

    def loss(params, stats, key, x):
        logits, new = victim.apply(
            members._replace(params=params, stats=stats), x, train=True, key=key
        )
        return jnp.sum(logits**2), new

    def train(variables, x):
        def step(carry, key):
            params, stats = carry
            grads, stats = jax.grad(loss, has_aux=True)(params, stats, key, x)
            return (jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), stats), None

        (params, stats), _ = lax.scan(step, tuple(variables), keys)
        return loss(params, stats, keys[0], x)[0]

    both = jax.jit(jax.vmap(jax.grad(train, 1), (0, None)))(members, x)
    alone = jax.jit(jax.grad(train, 1))(jax.tree.map(lambda a: a[1], members), x)
    np.testing.assert_allclose(both[1], alone, rtol=1e-4, atol=1e-5)


class NoTrain(nn.Module):
    def __call__(self, x):
        return x


class Cache(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        self.variable("cache", "last", jnp.zeros, ())
        return x.reshape(len(x), -1)


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=False)(x.reshape(len(x), -1))


class Image(nn.Module):
    def __call__(self, x, *, train):
        return x


def test_what_cannot_be_used_is_one_clear_line():
    for shape in ((4, 3), (4, 3, 0), (4, 3, 2, 1), (-4, 3, 1)):
        with pytest.raises(InputError, match=r"image_shape = .* must be \(height, width, ch"):
            adapt(Plain(), shape)
    with pytest.raises(InputError, match="mean = .* must be 2 finite numbers"):
        adapt(Plain(), SHAPE, mean=(0.5,))
    with pytest.raises(InputError, match="std = .* must be above 0"):
        adapt(Plain(), SHAPE, std=(0.5, 0.0))
    with pytest.raises(InputError, match=r"NoTrain.__call__ must take train: .*; it takes x"):
        adapt(NoTrain(), SHAPE)
    with pytest.raises(InputError, match="Cache has collections .'cache'."):
        adapt(Cache(), SHAPE).init(jax.random.key(0))
    victim = adapt(Plain(), SHAPE)
    variables = victim.init(jax.random.key(0))
    with pytest.raises(InputError, match=r"images are \(5, 3, 4, 2\), the network takes"):
        victim.apply(variables, x.swapaxes(1, 2), train=False)
    with pytest.raises(InputError, match=r"images are \(4, 3, 2\)"):
        victim.features(variables, x[0])
    with pytest.raises(InputError, match="images are uint8: pass floats"):
        victim.apply(variables, jnp.zeros((5, *SHAPE), jnp.uint8), train=False)
    with pytest.raises(InputError, match=r"Image returns \(5, 4, 3, 2\): logits must be"):
        adapt(Image(), SHAPE).apply(variables, x, train=False)
    with pytest.raises(InputError, match="Noisy draws random numbers in eval mode"):
        adapt(Noisy(), SHAPE).apply(variables, x, train=False)
