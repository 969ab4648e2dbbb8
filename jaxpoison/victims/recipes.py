"""Training recipes of the papers, as named presets.

A preset is a function that returns a `Recipe`; `epochs` shortens or lengthens it, and its
milestones keep their share of the epochs unless it says otherwise. What its source leaves open is
as in the common CIFAR recipe: SGD, rate 0.1, momentum 0.9, weight decay 5e-4, crop and flip, pixels
in [0, 1], the last partial batch kept, every epoch shuffled.

Its `normalization` belongs to the network: `create(name, shape, 10, **recipe.normalization)`. It is
that of CIFAR-10 where a preset takes no `data`; for another set give the network that set's own.

A preset whose name ends in `_adversarial` is one of adversarial training. The Witches' Brew presets
with noisy gradients and with adversarial training are defenses, and not here.
"""

import dataclasses

from jaxpoison import check
from jaxpoison.victims.recipe import Recipe

__all__ = [
    "NORMALIZATION",
    "apbench",
    "ar",
    "bridgepure",
    "bridgepure_adversarial",
    "cuda",
    "deepconfuse_cifar10",
    "deepconfuse_imagenet",
    "deepconfuse_mnist",
    "deepconfuse_monitor",
    "dvae",
    "dvae_adversarial",
    "gue",
    "gue_adversarial_monitor",
    "gue_monitor",
    "gue_adversarial",
    "hypocritical",
    "hypocritical_surrogate",
    "iss",
    "iss_adversarial",
    "lsp",
    "metapoison",
    "mnist_canceling",
    "mnist_canceling_cnn",
    "ops",
    "orthogonal_projection",
    "poisoning_benchmark",
    "poisoning_benchmark_transfer",
    "rem",
    "sep_surrogate",
    "small",
    "tap_surrogate",
    "tap_victim",
    "tgda",
    "ueraser",
    "witches_brew",
    "witches_brew_basic",
    "witches_brew_fast",
    "witches_brew_fine_tuning",
    "witches_brew_memory_saving",
    "witches_brew_small",
]

NORMALIZATION = check.presets(
    "NORMALIZATION",
    {
        "cifar10": ((0.4914672, 0.4822617, 0.4467701), (0.2470322, 0.2434851, 0.2615879)),
        "cifar100": ((0.5071598, 0.4866936, 0.4412019), (0.2673343, 0.2564385, 0.2761505)),
        "mnist": ((0.1306638,), (0.3081078,)),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "tiny_imagenet": ((0.4789886, 0.4457631, 0.3944725), (0.2769864, 0.2690645, 0.2820819)),
    },
)
"""(mean, std) per channel of the Witches' Brew code; pixels in [0, 1]."""

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # CIFAR-10 in most other codes
BRITTLE = ("convnet", "mobilenet", "vgg", "alexnet")


def dvae(*, epochs: int = 60) -> Recipe:
    """Yu et al. 2024: the default victim; `epochs=100` for CIFAR-100.

    On the ImageNet subset the code crops 224 pixels out of resized photos, which is not offered.
    """
    return dataclasses.replace(
        _common(epochs, "D-VAE code, CIFAR victim"),
        schedule="cosine",
        clip_norm=5.0,
        drop_last=True,
    )


def dvae_adversarial(*, epochs: int = 100) -> Recipe:
    """Yu et al. 2024, adversarial training: PGD-10 at 8/255 from x + 2/255 N(0, I).

    The rate x 0.1 at 3/4 and 9/10.
    """
    recipe = dataclasses.replace(
        _common(epochs, "D-VAE code, adversarial training"),
        adversarial="pgd",
        adversarial_start="step_normal",
    )
    return _steps(recipe, (3, 4), (9, 10))


def iss(*, epochs: int = 60) -> Recipe:
    """Liu et al. 2023, image shortcut squeezing; `epochs=200` for a ViT."""
    return dataclasses.replace(_common(epochs, "ISS code, main.py"), schedule="cosine")


def iss_adversarial(*, epochs: int = 100) -> Recipe:
    """Liu et al. 2023, adversarial training: `iss` on PGD-10 examples at 0.031, step 0.007."""
    return dataclasses.replace(
        iss(epochs=epochs),
        adversarial="pgd",
        adversarial_eps=0.031,
        adversarial_step=0.007,
        source="ISS code, main.py, adversarial training",
    )


def bridgepure(*, epochs: int = 120) -> Recipe:
    """BridgePure, tables 1 and 2: x 0.1 at 2/3 and 5/6; 40,000 rows train, 10,000 are held out."""
    return _steps(_common(epochs, "BridgePure, tables 1 and 2"), (2, 3), (5, 6))


