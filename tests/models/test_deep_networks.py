"""The deep networks: published sizes, repeated blocks against a loop, what does not fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxpoison import models
from jaxpoison.models.densenet import DenseNet
from jaxpoison.models.layers import batch_norm, dense
from jaxpoison.models.mobilenet import MobileNetV2
from jaxpoison.models.repeat import SCAN_FROM, repeat
from jaxpoison.models.resnet import ResNet
from jaxpoison.models.vgg import VGG
from jaxpoison.models.vit import VisionTransformer
from jaxpoison.models.wide_resnet import WideResNet
from jaxpoison.types import InputError
from tests.models.miniatures import filled

pytestmark = pytest.mark.usefixtures("quick_module")
CIFAR, IMAGENET, TINY = (32, 32, 3), (224, 224, 3), (64, 64, 3)
large = {"stem": "imagenet"}

VIT_B = {"patch": 16, "width": 768, "heads": 12}

# stem; per stage norm1, conv1, norm2, conv2 and, where channels differ, the projection; head
WRN_10_1 = 9 * 3 * 16 + 2 * 64 + 65 * 10
WRN_10_1 += sum(
    2 * i + 9 * i * o + 2 * o + 9 * o * o + (i != o) * i * o
    for i, o in ((16, 16), (16, 32), (32, 64))
)

# (name, image shape, classes, options, parameters, its source)
SIZES = [
    ("resnet20", CIFAR, 10, {}, 272_474, "Witches' Brew code"),
    ("resnet34", CIFAR, 10, {}, 21_282_122, "Witches' Brew code"),
    ("resnet50", CIFAR, 10, {}, 23_520_842, "GUE code"),
    # the ImageNet form less its 7x7 stem and head, plus the 3x3 stem and 10 classes
    ("resnet101", CIFAR, 10, {}, 44_549_160 - 3 * 40 * 64 - 2049 * 990, "by hand"),
    ("resnet18", TINY, 200, {"stem": "tiny_imagenet"}, 11_689_512 - 513 * 800, "by hand"),
    ("resnet18", IMAGENET, 1000, large, 11_689_512, "torchvision"),
    ("resnet50", IMAGENET, 1000, large, 25_557_032, "torchvision"),
    ("resnet152", IMAGENET, 1000, large, 60_192_808, "torchvision"),
    ("vgg11", CIFAR, 10, {}, 9_231_114, "Witches' Brew code"),
    ("vgg11", CIFAR, 2, {"bottleneck": 2}, 9_227_040 - 3 * 8, "DeepConfuse code, 10 classes"),
    ("vgg13", CIFAR, 10, {}, 9_416_010, "Witches' Brew code"),
    ("vgg16", CIFAR, 10, {}, 14_728_266, "Witches' Brew and GUE code"),
    # per block: 2 LN, attention, MLP; then patches, token, positions, LN, head
    (
        "vit_small",
        CIFAR,
        10,
        {"width": 512, "depth": 6, "heads": 8, "mlp": 512},
        6 * (4 * 512 + 6 * (512 * 512 + 512)) + 49 * 512 + 66 * 512 + 2 * 512 + 513 * 10,
        "by hand",
    ),
    # two more 256-channel and two more 512-channel layers than VGG-13 each; the same at any size
    (
        "vgg19",
        TINY,
        10,
        {},
        9_416_010 + 2 * (768 + 9 * 256**2) + 4 * (1536 + 9 * 512**2),
        "by hand",
    ),
]


@pytest.mark.parametrize(("name", "shape", "classes", "options", "count", "source"), SIZES)
def test_number_of_parameters(name, shape, classes, options, count, source):
    victim = models.create(name, shape, classes, **options)
    assert models.num_params(victim) == count, source  # traces the whole network on one image


class Layer(nn.Module):
    """A block with parameters and statistics."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.tanh(batch_norm(dense(x, 5), train=train))


class Stack(nn.Module):
    num: int

    @nn.compact
    def __call__(self, x, *, train):
        return repeat(Layer, self.num, x, train=train, name="layer", first=2)


