"""The rows and columns of this field's defense matrix, by name, for whatever images and network."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

from jaxpoison import attacks, check, defenses, models
from jaxpoison.attacks.unlearnable.robust_error_minimizing import finish_steps_for
from jaxpoison.perturb import Budget
from jaxpoison.report.arms import Arm, arm, control
from jaxpoison.report.generator_attacks import DeepConfuseConfig, GUEConfig
from jaxpoison.report.matrix_config import Attacker
from jaxpoison.report.preparation import Trainee
from jaxpoison.report.protections import Protection, purified_by, trained_with
from jaxpoison.types import Split, Victim
from jaxpoison.victims import Recipe, recipes

__all__ = ["AttackName", "DefenseName", "ZooSettings", "usual_attackers", "usual_defenses"]

AttackName = Literal[
    "random-noise", "error-minimizing", "robust-error-minimizing", "stable-error-minimizing",
    "error-maximizing", "self-ensemble", "hypocritical", "lsp", "autoregressive", "one-pixel",
    "convolution", "deepconfuse", "gue",
]  # fmt: skip
DefenseName = Literal[
    "grayscale", "jpeg-10", "bit-depth", "blur", "orthogonal-projection", "dvae", "ueraser",
    "adversarial", "mixup", "cutmix", "cutout",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ZooSettings:
    """How long the attacks and defenses of a matrix work.

    The defaults are the papers', but for DeepConfuse: a fifteenth of its paper's work.
    """

    attacks: tuple[AttackName, ...] = ()
    """Rows to compute; an empty list is all. The clean set is always one. In papers: EM, REM, SEM
    (stable-error-minimizing), TAP (error-maximizing), SEP, HYPO, LSP, AR, OPS (one-pixel), CUDA
    (convolution)."""
    defenses: tuple[DefenseName, ...] = ()
    """Columns to compute; an empty list is all. No defense, "none", is always one. Blur is a
    Gaussian of sigma 1, bit-depth two bits, adversarial PGD training at `eps`."""
    eps: float = 8 / 255
    """L-infinity radius of the attacks that have one, pixels in [0, 1]; D-VAE's magnitude that
    costs nothing goes with its square."""
    l2: float = 1.0
    """L2 norm of LSP and AR, pixels in [0, 1]."""
    patch: int = 8
    """Side of LSP's constant cells, pixels; divides the image."""
    em_rounds: int = 30
    """Most rounds of EM; it ends by itself at 1 % error."""
    rem_steps: int = 5000
    """Updates of REM's and SEM's surrogate."""
    rem_draws: int = 5
    """Crops and flips in each of their noise's steps."""
    rem_inner_steps: int = 10
    """Of the PGD inside REM, at half the radius; and sign steps of their noise."""
    tap_steps: int = 250
    """Sign steps of TAP."""
    hypo_steps: int = 100
    """Sign steps of HYPO."""
    sep_steps: int = 30
    """Sign steps of SEP."""
    checkpoints: int = 30
    """Networks of one run that SEP knows."""
    own_recipes: bool = True
    """Surrogates, and victims under UEraser and adversarial training, are trained by each paper's
    own recipe; else as victims are (HYPO's surrogate on PGD examples besides)."""
    generator_width: int | None = None
    """Channels of the first layer of DeepConfuse's and GUE's generator; None is as in the paper."""
    deepconfuse_trials: int = 200
    """Fresh surrogates of DeepConfuse; 500 to 1,000 in its paper."""
    deepconfuse_passes: int = 4
    """Of each of them over the training set; 20 in its code."""
    deepconfuse_batch: int = 256
    """Images of each of its steps."""
    gue_passes: int = 50
    """Passes of GUE's generator over the training set."""
    generator_surrogate: str | None = None
    """Network that both are trained against, as in `GeneratorConfig.surrogate`; None is cnn5 for
    DeepConfuse and resnet18 for GUE."""
    dvae_width: int = 64
    """Channels of D-VAE's stem; 64 in the paper."""
    dvae_epochs: int = 60
    """Of each of its two stages."""
    dvae_batch: int = 128
    """Images of each of its steps."""
    ueraser_epochs: int = 50
    """In which UEraser chooses among five copies; then one."""
    pgd_steps: int = 10
    """Of adversarial training at radius `eps`, a quarter of it each."""

    def __post_init__(self):
        super().__post_init__()  # pyrefly: ignore[missing-attribute]
        check.at_least(
            1,
            **{
                field.name: value
                for field in dataclasses.fields(ZooSettings)
                if type(value := getattr(self, field.name)) is int
            },
        )