def bridgepure_adversarial(*, epochs: int = 120) -> Recipe:
    """BridgePure, table 1, "PGD-AT": `bridgepure` on PGD-10 examples of radius 8/255.

    The source leaves the attack's step open; here 2/255, a quarter of the radius.
    """
    recipe = bridgepure(epochs=epochs)
    return dataclasses.replace(recipe, adversarial="pgd", source="BridgePure, table 1, PGD-10")


def apbench(*, epochs: int = 200) -> Recipe:
    """APBench: x 0.5 at epochs 100, 200 and 300, of however many; 300 epochs for UEraser-Max.

    Its loaders do not shuffle; here every epoch is shuffled. The batch is that of the benchmark's
    settings; its loader of CIFAR takes 128 and drops the last.
    """
    check.at_least(1, epochs=epochs)
    reached = tuple(m for m in (100, 200, 300) if m < epochs)
    return dataclasses.replace(
        _common(epochs, "APBench code, train.py"),
        batch_size=256,
        schedule="step" if reached else "constant",
        milestones=reached,
        decay=0.5,
    )


def cuda(*, epochs: int = 100) -> Recipe:
    """Sadasivan et al. 2023: x 0.1 at 40 % and 80 % of the epochs, rounded down."""
    recipe = _common(epochs, "CUDA code, final_filter_unlearnable.py")
    return _steps(dataclasses.replace(recipe, batch_size=512), (2, 5), (4, 5))


def ops(*, epochs: int = 200) -> Recipe:
    """Wu et al. 2023, one-pixel shortcut: x 0.1 at 1/2 and 3/4; the code's batch is 256."""
    return _steps(_common(epochs, "One-pixel shortcut, paper"), (1, 2), (3, 4))


def orthogonal_projection(*, epochs: int = 50) -> Recipe:
    """Sandoval-Segura et al. 2023, victims of projected sets: x 0.1 at 1/2 and 3/4.

    Its CutMix, in every second batch, is `defense=defenses.cutmix(num_mix=1)` of
    `victim_training`, which draws row by row. Without its flag for strong augmentation it crops and
    flips, as "crop_flip".
    """
    recipe = dataclasses.replace(
        _common(epochs, "Learn-from-unlearnable code, orthogonal_projection_step_2.py"),
        weight_decay=1e-4,
        augmentation="strong",
        mean=MEAN,
        std=STD,
    )
    return _steps(recipe, (1, 2), (3, 4))


def tap_victim(*, epochs: int = 200) -> Recipe:
    """Fowl et al. 2021: the victims of error-maximizing poisons."""
    recipe = _common(epochs, "Adversarial poisons code, poison_evaluation/main.py")
    return dataclasses.replace(recipe, schedule="cosine", mean=MEAN, std=STD)


def tap_surrogate(
    *, epochs: int = 40, network: str = "resnet18", data: str | None = "cifar10"
) -> Recipe:
    """Fowl et al. 2021: the crafting model of error-maximizing poisons, of clean data; no victim.

    Milestones as the code computes them, 14, 24, 35; arguments as of `witches_brew`.
    """
    recipe = witches_brew(epochs=epochs, network=network, data=data)
    return dataclasses.replace(recipe, source="Adversarial poisons code, crafting model")


def ar(*, epochs: int = 100) -> Recipe:
    """Sandoval-Segura et al. 2022, autoregressive perturbations: x 0.1 at 1/2."""
    recipe = _common(epochs, "Autoregressive poisoning code, README")
    return _steps(dataclasses.replace(recipe, mean=MEAN, std=STD), (1, 2))


def lsp(*, epochs: int = 100) -> Recipe:
    """Yu et al. 2022, linearly separable perturbations: x 0.1 at 1/2 and 3/4, its `--aug` form.

    Without that flag it has augmentation="none". Its loader does not shuffle; here every epoch is.
    """
    return _steps(_common(epochs, "LSP code, cifar_train.py --aug"), (1, 2), (3, 4))


def metapoison(*, epochs: int = 200) -> Recipe:
    """Huang et al. 2020: plain SGD; x 0.1 at epochs 100, 150 and 200, of however many.

    The rate rises over five epochs, here from 0, update by update; without decay or augmentation.
    """
    check.at_least(1, epochs=epochs)
    reached = tuple(m for m in (100, 150, 200) if m < epochs)
    return Recipe(
        epochs,
        125,
        0.1,
        schedule="step" if reached else "constant",
        milestones=reached,
        warmup=min(5, epochs - 1),
        momentum=0.0,
        source="MetaPoison code",
    )


