"""One-pixel shortcut (OPS) on CIFAR-10 at the paper's scale.

Claim (Wu et al. 2023, table 2): one pixel per image, of a place and color that depend on the
class, is a shortcut that a ResNet-18 takes instead of learning the images. No network is needed to
make it. Victims as in Image Shortcut Squeezing (Liu et al. 2023): 60 epochs. A random pixel is a
comparison of ours.
Expected (README of that code, no defense): clean 94.7, OPS 36.6; the paper, with 200 epochs, 15.6.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: one accelerator, estimated 15 minutes there; not made for a CPU, where --scale small shows
the effect in minutes and reproduces nothing.

    python -m experiments.cifar10_one_pixel --data-dir DATA_DIR
"""

import dataclasses

import jaxpoison as jp
from jaxpoison.report import PaperConfig, arm, command_line, control, main_job, published


@dataclasses.dataclass(frozen=True)
class Config(PaperConfig):
    """Settings of the one-pixel shortcut on CIFAR-10."""

    SMALL = {
        "network": "small_cnn",
        "recipe": "small_color",
        "epochs": 10,
        "train_images": 4000,
        "test_images": 2000,
    }

    network: str = "resnet18"
    """Of victims, a name of `jaxpoison.models.create`."""
    pixels: int = 1
    """Pixels of every image that change."""

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch."""
        return super().smoke(**{"network": "logistic_regression"} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    victim, recipe, *_ = config.trainee(config.network, split, 10)
    budget = jp.perturb.Budget("l0", config.pixels)
    one_pixel = arm(
        jp.attacks.one_pixel,
        num_classes=10,
        num_pixels=config.pixels,
        budget=budget,
        expect=config.expect("15 to 40: one pixel tells the class", "5 to 25 below clean"),
    )
    iss = "Image Shortcut Squeezing README, ResNet-18, 60 epochs"
    return main_job(
        "cifar10_one_pixel",
        config,
        victim=victim,
        recipe=recipe,
        split=split,
        source=source,
        arms=control(budget) | {"one-pixel": one_pixel},
        main="one-pixel",
        clean=config.expect("the reference, 94.7", "the reference, about 48"),
        **config.memory(),
        published=[
            published("clean", 0.9468, iss),
            published("one-pixel", 0.3655, iss),
            published("one-pixel", 0.1556, "Wu et al. 2023, table 2, 200 epochs"),
        ],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
