"""Decoders: sizes, values known from PyTorch, lowered code, and networks of one's own."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpoison import models
from jaxpoison.models.layers import repeat_pixels
from jaxpoison.types import InputError, Variables
from tests.models.miniatures import filled

CIFAR = (32, 32, 3)

# (decoder, parameters by hand, image shape)
SIZES = [
    (
        models.conv_decoder(512, CIFAR),
        513 * 8192  # dense to 4 x 4 x 512
        + 9 * (512 * 256 + 256 * 128 + 128 * 64)
        + 2 * (256 + 128 + 64)  # scale and shift of each norm
        + (9 * 64 + 1) * 3,
        CIFAR,
    ),
    (
        models.conv_decoder(7, (8, 12, 1), width=5, stages=2),
        8 * (2 * 3 * 20) + 9 * (20 * 10 + 10 * 5) + 2 * (10 + 5) + 9 * 5 + 1,
        (8, 12, 1),
    ),
    (models.mlp_decoder(32, (8, 8, 1)), 33 * 128 + 129 * 64, (8, 8, 1)),
    (models.mlp_decoder(3, (2, 2, 3), hidden=()), 4 * 12, (2, 2, 3)),
]


@pytest.mark.parametrize(("decoder", "count", "shape"), SIZES)
def test_number_of_parameters_and_shapes(decoder, count, shape):
    assert models.num_params(decoder) == count and isinstance(hash(decoder), int)
    variables = jax.eval_shape(decoder.init, jax.random.key(0))
    width = next(iter(variables.params.values()))["kernel"].shape[0]
    phi = jax.ShapeDtypeStruct((5, width), jnp.float32)
    for train in (True, False):
        image, stats = jax.eval_shape(partial(decoder.apply, train=train), variables, phi)
        assert (image.shape, image.dtype) == ((5, *shape), jnp.float32)
        assert stats == variables.stats


def test_the_default_size_is_as_documented():
    assert models.num_params(SIZES[0][0]) == 5_753_411


def features(num, width):
    n, d = np.indices((num, width))
    return jnp.asarray(np.cos(1 + 3 * n + 2 * d + n * d), jnp.float32)


@pytest.mark.usefixtures("quick_compile")
def test_values_are_those_of_pytorch():
    """Of nn.Linear, nn.Upsample(scale_factor=2), nn.Conv2d and nn.BatchNorm2d in float64."""
    decoder = models.conv_decoder(6, (8, 12, 3), width=4, stages=2)
    variables, phi = filled(decoder), features(3, 6)
    for train, want in PYTORCH.items():
        image, stats = jax.jit(partial(decoder.apply, train=train))(variables, phi)
        np.testing.assert_allclose(seen(np.asarray(image)), want, atol=1e-5)
        moved = [bool(jnp.any(a != b)) for a, b in
                 zip(*map(jax.tree.leaves, (stats, variables.stats)), strict=True)]  # fmt: skip
        assert moved == [train] * 4


def seen(image):
    weight = np.cos(np.arange(image[0].size)).reshape(image[0].shape)
    return [*(image * weight).sum((1, 2, 3)), image[1, 0, 0, 0], image[2, 7, 11, 2]]


PYTORCH = {
    True: (1.0930182, 3.0949155, -0.4116212, 0.4612355, 0.4850411),
    False: (-0.1063728, 0.9496092, -0.5644163, 0.5098073, 0.4830149),
}


def test_the_dense_decoder_is_two_products():
    decoder = models.mlp_decoder(6, (3, 4, 2), hidden=(5,))
    variables, phi = filled(decoder), features(4, 6)
    params = jax.tree.map(np.asarray, variables.params)
    first, last = params["Dense_0"], params["Dense_1"]
    hidden = np.maximum(np.asarray(phi) @ first["kernel"] + first["bias"], 0)
    want = 1 / (1 + np.exp(-(hidden @ last["kernel"] + last["bias"])))
    image, _ = decoder.apply(variables, phi, train=False)
    np.testing.assert_allclose(image, want.reshape(4, 3, 4, 2), rtol=1e-5)


def test_nearest_neighbors():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    want = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(repeat_pixels(jnp.asarray(x)), want)


def test_convolutions_of_a_second_derivative_in_a_loop_are_canonical():
    decoder = models.conv_decoder(6, (8, 8, 3), width=2, stages=1)
    variables = jax.eval_shape(decoder.init, jax.random.key(0))

    def energy(params, stats, phi):
        return jnp.sum(decoder.apply(Variables(params, stats), phi, train=True)[0] ** 2)

    def curved(variables, phi):
        params, stats = variables
        tangent = jax.grad(energy)(params, stats, phi)
        return jax.jvp(lambda p: jax.grad(energy, 2)(p, stats, phi), (params,), (tangent,))[1]

    mapped = jax.jit(lambda v, many: lax.map(partial(curved, v), many))
    text = mapped.lower(variables, jax.ShapeDtypeStruct((2, 4, 6), jnp.float32)).as_text()
    assert not re.search("reduce_window|gather|scatter", text)
    lines = re.findall(r"stablehlo\.convolution.*", text)
    assert lines and all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in lines)


class Own(nn.Module):
    """A user's decoder."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(12)(x))
        return nn.sigmoid(x).reshape(-1, 2, 3, 2)


