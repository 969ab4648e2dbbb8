"""Released PyTorch states: names and shapes, values known from PyTorch, round trips, errors."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import models
from jaxpoison.types import InputError, Variables
from tests.models.miniatures import ramp

pytestmark = pytest.mark.usefixtures("quick_module")
# Names and shapes as the released code has them, written from its listings.


def conv(name, *shape, bias=True):
    out = shape[1] if name.startswith("decoder") else shape[0]
    return {f"{name}.weight": shape} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, size):
    arrays = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{a}": (size,) for a in arrays} | {f"{name}.num_batches_tracked": ()}


def unet(w=64):
    shapes = conv("conv_last.0", 3, w, 1, 1) | norm("conv_last.1", 3)
    blocks = {"down1": (3, w), "down2": (w, 2 * w), "down3": (2 * w, 4 * w)}
    blocks |= {"down4": (4 * w, 8 * w), "up3": (12 * w, 4 * w), "up2": (6 * w, 2 * w)}
    for block, (i, o) in (blocks | {"up1": (3 * w, w)}).items():
        shapes |= conv(f"dconv_{block}.0", o, i, 3, 3) | norm(f"dconv_{block}.1", o)
        shapes |= conv(f"dconv_{block}.3", o, o, 3, 3) | norm(f"dconv_{block}.4", o)
    return shapes


def mnist_autoencoder():
    return (
        conv("encoder.0", 16, 1, 3, 3)
        | norm("encoder.1", 16)
        | conv("encoder.4", 64, 16, 3, 3)
        | norm("encoder.5", 64)
        | conv("decoder.0", 64, 128, 3, 3)
        | norm("decoder.1", 128)
        | conv("decoder.3", 128, 64, 5, 5)
        | norm("decoder.4", 64)
        | conv("decoder.6", 64, 1, 2, 2)
        | norm("decoder.7", 1)
    )


def autoencoder4x4():
    shapes, sizes = {}, (3, 16, 32, 64, 128)
    for k, (i, o) in enumerate(zip(sizes, sizes[1:], strict=False)):
        shapes |= conv(f"encoder.{3 * k}", o, i, 4, 4) | norm(f"encoder.{3 * k + 1}", o)
        shapes |= conv(f"decoder.{9 - 3 * k}", o, i, 4, 4)
        shapes |= norm(f"decoder.{10 - 3 * k}", i) if k else {}
    return shapes


def lenet():
    return (
        conv("0", 10, 1, 5, 5)
        | norm("1", 10)
        | conv("4", 25, 10, 5, 5)
        | norm("5", 25)
        | conv("9", 250, 400)
        | norm("10", 250)
        | conv("12", 10, 250)
        | norm("13", 10)
    )


def resnet18(w=64):
    plain = partial(conv, bias=False)
    shapes = plain("conv1", w, 3, 3, 3) | norm("bn1", w) | conv("linear", 10, 8 * w)
    i = w
    for stage, o in enumerate((w, 2 * w, 4 * w, 8 * w), 1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            shapes |= plain(f"{name}.conv1", o, i, 3, 3) | norm(f"{name}.bn1", o)
            shapes |= plain(f"{name}.conv2", o, o, 3, 3) | norm(f"{name}.bn2", o)
            if i != o:
                shapes |= plain(f"{name}.shortcut.0", o, i, 1, 1) | norm(f"{name}.shortcut.1", o)
            i = o
    return shapes


# (network, its name, shapes of the state, number of entries)
FULL = [
    (models.unet((32, 32, 3)), None, unet(), 105),
    (models.mnist_autoencoder((28, 28, 1)), None, mnist_autoencoder(), 35),
    (models.autoencoder4x4((32, 32, 3)), None, autoencoder4x4(), 51),
    (models.lenet((28, 28, 1), size="small"), "lenet", lenet(), 28),
    (models.resnet18((32, 32, 3)), "resnet18", resnet18(), 122),
]


@pytest.mark.parametrize(("network", "name", "shapes", "num"), FULL, ids=[0, 1, 2, 3, 4])
def test_names_and_shapes_are_the_published_ones(network, name, shapes, num):
    variables = jax.eval_shape(network.init, jax.random.key(0))
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), variables)
    state = models.to_pytorch(network, zeros, name=name, num_batches_tracked=7)
    assert {key: array.shape for key, array in state.items()} == shapes and len(state) == num
    counters = [array for key, array in state.items() if "tracked" in key]
    assert all(array == 7 and array.dtype == np.int64 for array in counters)


def filled_state(shapes):
    """Numbers without a random draw; variances are positive."""
    state = {}
    names = sorted(name for name in shapes if "tracked" not in name)
    for e, name in enumerate(names):
        shape = shapes[name]
        t = np.arange(np.prod(shape, dtype=int))
        v = ((29 * t * t + 73 * t + 17 * e) % 1009 / 1009 - 0.5).reshape(shape)
        if len(shape) > 1:
            v = v * np.sqrt(24 / np.prod(shape[1:]))
        elif name.endswith(("weight", "running_var")):
            v = 1 + v
        state[name] = v.astype(np.float32)
    return state | {name: np.array(5) for name in shapes if "tracked" in name}


# sum_d cos(d) y[n, d] of three images in eval mode: these networks written in PyTorch 2.13 in
# float64, the state of `filled_state` loaded strictly
PYTORCH = [
    (models.unet((16, 16, 3), width=2), None, unet(2), (-0.28581, -0.49464, -0.19065)),
    (FULL[1][0], None, mnist_autoencoder(), (-4.50476, -5.89683, -4.45957)),
    (FULL[2][0], None, autoencoder4x4(), (2.67316, 2.4201, 2.64527)),
    (FULL[3][0], "lenet", lenet(), (-0.05209, -0.08578, -0.14293)),
    (models.resnet18((8, 8, 3), width=4), "resnet18", resnet18(4), (-0.70116, 1.32162, 2.25421)),
]
SIZE = ((16, 16, 3), (28, 28, 1), (32, 32, 3), (28, 28, 1), (8, 8, 3))


@pytest.mark.parametrize("i", range(len(PYTORCH)))
def test_a_loaded_state_computes_what_pytorch_computes_and_comes_back(i):
    network, name, shapes, want = PYTORCH[i]
    state = filled_state(shapes)
    variables = models.from_pytorch(network, state, name=name)
    back = models.to_pytorch(network, variables, name=name, num_batches_tracked=5)
    assert back.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array)
        assert back[key].dtype == (np.int64 if "tracked" in key else np.float32)
    y, _ = jax.jit(partial(network.apply, train=False))(variables, ramp(3, SIZE[i]))
    y = np.asarray(y, np.float64).reshape(3, -1)
    np.testing.assert_allclose(y @ np.cos(np.arange(y.shape[1])), want, rtol=2e-4, atol=1e-4)


def test_counters_may_be_missing_and_dataparallel_prefixes_are_dropped():
    network, state = PYTORCH[0][0], filled_state(unet(2))
    want = models.from_pytorch(network, state)
    short = {f"module.{key}": a for key, a in state.items() if "tracked" not in key}
    jax.tree.map(np.testing.assert_array_equal, models.from_pytorch(network, short), want)


def test_wrong_states_are_one_clear_line():
    network, state = PYTORCH[0][0], filled_state(unet(2))
    load = partial(models.from_pytorch, network)
    first = "dconv_down1.0.weight"
    without = {key: a for key, a in state.items() if key != first}
    with pytest.raises(InputError, match=f"^the state lacks 1 of the 90 entries of unet: {first}$"):
        load(without)
    with pytest.raises(InputError, match=r"conv_last.*, \.\.\.; it holds epoch, state_dict$"):
        load({"state_dict": state, "epoch": 3})
    with pytest.raises(InputError, match="^the state is a NoneType; a mapping of names is needed$"):
        inspect.unwrap(models.from_pytorch)(network, None)
    with pytest.raises(InputError, match="^this network has no name; pass name=, one of unet, "):
        models.from_pytorch(models.resnet18((32, 32, 3), width=4), state)
    with pytest.raises(InputError, match="the state lacks 90 of the 90 entries of unet: conv_last"):
        load({})
    with pytest.raises(InputError, match="^unet has no 1 of the state's entries: fc.weight$"):
        load(state | {"fc.weight": np.zeros(3)})
    with pytest.raises(
        InputError, match=r"entry dconv_down1.0.weight is \(2, 1, 3, 3\); this unet"
    ):
        load(state | {first: state[first][:, :1]})
    with pytest.raises(
        InputError, match="entry dconv_down1.0.weight holds values that are not fin"
    ):
        load(state | {first: np.full_like(state[first], np.nan)})
    with pytest.raises(InputError, match="entry dconv_down1.0.weight is <U4; it must be an array"):
        load(state | {first: "text"})
    with pytest.raises(InputError, match="name = 'vgg11'; allowed are unet, mnist_autoencoder"):
        load(state, name="vgg11")
    victim = models.resnet18((8, 8, 3), width=1)
    with pytest.raises(InputError, match="^this network has no name; pass name=, one of unet, "):
        models.from_pytorch(victim, state)
    with pytest.raises(InputError, match="not a published lenet: see params/conv/kernel, params/"):
        models.from_pytorch(victim, state, name="lenet")
    variables = load(state)
    with pytest.raises(InputError, match="not of this unet: see stats/down1/norm1/mean, stats/"):
        models.to_pytorch(network, Variables(variables.params, {}))
    restarts = jax.tree.map(lambda a: jnp.stack([a, a]), variables)
    with pytest.raises(InputError, match=r"^params/.* is \(2, .*; this unet has \("):
        models.to_pytorch(network, restarts)
    with pytest.raises(InputError, match="num_batches_tracked = -1; it must be at least 0"):
        models.to_pytorch(network, variables, num_batches_tracked=-1)
