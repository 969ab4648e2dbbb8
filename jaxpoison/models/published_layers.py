"""Which layer of the released PyTorch networks is which of ours."""

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["PUBLISHED", "Layer"]


class Layer(NamedTuple):
    """A PyTorch module and the flax one it is; `flattened`: the convolution whose C it flattens."""

    theirs: str
    ours: tuple[str, ...]
    kind: str
    flattened: tuple[str, ...] = ()


def _layers(kind: str, theirs: Iterable[str], ours: Iterable[str]) -> list[Layer]:
    pairs = zip(theirs, ours, strict=True)
    return [Layer(a, tuple(b.split("/")), kind) for a, b in pairs]


def _unet() -> list[Layer]:
    blocks = [
        f"{way}{level}" for way, levels in (("down", "1234"), ("up", "321")) for level in levels
    ]
    layers = _layers("conv", ["conv_last.0"], ["last"])
    layers += _layers("norm", ["conv_last.1"], ["norm_last"])
    for block in blocks:
        theirs = [f"dconv_{block}.{i}" for i in range(5)]
        layers += _layers("conv", theirs[0::3], [f"{block}/conv1", f"{block}/conv2"])
        layers += _layers("norm", theirs[1::3], [f"{block}/norm1", f"{block}/norm2"])
    return layers


def _mnist_autoencoder() -> list[Layer]:
    return [
        *_layers("conv", ["encoder.0", "encoder.4"], ["down1", "down2"]),
        *_layers("norm", ["encoder.1", "encoder.5"], ["norm_down1", "norm_down2"]),
        *_layers("transposed", ["decoder.0", "decoder.3", "decoder.6"], ["up1", "up2", "up3"]),
        *_layers(
            "norm", ["decoder.1", "decoder.4", "decoder.7"], ["norm_up1", "norm_up2", "norm_last"]
        ),
    ]


def _autoencoder4x4() -> list[Layer]:
    layers = []
    for way, part, kind, norms in (
        ("down", "encoder", "conv", 4),
        ("up", "decoder", "transposed", 3),
    ):
        places = range(0, 12, 3)
        layers += _layers(kind, [f"{part}.{i}" for i in places], [f"{way}{i}" for i in range(1, 5)])
        layers += _layers(
            "norm",
            [f"{part}.{i + 1}" for i in places[:norms]],
            [f"norm_{way}{i}" for i in range(1, norms + 1)],
        )
    return layers


def _resnet18() -> list[Layer]:
    layers = _layers("conv", ["conv1"], ["conv"]) + _layers("norm", ["bn1"], ["norm"])
    for stage in range(1, 5):
        for block in range(2):
            a, b = f"layer{stage}.{block}", f"stage{stage}_block{block + 1}"
            names = ["1", "2"] if stage == 1 or block else ["1", "2", "_shortcut"]
            theirs = [f"{a}.conv1", f"{a}.conv2", f"{a}.shortcut.0"][: len(names)]
            layers += _layers("conv", theirs, [f"{b}/conv{i}" for i in names])
            theirs = [f"{a}.bn1", f"{a}.bn2", f"{a}.shortcut.1"][: len(names)]
            layers += _layers("norm", theirs, [f"{b}/norm{i}" for i in names])
    return layers + _layers("linear", ["linear"], ["linear"])


def _lenet() -> list[Layer]:
    return [
        *_layers("conv", ["0", "4"], ["Conv_0", "Conv_1"]),
        *_layers("norm", ["1", "5", "10", "13"], [f"BatchNorm_{i}" for i in range(4)]),
        Layer("9", ("Dense_0",), "linear", flattened=("Conv_1",)),
        *_layers("linear", ["12"], ["Dense_1"]),
    ]


PUBLISHED = {
    "unet": _unet(),
    "mnist_autoencoder": _mnist_autoencoder(),
    "autoencoder4x4": _autoencoder4x4(),
    "lenet": _lenet(),
    "resnet18": _resnet18(),
}
"""Name of a factory to its layers in the released code.

The generators: Feng et al. 2019 (DeepConfuse) and, for the U-Net, Liu et al. 2024 (GUE). `lenet`:
the MNIST classifiers of the former, `resnet18`: the surrogate of the latter, with its CIFAR stem.
"""
