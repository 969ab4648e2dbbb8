"""Autoregressive perturbations (AR) on CIFAR-10 at the paper's scale.

Claim (Sandoval-Segura et al. 2022): noise that a process of its class makes pixel by pixel, without
any network, keeps a ResNet-18 from learning the images under it. L2 norm 1. Victims as in Image
Shortcut Squeezing (Liu et al. 2023): 60 epochs; the paper's: 100. The processes are of this
library's own search, unless a file of others is named: the published list is not shipped. Random
noise of the same L2 norm is a comparison of ours.
Expected (README of that code, no defense): clean 94.7, AR 13.3; the paper's README prints 11.8.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: one accelerator, estimated 15 minutes there; not made for a CPU. --scale small shows no
effect on a small CNN: its record stands in the tables.

    python -m experiments.cifar10_autoregressive --data-dir DATA_DIR
"""

import dataclasses
import pathlib

import jaxpoison as jp
from jaxpoison.report import PaperConfig, arm, command_line, control, main_job, published


@dataclasses.dataclass(frozen=True)
class Config(PaperConfig):
    """Settings of autoregressive perturbations on CIFAR-10."""

    SMALL = {
        "network": "small_cnn",
        "recipe": "small_color",
        "epochs": 10,
        "train_images": 4000,
        "test_images": 2000,
    }

    network: str = "resnet18"
    """Of victims, a name of `jaxpoison.models.create`."""
    eps: float = 1.0
    """L2 norm of the change of one image, pixels in [0, 1]."""
    coefficients: pathlib.Path | None = None
    """File of processes [L, 3, 3, 3], .npy or .npz; None for those of this library."""

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch."""
        return super().smoke(**{"network": "logistic_regression"} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    own = config.coefficients
    coefficients = None if own is None else jp.attacks.load_ar_coefficients(own)
    source, split = config.load("cifar10")
    victim, recipe, *_ = config.trainee(config.network, split, 10)
    budget = jp.perturb.Budget("l2", config.eps)
    autoregressive = arm(
        jp.attacks.autoregressive,
        eps=config.eps,
        num_classes=10,
        coefficients=coefficients,
        budget=budget,
        expect=config.expect(
            "below 25: noise that one convolution can read", "no effect: too small a net"
        ),
    )
    iss = "Image Shortcut Squeezing README, ResNet-18, 60 epochs"
    paper = "Sandoval-Segura et al. 2022, README, ResNet-18, 100 epochs"
    return main_job(
        "cifar10_autoregressive",
        config,
        victim=victim,
        recipe=recipe,
        split=split,
        source=source,
        arms=control(budget) | {"autoregressive": autoregressive},
        main="autoregressive",
        clean=config.expect("the reference, 94.7", "the reference, about 48"),
        **config.memory(),
        published=[
            published("clean", 0.9468, iss),
            published("autoregressive", 0.1328, iss),
            published("autoregressive", 0.1175, paper),
        ],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
