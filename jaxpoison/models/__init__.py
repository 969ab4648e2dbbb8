"""Networks as `Victim`s: pure functions with input normalization inside."""

from jaxpoison.models.adapt import adapt, num_params
from jaxpoison.models.catalog import create
from jaxpoison.models.convnet import convnet, small_cnn
from jaxpoison.models.lenet import lenet
from jaxpoison.models.linear import logistic_regression, mlp
from jaxpoison.models.resnet import resnet18

__all__ = [
    "adapt",
    "convnet",
    "create",
    "lenet",
    "logistic_regression",
    "mlp",
    "num_params",
    "resnet18",
    "small_cnn",
]