def rem(*, epochs: int = 102, eps: float = 4 / 255) -> Recipe:
    """Fu et al. 2022: victims on PGD-10 examples, step eps / 5; rate x 0.1 at 2/5 and 4/5.

    The code counts updates: 40,000 of 128 rows, x 0.1 every 16,000, of which epochs are rounded.
    """
    recipe = dataclasses.replace(
        _common(epochs, "REM code, README, adversarial training"),
        mean=(0.5, 0.5, 0.5),
        std=(1.0, 1.0, 1.0),
        adversarial="pgd",
        adversarial_eps=eps,
        adversarial_step=eps / 5,
    )
    return _steps(recipe, (2, 5), (4, 5))


def sep_surrogate(*, epochs: int = 120) -> Recipe:
    """Chen et al. 2023, self-ensemble protection: the crafting run; no victim.

    The rate rises from 0.001 in the first epoch; x 0.1 at 5/8 and 3/4. At least 2 epochs.
    """
    check.at_least(2, epochs=epochs)
    recipe = _common(epochs, "SEP code, crafting model")
    return _steps(dataclasses.replace(recipe, warmup=1, warmup_rate=1e-3), (5, 8), (3, 4))


def gue(*, epochs: int = 100) -> Recipe:
    """Liu et al. 2024, game unlearnable examples: rate 0.01, x 0.1 at 3/4 and 9/10.

    Their adversarially trained victim is `gue_adversarial`.
    """
    recipe = _common(epochs, "GUE code, evaluation.py")
    return _steps(dataclasses.replace(recipe, learning_rate=0.01, batch_size=256), (3, 4), (9, 10))


def gue_adversarial(*, epochs: int = 100, eps: float = 8 / 255) -> Recipe:
    """Liu et al. 2024: `gue` on PGD-10 examples, step eps / 4; 4/255 is the radius of GUE-adv."""
    return dataclasses.replace(
        gue(epochs=epochs),
        adversarial="pgd",
        adversarial_eps=eps,
        source="GUE code, evaluation.py, train_loss = AT",
    )


def hypocritical(*, epochs: int = 100, eps: float = 8 / 255) -> Recipe:
    """Tao et al. 2022: victims on PGD-10 examples, step eps / 4; rate x 0.1 at 3/4 and 9/10.

    14/255 is the radius that resists hypocritical perturbations. The code holds 1,000 training rows
    out to choose an epoch by.
    """
    recipe = _common(epochs, "Hypocritical perturbation code, main.py")
    recipe = dataclasses.replace(recipe, adversarial="pgd", adversarial_eps=eps)
    return _steps(recipe, (3, 4), (9, 10))


def hypocritical_surrogate(*, epochs: int = 10, eps: float = 2 / 255) -> Recipe:
    """Tao et al. 2022: the crafting model, `hypocritical` at 2/255 and a constant rate; no victim.

    The code's milestones, epochs 75 and 90, come after its 10 epochs.
    """
    recipe = hypocritical(epochs=epochs, eps=eps)
    return dataclasses.replace(
        recipe,
        schedule="constant",
        milestones=(),
        source="Hypocritical perturbation code, crafting model",
    )


def mnist_canceling(*, epochs: int = 100, batch_size: int = 10_000) -> Recipe:
    """Lu et al. 2023, gradient canceling: MNIST's logistic regression and 784-128-10; plain SGD."""
    mean, std = NORMALIZATION["mnist"]
    source = "Gradient canceling code, MNIST"
    return Recipe(epochs, batch_size, 0.1, momentum=0.0, mean=mean, std=std, source=source)


def mnist_canceling_cnn(*, epochs: int = 100, batch_size: int = 1000) -> Recipe:
    """Lu et al. 2023, gradient canceling: `mnist_canceling` of the CNN, `models.dropout_cnn`."""
    return mnist_canceling(epochs=epochs, batch_size=batch_size)


def gue_monitor(*, epochs: int = 5) -> Recipe:
    """Liu et al. 2024: the fresh surrogate that judges the generator, every 5 passes of it."""
    source = "GUE code, gue.py"
    return Recipe(epochs, 256, 0.01, momentum=0.9, weight_decay=5e-4, source=source)


def gue_adversarial_monitor(*, epochs: int = 5, eps: float = 4 / 255) -> Recipe:
    """Liu et al. 2024, GUE-adv: `gue_monitor` on PGD-10 examples, attacked in eval mode.

    In the code the victim is left in eval mode by the first attack and never trains its statistics.
    """
    return dataclasses.replace(
        gue_monitor(epochs=epochs),
        adversarial="pgd",
        adversarial_eps=eps,
        source="GUE code, gue_adv.py",
    )