Row = Callable[[], Attacker]


def usual_attackers(
    config: Any, split: Split, num_classes: int, create: Callable[..., Victim], recipe: Recipe
) -> dict[str, Attacker]:
    """The attacks of a matrix that `config.attacks` names, all if none, after random noise.

    Args:
      config: with the fields of `ZooSettings` and of a matrix.
      split: the data.
      num_classes: L.
      create: (normalization as of `Recipe`) -> the network of surrogates.
      recipe: of victims.
    """
    rows = _Rows(config, split, num_classes, create, recipe)
    made: dict[str, Row] = {
        "random-noise": rows.random_noise,
        "error-minimizing": rows.error_minimizing,
        "robust-error-minimizing": functools.partial(rows.robust, "pgd"),
        "stable-error-minimizing": functools.partial(rows.robust, "random"),
        "error-maximizing": rows.error_maximizing,
        "self-ensemble": rows.self_ensemble,
        "hypocritical": rows.hypocritical,
        "lsp": rows.lsp,
        "autoregressive": rows.autoregressive,
        "one-pixel": rows.one_pixel,
        "convolution": rows.convolution,
        "deepconfuse": rows.deepconfuse,
        "gue": rows.gue,
    }
    return {name: make() for name, make in config.chosen("attacks", made).items()}


class _Rows:
    """Each attack with the settings of a matrix."""

    def __init__(self, config, split, num_classes, create, recipe):
        self._config, self._split, self._classes = config, split, num_classes
        self._create, self._recipe = create, recipe
        self._linf = Budget("linf", config.eps)
        self._ball = {"eps": config.eps, "budget": self._linf}

    def _guide(self, own: Callable[..., Recipe], **options: Any) -> Trainee:
        """A surrogate by its paper's recipe, or as victims are trained."""
        recipe = own() if self._config.own_recipes else self._recipe
        options = {} if self._config.own_recipes else options
        recipe = dataclasses.replace(recipe, **options)
        return Trainee(self._create(**recipe.normalization), recipe)

    def random_noise(self) -> Attacker:
        return Attacker(control(self._linf)["random-noise"])

    def error_minimizing(self) -> Attacker:
        return Attacker(arm(
            attacks.error_minimizing, self._create(), num_classes=self._classes,
            num_steps=self._config.em_rounds, expect="low: noise that is already learned",
            **self._ball,
        ))  # fmt: skip

    def robust(self, inner: str) -> Attacker:
        steps, channels = self._config.rem_inner_steps, self._split.train.image.shape[3]
        centered = self._create(mean=(0.5,) * channels, std=(1.0,) * channels)
        finish = finish_steps_for(int(self._config.share * len(self._split.train.label)))
        return Attacker(arm(
            attacks.robust_error_minimizing, centered, inner=inner,
            adversarial_eps=self._config.eps / 2, steps=self._config.rem_steps,
            finish_steps=finish, noise_steps=steps, adversarial_steps=steps,
            draws=self._config.rem_draws, **self._ball,
            expect="low, also under adversarial training",
        ))  # fmt: skip

    def error_maximizing(self) -> Attacker:
        guide = self._guide(recipes.tap_surrogate)
        return Attacker(arm(
            attacks.error_maximizing, guide.victim, num_classes=self._classes,
            augment=guide.recipe.augment(), num_steps=self._config.tap_steps,
            expect="low: features of the next class", **self._ball,
        ), guide)  # fmt: skip

    def self_ensemble(self) -> Attacker:
        num = self._config.checkpoints
        guide = self._guide(recipes.sep_surrogate)._replace(checkpoints=num)
        return Attacker(arm(
            attacks.self_ensemble, guide.victim, num_classes=self._classes, checkpoints=num,
            num_steps=self._config.sep_steps, expect="low: features of a class further on",
            **self._ball,
        ), guide)  # fmt: skip

    def hypocritical(self) -> Attacker:
        small = {"adversarial": "pgd", "adversarial_eps": self._config.eps / 4}
        guide = self._guide(recipes.hypocritical_surrogate, **small)
        return Attacker(arm(
            attacks.hypocritical, guide.victim, num_steps=self._config.hypo_steps,
            expect="somewhat lower: a weak poison of plain training", **self._ball,
        ), guide)  # fmt: skip

    def lsp(self) -> Attacker:
        return Attacker(self._synthetic(
            attacks.lsp, patch=self._config.patch, expect="low: patches by class"
        ))  # fmt: skip

    def autoregressive(self) -> Attacker:
        return Attacker(self._synthetic(attacks.autoregressive, expect="low: textures by class"))

    def _synthetic(self, factory: Any, **options: Any) -> Arm:
        budget = Budget("l2", self._config.l2)
        ball = {"eps": self._config.l2, "budget": budget}
        return arm(factory, num_classes=self._classes, **ball, **options)

    def one_pixel(self) -> Attacker:
        return Attacker(arm(
            attacks.one_pixel, num_classes=self._classes, budget=Budget("l0", 1),
            expect="low: one pixel by class",
        ))  # fmt: skip

    def convolution(self) -> Attacker:
        return Attacker(arm(
            attacks.convolution, num_classes=self._classes, budget=None, rounding="truncate",
            expect="low: a blur by class",
        ))  # fmt: skip

    def deepconfuse(self) -> Attacker:
        return self._generator(
            DeepConfuseConfig, "deepconfuse", "cnn5",
            trials=self._config.deepconfuse_trials,
            passes=self._config.deepconfuse_passes,
            batch_size=self._config.deepconfuse_batch,
        )  # fmt: skip

    def gue(self) -> Attacker:
        passes = self._config.gue_passes
        return self._generator(GUEConfig, "gue", "resnet18", passes=passes)

    def _generator(self, kind: Any, name: str, surrogate: str, **options: Any) -> Attacker:
        config = self._config
        own = kind(
            eps=config.eps, width=config.generator_width, share=config.share,
            surrogate=config.generator_surrogate or surrogate, **options,
        )  # fmt: skip
        made = own.poisons(self._split, self._classes, "low: a generator's noise")
        return Attacker(made[name])


