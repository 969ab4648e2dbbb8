"""Settings of experiments on a prepared image set: which images, at which scale, in which dtype."""

import dataclasses
import functools
import inspect
import pathlib
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from jaxpoison import check, data, models, over
from jaxpoison.report.preparation import Trainee
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.types import InputError, Split, Victim
from jaxpoison.victims import Recipe, recipes

__all__ = ["RECIPES", "ImageConfig", "PaperConfig", "load_images"]

RECIPES = {
    "iss": recipes.iss,
    "dvae": recipes.dvae,
    "bridgepure": recipes.bridgepure,
    "bridgepure_adversarial": recipes.bridgepure_adversarial,
    "apbench": recipes.apbench,
    "cuda": recipes.cuda,
    "ops": recipes.ops,
    "tap_victim": recipes.tap_victim,
    "ar": recipes.ar,
    "lsp": recipes.lsp,
    "gue": recipes.gue,
    "gue_adversarial": recipes.gue_adversarial,
    "hypocritical": recipes.hypocritical,
    "rem": recipes.rem,
    "deepconfuse_cifar10": recipes.deepconfuse_cifar10,
    "deepconfuse_mnist": recipes.deepconfuse_mnist,
    "poisoning_benchmark": recipes.poisoning_benchmark,
    "witches_brew": recipes.witches_brew,
    "witches_brew_basic": recipes.witches_brew_basic,
    "witches_brew_fast": recipes.witches_brew_fast,
    "witches_brew_memory_saving": recipes.witches_brew_memory_saving,
    "witches_brew_small": recipes.witches_brew_small,
    "small": recipes.small,
    "small_color": functools.partial(recipes.small, learning_rate=2e-3, batch_size=64),
}
"""How victims may be trained, by name; each takes `epochs`. All are presets of that
name but `small_color`, which is `small` with batches of 64 at rate 0.002."""


@dataclasses.dataclass(frozen=True)
class ImageConfig(StudyConfig):
    """Settings that experiments on a prepared image set share."""

    data_dir: pathlib.Path | None = None
    """Of the prepared set (TFDS array_record, or NAME-SPLIT.npz); None is TFDS' own."""
    train_images: int | None = 4000
    """The first of the training set; None is all."""
    test_images: int | None = 2000
    """The first of the test set; None is all."""
    epochs: int = 10
    """Of every victim."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Networks compute in it; parameters, losses and poisons are float32 always."""
    accumulate: int = 1
    """Micro-batches per update of every network, where memory is short."""
    devices: int = 1
    """Over which every batch is spread; divides the recipe's batch size."""

    def __post_init__(self):
        super().__post_init__()
        numbers = {k: getattr(self, k) for k in ("train_images", "test_images", "epochs")}
        check.at_least(1, **{k: v for k, v in numbers.items() if v is not None})
        check.at_least(1, accumulate=self.accumulate, devices=self.devices)
        check.one_of(("float32", "bfloat16"), dtype=self.dtype)

    @classmethod
    def smoke(cls, **options: Any) -> Self:
        """Seconds: a linear victim, a few hundred images, one epoch."""
        small: dict[str, Any] = {"train_images": 200, "test_images": 100, "epochs": 1, "victims": 2}
        return cls(**small | options)

    def memory(self) -> dict[str, Any]:
        """How batches are laid out, as `main_job` takes it: `accumulate` and `mesh`.

        Raises: InputError for more devices than there are.
        """
        if self.devices > 1 and jax.process_count() > 1:
            raise InputError(
                f"devices = {self.devices}; on several hosts it must be 1, where victims are spread"
            )
        mesh = None if self.devices == 1 else over.device_mesh(self.devices, axis="batch")
        return {"accumulate": self.accumulate, "mesh": mesh}

    def load(self, name: str) -> tuple[dict[str, Any], Split]:
        """The first images of both splits of `name`.

        Returns: (source of the training set as `data.load` takes it, Split).
        Raises: InputError as in `data.load`.
        """
        return load_images(name, self.data_dir, self.train_images, self.test_images)

    def create(self, network: str, split: Split, num_classes: int, **options: Any) -> Victim:
        """The network of that name for these images, in `dtype`; as `jaxpoison.models.create`."""
        shape = split.train.image.shape[1:]
        return models.create(network, shape, num_classes, dtype=jnp.dtype(self.dtype), **options)


