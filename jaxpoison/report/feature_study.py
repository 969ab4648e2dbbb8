"""Attacks on a head trained on the features of a pretrained extractor: settings and arms."""

import dataclasses
import hashlib
import json
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import attacks, check, loops, models
from jaxpoison.attacks import Corruption
from jaxpoison.data.manifest import tree_sha256
from jaxpoison.data.verification import fingerprint
from jaxpoison.perturb import Constraint
from jaxpoison.report.added_arms import AddedArm, added_arm
from jaxpoison.report.added_config import Player
from jaxpoison.report.added_images import AddedImageConfig
from jaxpoison.report.added_job import added_job
from jaxpoison.types import InputError, Split, Variables
from jaxpoison.victims import (
    Extractor,
    PairSplit,
    Recipe,
    ToConvergence,
    decoder_training,
    extract,
    extractor_recipes,
    on_features,
    pairs,
    pretrain,
)

__all__ = ["ARMS", "FeatureConfig", "feature_study"]

ARMS = (
    "random-points",
    "label-flip",
    "features",
    "features-range",
    "decoder",
    "matching",
    "matching-close",
    "pixels",
    "pixels-box",
    "pixels-linf",
    "tgda-features",
    "tgda",
)
"""Controls; gradient canceling of features, anywhere and in their range (what inversion can reach
at the best); the feature-targeted attack, inverted by a decoder, and by matching with beta 0 and
`beta`; gradient canceling in pixels, anywhere, as images, and near the base images; TGDA."""


PRETRAININGS = {
    preset.__name__: preset
    for preset in (
        extractor_recipes.moco_v3_cifar10,
        extractor_recipes.simclr_cifar10,
        extractor_recipes.small_moco_v3,
        extractor_recipes.small_simclr,
        extractor_recipes.small_supervised,
    )
}
"""What `FeatureConfig.pretraining` may be."""
BATCH = 2000  # points at a time through an extractor; their gradients have to fit into memory


