"""Linear transfer on a thousand images of CIFAR-10: which poisons fool a new last layer.

Claim (Shafahi et al. 2018; Schwarzschild et al. 2021, in the small): where a victim keeps a
pretrained extractor and trains a last layer alone, poisons whose features meet the target's
(bullseye and convex polytope, feature collision), and poisons matched to the target's gradient of
the last layer, raise the probability of the wanted class for victims with the attacker's extractor
(white box) above that of random noise and of a watermark of the same size; victims with an
extractor of their own, another network (black box), follow less.
Extractors are pretrained on airplane, bird, deer, frog and ship; victims tell automobile, cat, dog,
horse and truck apart. Each setup draws classes, target and 25 poisons from an integer by the order
of draws of Geiping et al. No number here is of a paper.
Expected: white box, p(wanted) of the four optimized attacks above noise in nearly all setups; clean
accuracy within two points of each other.
Data: cifar10 prepared for TFDS as array_record, or cifar10-train.npz and cifar10-test.npz.
Device: any; estimated 6 minutes on 2 CPU cores. Pretrained networks are kept in
RUNS/pretrained/cifar_small_transfer-NAME-*; remove them to pretrain with other settings.

    python -m experiments.cifar_small_transfer --data-dir DATA_DIR
"""

import dataclasses

import jax

import jaxpoison as jp
from jaxpoison.attacks import Crafting
from jaxpoison.report import ImageConfig, Trainee, arm, command_line, control, targeted_job
from jaxpoison.victims import pretrain, recipes, transfer

MEAN, STD = recipes.NORMALIZATION["cifar10"]
ATTACKS = (
    "bullseye-polytope",
    "convex-polytope",
    "feature-collision",
    "gradient-matching",
    "watermark",
)


@dataclasses.dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of linear transfer on a few images of CIFAR-10."""

    classes: tuple[int, ...] = (1, 3, 5, 7, 9)
    """Of CIFAR-10 that victims tell apart, with labels 0, 1, ... in this order."""
    pretrain_classes: tuple[int, ...] = (0, 2, 4, 6, 8)
    """Of CIFAR-10 that extractors are pretrained on."""
    train_images: int | None = 2500
    """The first of the training set, of which the rows of the classes are kept; None is all."""
    test_images: int | None = 2000
    """The first of the test set, likewise."""
    pretrain_images: int | None = 8000
    """The first of the training set for pretraining, likewise."""
    network: str = "metapoison_convnet"
    """Extractor of the attacker and of the victims in the white box."""
    black_box: str = "small_cnn"
    """Extractor of the victims in the black box, pretrained with another key."""
    epochs: int = 15
    """Of every last layer (Adam 0.002, batch 64)."""
    pretrain_epochs: int = 8
    """Of every extractor, by the same recipe."""
    victims: int = 3
    keys: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Integers from each of which classes, target and poison rows are drawn."""
    budget: float = 0.02
    """Poisons as a share of the training set, rounded up; at most their class."""
    eps: float = 16 / 255
    """L-infinity radius, pixels in [0, 1]."""
    steps: int = 100
    """Of crafting."""
    methods: tuple[str, ...] = ATTACKS
    """Which of them are made, beside random noise; the others are tested against the first."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.methods:
            jp.check.one_of(ATTACKS, methods=name)
        for name in ("methods", "keys"):
            if not getattr(self, name):
                raise jp.InputError(f"there are no {name}; name at least one")
        numbers = {"pretrain_epochs": self.pretrain_epochs, "steps": self.steps}
        jp.check.at_least(1, **numbers)
        jp.check.number(above=0, most=1, budget=self.budget)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: linear networks on the pixels, one setup, one attack, two steps."""
        linear = {"network": "logistic_regression", "black_box": "logistic_regression"}
        small = {"pretrain_images": 200, "pretrain_epochs": 1, "keys": (0,), "steps": 2}
        small |= {"methods": ATTACKS[:1]}
        return super().smoke(**linear | small | {"budget": 0.05} | options)

    def trainee(self, network: str, victim: jp.Victim, number: int) -> Trainee:
        """A last layer on the extractor of that name, which is pretrained or loaded."""
        images = None if self.pretrain_images is None else f"[:{self.pretrain_images}]"
        name = f"cifar10{list(self.pretrain_classes)}".replace(" ", "")
        parts = [f"train{images or ''}", f"test[:{self.test_images}]"]
        known = jp.Split(*(jp.data.load(name, part, self.data_dir) for part in parts))
        options = {"mean": MEAN, "std": STD, "dtype": self.dtype}
        found = pretrain(
            self.runs / "pretrained" / f"cifar_small_transfer-{self.name}-{number}-{network}",
            jax.random.fold_in(jax.random.key(self.seed), number),
            known,
            network=network,
            recipe=_recipe(self.pretrain_epochs),
            num_classes=len(self.pretrain_classes),
            options=options,
            accumulate=self.accumulate,
        )
        return Trainee(victim, _recipe(self.epochs), transfer("linear", found))


def main(config: Config) -> dict:
    """Run the study and return its record."""
    source, split = config.load(f"cifar10{list(config.classes)}".replace(" ", ""))
    setups = [
        jp.data.setups.from_key(k, split.train.label, split.test.label, budget=config.budget)
        for k in config.keys
    ]
    victims = {
        name: config.create(name, split, len(config.classes), mean=MEAN, std=STD)
        for name in (config.network, config.black_box)
    }
    known, other = (
        config.trainee(name, victims[name], number)
        for number, name in enumerate((config.network, config.black_box))
    )
    budget = jp.perturb.Budget("linf", config.eps)
    crafting = Crafting(steps=config.steps, std=STD)

    def crafted(attack, expect, **options):
        return arm(attack, known.victim, eps=config.eps, budget=budget, expect=expect, **options)

    arms = {
        "bullseye-polytope": crafted(
            jp.attacks.bullseye_polytope, "highest in the white box", crafting=crafting
        ),
        "convex-polytope": crafted(
            jp.attacks.convex_polytope, "above noise, below bullseye", crafting=crafting
        ),
        "feature-collision": crafted(
            jp.attacks.feature_collision, "above noise: each poison alone", steps=config.steps
        ),
        "gradient-matching": crafted(
            jp.attacks.gradient_matching,
            "above noise: the last layer's gradient",
            crafting=crafting,
            params="head",
        ),
        "watermark": arm(
            jp.attacks.watermark,
            eps=config.eps,
            std=STD,
            budget=budget,
            expect="near noise: a faint picture of the target, nothing optimized",
        ),
    }
    return targeted_job(
        "cifar_small_transfer",
        config,
        setups=setups,
        victims={"white-box": known, "black-box": other},
        split=split,
        source=source,
        arms=control(budget) | {name: arms[name] for name in config.methods},
        main=config.methods[0],
        surrogates=[known],
        clean="the reference, about 50",
        **config.memory(),
    )


def _recipe(epochs: int) -> jp.victims.Recipe:
    return recipes.small(epochs=epochs, learning_rate=2e-3, batch_size=64)


if __name__ == "__main__":
    command_line(main, Config, __doc__)