@dataclasses.dataclass(frozen=True)
class PaperConfig(ImageConfig):
    """Settings at the scale of a paper, and beside them those of a small run on a CPU.

    A script's `SMALL` holds its settings at the small scale; what it does not name is as at the
    paper's. A small run shows the effect and reproduces nothing.
    """

    SMALL: ClassVar[dict[str, Any]] = {}
    SCALES: ClassVar[tuple[str, ...]] = ("paper", "small")

    scale: Literal["paper", "small"] = "paper"
    """Chooses all defaults: the paper's, or of a few minutes on two CPU cores (--scale small)."""
    recipe: str = "iss"
    """How every victim is trained, a preset of `jaxpoison.victims.recipes` or
    small_color: its `small` with batches of 64 at rate 0.002."""
    epochs: int | None = None  # pyrefly: ignore[bad-override]
    """Of every victim; None is as many as the recipe has."""
    train_images: int | None = None
    test_images: int | None = None
    victims: int = 3
    adversarial: Literal["none", "pgd", "trades"] | None = None
    """How every victim learns: plainly, from PGD examples, or by TRADES; None is as the recipe."""
    adversarial_eps: float | None = None
    """L-infinity radius of these examples, pixels in [0, 1]; None is as the recipe, 8/255 if it has
    none."""
    adversarial_steps: int | None = None
    """Of PGD, a quarter of the radius each; None is as the recipe, 10 if it has none."""
    statistics: Literal["running", "batch"] | None = None
    """Of BatchNorm where victims are judged: running ones, or those of batches of test images (of
    500, or as many as the recipe's source takes); None is as the recipe, running if it has none."""

    def __post_init__(self):
        super().__post_init__()
        check.one_of(self.SCALES, scale=self.scale)
        check.one_of(RECIPES, recipe=self.recipe)
        recipe = self._variant(RECIPES[self.recipe]())
        unread = [
            k for k in ("adversarial_eps", "adversarial_steps") if getattr(self, k) is not None
        ]
        if unread and recipe.adversarial == "none":
            raise InputError(
                f"{unread[0]} = {getattr(self, unread[0])} is of adversarial training; set "
                "adversarial to pgd or trades"
            )

    @classmethod
    def presets(cls) -> dict[str, Self]:
        """By value of `scale`: what `--scale` starts from, see `command_line`."""
        return {"paper": cls(), "small": cls.small()}

    @classmethod
    def small(cls, **options: Any) -> Self:
        """The small scale, other settings as given."""
        settings: dict[str, Any] = {"scale": "small", **cls.SMALL, **options}
        return cls(**settings)

    def expect(self, paper: str, small: str) -> str:
        """What a reader should see, by `scale`."""
        return {"paper": paper, "small": small}[self.scale]

    def trainee(self, network: str, split: Split, num_classes: int) -> Trainee:
        """That network for these images and its recipe, normalized as the recipe's source does.

        Raises: InputError as `jaxpoison.models.create`.
        """
        make = RECIPES[self.recipe]
        options: dict[str, Any] = {} if self.epochs is None else {"epochs": self.epochs}
        if "network" in inspect.signature(make).parameters:
            options["network"] = network
        recipe = self._variant(make(**options))
        return Trainee(self.create(network, split, num_classes, **recipe.normalization), recipe)

    def _variant(self, recipe: Recipe) -> Recipe:
        """The recipe with the settings of its that are given here."""
        names = ("adversarial", "adversarial_eps", "adversarial_steps", "statistics")
        given = {k: getattr(self, k) for k in names}
        return dataclasses.replace(recipe, **{k: v for k, v in given.items() if v is not None})


def load_images(
    name: str, data_dir: pathlib.Path | None, train: int | None, test: int | None
) -> tuple[dict[str, Any], Split]:
    """As `ImageConfig.load`: the first `train` and `test` images, None for all."""
    folder = None if data_dir is None else str(data_dir)
    source = {"name": name, "split": _first("train", train), "data_dir": folder}
    held_out = data.load(name, _first("test", test), folder)
    return source, Split(data.load(**source), held_out)


def _first(split: str, num: int | None) -> str:
    return split if num is None else f"{split}[:{num}]"