@pytest.mark.parametrize("num", [0, 2, SCAN_FROM])
def test_repeated_blocks_equal_a_loop(num):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
    variables = jax.jit(partial(Stack(num).init, train=False))(jax.random.key(0), x)

    def loop(variables, x):
        news = []
        for i in range(num):
            one = {
                kind: jax.tree.map(lambda a, i=i: a[i], tree["layers"])
                if num >= SCAN_FROM
                else tree[f"layer{i + 2}"]
                for kind, tree in variables.items()
            }
            x, new = Layer().apply(one, x, train=True, mutable=["batch_stats"])
            news.append(new["batch_stats"])
        return x, news

    def ours(variables, x):
        y, new = Stack(num).apply(variables, x, train=True, mutable=["batch_stats"])
        return y, new.get("batch_stats", {})

    def run(f):
        def energy(variables, x):
            y, new = f(variables, x)
            return jnp.sum(y**3), (y, new)

        return jax.jit(jax.grad(energy, has_aux=True))(variables, x)

    grads, (y, new) = run(ours)
    want_grads, (want, news) = run(loop)
    near = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    near(y, want)
    jax.tree.map(near, grads, want_grads)
    if num >= SCAN_FROM:
        jax.tree.map(near, new["layers"], jax.tree.map(lambda *a: jnp.stack(a), *news))
        kernels = variables["params"]["layers"]["Dense_0"]["kernel"]
        assert len({float(k) for k in kernels[:, 0, 0]}) == num
    else:
        assert [new[f"layer{i + 2}"] for i in range(num)] or not new


def test_scanned_blocks_draw_dropout_masks_of_their_own():
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dropout(0.5, deterministic=not train)(x)

    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return repeat(Drop, SCAN_FROM, x, train=train, name="drop")

    rngs = {"dropout": jax.random.key(0)}
    y = Drops().apply({}, jnp.ones((1, 20_000)), train=True, rngs=rngs)
    np.testing.assert_allclose(jnp.mean(y > 0), 0.5**SCAN_FROM, rtol=0.3)


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_images_too_small_for_the_pools(name):
    with pytest.raises(
        InputError, match=rf"image_shape = \(28, 28, 1\); .* at least 32 for {name}"
    ):
        models.create(name, (28, 28, 1))


def test_images_too_small_or_not_made_of_patches():
    with pytest.raises(InputError, match=r"= \(7, 8, 3\); .* least 8 for densenet121 \(stem cifar"):
        models.densenet121((7, 8, 3))
    with pytest.raises(InputError, match="must be at least 32 for densenet121 .stem imagenet"):
        models.densenet121((28, 28, 1), stem="imagenet")
    with pytest.raises(
        InputError, match=r"= \(32, 30, 3\); .* multiples of 4 for vit_small \(patches of 4"
    ):
        models.vit_small((32, 30, 3))


DROPOUT = {
    "mobilenet": MobileNetV2(3, 0.25, dropout=0.5, stages=((1, 16, 1, 1),)),
    "wide resnet": WideResNet(3, 1, 1, dropout=0.5),
    "vit": VisionTransformer(3, width=8, depth=SCAN_FROM, heads=2, dropout=0.5),
}


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_in_train_mode_only(name):
    victim = models.adapt(DROPOUT[name], (4, 4, 1))
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 4, 4, 1)), jnp.float32)
    shapes = jax.eval_shape(victim.init, jax.random.key(0))
    with pytest.raises(InputError, match="draws random numbers in train mode: pass key="):
        jax.eval_shape(lambda v: victim.apply(v, x, train=True), shapes)
    jax.eval_shape(lambda v: victim.apply(v, x, train=False), shapes)
    random = np.random.default_rng(1)
    variables = jax.tree.map(lambda a: jnp.asarray(random.uniform(size=a.shape), a.dtype), shapes)
    f = jax.jit(lambda v, key: victim.apply(v, x, train=True, key=key)[0])
    assert jnp.abs(f(variables, jax.random.key(0)) - f(variables, jax.random.key(1))).max() > 0


