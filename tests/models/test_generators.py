"""Generators: sizes, golden values, how they describe themselves, up-sampling, lowered code."""

import json
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpoison import models
from jaxpoison.models.catalog import GENERATORS
from jaxpoison.models.layers import upsample
from jaxpoison.types import InputError, Variables
from tests.models.miniatures import filled, ramp

CIFAR = (32, 32, 3)

# (name, image shape, options, parameters, its source)
SIZES = [
    ("unet", CIFAR, {}, 7_788_681, "DeepConfuse and GUE code"),
    # the other channels: of the first and the last convolution, bias and BN of the last
    ("unet", (16, 24, 1), {}, 7_788_681 - 2 * (9 * 64 + 64 + 3), "by hand"),
    (
        "mlp_generator",
        (8, 8, 1),
        {},
        64 * 256 + 256 * 256 + 256 * 64 + 2 * (256 + 256 + 64),
        "by hand",
    ),
    ("mnist_autoencoder", (28, 28, 1), {}, 288_963, "DeepConfuse code"),
    ("mnist_autoencoder", (16, 40, 3), {}, 288_963 + 2 * (9 * 16 + 4 * 64 + 3), "by hand"),
    ("autoencoder4x4", (224, 224, 3), {}, 346_659, "DeepConfuse code"),
    ("autoencoder4x4", (32, 16, 1), {}, 346_659 - 2 * 2 * 16 * 16 - 2, "by hand"),
]

# small enough to run: (image shape, options)
SMALL = {
    "unet": ((8, 8, 3), {"width": 2}),
    "mnist_autoencoder": ((16, 16, 1), {"width": 2}),
    "autoencoder4x4": ((16, 16, 3), {"width": 2}),
    "mlp_generator": ((4, 4, 3), {"hidden": (8,)}),
}


@pytest.mark.parametrize(("name", "shape", "options", "count", "source"), SIZES)
def test_number_of_parameters_and_shapes(name, shape, options, count, source):
    network = models.create_generator(name, shape, **options)
    assert models.num_params(network) == count, source
    variables = jax.eval_shape(network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((7, *shape), jnp.float32)
    direction, stats = jax.eval_shape(partial(network.apply, train=True), variables, x)
    assert (direction.shape, direction.dtype) == (x.shape, x.dtype)
    assert stats == variables.stats


def test_golden_values_of_the_unet_in_both_modes():
    network = models.unet(CIFAR)
    x, variables = ramp(4, CIFAR), filled(network)
    mode = jax.jit(partial(network.apply, train=False))
    y, same = mode(variables, x)
    seen = y.mean(), abs(y).mean(), y[0, 0, 0, 0], y[1, 5, 7, 1], y[2, 16, 16, 2], y[3, 31, 31, 0]
    want = -0.210304, 0.596949, -0.136026, -0.683426, 0.607309, -0.828286
    np.testing.assert_allclose(seen, want, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, variables.stats)
    y, _ = jax.jit(partial(network.apply, train=True))(variables, x)
    seen = y.mean(), abs(y).mean(), y[0, 0, 0, 0], y[1, 5, 7, 1], y[2, 16, 16, 2], y[3, 31, 31, 0]
    want = 0.001407, 0.556714, 0.293760, -0.130323, -0.288579, -0.418263
    np.testing.assert_allclose(seen, want, atol=1e-4)


def test_upsampling_interpolates_between_aligned_corners(strict_dtypes):
    for h, w in ((1, 4), (2, 3), (5, 8)):
        x = np.random.default_rng(0).normal(size=(2, h, w, 3)).astype(np.float32)
        y = np.zeros((2, 2 * h, 2 * w, 3))
        rows, columns = np.linspace(0, h - 1, 2 * h), np.linspace(0, w - 1, 2 * w)
        for n, k in np.ndindex(2, 3):
            wide = np.array([np.interp(columns, np.arange(w), line) for line in x[n, :, :, k]])
            tall = [np.interp(rows, np.arange(h), line) for line in wide.T]
            y[n, :, :, k] = np.transpose(tall)
        np.testing.assert_allclose(upsample(jnp.asarray(x)), y, atol=1e-6)


def test_upsampling_bfloat16_is_weighted_in_float32():
    flat = upsample(jnp.full((1, 4, 4, 1), 1 + 2**-7, jnp.bfloat16))
    assert flat.dtype == jnp.bfloat16 and (flat == 1 + 2**-7).all()


@pytest.mark.parametrize("name", SMALL)
def test_what_a_generator_says_of_itself_builds_it_again(name):
    shape, options = SMALL[name]
    network = models.create_generator(name, list(shape), **options, dtype=jnp.bfloat16)
    assert (network.name, network.image_shape) == (name, shape) and isinstance(hash(network), int)
    stored = json.loads(json.dumps(dict(network.options)))
    assert stored["dtype"] == "bfloat16" and options.items() <= dict(network.options).items()
    again = models.create_generator(network.name, network.image_shape, **stored)
    assert again.options == network.options
    variables = jax.eval_shape(network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((3, *shape), jnp.float32)

    def program(network):
        run = jax.jit(lambda variables, x: network.apply(variables, x, train=True))
        return run.lower(variables, x).as_text()

    assert program(again) == program(network)
    other = models.create_generator(name, shape, **stored | {"dtype": "float32"})
    assert program(other) != program(network)


def test_every_shipped_generator_is_tested_here():
    assert set(SMALL) == set(GENERATORS) == {row[0] for row in SIZES}
    assert all(getattr(models, name) is factory for name, factory in GENERATORS.items())


@pytest.mark.parametrize("name", SMALL)
def test_directions_are_bounded_float32_and_move_the_statistics(name):
    shape, options = SMALL[name]
    networks = [
        models.create_generator(name, shape, **options, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    ]
    variables, x = filled(networks[0]), ramp(6, shape)

    @jax.jit
    def run(variables, x):
        return [network.apply(variables, x, train=True) for network in networks]

    (exact, _), (y, stats) = run(variables, x)
    assert y.shape == x.shape and 0.1 < abs(y).mean() and abs(y).max() <= 1
    for leaf in jax.tree.leaves((y, stats, exact)):
        assert leaf.dtype == jnp.float32 and jnp.all(jnp.isfinite(leaf))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), stats, variables.stats)
    assert all(jax.tree.leaves(moved))
    assert 0 < abs(y - exact).mean() < 0.05
    assert jnp.any(y != y.astype(jnp.bfloat16))  # the last BN and tanh are not rounded


@pytest.mark.parametrize("name", SMALL)
def test_convolutions_of_a_second_derivative_in_a_loop_are_canonical(name):
    shape, options = SMALL[name]
    network = models.create_generator(name, shape, **options)
    variables = jax.eval_shape(network.init, jax.random.key(0))

    def energy(params, stats, x):
        return jnp.sum(network.apply(Variables(params, stats), x, train=True)[0] ** 2)

    def crafted(variables, x):
        params, stats = variables
        tangent = jax.grad(energy)(params, stats, x)
        return jax.jvp(lambda p: jax.grad(energy, 2)(p, stats, x), (params,), (tangent,))[1]

    mapped = jax.jit(lambda v, xs: lax.map(partial(crafted, v), xs))
    text = mapped.lower(variables, jax.ShapeDtypeStruct((2, 4, *shape), jnp.float32)).as_text()
    assert "reduce_window" not in text and "gather" not in text and "scatter" not in text
    lines = re.findall(r"stablehlo\.convolution.*", text)
    assert bool(lines) == (name != "mlp_generator")
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in lines)


