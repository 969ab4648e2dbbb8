"""Error-maximizing noise (TAP) on Fashion-MNIST: targeted and untargeted, against random noise.

Claim (Fowl et al. 2021, there on CIFAR-10): adversarial examples of a clean network are strong
poisons. Comparisons of defenses take the targeted form; in this small setting the untargeted one is
stronger. Random noise of the same size is a comparison of ours. Expected here: clean 85, noise 84,
both below 60.
A small run, not a reproduction of the paper: 4,000 training images, a two-layer CNN, eps 32/255,
100 steps, no augmentation.
Data: fashion_mnist prepared for TFDS as array_record, or fashion_mnist-train.npz and -test.npz.
Device: any; under 10 minutes on 2 CPU cores.

    python -m experiments.fashion_mnist_tap --data-dir DATA_DIR
"""

import dataclasses

import jaxpoison as jp
from jaxpoison.report import ImageConfig, Trainee, arm, command_line, control, main_job, published


@dataclasses.dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of error-maximizing noise on Fashion-MNIST."""

    network: str = "small_cnn"
    """Of victims and surrogate, a name of `jaxpoison.models.create`."""
    eps: float = 32 / 255
    """L-infinity radius, pixels in [0, 1]."""
    steps: int = 100
    """Sign-gradient steps of 0.05 eps (250 in the released code)."""

    def __post_init__(self):
        super().__post_init__()
        jp.check.at_least(1, steps=self.steps)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch."""
        return super().smoke(**{"network": "logistic_regression", "steps": 2} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("fashion_mnist")
    victim = config.create(config.network, split, 10)
    recipe = jp.victims.recipes.small(epochs=config.epochs, learning_rate=2e-3, batch_size=64)
    budget = jp.perturb.Budget("linf", config.eps)
    tap = {"eps": config.eps, "num_classes": 10, "augment": None}
    arms = control(budget) | {
        "error-maximizing": arm(
            jp.attacks.error_maximizing,
            victim,
            **tap,
            num_steps=config.steps,
            budget=budget,
            expect="below 60: features of the next class, this label",
        ),
        "error-maximizing-untargeted": arm(
            jp.attacks.error_maximizing,
            victim,
            goal="untargeted",
            **tap,
            num_steps=config.steps,
            budget=budget,
            expect="below 60: away from the label, any class",
        ),
    }
    return main_job(
        "fashion_mnist_tap",
        config,
        victim=victim,
        recipe=recipe,
        split=split,
        source=source,
        arms=arms,
        main="error-maximizing",
        clean="the reference, about 85",
        surrogate=Trainee(victim, recipe),
        **config.memory(),
        published=[
            published(
                "targeted, CIFAR-10, ResNet-18, eps 8/255 (not this setting)",
                0.0817,
                "Image Shortcut Squeezing README",
            )
        ],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