@dataclasses.dataclass(frozen=True)
class FeatureConfig(AddedImageConfig):
    """Settings of attacks on the head of a pretrained extractor."""

    SMALL = {
        "pretraining": "small_supervised",
        "test_images": 2000,
        "cancel_steps": 300,
        "pixel_steps": 40,
        "match_steps": 40,
        "match_rate": 0.03,
        "decoder_epochs": 20,
        "decoder_batch": 32,
        "methods": (
            "random-points",
            "label-flip",
            "features",
            "features-range",
            "decoder",
            "matching",
            "pixels-box",
        ),
    }

    pretraining: str = "moco_v3_cifar10"
    """How the extractor is trained, a preset of `jaxpoison.victims.extractor_recipes`:
    moco_v3_cifar10, simclr_cifar10 (both without labels, as their small ones are), small_moco_v3,
    small_simclr, small_supervised."""
    network: str | None = None
    """Another extractor than the preset's, by its name in `jaxpoison.models`."""
    pretrain_images: int | None = None
    """The first of the set that the extractor is pretrained on; None is all."""
    pretrain_epochs: int | None = None
    """Of it; None is the preset's."""
    epochs: int = 100
    """Of the head by SGD (0.1, momentum 0.9, decay 0.0005, cosine, batch 128)."""
    weight_decay: float = 1e-3
    """Of the head that is trained to convergence by L-BFGS, the attacked one."""
    radius: float = 1.0
    """eps_w of the target head (GradPC), of features divided by their standard deviation."""
    target_scale: float = 0.05
    """By which the target head is multiplied: the same predictions, easier to reach."""
    cancel_steps: int = 2000
    """Of gradient canceling in features."""
    pixel_steps: int = 2000
    """Of gradient canceling in pixels, each through the extractor."""
    match_steps: int = 1000
    """Of feature matching."""
    match_rate: float = 0.01
    """Of its Adam, pixels in [0, 1]."""
    beta: float = 0.25
    """Weight of closeness to the base image, of "matching-close"."""
    decoder_epochs: int = 50
    """Of the decoder."""
    decoder_batch: int = 256
    """Of its training."""
    eps: float = 8 / 255
    """Radius around the base image of "pixels-linf", pixels in [0, 1]."""
    tgda_epochs: int = 25
    """Steps of both TGDA arms, one a pass over all rows, each with the head solved anew."""
    methods: tuple[str, ...] = ARMS
    """Which arms are made."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "methods", tuple(self.methods))
        for name in self.methods:
            check.one_of(ARMS, methods=name)
        if not self.methods:
            raise InputError("methods are none; name at least one")
        check.one_of(tuple(PRETRAININGS), pretraining=self.pretraining)
        if self.pretrain_epochs is not None:
            check.at_least(1, pretrain_epochs=self.pretrain_epochs)
        numbers = ("epochs", "cancel_steps", "pixel_steps", "match_steps")
        numbers += ("decoder_epochs", "decoder_batch")
        check.at_least(1, **{name: getattr(self, name) for name in (*numbers, "tgda_epochs")})
        check.positive(radius=self.radius, weight_decay=self.weight_decay)
        check.positive(match_rate=self.match_rate)
        check.number(above=0, most=1, target_scale=self.target_scale)
        check.number(least=0, beta=self.beta)
        check.radius("linf", self.eps)

    @classmethod
    def smoke(cls, **options: Any) -> Self:
        """Seconds: logistic regression's features (pixels), two steps, one share, one attack."""
        few: dict[str, Any] = {"network": "logistic_regression", "train_images": 100}
        few |= {
            "pretraining": "small_supervised",
            "test_images": 50,
            "pretrain_images": 100,
            "pretrain_epochs": 1,
            "epochs": 1,
        }
        few |= {"cancel_steps": 2, "pixel_steps": 2, "match_steps": 2}
        few |= {"victims": 2, "shares": (0.05,)}
        return cls.small(**few | {"methods": ("random-points", "matching")} | options)

    def pretrained(self, name: str, split: Split, num_classes: int) -> Extractor:
        """The extractor, pretrained on that set or loaded from RUNS/pretrained."""
        epochs = {} if self.pretrain_epochs is None else {"epochs": self.pretrain_epochs}
        preset = PRETRAININGS[self.pretraining](**epochs)
        size = min(preset.recipe.batch_size, len(split.train.label))
        preset = preset._replace(recipe=dataclasses.replace(preset.recipe, batch_size=size))
        if self.network is not None:
            preset = preset._replace(network=self.network, options={})
        found = pretrain(
            self.runs / "pretrained" / f"{name}-{self.name}",
            jax.random.fold_in(jax.random.key(self.seed), 1),
            split,
            num_classes=num_classes,
            **preset._asdict(),
        )
        return Extractor(found.victim, found.variables)


def feature_study(
    experiment: str,
    config: FeatureConfig,
    *,
    extractor: Extractor,
    split: Split,
    source: dict[str, Any],
    num_classes: int,
) -> dict[str, Any]:
    """The job: a bias-free head on the features, by SGD and to convergence, under all arms.

    Args:
      experiment: name.
      config: the settings.
      extractor: pretrained.
      split: downstream, images.
      source: of its training set.
      num_classes: L of it.

    Returns: the record.
    """
    features = extract(extractor, split.train)
    width, std = features.image.shape[-1], float(jnp.std(features.image))
    head = models.logistic_regression(
        (1, 1, width), num_classes, bias=False, std=(max(std, 1e-6),) * width
    )
    player = Player(
        head,
        {"sgd": _sgd(config, len(split.train.label)), "lbfgs": _converged(config)},
        reference="lbfgs",
        extractor=extractor,
    )
    arms = _arms(experiment, config, extractor, head, std, split, num_classes)
    main = next((one for one in ("matching", "features") if one in arms), next(iter(arms)))
    return added_job(
        experiment, config, players={"": player}, split=split, source=source, arms=arms, main=main
    )


def _sgd(config: FeatureConfig, num_train: int) -> Recipe:
    return Recipe(
        config.epochs,
        min(128, num_train),
        0.1,
        schedule="cosine",
        weight_decay=5e-4,
        source="a public code base of feature attacks, head on MoCo features",
    )


def _converged(config: FeatureConfig) -> ToConvergence:
    return ToConvergence(config.weight_decay, tolerance=1e-4, max_steps=500)


