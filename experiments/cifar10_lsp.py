"""Linearly separable perturbations (LSP) on CIFAR-10 at the paper's scale.

Claim (Yu et al. 2022, by their code): noise that a linear model can tell apart by class, made of
8 x 8 patches without any network, keeps a ResNet-18 from learning the images under it. L2 norm 1,
as comparisons of defenses have it (the code's own default: 1.304). Victims as in Image Shortcut
Squeezing (Liu et al. 2023): 60 epochs. Random noise of the same L2 norm is a comparison of ours.
Expected (README of that code, no defense): clean 94.7, LSP 19.1; another source prints 13.9.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: one accelerator, estimated 15 minutes there; not made for a CPU, where --scale small shows
the effect in minutes and reproduces nothing.

    python -m experiments.cifar10_lsp --data-dir DATA_DIR
"""

import dataclasses

import jaxpoison as jp
from jaxpoison.report import PaperConfig, arm, command_line, control, main_job, published


@dataclasses.dataclass(frozen=True)
class Config(PaperConfig):
    """Settings of linearly separable perturbations on CIFAR-10."""

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
    patch: int = 8
    """Side of the constant cells, pixels; divides the image."""

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch."""
        return super().smoke(**{"network": "logistic_regression"} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    victim, recipe, *_ = config.trainee(config.network, split, 10)
    budget = jp.perturb.Budget("l2", config.eps)
    lsp = arm(
        jp.attacks.lsp,
        eps=config.eps,
        num_classes=10,
        patch=config.patch,
        budget=budget,
        expect=config.expect("below 30: patches that a linear model can read", "below 35"),
    )
    iss = "Image Shortcut Squeezing README, ResNet-18, 60 epochs"
    return main_job(
        "cifar10_lsp",
        config,
        victim=victim,
        recipe=recipe,
        split=split,
        source=source,
        arms=control(budget) | {"lsp": lsp},
        main="lsp",
        clean=config.expect("the reference, 94.7", "the reference, about 48"),
        **config.memory(),
        published=[published("clean", 0.9468, iss), published("lsp", 0.1907, iss)],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