def deepconfuse_mnist(*, epochs: int = 2, statistics: str = "running") -> Recipe:
    """Feng et al. 2019, MNIST victims (`lenet`): Adam at 0.01, no augmentation.

    Their code never leaves train mode: statistics = "batch" is what it computes, of test batches of
    1000.
    """
    recipe = Recipe(epochs, 64, 0.01, optimizer="adam", source="DeepConfuse code, MNIST")
    return dataclasses.replace(recipe, statistics=statistics, evaluation_batch=1000)


def deepconfuse_cifar10(*, epochs: int = 30) -> Recipe:
    """Feng et al. 2019, CIFAR-10 victims: Adam at 0.0001, horizontal flips.

    The code trains on 45,000 rows, poisoned anew in every epoch by the generator.
    """
    source = "DeepConfuse code, CIFAR/test_cifar.py"
    return Recipe(epochs, 256, 1e-4, optimizer="adam", augmentation="flip", source=source)


def deepconfuse_imagenet(*, epochs: int = 5, statistics: str = "running") -> Recipe:
    """Feng et al. 2019, two-class ImageNet victims: SGD at 0.1 without momentum.

    Their code never leaves train mode: statistics = "batch" is what it computes, of test batches of
    64.
    """
    recipe = Recipe(epochs, 16, 0.1, momentum=0.0, source="DeepConfuse code, ImageNet")
    return dataclasses.replace(recipe, statistics=statistics, evaluation_batch=64)


def deepconfuse_monitor(*, epochs: int = 1, batch_size: int = 64) -> Recipe:
    """Feng et al. 2019: the fresh surrogate that judges every trial, trained as in one.

    Epochs and batch are those of a trial: 1 and 64 on MNIST, 20 and 256 on CIFAR-10, 5 and 32 on
    two-class ImageNet.
    """
    return Recipe(epochs, batch_size, 0.01, momentum=0.0, source="DeepConfuse code")


def ueraser(*, epochs: int = 200) -> Recipe:
    """Qin et al. 2023, victims under `defenses.ueraser`: rate 0.01, x 0.1 at 1/2 and 3/4.

    Their loader does not shuffle; here every epoch is. Its README has the rate 0.1.
    """
    recipe = _common(epochs, "UEraser code, LSP/cifar_train.py")
    recipe = dataclasses.replace(recipe, learning_rate=0.01, drop_last=True)
    return _steps(recipe, (1, 2), (3, 4))


def witches_brew(
    *, epochs: int = 40, network: str = "resnet18", data: str | None = "cifar10"
) -> Recipe:
    """Geiping et al. 2021, "conservative": Nesterov SGD, x 0.1 at 3/8, 5/8, 7/8, sub-pixel shifts.

    The released code takes its milestones by floor division in floating point, 14, 24, 35 of 40
    epochs, and so does this.

    Args:
      epochs: E.
      network: of whom; the rate of convnets, MobileNets, VGGs and AlexNets is a tenth.
      data: a key of NORMALIZATION, whose mean is also the color of the padding (the code shifts
        normalized images); None for neither.

    Errors: InputError for an unknown data set.
    """
    check.at_least(1, epochs=epochs)
    mean, std = _normalization(data)
    return Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=_tamed(0.1, network),
        schedule="step",
        milestones=_eighths(epochs),
        nesterov=True,
        weight_decay=5e-4,
        augmentation="shift_flip",
        fill=mean or (0.0,),
        mean=mean,
        std=std,
        source="Witches' Brew code, conservative",
    )


def witches_brew_memory_saving(
    *, epochs: int = 40, network: str = "resnet18", data: str | None = "cifar10"
) -> Recipe:
    """`witches_brew` with batch 64 at rate 0.05; arguments as of that."""
    return dataclasses.replace(
        witches_brew(epochs=epochs, data=data),
        batch_size=64,
        learning_rate=_tamed(0.05, network),
        source="Witches' Brew code, memory-saving",
    )


def witches_brew_fast(
    *, epochs: int = 40, network: str = "resnet18", data: str | None = "cifar10"
) -> Recipe:
    """`witches_brew` with batch 512 at rate 0.4, weight decay 0.002; arguments as of that."""
    return dataclasses.replace(
        witches_brew(epochs=epochs, data=data),
        batch_size=512,
        learning_rate=_tamed(0.4, network),
        weight_decay=2e-3,
        source="Witches' Brew code, fast",
    )