def _arms(experiment, config, extractor, head, std, split, num_classes) -> dict[str, AddedArm]:
    """All that `config.methods` names."""
    target = Corruption(config.radius, batch_size=64, scale=config.target_scale)
    whole = on_features(extractor.victim, head)
    rng = Constraint("range")
    labels: dict[str, Any] = {"labels": "balanced", "num_classes": num_classes}
    common: dict[str, Any] = {"corruption": target, "weight_decay": config.weight_decay, **labels}
    staged = common | {"feature_constraint": rng, "cancel_steps": config.cancel_steps}
    staged |= {"cancel_rate": 0.3 * std, "match_steps": config.match_steps}
    staged |= {"match_rate": config.match_rate}

    def canceling(victim, expect, **options):
        steps = config.cancel_steps if victim is head else config.pixel_steps
        return added_arm(
            attacks.gradient_canceling, victim, expect=expect, steps=steps, batch_size=BATCH,
            **common, **options,
        )  # fmt: skip

    def inverted(expect, decoder=None, **options):
        return added_arm(
            attacks.feature_targeted, extractor.victim, head, decoder,
            expect=expect, constraint=Constraint("box"), **staged, **options,
        )  # fmt: skip

    def decoded():
        decoder, variables = _decoder(experiment, config, extractor, split)
        return inverted(
            "near clean; some points lower at share 1", decoder, inversion="decoder", aux=variables
        )

    def tgda(**options):
        game = dataclasses.replace(
            attacks.TGDA["exact"],
            weight_decay=config.weight_decay, epochs=config.tgda_epochs,
            leader_rate=options.pop("rate"),
        )  # fmt: skip
        return added_arm(
            attacks.total_gradient, head, game=game, num_steps=config.tgda_epochs,
            expect="above label flips", **labels, **options,
        )  # fmt: skip

    makers = {
        "random-points": lambda: added_arm(
            attacks.random_points, num_classes=num_classes, expect="as clean"
        ),
        "label-flip": lambda: added_arm(
            attacks.label_flip,
            num_classes=num_classes,
            expect="near clean; ten to twenty points lower at share 1",
        ),
        "features": lambda: canceling(
            head, "towards the target head; SGD less surely", space="features",
            constraint=Constraint("none"), learning_rate=3.0, std=(std,),
        ),  # fmt: skip
        "features-range": lambda: canceling(
            head, "near clean; the target head at share 1", space="features", constraint=rng,
            learning_rate=0.3, std=(std,),
        ),  # fmt: skip
        "decoder": decoded,
        "matching": lambda: inverted("a few points below clean; about ten at share 1"),
        "matching-close": lambda: inverted("about as without beta", beta=config.beta),
        "pixels": lambda: canceling(
            whole, "low: nothing limits the points", constraint=Constraint("none"),
            learning_rate=0.05,
        ),  # fmt: skip
        "pixels-box": lambda: canceling(
            whole, "near clean; some points lower at share 1", constraint=Constraint("box"),
            learning_rate=0.02,
        ),
        "pixels-linf": lambda: canceling(
            whole, "near the control", constraint=Constraint("linf", config.eps),
            learning_rate=config.eps / 10,
        ),  # fmt: skip
        "tgda-features": lambda: tgda(space="features", constraint=rng, rate=0.1 * std),
        "tgda": lambda: tgda(
            constraint=Constraint("box"), extractor=extractor.victim, rate=0.02
        ),
    }  # fmt: skip
    return {name: makers[name]() for name in config.methods}


def _decoder(
    experiment: str, config: FeatureConfig, extractor: Extractor, split: Split
) -> tuple[Any, Variables]:
    """A decoder of the extractor's features, trained on the clean images.

    Its folder is that of these pairs: another extractor, or other images, get another.
    """
    data = PairSplit(*(pairs(extractor, part) for part in split))
    shape, width = split.train.image.shape[1:], data.train.features.shape[1]
    decoder = models.conv_decoder(width, shape, width=16 if config.scale == "small" else 64)
    training = decoder_training(decoder, batch_size=config.decoder_batch)
    facts = {"extractor": tree_sha256(extractor.variables), "batch": config.decoder_batch}
    facts |= fingerprint(split.train)
    bound = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    directory = config.runs / "pretrained" / f"decoder-{experiment}-{config.name}-{bound}"
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    state, info, _ = loops.run_chunks(
        training, key, data, num_steps=config.decoder_epochs, directory=directory,
        description="decoder",
    )  # fmt: skip
    print(f"decoder: test error {np.asarray(info.test_error)[-1]:.4f} a pixel")
    return decoder, state.variables
