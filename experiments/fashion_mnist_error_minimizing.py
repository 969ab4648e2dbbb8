"""Error-minimizing noise on Fashion-MNIST: sample-wise and class-wise, against random noise.

Claim (Huang et al. 2021, there on CIFAR-10): noise that makes images look already learned keeps
a network from learning them. That class-wise noise does so more than sample-wise, and random noise
of the same size hardly, is what is seen here: clean 85, noise 84, sample-wise below 60, class-wise
below 50.
A small run, not a reproduction of the paper: 4,000 training images, a two-layer CNN, eps 32/255.
Data: fashion_mnist prepared for TFDS as array_record, or fashion_mnist-train.npz and -test.npz.
Device: any; under 10 minutes on 2 CPU cores.

    python -m experiments.fashion_mnist_error_minimizing --data-dir DATA_DIR
"""

import dataclasses

import jaxpoison as jp
from jaxpoison.report import ImageConfig, arm, command_line, control, main_job, published


@dataclasses.dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of error-minimizing noise on Fashion-MNIST."""

    network: str = "small_cnn"
    """Of victims and surrogate, a name of `jaxpoison.models.create`."""
    eps: float = 32 / 255
    """L-infinity radius, pixels in [0, 1]."""
    rounds: int = 20
    """Rounds of both forms of noise; they end by themselves at 1 % error."""

    def __post_init__(self):
        super().__post_init__()
        jp.check.at_least(1, rounds=self.rounds)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch."""
        return super().smoke(**{"network": "logistic_regression", "rounds": 1} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("fashion_mnist")
    victim = config.create(config.network, split, 10)
    recipe = jp.victims.recipes.small(epochs=config.epochs, learning_rate=2e-3, batch_size=64)
    budget = jp.perturb.Budget("linf", config.eps)
    em = {"eps": config.eps, "num_classes": 10, "batch_size": 128}
    arms = control(budget) | {
        "error-minimizing": arm(
            jp.attacks.error_minimizing,
            victim,
            **em,
            num_steps=config.rounds,
            budget=budget,
            expect="below 60: one noise per image",
        ),
        "error-minimizing-class": arm(
            jp.attacks.error_minimizing,
            victim,
            noise="class",
            portion=1.0,
            **em,
            num_steps=config.rounds,
            budget=budget,
            expect="below 50: one noise per class, easily learned",
        ),
    }
    return main_job(
        "fashion_mnist_error_minimizing",
        config,
        victim=victim,
        recipe=recipe,
        split=split,
        source=source,
        arms=arms,
        main="error-minimizing",
        clean="the reference, about 85",
        **config.memory(),
        published=[
            published(
                "sample-wise, CIFAR-10, ResNet-18, eps 8/255 (not this setting)",
                0.2360,
                "Unlearnable Examples notebook, 30 epochs",
            )
        ],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
