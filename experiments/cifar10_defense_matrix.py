"""Unlearnable examples against the defenses that undo them, on CIFAR-10: this field's table.

Claim (Liu et al. 2023; Yu et al. 2024; and the comparisons of BridgePure): no unlearnable example
survives all defenses. JPEG and D-VAE bring most back to 80 to 90, gray helps against low-frequency
noise alone (EM, REM), adversarial training against bounded noise but not one pixel, and mixing
images against hardly any.
Rows: the clean set, random noise, EM, REM, SEM, TAP, SEP, HYPO, LSP, AR, OPS, CUDA, DeepConfuse,
GUE; columns: none, gray, JPEG-10, two bits, blur, orthogonal projection, D-VAE, UEraser,
adversarial training, mixup, CutMix, cutout. Victims: ResNet-18, 60 epochs, as in D-VAE's code. Blur
is a Gaussian of sigma 1, as that of Image Shortcut Squeezing (sigma 0.1) is an identity. Victims of
projected sets are trained as all others, without the augmentation of that paper.
Published values beside ours are of other implementations, some of 40,000 images: the spread among
them is that of the field.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: accelerators, days for the whole table; a cell is computed once, whichever run asks for it
first (--attacks and --defenses choose, RUNS/cache keeps). `--scale small` is a small CNN on 4,000
images, larger budgets and a part of the table: 20 minutes on 2 CPU cores. It reproduces nothing.

    python -m experiments.cifar10_defense_matrix --data-dir DATA_DIR
"""

import dataclasses
import functools

from jaxpoison.report import (
    PaperMatrixConfig,
    ZooSettings,
    command_line,
    matrix_job,
    published_cell,
    usual_attackers,
    usual_defenses,
)

ISS = {
    "clean": (0.9468, 0.9241, 0.8538),
    "error-minimizing": (0.2105, 0.9301, 0.8150),
    "robust-error-minimizing": (0.2544, 0.9284, None),
    "error-maximizing": (0.0817, 0.0911, 0.8387),
    "self-ensemble": (0.0385, 0.0357, 0.8437),
    "hypocritical": (0.7154, 0.6186, 0.8545),
    "lsp": (0.1907, 0.8247, 0.8301),
    "autoregressive": (0.1328, 0.3404, 0.8515),
    "one-pixel": (0.3655, 0.4244, 0.8253),
    "deepconfuse": (0.1630, 0.9307, 0.8184),
}
"""None, grayscale, JPEG-10; of REM's JPEG the README repeats EM's, probably by mistake."""
BRIDGEPURE = {
    "clean": (0.9401, None, None),
    "error-minimizing": (0.2379, 0.8386, 0.8875),
    "robust-error-minimizing": (0.2096, 0.8547, 0.8307),
    "error-maximizing": (0.0951, 0.8182, 0.8322),
    "lsp": (0.1385, 0.8346, 0.9004),
    "autoregressive": (0.1352, 0.8178, 0.9022),
    "one-pixel": (0.1367, 0.0960, 0.8948),
    "deepconfuse": (0.1510, 0.8256, 0.8863),
    "gue": (0.1276, 0.8380, 0.8980),
}
"""None, adversarial, D-VAE."""
OPS = {
    "clean": (0.9401, 0.9475, 0.9477, 0.8272),
    "error-minimizing": (0.1958, 0.3818, 0.2583, 0.8302),
    "one-pixel": (0.1556, 0.3313, 0.6168, 0.1108),
}
"""None, mixup, cutout, adversarial."""
CUDA = {
    "clean": (0.9466,),
    "error-minimizing": (0.1320,),
    "error-maximizing": (0.2251,),
    "robust-error-minimizing": (0.2709,),
    "convolution": (0.1848,),
}
"""None."""
CUDA_TEXT = {
    "convolution": (0.2553, 0.2580, 0.2693, 0.2012, None),
    "robust-error-minimizing": (None, None, None, 0.7076, 0.7871),
}
"""Mixup, cutout, CutMix, grayscale, adversarial."""
DUNE = {
    "error-minimizing": (0.1826, 0.6972, 0.8208, 0.6437, 0.8909, 0.7891),
    "robust-error-minimizing": (0.2581, 0.5912, 0.4583, 0.2945, 0.3887, 0.8133),
    "convolution": (0.2548, 0.4932, 0.4078, 0.2866, 0.2289, 0.4331),
    "stable-error-minimizing": (0.1594, 0.3243, 0.3929, 0.1599, 0.3194, 0.8158),
}
"""None, adversarial, UEraser, orthogonal projection, grayscale, JPEG."""
SOURCES = (
    (ISS, ("none", "grayscale", "jpeg-10"), "Image Shortcut Squeezing README"),
    (BRIDGEPURE, ("none", "adversarial", "dvae"), "BridgePure, table 1, 40,000 images"),
    (OPS, ("none", "mixup", "cutout", "adversarial"), "one-pixel shortcut, table 5"),
    (CUDA, ("none",), "CUDA, table 2"),
    (CUDA_TEXT, ("mixup", "cutout", "cutmix", "grayscale", "adversarial"), "CUDA, text"),
    ({"convolution": (0.3285,)}, ("adversarial",), "CUDA, table 4"),
    (
        DUNE,
        ("none", "adversarial", "ueraser", "orthogonal-projection", "grayscale", "jpeg-10"),
        "DUNE note, 2026",
    ),
)


