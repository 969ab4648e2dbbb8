"""Networks as `Victim`s: pure functions with input normalization inside."""

from jaxpoison.models.adapt import adapt, num_params
from jaxpoison.models.convnet import convnet, small_cnn
from jaxpoison.models.linear import logistic_regression, mlp

__all__ = ["adapt", "convnet", "logistic_regression", "mlp", "num_params", "small_cnn"]