class Noisy(nn.Module):
    """It draws random numbers in train mode."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5, deterministic=not train)(x).reshape(-1, 2, 3, 2)


def test_a_module_of_ones_own_is_a_decoder_in_one_call():
    decoder = models.adapt_decoder(Own(), 5, (2, 3, 2))
    variables, phi = decoder.init(jax.random.key(0)), features(4, 5)
    image, same = decoder.apply(variables, phi, train=False)
    assert image.shape == (4, 2, 3, 2) and image.dtype == jnp.float32 and same is variables.stats
    _, new = decoder.apply(variables, phi, train=True)
    assert jnp.any(new["BatchNorm_0"]["mean"] != 0)
    with pytest.raises(
        InputError, match=r"^features are \(4, 6\), the network takes \(batch, \*\(5,"
    ):
        decoder.apply(variables, features(4, 6), train=False)
    with pytest.raises(InputError, match="^features are int32: pass floats$"):
        decoder.apply(variables, jnp.zeros((4, 5), jnp.int32), train=False)


def test_wrong_decoders_are_one_clear_line():
    with pytest.raises(InputError, match="must be multiples of 8 for conv_decoder"):
        models.conv_decoder(8, (28, 28, 1))
    with pytest.raises(InputError, match="features = 0; it must be at least 1"):
        models.conv_decoder(0, CIFAR)
    with pytest.raises(InputError, match="stages = 0; it must be at least 1"):
        models.conv_decoder(8, CIFAR, stages=0)
    with pytest.raises(InputError, match="hidden = 0; it must be at least 1"):
        models.mlp_decoder(8, CIFAR, hidden=(0,))
    with pytest.raises(InputError, match="dtype = int8; it must be a floating dtype"):
        models.mlp_decoder(8, CIFAR, dtype="int8")
    with pytest.raises(InputError, match=r"image_shape = \(2, 3\); it must be"):
        models.adapt_decoder(Own(), 5, (2, 3))
    other = models.adapt_decoder(Own(), 5, (3, 2, 2))
    with pytest.raises(
        InputError, match=r"Own returns \(4, 2, 3, 2\); its images are \(batch, \*\(3"
    ):
        other.apply(other.init(jax.random.key(0)), features(4, 5), train=False)
    noisy = models.adapt_decoder(Noisy(), 12, (2, 3, 2))
    with pytest.raises(InputError, match="Noisy draws .* in train mode: a decoder must not"):
        noisy.apply(noisy.init(jax.random.key(0)), features(4, 12), train=True)
