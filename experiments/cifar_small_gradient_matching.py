"""Gradient matching on a few hundred images of CIFAR-10: what a CPU can show in minutes.

Claim (Geiping et al. 2021, in the small): poisons whose gradient points as the attacker's does make
victims trained from scratch take one test image for the class of the attacker's choice more often
than random noise of the same size on the same images, and than clean data. Every setup has its own
classes, target and 5 % of the training set as poisons, drawn from an integer by the released code's
order of draws. At this size the probability of the wanted class moves, the label itself now and
then; success is shown and promised nothing. No number here is of the paper.
--scale quick (default): airplane, bird, dog and frog, 600 images, a net of three convolutions, four
surrogates, ten setups of four victims. --scale nightly: ten classes, 5,000 images, MetaPoison's
ConvNet, 2 % poisons, two restarts, three setups.
--sweep adds a watermark, radii 8/255 and 16/255, poisons augmented while they are made, and victims
that train with augmentation; smaller budgets are runs of their own (--budget 0.02 --name b2).
Expected: B, 1 - cos of the gradients, falls below half in every setup; p(wanted) above noise and
clean in nearly all; clean accuracy within two points of each other.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: any; estimated 8 minutes on 2 CPU cores, an hour with --sweep or --scale nightly.

    python -m experiments.cifar_small_gradient_matching --data-dir DATA_DIR
"""

import dataclasses
from typing import Literal

import jaxpoison as jp
from jaxpoison.report import (
    TargetedConfig,
    Trainee,
    arm,
    command_line,
    control,
    sweep,
    targeted_job,
)

QUICK = TargetedConfig.SMALL


@dataclasses.dataclass(frozen=True)
class Config(TargetedConfig):
    """Settings of gradient matching on a few images of CIFAR-10."""

    SCALES = ("quick", "nightly")
    NIGHTLY = {
        "classes": (),
        "train_images": 5000,
        "test_images": 1000,
        "networks": ("metapoison_convnet",),
        "surrogate_networks": ("metapoison_convnet",),
        "epochs": 20,
        "surrogate_epochs": 20,
        "ensemble": 1,
        "keys": (0, 1, 2),
        "victims": 3,
        "budget": 0.02,
        "steps": 100,
        "restarts": 2,
    }

    scale: Literal["quick", "nightly"] = "quick"  # pyrefly: ignore[bad-override]
    """Chooses all defaults: of minutes or of about an hour on two CPU cores."""
    classes: tuple[int, ...] = QUICK["classes"]
    train_images: int | None = QUICK["train_images"]
    test_images: int | None = QUICK["test_images"]
    networks: tuple[str, ...] = QUICK["networks"]
    surrogate_networks: tuple[str, ...] = QUICK["surrogate_networks"]
    recipe: str = QUICK["recipe"]
    surrogate_recipe: str = QUICK["surrogate_recipe"]
    ensemble: int = QUICK["ensemble"]
    keys: tuple[int, ...] = tuple(range(10))
    victims: int = QUICK["victims"]
    eps: float = QUICK["eps"]
    budget: float = QUICK["budget"]
    steps: int = QUICK["steps"]
    restarts: int = QUICK["restarts"]
    crafting_augment: bool = QUICK["crafting_augment"]
    sweep: bool = False
    """Whether a watermark, smaller radii and augmentation in crafting and in training are tried."""

    @classmethod
    def presets(cls) -> dict[str, "Config"]:
        """By value of `scale`."""
        return {"quick": cls(), "nightly": cls(scale="nightly", **cls.NIGHTLY)}


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load_classes()
    members, victims = config.members(split), config.judges(split)
    budget = jp.perturb.Budget("linf", config.eps)
    arms = control(budget) | {
        "gradient-matching": config.matching(members, "p(wanted) above noise and clean"),
    }
    if config.sweep:
        arms["watermark"] = arm(
            jp.attacks.watermark,
            eps=config.eps,
            budget=budget,
            expect="near noise: a faint picture of the target, nothing optimized",
        )
        arms |= sweep(
            "gradient-matching",
            lambda eps: config.matching(members, "less than at the full radius", eps=eps),
            "eps",
            (config.eps / 4, config.eps / 2),
        )
        arms["gradient-matching-augmented"] = config.matching(
            members, "better than without where victims augment", crafting_augment=True
        )
        victims = {"plain": victims[""], "augmented": _augmented(victims[""])}
    return targeted_job(
        "cifar_small_gradient_matching",
        config,
        setups=config.from_keys(split),
        victims=victims,
        split=split,
        source=source,
        arms=arms,
        main="gradient-matching",
        surrogates=members,
        clean="the reference, about 60",
        **config.memory(),
    )


def _augmented(one: Trainee) -> Trainee:
    recipe = dataclasses.replace(one.recipe, augmentation="shift_flip")
    return Trainee(one.victim, recipe)


if __name__ == "__main__":
    command_line(main, Config, __doc__)
