"""Networks by name, for scripts and the command line."""

import inspect
from collections.abc import Sequence
from typing import Any

from jaxpoison import check
from jaxpoison.models.convnet import convnet, small_cnn
from jaxpoison.models.densenet import densenet121, densenet121_growth12
from jaxpoison.models.lenet import lenet
from jaxpoison.models.linear import logistic_regression, mlp
from jaxpoison.models.mobilenet import mobilenet_v2
from jaxpoison.models.resnet import (
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from jaxpoison.models.vgg import vgg11, vgg13, vgg16, vgg19
from jaxpoison.models.vit import vit_small
from jaxpoison.models.wide_resnet import wide_resnet28_10
from jaxpoison.types import InputError, Victim

__all__ = ["FACTORIES", "create"]

FACTORIES = {
    factory.__name__: factory
    for factory in (
        logistic_regression,
        mlp,
        small_cnn,
        convnet,
        lenet,
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
    if name not in FACTORIES:
        hint = check.nearest(name, FACTORIES) or f"; allowed are {', '.join(FACTORIES)}"
        raise InputError(f"no model is called {name!r}{hint}")
    factory = FACTORIES[name]
    parameters = inspect.signature(factory).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}; it takes {', '.join(known)}")
    return factory(image_shape, num_classes, **options)