def test_options_of_the_deep_networks_are_checked():
    with pytest.raises(InputError, match="stem = 'big'; allowed are cifar, tiny_imagenet,"):
        models.resnet50(CIFAR, stem="big")
    with pytest.raises(InputError, match="bottleneck = 0; it must be at least 1"):
        models.vgg16(CIFAR, bottleneck=0)
    with pytest.raises(InputError, match=r"depth = 26; it must be 6 n \+ 4"):
        models.wide_resnet28_10(CIFAR, depth=26)
    with pytest.raises(InputError, match="dropout = 1.0; it must be a number at least 0 and below"):
        models.mobilenet_v2(CIFAR, dropout=1.0)
    with pytest.raises(InputError, match="stem = 'tiny_imagenet'; allowed are cifar, imagenet"):
        models.mobilenet_v2(CIFAR, stem="tiny_imagenet")
    with pytest.raises(InputError, match="width = 10; it must be a multiple of heads = 6"):
        models.vit_small(CIFAR, width=10)
    with pytest.raises(InputError, match="mlp = 0; it must be at least 1"):
        models.vit_small(CIFAR, mlp=0)
    with pytest.raises(InputError, match="growth = 0; it must be at least 1"):
        models.densenet121(CIFAR, growth=0)


def _he_fan_in(h, w, i, o):
    return 2 / (h * w * i)


def _he_fan_out(h, w, i, o):
    return 2 / (h * w * o)


def _uniform(h, w, i, o):
    return 1 / (3 * h * w * i)


STAGE = ((6, 16, 1, 1),)
STARTS = {
    "mobilenet, cifar": (MobileNetV2(9, stages=STAGE), _uniform, False),
    "mobilenet, imagenet": (MobileNetV2(9, stem="imagenet", stages=STAGE), _he_fan_out, False),
    "densenet, cifar": (DenseNet(9, 32, (1, 1)), _uniform, False),
    "densenet, imagenet": (DenseNet(9, 32, (1, 1), "imagenet"), _he_fan_in, False),
    "wide resnet, 7x7": (WideResNet(9, 1, 1, stem="tiny_imagenet"), _he_fan_in, True),
    "resnet": (ResNet(9, 16, (1, 1)), _he_fan_out, False),
}


@pytest.mark.parametrize("name", STARTS)
def test_initial_values_are_those_of_the_sources(name):
    """Kernels' variances are the formula's; the last layer is uniform, its bias too or zero."""
    module, variance, zero_bias = STARTS[name]
    params = jax.jit(models.adapt(module, (8, 8, 3)).init)(jax.random.key(0)).params
    seen = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim == 4:
            # the variance of n uniform or normal draws is off by sqrt(2 / n) of itself at most
            off = 4.5 * (2 / leaf.size) ** 0.5
            np.testing.assert_allclose(leaf.var(), variance(*leaf.shape), rtol=off, err_msg=path)
            seen += 1
    assert seen > 3
    kernel, bias = params["linear"]["kernel"], params["linear"]["bias"]
    bound = len(kernel) ** -0.5
    for leaf in (kernel, *(() if zero_bias else (bias,))):
        assert 0.5 * bound < jnp.abs(leaf).max() <= bound
    assert zero_bias == (not bias.any())


@pytest.mark.parametrize("side", [64, 96])
def test_a_sixth_pool_where_vgg_leaves_2x2_pixels(side):
    """2x2 pixels: their maximum; 3x3: their mean."""
    module = VGG(3, 1, (1, 1, 1, 1, 1))
    victim = models.adapt(module, (side, side, 1))
    variables = filled(victim)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, side, side, 1)), jnp.float32)

    @jax.jit
    def last(variables, x):
        """What the fifth group of layers gives before its pool."""
        names = dict(params=variables.params, batch_stats=variables.stats)
        _, kept = module.apply(
            names, x, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        return nn.relu(kept["intermediates"]["BatchNorm_4"]["__call__"][0])

    want = np.asarray(last(variables, x))
    pooled = want.reshape(2, side // 32, 2, side // 32, 2, -1).max((2, 4))
    want = pooled.max((1, 2)) if side == 64 else pooled.mean((1, 2))
    np.testing.assert_allclose(victim.features(variables, x), want, rtol=1e-5)
    assert np.ptp(pooled, (1, 2)).max() > 0
