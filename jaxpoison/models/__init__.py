"""Networks as `Victim`s, `Generator`s, `Decoder`s and `Disentangler`s: pure functions."""

from jaxpoison.models.adapt import adapt, adapt_decoder, adapt_generator, num_params
from jaxpoison.models.autoencoder import autoencoder4x4, mnist_autoencoder
from jaxpoison.models.catalog import GENERATORS, create, create_generator
from jaxpoison.models.cnn5 import cnn5
from jaxpoison.models.convnet import convnet, dropout_cnn, small_cnn
from jaxpoison.models.decoder import conv_decoder, mlp_decoder
from jaxpoison.models.densenet import densenet121, densenet121_growth12
from jaxpoison.models.dvae import dvae
from jaxpoison.models.leaders import adapt_leader, conv_leader, mlp_leader
from jaxpoison.models.lenet import lenet, lenet5
from jaxpoison.models.linear import logistic_regression, mlp
from jaxpoison.models.metapoison_convnet import metapoison_convnet
from jaxpoison.models.mlp_generator import mlp_generator
from jaxpoison.models.mobilenet import mobilenet_v2
from jaxpoison.models.published import from_pytorch, to_pytorch
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

__all__ = [
    "GENERATORS",
    "adapt",
    "adapt_decoder",
    "adapt_generator",
    "adapt_leader",
    "autoencoder4x4",
    "cnn5",
    "conv_leader",
    "conv_decoder",
    "convnet",
    "create",
    "create_generator",
    "densenet121",
    "densenet121_growth12",
    "dropout_cnn",
    "dvae",
    "from_pytorch",
    "lenet",
    "lenet5",
    "logistic_regression",
    "metapoison_convnet",
    "mlp",
    "mlp_decoder",
    "mlp_generator",
    "mlp_leader",
    "mnist_autoencoder",
    "mobilenet_v2",
    "num_params",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "small_cnn",
    "to_pytorch",
    "unet",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vit_small",
    "wide_resnet28_10",
]
