"""One poison of CIFAR-10, every victim: does a poison of one network spoil the training of others?

Claim (Wu et al. 2023, table 2, for EM and OPS): unlearnable examples spoil the training of every
architecture, whichever they were made with.
Every network, and forest and regression of scikit-learn, is trained on the clean set, on random
noise at the same budget (a comparison of ours) and on the poison. All victims share one recipe
(Image Shortcut Squeezing, 60 epochs, vit_small too, which that code trains for 200: run it alone
with --networks vit_small --epochs 200); --recipe witches_brew lowers the rate for VGG, MobileNet
and ConvNet as its code does.
--poison PATH takes any poison folder of CIFAR-10, such as RUN/poison/ARM of another experiment,
which is verified first; without it, linearly separable patches of L2 norm 1 are made.
Expected: ResNet-18 as in experiments.cifar10_lsp; for the other networks below 40 is our guess, as
no source prints them. Beside an EM or OPS poison stand the values of Wu et al., of 200 epochs.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: one accelerator, estimated 6 hours there (half of it WideResNet and DenseNet); each victim
is resumed by itself. An RBF SVM (--classical rbf_svm) takes hours of CPU on 50,000 images.

    python -m experiments.cifar10_transfer --data-dir DATA_DIR --poison PATH
"""

import dataclasses
import pathlib

import jaxpoison as jp
from jaxpoison.report import (
    PaperConfig,
    arm,
    command_line,
    control,
    published,
    stored,
    transfer_job,
)


@dataclasses.dataclass(frozen=True)
class Config(PaperConfig):
    """Settings of the transfer between victims on CIFAR-10."""

    SMALL = {
        "networks": ("logistic_regression", "mlp", "small_cnn"),
        "recipe": "small_color",
        "epochs": 10,
        "train_images": 2000,
        "test_images": 1000,
    }

    poison: pathlib.Path | None = None
    """A poison folder of these training images; None crafts linearly separable patches."""
    networks: tuple[str, ...] = (
        "resnet18",
        "resnet34",
        "resnet50",
        "vgg11",
        "vgg19",
        "mobilenet_v2",
        "densenet121",
        "wide_resnet28_10",
        "vit_small",
    )
    """Victims, names of `jaxpoison.models.create`."""
    classical: tuple[str, ...] = ("random_forest", "logistic_regression")
    """Victims of scikit-learn, names of `jaxpoison.victims.CLASSICAL`; shown as sklearn.NAME."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.classical:
            jp.check.one_of(jp.victims.CLASSICAL, classical=name)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: linear victims of both kinds, a few hundred images, one epoch."""
        few = {"networks": ("logistic_regression",), "classical": ("logistic_regression",)}
        return super().smoke(**few | options)

    def settings(self):
        """As everywhere; the poison is known by its hashes."""
        return {k: v for k, v in super().settings().items() if k != "poison"}


WU = {
    "densenet121": {"clean": 0.9410, "error-minimizing": 0.2372, "one-pixel": 0.1145},
    "resnet18": {"clean": 0.9401, "error-minimizing": 0.1958, "one-pixel": 0.1556},
    "wide_resnet28_10": {"clean": 0.9608, "error-minimizing": 0.2396, "one-pixel": 0.1276},
}
"""Table 2 of Wu et al. 2023, of the networks that are here; poisons as our scripts name them."""


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    victims = {name: config.trainee(name, split, 10) for name in config.networks}
    victims |= {f"sklearn.{name}": jp.victims.CLASSICAL[name] for name in config.classical}
    expect = config.expect("below 40 on most victims, our guess", "15 below clean on most victims")
    iss = "Image Shortcut Squeezing README, 60 epochs"
    numbers = [published("resnet18, clean", 0.9468, iss)]
    if config.poison is None:
        numbers.append(published("resnet18, lsp", 0.1907, iss))
        budget = jp.perturb.Budget("l2", 1.0)
        lsp = arm(jp.attacks.lsp, eps=1.0, num_classes=10, budget=budget, expect=expect)
        name, poison = "lsp", lsp
    else:
        name, poison = config.poison.resolve().name, stored(config.poison, expect)
        numbers += _wu(poison.settings["attack"].partition(".")[0])
    return transfer_job(
        "cifar10_transfer",
        config,
        victims=victims,
        split=split,
        source=source,
        arms=control(poison.budget) | {name: poison},
        main=name,
        clean="the reference of each victim",
        **config.memory(),
        published=numbers,
    )


def _wu(attack: str) -> list[dict]:
    """What that table has of an attack: sample-wise EM, or OPS; of others nothing."""
    return [
        published(f"{network}, {name}", row[name], "Wu et al. 2023, table 2, 200 epochs")
        for network, row in WU.items()
        if attack in row
        for name in ("clean", attack)
    ]


if __name__ == "__main__":
    command_line(main, Config, __doc__)
