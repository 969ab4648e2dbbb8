"""Unlearnable examples against the defenses that undo them, on Fashion-MNIST, at CPU size.

Claim: which defense undoes an unlearnable example depends on the example, and none undoes all; what
is seen at this size stands in experiments/README.md. A small table, not a reproduction of any
paper: 3,000 training images, a two-layer CNN, eps 16/255, D-VAE a quarter as wide and 10 epochs a
stage in batches of 32. All images are gray: the column of that name would change nothing.
Data: fashion_mnist prepared for TFDS as array_record, or fashion_mnist-train.npz and -test.npz.
Device: any; 30 minutes on 2 CPU cores.

    python -m experiments.fashion_mnist_defense_matrix --data-dir DATA_DIR
"""

import dataclasses
import functools

import jaxpoison as jp
from jaxpoison.report import (
    AttackName,
    DefenseName,
    MatrixConfig,
    ZooSettings,
    command_line,
    matrix_job,
    usual_attackers,
    usual_defenses,
)


@dataclasses.dataclass(frozen=True)
class Config(ZooSettings, MatrixConfig):
    """Settings of the defense matrix on Fashion-MNIST."""

    attacks: tuple[AttackName, ...] = ("error-minimizing", "error-maximizing", "lsp", "one-pixel")
    defenses: tuple[DefenseName, ...] = (
        "jpeg-10",
        "bit-depth",
        "blur",
        "orthogonal-projection",
        "dvae",
        "adversarial",
        "mixup",
        "cutout",
    )
    train_images: int | None = 3000
    victims: int = 3
    network: str = "small_cnn"
    """Of victims and surrogates, a name of `jaxpoison.models.create`."""
    eps: float = 16 / 255
    l2: float = 1.5
    patch: int = 7
    tap_steps: int = 100
    own_recipes: bool = False
    dvae_width: int = 16
    dvae_epochs: int = 10
    dvae_batch: int = 32
    ueraser_epochs: int = 5
    pgd_steps: int = 3

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch, two rows, two columns."""
        tiny = {"attacks": ("lsp", "one-pixel"), "defenses": ("bit-depth", "cutout")}
        return super().smoke(**{"network": "logistic_regression"} | tiny | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("fashion_mnist")
    recipe = jp.victims.recipes.small(epochs=config.epochs, learning_rate=2e-3, batch_size=64)
    create = functools.partial(config.create, config.network, split, 10)
    return matrix_job(
        "fashion_mnist_defense_matrix",
        config,
        network=config.network,
        victim=create(),
        recipe=recipe,
        split=split,
        source=source,
        attackers=usual_attackers(config, split, 10, create, recipe),
        defenses=usual_defenses(config, split.train.image.shape[1:], 10, recipe),
        clean="the reference, about 83",
        **config.memory(),
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