def usual_defenses(
    config: Any, image_shape: tuple[int, ...], num_classes: int, recipe: Recipe
) -> dict[str, Protection]:
    """The defenses of a matrix that `config.defenses` names, all if none.

    Args:
      config: with the fields of `ZooSettings` and of a matrix.
      image_shape: (H, W, C).
      num_classes: L.
      recipe: of victims; with `own_recipes` UEraser's and adversarially trained victims have
        the recipes of their sources, and `config.epochs` where that is given.
    """

    def own(make: Callable[..., Recipe]) -> Recipe:
        if not config.own_recipes:
            return recipe
        return make() if config.epochs is None else make(epochs=config.epochs)

    made: dict[str, Callable[[], Protection]] = {
        "grayscale": lambda: purified_by(defenses.grayscale),
        "jpeg-10": lambda: purified_by(defenses.jpeg, quality=10),
        "bit-depth": lambda: purified_by(defenses.bit_depth),
        "blur": lambda: purified_by(defenses.gaussian),
        "orthogonal-projection": lambda: purified_by(
            defenses.orthogonal_projection, num_classes=num_classes
        ),
        "dvae": lambda: purified_by(
            defenses.dvae,
            models.dvae(image_shape, num_classes, width=config.dvae_width),
            defenses.DVAESettings(
                epochs=config.dvae_epochs,
                batch_size=config.dvae_batch,
                mag_floor=0.002 * (config.eps / (8 / 255)) ** 2,
            ),
        ),
        "ueraser": lambda: trained_with(
            defenses.ueraser, epochs=config.ueraser_epochs, recipe=own(recipes.ueraser)
        ),
        "adversarial": lambda: trained_with(
            recipe=dataclasses.replace(
                own(recipes.dvae_adversarial),
                adversarial="pgd",
                adversarial_eps=config.eps,
                adversarial_steps=config.pgd_steps,
            )
        ),
        "mixup": lambda: trained_with(defenses.mixup),
        "cutmix": lambda: trained_with(defenses.cutmix),
        "cutout": lambda: trained_with(defenses.cutout),
    }
    return {name: make() for name, make in config.chosen("defenses", made).items()}
