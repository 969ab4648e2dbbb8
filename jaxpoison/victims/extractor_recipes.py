"""Pretrained extractors as presets: network, recipe and method, with their source.

    pretrain(path, key, split, num_classes=10, **simclr_cifar10()._asdict())

Self-supervised ones need no labels but for the last layer's online probe. Rates are those of the
whole batch: the sources' rate per 256 rows times B / 256. [P] marks what no source readable here
settles. None but the small ones was run on the machine these were written on.
"""

import dataclasses
from typing import Any, NamedTuple

from jaxpoison.data.views import Views
from jaxpoison.victims.contrastive import MoCoV3, SimCLR
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.recipes import NORMALIZATION

__all__ = [
    "Pretraining",
    "moco_v3_cifar10",
    "moco_v3_imagenet",
    "simclr_cifar10",
    "simclr_imagenet",
    "small_moco_v3",
    "small_simclr",
    "small_supervised",
]


class Pretraining(NamedTuple):
    """What `pretrain` needs besides data; its fields are keyword arguments of that.

    Attributes:
      network: a name of `models.create`.
      options: its keyword arguments.
      recipe: how it is trained.
      contrastive: the self-supervised method, or None for supervised.
    """

    network: str
    options: dict[str, Any]
    recipe: Recipe
    contrastive: SimCLR | MoCoV3 | None = None


def small_supervised(*, epochs: int = 8, width: int = 32) -> Pretraining:
    """`cnn5` of 128 features (4 `width`) by labels: an extractor for a CPU; of no paper.

    What a linear head on its features reaches is "clean" in experiments/results/
    cifar10_feature_targeted.small.json (pretrained on 5,000 images of CIFAR-10, head on the first
    500), and of other classes than it was pretrained on in transfer_feature_targeted.small.json.
    """
    recipe = Recipe(
        epochs,
        128,
        2e-3,
        schedule="cosine_per_update",
        optimizer="adam",
        augmentation="crop_flip",
        source="jaxpoison, small extractors",
    )
    return Pretraining("cnn5", {"width": width}, recipe)


def small_simclr(*, epochs: int = 8, width: int = 32) -> Pretraining:
    """`cnn5` of 128 features (4 `width`) by SimCLR, for a CPU; of no paper. No record has it."""
    method = SimCLR(temperature=0.5, projector=(128, 64), views=Views(area=(0.2, 1.0)))
    return Pretraining("cnn5", {"width": width}, _small(epochs), method)


def small_moco_v3(*, epochs: int = 8, width: int = 32) -> Pretraining:
    """`cnn5` of 128 features (4 `width`) by MoCo-v3, for a CPU; of no paper. No record has it.

    Without a queue, as MoCo-v3 is: the other rows of the batch are the negatives.
    """
    method = MoCoV3(
        temperature=0.2, projector=(128, 64), predictor=(128, 64), views=Views(area=(0.2, 1.0))
    )
    return Pretraining("cnn5", {"width": width}, _small(epochs), method)


def simclr_cifar10(*, epochs: int = 1000) -> Pretraining:
    """Chen et al. 2020: ResNet-18, batch 512, temperature 0.5, jitter at half strength, no blur.

    LARS at 1.0 per 256 rows, weight decay 1e-6, ten epochs of warm-up. Crops are bilinear (bicubic
    there); color jitter is torchvision's.
    """
    recipe = _lars(epochs, 512, 1.0, 1e-6, "SimCLR code, README, CIFAR-10")
    return Pretraining("resnet18", {}, recipe, SimCLR(temperature=0.5, projector=(512, 128)))


def simclr_imagenet(*, epochs: int = 100) -> Pretraining:
    """Chen et al. 2020, defaults: ResNet-50 at 224 pixels, batch 4096, temperature 0.1."""
    views = Views(jitter=(0.8, 0.8, 0.8, 0.2), blur=(0.5, 0.5))
    method = SimCLR(temperature=0.1, projector=(2048, 128), views=views)
    recipe = _lars(epochs, 4096, 0.3, 1e-6, "SimCLR code, README, ImageNet")
    return Pretraining("resnet50", {"stem": "imagenet"}, recipe, method)


def moco_v3_cifar10(*, epochs: int = 1000) -> Pretraining:
    """MoCo-v3 of a ResNet-18 on CIFAR-10, the fine-tuning regime's extractor; batch 256.

    Temperature 0.2, widths and views as solo-learn's CIFAR-10 configuration; it clips the trust
    ratio, which is not offered: rate 1.0 per 256 rows with coefficient 0.001 is [P].
    """
    mean, std = NORMALIZATION["cifar10"]
    views = Views(jitter=(0.4, 0.4, 0.2, 0.1), solarize=(0.0, 0.2))
    recipe = _lars(epochs, 256, 1.0, 1e-6, "solo-learn, mocov3 on CIFAR-10; LARS rate [P]")
    method = MoCoV3(temperature=0.2, views=views)
    return Pretraining("resnet18", {"mean": mean, "std": std}, recipe, method)


def moco_v3_imagenet(*, epochs: int = 300) -> Pretraining:
    """Chen, Xie and He 2021: ResNet-50 at 224 pixels, batch 4096, the 300-epoch run.

    Rate 0.3 per 256 rows, weight decay 1e-6, m from 0.99 by half a cosine. Their 1000 epochs have
    weight decay 1.5e-6 and m from 0.996. For a ViT the source also freezes the patch projection,
    which is not offered.
    """
    mean, std = NORMALIZATION["imagenet"]
    views = Views(
        area=(0.2, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur=(1.0, 0.1), solarize=(0.0, 0.2)
    )
    recipe = _lars(epochs, 4096, 0.3, 1e-6, "MoCo-v3 code, CONFIG.md, ResNet-50, 300 epochs")
    options = {"stem": "imagenet", "mean": mean, "std": std}
    return Pretraining("resnet50", options, recipe, MoCoV3(temperature=1.0, views=views))


def __getattr__(name: str) -> Any:
    known = [one for one in __all__ if one != "Pretraining"]
    raise AttributeError(f"no extractor recipe is called {name!r}; there are {', '.join(known)}")


def _small(epochs: int) -> Recipe:
    """Adam at a rate for a batch of 256, half a cosine; of self-supervised extractors."""
    return Recipe(
        epochs,
        256,
        2e-3,
        schedule="cosine_per_update",
        optimizer="adam",
        drop_last=True,
        source="jaxpoison, small extractors",
    )


def _lars(epochs: int, batch_size: int, rate: float, decay: float, source: str) -> Recipe:
    """LARS with momentum 0.9, ten epochs of warm-up, then half a cosine; `rate` per 256 rows."""
    recipe = Recipe(
        epochs,
        batch_size,
        rate * batch_size / 256,
        schedule="cosine_per_update",
        optimizer="lars",
        weight_decay=decay,
        drop_last=True,
        source=source,
    )
    return dataclasses.replace(recipe, warmup=min(10, epochs - 1))
