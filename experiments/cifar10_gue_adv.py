"""GUE-adv on CIFAR-10 at the scale of its code: GUE against a follower that trains adversarially.

Claim (Liu et al. 2024, abstract): the game has an equilibrium for victims of adversarial training,
too, and its poison shall spoil them; no value of it was at hand, so none is published here. The
follower's loss is that of TRADES on poisoned images, radius 4/255, beta 1; the generator's SGD has
momentum 0.9 and weight decay 0.0005, and all rates fall tenfold after 120 and 140 of 150 passes.
Victims are trained plainly and on PGD-10 examples of radius 4/255 and 8/255, by the recipe of the
code (100 epochs, rate 0.01). To be read beside experiments.cifar10_gue --recipe gue --robust
0.0156863 0.0313726: where GUE-adv is worth its cost, its adversarially trained victims are lower.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: one accelerator, estimated 10 hours or more of crafting (about 12 times GUE per pass) and 8
for the victims; --scale small only shows, on a CPU, that all runs.

    python -m experiments.cifar10_gue_adv --data-dir DATA_DIR
"""

import dataclasses

import jaxpoison as jp
from jaxpoison.report import GUEConfig, command_line, transfer_job


@dataclasses.dataclass(frozen=True)
class Config(GUEConfig):
    """Settings of GUE-adv on CIFAR-10."""

    SMALL = {
        "networks": ("small_cnn",),
        "surrogate": "cnn5_narrow",
        "width": 4,
        "robust": (4 / 255,),
        "recipe": "small_color",
        "epochs": 5,
        "eps": 16 / 255,
        "passes": 6,
        "batch_size": 64,
        "inner_steps": 3,
        "follower_steps": 2,
        "decay_passes": (5,),
        "select_passes": 2,
        "select_epochs": 2,
        "train_images": 2000,
        "test_images": 1000,
    }

    recipe: str = "gue"
    robust: tuple[float, ...] = (4 / 255, 8 / 255)
    passes: int = 150
    follower_eps: float = 4 / 255
    """L-infinity radius of the follower's adversarial examples."""
    follower_steps: int = 10
    """Of PGD, a quarter of that radius each."""
    beta: float = 1.0
    """Weight of the divergence in the follower's loss."""
    decay_passes: tuple[int, ...] = (120, 140)
    """After which both rates fall tenfold."""

    def __post_init__(self):
        super().__post_init__()
        jp.check.fraction(follower_eps=self.follower_eps)
        jp.check.at_least(1, follower_steps=self.follower_steps)
        jp.check.number(least=0, beta=self.beta)
        for number in self.decay_passes:
            jp.check.at_least(1, decay_passes=number)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: linear victims, a dense generator, a few hundred images, one pass."""
        return super().smoke(**{"follower_steps": 1, "decay_passes": (1,)} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    expect = config.expect(
        "below GUE where victims train adversarially", "about random noise: too short a game"
    )
    arms = config.poisons(
        split,
        10,
        expect,
        jp.attacks.gue_adv,
        adversarial_eps=config.follower_eps,
        adversarial_steps=config.follower_steps,
        adversarial_beta=config.beta,
        decay_passes=config.decay_passes,
    )
    return transfer_job(
        "cifar10_gue_adv",
        config,
        victims=config.judges(split, 10),
        split=split,
        source=source,
        arms=arms,
        main="gue-adv",
        clean="the reference of each victim",
        **config.memory(),
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
