"""Convolution-based unlearnable data (CUDA) on CIFAR-10 at the paper's scale.

Claim (Sadasivan et al. 2023, table 2): images that went through a small random filter of their
class teach a ResNet-18 the filter. No network is needed to make them, and no norm bounds them: PSNR
says how far they are. Victims as in Image Shortcut Squeezing (Liu et al. 2023): 60 epochs; the
paper's: 100. The control is the paper's: one filter for all classes.
Expected (that paper): clean 94.7, CUDA 18.5, one filter for all classes 90.5.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: one accelerator, estimated 15 minutes there; not made for a CPU, where --scale small shows
the effect in minutes and reproduces nothing.

    python -m experiments.cifar10_convolution --data-dir DATA_DIR
"""

import dataclasses
from typing import Literal

import jaxpoison as jp
from jaxpoison.report import PaperConfig, arm, command_line, main_job, published


@dataclasses.dataclass(frozen=True)
class Config(PaperConfig):
    """Settings of convolution-based unlearnable data on CIFAR-10."""

    SMALL = {
        "network": "small_cnn",
        "recipe": "small_color",
        "epochs": 10,
        "train_images": 4000,
        "test_images": 2000,
    }

    network: str = "resnet18"
    """Of victims, a name of `jaxpoison.models.create`."""
    kernel_size: int = 3
    """Side of the filters, odd."""
    blur: float = 0.3
    """Largest of the small entries of a filter; one entry is 1."""
    draw: Literal["key", "released"] = "released"
    """Filters from the seed, or those of the paper's code."""

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch."""
        return super().smoke(**{"network": "logistic_regression"} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    victim, recipe, *_ = config.trainee(config.network, split, 10)
    filters = {
        "num_classes": 10,
        "kernel_size": config.kernel_size,
        "blur": config.blur,
        "draw": config.draw,
    }
    convolution = arm(
        jp.attacks.convolution,
        **filters,
        budget=None,
        rounding="truncate",
        expect=config.expect("below 30: the filter tells the class", "below 25"),
    )
    shared = arm(
        jp.attacks.convolution,
        **filters,
        shared=True,
        budget=None,
        rounding="truncate",
        expect=config.expect("about 90: a filter that tells no class", "0 to 12 below clean"),
    )
    paper = "Sadasivan et al. 2023, table 2, ResNet-18, 100 epochs"
    control = "Sadasivan et al. 2023, ResNet-18, 100 epochs"
    return main_job(
        "cifar10_convolution",
        config,
        victim=victim,
        recipe=recipe,
        split=split,
        source=source,
        arms={"shared-filter": shared, "convolution": convolution},
        main="convolution",
        clean=config.expect("the reference, 94.7", "the reference, about 48"),
        **config.memory(),
        published=[
            published("clean", 0.9466, paper),
            published("convolution", 0.1848, paper),
            published("shared-filter", 0.9047, control),
        ],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