class Own(nn.Module):
    """A user's generator."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return jnp.tanh(nn.Conv(x.shape[-1], (3, 3))(x))


class Flat(nn.Module):
    """Its direction lost the shape of the images."""

    def __call__(self, x, *, train):
        return x.reshape(len(x), -1)


class Noisy(nn.Module):
    """It draws random numbers in train mode."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(x)


def test_a_module_of_ones_own_is_a_generator_in_one_call():
    network = models.adapt_generator(Own(), (6, 5, 2), mean=(0.5, 0.5))
    assert network.name == "" and network.options == () and network.image_shape == (6, 5, 2)
    variables, x = network.init(jax.random.key(0)), ramp(4, (6, 5, 2))
    y, same = network.apply(variables, x, train=False)
    assert same is variables.stats and y.shape == x.shape and y.dtype == jnp.float32
    _, new = network.apply(variables, x.astype(jnp.bfloat16), train=True)
    np.testing.assert_allclose(
        new["BatchNorm_0"]["mean"], 0.1 * (x.mean((0, 1, 2)) - 0.5), rtol=0.02, atol=1e-3
    )
    assert network.apply(variables, x.astype(jnp.bfloat16), train=False)[0].dtype == jnp.float32


def test_wrong_generators_are_one_clear_line():
    with pytest.raises(InputError, match="no generator is called 'u-net'; did you mean 'unet'?"):
        models.create_generator("u-net", CIFAR)
    with pytest.raises(InputError, match="no generator is called 'zzz'; allowed are mlp_generator"):
        models.create_generator("zzz", CIFAR)
    with pytest.raises(InputError, match="unet has no option 'widht'; it takes width, dtype"):
        models.create_generator("unet", CIFAR, widht=3)
    with pytest.raises(InputError, match="height and width must be multiples of 8 for unet"):
        models.unet((32, 28, 3))
    for shape in ((28, 32, 1), (4, 28, 1)):
        with pytest.raises(InputError, match="height and width must be .* for mnist_autoencoder"):
            models.mnist_autoencoder(shape)
    with pytest.raises(InputError, match="height and width must be multiples of 16 for autoenc"):
        models.autoencoder4x4((28, 28, 1))
    with pytest.raises(InputError, match="width = 0; it must be at least 1"):
        models.unet(CIFAR, width=0)
    with pytest.raises(InputError, match="hidden = 0; it must be at least 1"):
        models.mlp_generator(CIFAR, hidden=(4, 0))
    for wrong in ("int8", "flaot32", 3, None):
        with pytest.raises(InputError, match=f"dtype = {wrong}; it must be a floating dtype"):
            models.unet(CIFAR, dtype=wrong)
    for name in GENERATORS:
        with pytest.raises(InputError, match=r"image_shape = \(32, 32\); it must be"):
            models.create_generator(name, (32, 32))
    flat = models.adapt_generator(Flat(), (4, 4, 1))
    x = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(
        InputError, match=r"Flat returns \(2, 16\) for images \(2, 4, 4, 1\): a gen"
    ):
        flat.apply(flat.init(jax.random.key(0)), x, train=False)
    noisy = models.adapt_generator(Noisy(), (4, 4, 1))
    with pytest.raises(InputError, match="Noisy draws .* in train mode: a generator must not"):
        noisy.apply(noisy.init(jax.random.key(0)), x, train=True)
    with pytest.raises(InputError, match=r"images are \(2, 4, 4, 1\), the network takes"):
        models.unet((8, 8, 1), width=1).apply(filled(noisy), x, train=True)