def witches_brew_basic(
    *, epochs: int = 80, network: str = "resnet18", data: str | None = "cifar10"
) -> Recipe:
    """MetaPoison's plain SGD: no momentum, decay, schedule, augmentation; see `witches_brew`."""
    mean, std = _normalization(data)
    rate, source = _tamed(0.1, network), "Witches' Brew code, basic"
    return Recipe(epochs, 128, rate, momentum=0.0, mean=mean, std=std, source=source)


def witches_brew_fine_tuning(
    *, epochs: int = 40, network: str = "resnet18", data: str | None = "cifar10"
) -> Recipe:
    """`witches_brew` at 0.001 of its rate, for all weights of a pretrained network.

    The training is `victims.fine_tuning`. The code's linear transfer, the last layer alone in eval
    mode, is `witches_brew` itself, with `victims.linear_transfer`.
    """
    recipe = witches_brew(epochs=epochs, network=network, data=data)
    return dataclasses.replace(
        recipe,
        learning_rate=1e-3 * recipe.learning_rate,
        source="Witches' Brew code (data-poisoning), fine-tuning",
    )


def witches_brew_small(*, epochs: int = 25, network: str = "cnn3") -> Recipe:
    """`witches_brew` for a few hundred CIFAR-10 images and a CPU: batch 32, no augmentation.

    Of no paper. Rate 0.05, but 0.02 for the networks that `witches_brew` trains at a lower rate.
    """
    recipe = witches_brew(epochs=epochs, network=network)
    return dataclasses.replace(
        recipe,
        batch_size=32,
        learning_rate=0.05 if recipe.learning_rate == 0.1 else 0.02,
        augmentation="none",
        source="jaxpoison, Witches' Brew at small size",
    )


def poisoning_benchmark(*, epochs: int = 200) -> Recipe:
    """Schwarzschild et al. 2021, from scratch: x 0.1 at 1/2 and 3/4; one rate for every network."""
    recipe = _common(epochs, "Just how toxic is data poisoning, from scratch")
    return _steps(
        dataclasses.replace(recipe, weight_decay=2e-4, mean=MEAN, std=STD), (1, 2), (3, 4)
    )


def poisoning_benchmark_transfer(*, epochs: int = 40) -> Recipe:
    """Schwarzschild et al. 2021, transfer: rate 0.01, x 0.1 at 3/4, for the last layer alone.

    The training is `victims.linear_transfer`.
    """
    recipe = dataclasses.replace(
        poisoning_benchmark(epochs=epochs),
        learning_rate=0.01,
        source="Just how toxic is data poisoning, transfer",
    )
    return _steps(recipe, (3, 4))


def tgda(*, epochs: int = 100, batch_size: int = 1000) -> Recipe:
    """Plain SGD of TGDA's followers (Lu et al. 2022, released code): rate 0.1, no momentum.

    Pixels in [-1, 1]. The release does not shuffle and appends a slice of the points to each batch;
    here every epoch is shuffled, points among the others. Its CIFAR-10 code has batches of 256.
    """
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=0.1,
        momentum=0.0,
        mean=(0.5,),
        std=(0.5,),
        source="Lu et al. 2022, released code",
    )


def small(*, epochs: int = 20, learning_rate: float = 0.01, batch_size: int = 32) -> Recipe:
    """Adam at a constant rate without augmentation, for small nets on a CPU; of no paper."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer="adam",
        source="jaxpoison, small nets",
    )


def _common(epochs: int, source: str) -> Recipe:
    """What most CIFAR victims share; presets state the rest."""
    return Recipe(
        epochs=epochs,
        batch_size=128,
        learning_rate=0.1,
        weight_decay=5e-4,
        augmentation="crop_flip",
        source=source,
    )


def _steps(recipe: Recipe, *shares: tuple[int, int]) -> Recipe:
    """Milestones after the shares a/b of the epochs, rounded down."""
    milestones = tuple(recipe.epochs * a // b for a, b in shares)
    return dataclasses.replace(recipe, schedule="step", milestones=milestones)


def _eighths(epochs: int) -> tuple[int, int, int]:
    """3/8, 5/8 and 7/8 of the epochs as the released code has them; 40 // 1.6 is 24, not 25."""
    return int(epochs // 2.667), int(epochs // 1.6), int(epochs // 1.142)


def _tamed(rate: float, network: str) -> float:
    return rate / 10 if any(name in network.lower() for name in BRITTLE) else rate


def _normalization(data: str | None) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    check.one_of((*NORMALIZATION, None), data=data)
    return (None, None) if data is None else NORMALIZATION[data]
