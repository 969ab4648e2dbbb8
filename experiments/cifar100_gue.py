"""GUE on CIFAR-100, or on SVHN, at the paper's scale.

Claim (BridgePure, tables 1 and 6, whose victims these are; the tables of Liu et al. 2024 were not
at hand): with 100 classes the game is weaker than with 10, and adversarial training undoes more of
it. The leader's payoff ranges over all wrong classes (the released code has to be told how many
there are; here the network says it). All else is as in experiments.cifar10_gue, --shares and
--fractions too. --dataset svhn_cropped has 10 classes and no published value.
Expected (BridgePure, 40,000 images of CIFAR-100): clean 74.3, poisoned 19.5, adversarially trained
57.4.
Data: cifar100 (or svhn_cropped) prepared for TFDS as array_record, or cifar100-train.npz and
cifar100-test.npz.
Device: one accelerator, estimated 1 hour, and 5 for the adversarially trained victims, which
--robust with nothing after it leaves out; --scale small only shows, in minutes on a CPU, that all
runs: games as short as that had no effect beyond noise.

    python -m experiments.cifar100_gue --data-dir DATA_DIR
"""

import dataclasses
from typing import Literal

from jaxpoison import check
from jaxpoison.report import GUEConfig, command_line, published, transfer_job

CLASSES = {"cifar100": 100, "svhn_cropped": 10}
"""Of the sets that are offered."""


@dataclasses.dataclass(frozen=True)
class Config(GUEConfig):
    """Settings of GUE on CIFAR-100 or SVHN."""

    SMALL = GUEConfig.SMALL | {"train_images": 10000}

    dataset: Literal["cifar100", "svhn_cropped"] = "cifar100"
    """Which images."""
    recipe: str = "bridgepure"
    robust: tuple[float, ...] = (8 / 255,)

    def __post_init__(self):
        super().__post_init__()
        check.one_of(CLASSES, dataset=self.dataset)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """As `GUEConfig.smoke`, the ten classes of SVHN: the programs of cifar10_gue."""
        return super().smoke(**{"dataset": "svhn_cropped"} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load(config.dataset)
    num_classes = CLASSES[config.dataset]
    expect = config.expect(
        "below 30; trained adversarially above 50", "about random noise: too short a game"
    )
    table1, table6 = (f"BridgePure, table {i}, 40,000 images" for i in (1, 6))
    numbers = [
        published("resnet18, clean", 0.7427, table1),
        published("resnet18, gue", 0.1950, table1),
        published("resnet18-pgd8, gue", 0.5738, table1),
        published("resnet18, gue, 500 clean images more", 0.313, table6),
        published("resnet18, gue, 4,000 clean images more", 0.528, table6),
    ]
    return transfer_job(
        "cifar100_gue",
        config,
        victims=config.judges(split, num_classes),
        split=split,
        source=source,
        arms=config.poisons(split, num_classes, expect),
        main="gue",
        clean="the reference of each victim",
        **config.memory(),
        published=numbers if config.dataset == "cifar100" else [],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
