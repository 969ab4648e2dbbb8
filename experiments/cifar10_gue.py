"""GUE on CIFAR-10 at the paper's scale: a U-Net and one ResNet-18 in a Stackelberg game.

Claim (BridgePure, tables 1 and 6, whose victims these are; the tables of Liu et al. 2024 were not
at hand): the poison of that generator leaves a ResNet-18 near chance; adversarial training at the
poison's own radius undoes it, and so do a few clean images among the poisoned ones (--shares
0.98765 0.90909: 500 and 4,000 beside 40,000; here these are shares of one set of 50,000). Liu et
al.: a generator trained on a part of the set poisons all of it (--fractions 0.25 0.5).
Crafting by their code: 50 passes; every 5 of them a fresh ResNet-18 is judged on a held-out tenth
of the training set (there on the test set), and the best generator is kept. Poisons are rounded to
grey levels. --recipe gue is the victim of their code, at rate 0.01.
Expected (BridgePure, 40,000 images): clean 94.0, poisoned 12.8, adversarially trained 83.8.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: one accelerator, estimated 1 hour, and 5 for the adversarially trained victims, which
--robust with nothing after it leaves out; --scale small only shows, in minutes on a CPU, that all
runs: games as short as that had no effect beyond noise.

    python -m experiments.cifar10_gue --data-dir DATA_DIR
"""

import dataclasses

from jaxpoison.report import GUEConfig, command_line, published, transfer_job


@dataclasses.dataclass(frozen=True)
class Config(GUEConfig):
    """Settings of GUE on CIFAR-10."""

    recipe: str = "bridgepure"
    robust: tuple[float, ...] = (8 / 255,)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    expect = config.expect(
        "below 20; trained adversarially above 75", "about random noise: too short a game"
    )
    table1, table6 = (f"BridgePure, table {i}, 40,000 images" for i in (1, 6))
    return transfer_job(
        "cifar10_gue",
        config,
        victims=config.judges(split, 10),
        split=split,
        source=source,
        arms=config.poisons(split, 10, expect),
        main="gue",
        clean="the reference of each victim",
        **config.memory(),
        published=[
            published("resnet18, clean", 0.9401, table1),
            published("resnet18, gue", 0.1276, table1),
            published("resnet18-pgd8, gue", 0.8380, table1),
            published("resnet18, gue, 500 clean images more", 0.458, table6),
            published("resnet18, gue, 4,000 clean images more", 0.794, table6),
        ],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