@dataclasses.dataclass(frozen=True)
class Config(ZooSettings, PaperMatrixConfig):
    """Settings of the defense matrix on CIFAR-10."""

    SMALL = {
        "network": "small_cnn",
        "recipe": "small_color",
        "epochs": 10,
        "train_images": 4000,
        "test_images": 2000,
        "attacks": (
            "random-noise",
            "error-minimizing",
            "error-maximizing",
            "lsp",
            "autoregressive",
            "one-pixel",
        ),
        "defenses": ("grayscale", "jpeg-10", "bit-depth", "orthogonal-projection"),
        "eps": 16 / 255,
        "tap_steps": 100,
        "own_recipes": False,
        "checkpoints": 10,
        "rem_steps": 200,
        "rem_draws": 2,
        "rem_inner_steps": 3,
        "generator_width": 4,
        "generator_surrogate": "cnn5_narrow",
        "deepconfuse_trials": 30,
        "deepconfuse_passes": 1,
        "deepconfuse_batch": 64,
        "gue_passes": 20,
        "dvae_width": 16,
        "dvae_epochs": 20,
        "ueraser_epochs": 5,
        "pgd_steps": 3,
    }

    network: str = "resnet18"
    """Of victims and surrogates, a name of `jaxpoison.models.create`."""
    recipe: str = "dvae"

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: a linear victim, a few hundred images, one epoch, two rows, two columns."""
        tiny = {"attacks": ("lsp", "one-pixel"), "defenses": ("grayscale", "mixup")}
        return super().smoke(**{"network": "logistic_regression"} | tiny | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load("cifar10")
    victim, recipe, *_ = config.trainee(config.network, split, 10)
    create = functools.partial(config.create, config.network, split, 10)
    return matrix_job(
        "cifar10_defense_matrix",
        config,
        network=config.network,
        victim=victim,
        recipe=recipe,
        split=split,
        source=source,
        attackers=usual_attackers(config, split, 10, create, recipe),
        defenses=usual_defenses(config, split.train.image.shape[1:], 10, recipe),
        clean=config.expect("the reference, 94.7", "the reference, about 48"),
        **config.memory(),
        published=[
            published_cell(attack, defense, value, source)
            for rows, columns, source in SOURCES
            for attack, values in rows.items()
            for defense, value in zip(columns, values, strict=True)
            if value is not None
        ],
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
