"""Networks small enough to run, weights without a random draw, and features known from PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import models
from jaxpoison.models.densenet import DenseNet
from jaxpoison.models.mobilenet import MobileNetV2
from jaxpoison.models.repeat import SCAN_FROM
from jaxpoison.models.resnet import Bottleneck, ResNet
from jaxpoison.models.vgg import VGG
from jaxpoison.models.wide_resnet import WideResNet


def miniature(module, **fields):
    """A factory in house form of a module with other depths than the published ones."""

    def factory(shape, num_classes, *, dtype=jnp.float32):
        return models.adapt(module(num_classes, dtype=dtype, **fields), shape)

    return factory


# small enough to run: (image shape, keywords -> Victim of 3 classes)
RUNNABLE = {
    "logistic_regression": ((8, 8, 1), models.logistic_regression),
    "mlp": ((8, 8, 1), partial(models.mlp, hidden=(16,))),
    "small_cnn": ((8, 8, 3), partial(models.small_cnn, widths=(4, 6))),
    "convnet": ((9, 9, 1), partial(models.convnet, width=2)),
    "convnet, deep": ((9, 9, 1), partial(models.convnet, width=2, batch_norm=True)),
    "cnn5": ((32, 32, 1), partial(models.cnn5, width=2)),
    "metapoison_convnet": (
        (32, 32, 1),
        partial(models.metapoison_convnet, width=2, batch_norm=True),
    ),
    "lenet": ((16, 16, 1), partial(models.lenet, size="small")),
    "lenet5": ((16, 16, 1), models.lenet5),
    "resnet18": ((8, 8, 3), partial(models.resnet18, width=4)),
    "resnet, scanned bottlenecks": (
        (9, 9, 3),
        miniature(ResNet, width=4, blocks=(7,), block=Bottleneck, stem="imagenet"),
    ),
    "mobilenet": (
        (8, 8, 3),
        miniature(MobileNetV2, width=0.25, stages=((1, 16, 1, 1), (2, 16, 2, 2))),
    ),
    "mobilenet, large": (
        (16, 16, 3),
        miniature(MobileNetV2, width=0.25, stem="imagenet", stages=((1, 16, 1, 1), (2, 16, 2, 2))),
    ),
    "densenet": ((8, 8, 3), miniature(DenseNet, growth=4, blocks=(1, 1, 1))),
    "wide resnet": ((8, 8, 3), miniature(WideResNet, widen=1, blocks=1)),
    "vit": ((8, 8, 3), partial(models.vit_small, width=8, heads=2, depth=SCAN_FROM)),
    "vgg": ((32, 32, 1), miniature(VGG, width=4, layers=(1, 1, 0, 0, 1), bottleneck=6)),
}

# sum_d cos(d) features[n, d] of the first three images in eval mode: the same networks written in
# PyTorch 2.13 in float64 (its TransformerEncoderLayer for the ViT), weights of `filled`, images of
# the test
PYTORCH_FEATURES = {
    "metapoison_convnet": (0.33571, 0.39450, 0.39329),
    "resnet, scanned bottlenecks": (0.07761, 0.34798, 0.31828),
    "mobilenet": (-192.54516, -223.09682, -197.41545),
    "mobilenet, large": (-40.39789, -37.62371, -34.16792),
    "densenet": (0.07579, 0.07935, 0.05576),
    "wide resnet": (-3.60516, -2.47193, -4.61238),
    "vit": (-0.13086, 0.46854, 0.39957),
    "vgg": (-0.69915, -0.93086, -0.79802),
}


def golden_fill(path, leaf):
    """The deterministic weights for which reference logits exist, in our layouts."""
    if path[-1].key == "scale":
        return np.ones(leaf.shape, np.float32)
    if path[-1].key == "bias":
        return np.zeros(leaf.shape, np.float32)
    if leaf.ndim == 2:
        i, o = np.indices(leaf.shape)
        v, fan_in = 73 * o + 151 * i + 29 * o * i + 17, leaf.shape[0]
    elif leaf.ndim != 4:  # of scanned blocks and attention: no reference, any numbers will do
        fan_in = np.prod(leaf.shape[:-1])
        return np.random.default_rng(0).normal(size=leaf.shape, scale=fan_in**-0.5)
    else:
        r, c, i, o = np.indices(leaf.shape)
        v = 73 * o + 151 * i + 283 * r + 397 * c + 29 * o * i + 7 * o * c + 11 * i * r + 17
        fan_in = leaf.shape[0] * leaf.shape[1] * leaf.shape[2]
    return (np.sqrt(24 / fan_in) * (v % 1009 / 1009 - 0.5)).astype(np.float32)


def filled(victim):
    """Variables without a random draw, whose compilation would be most of a test's time."""
    shapes = jax.eval_shape(victim.init, jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(golden_fill, shapes.params)
    stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", np.float32), shapes.stats
    )
    return jax.tree.map(jnp.float32, shapes._replace(params=params, stats=stats))


def ramp(num, shape):
    """The images for which golden values exist."""
    n, i, j, k = np.indices((num, *shape))
    return jnp.asarray((7 * i + 11 * j + 13 * k + 5 * n) % 32 / 31, jnp.float32)
