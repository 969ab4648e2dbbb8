"""Networks by name, for scripts and the command line."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxpoison import check
from jaxpoison.models.autoencoder import autoencoder4x4, mnist_autoencoder
from jaxpoison.models.cnn5 import cnn5
from jaxpoison.models.convnet import convnet, dropout_cnn, small_cnn
from jaxpoison.models.densenet import densenet121, densenet121_growth12
from jaxpoison.models.lenet import lenet, lenet5
from jaxpoison.models.linear import logistic_regression, mlp
from jaxpoison.models.metapoison_convnet import metapoison_convnet
from jaxpoison.models.mlp_generator import mlp_generator
from jaxpoison.models.mobilenet import mobilenet_v2
from jaxpoison.models.resnet import (
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from jaxpoison.models.unet import unet
from jaxpoison.models.vgg import vgg11, vgg13, vgg16, vgg19
from jaxpoison.models.vit import vit_small
from jaxpoison.models.wide_resnet import wide_resnet28_10
from jaxpoison.types import Generator, InputError, Victim

__all__ = ["FACTORIES", "GENERATORS", "create", "create_generator"]

FACTORIES = {
    factory.__name__: factory
    for factory in (
        logistic_regression,
        mlp,
        small_cnn,
        dropout_cnn,
        convnet,
        cnn5,
        metapoison_convnet,
        lenet,
        lenet5,
        resnet18,
        resnet20,
        resnet34,
        resnet50,
        resnet101,
        resnet152,
        vgg11,
        vgg13,
        vgg16,
        vgg19,
        mobilenet_v2,
        densenet121,
        densenet121_growth12,
        wide_resnet28_10,
        vit_small,
    )
}
"""Name to factory: what `create`, and an experiment's `--network`, accept."""

GENERATORS = {
    factory.__name__: factory
    for factory in (mlp_generator, mnist_autoencoder, autoencoder4x4, unet)
}
"""Name to factory: what `create_generator`, and an experiment's `--generator`, accept."""


def create(name: str, image_shape: Sequence[int], num_classes: int = 10, **options: Any) -> Victim:
    """The network called `name`: `create("resnet18", shape, 10, width=16)`.

    Args:
      name: a key of FACTORIES, the name of a function in `jaxpoison.models`.
      image_shape: (H, W, C).
      num_classes: L, at least 2.
      **options: that function's keyword arguments.

    Returns: a Victim.
    Errors: InputError for an unknown name (with the nearest known one) or option.
    """
    return _factory("model", name, FACTORIES, options)(image_shape, num_classes, **options)


def create_generator(name: str, image_shape: Sequence[int], **options: Any) -> Generator:
    """The generator called `name`: `create_generator("unet", shape, width=16)`.

    A shipped generator g describes itself: `create_generator(g.name, g.image_shape,
    **dict(g.options))` is the same network again. Options are plain values (numbers, strings,
    tuples), so that they can be hashed and written to a file.

    Args:
      name: a key of GENERATORS, the name of a function in `jaxpoison.models`.
      image_shape: (H, W, C).
      **options: that function's keyword arguments.

    Returns: a Generator.
    Errors: InputError for an unknown name (with the nearest known one) or option.
    """
    return _factory("generator", name, GENERATORS, options)(image_shape, **options)


def _factory(
    kind: str, name: str, known: Mapping[str, Callable[..., Any]], options: Mapping[str, Any]
) -> Callable[..., Any]:
    if name not in known:
        hint = check.nearest(name, known) or f"; allowed are {', '.join(known)}"
        raise InputError(f"no {kind} is called {name!r}{hint}")
    parameters = inspect.signature(known[name]).parameters.values()
    keywords = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in keywords:
            raise InputError(f"{name} has no option {option!r}; it takes {', '.join(keywords)}")
    return known[name]
