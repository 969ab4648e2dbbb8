"""Gradient canceling on scanned digits: a few added points choose the classifier, unless boxed in.

Claim (Lu et al. 2023): added points can make bad parameters a place of rest of training; below a
share that is easily computed they cannot, whatever they are. A linear head without bias keeps its
predictions when it is scaled down, and then needs next to none: with points of any size 3 % decide
what is learned, while points that must be images take more.
Expected (the reference run of the specification, one attack key, another split of the same digits;
victims trained to the minimum): clean 98.0, target 8.6; points of any size at 3, 10, 30 %: the
target's own accuracy at each share; images: 95.6, 88.2, 74.8; an unscaled target is out of reach:
88.2 and 37.4 at 3 and 10 %. The target is made by the gradient of the whole set, 30 steps: by one
pass of mini-batches, as released, it depends on their order, so on the attack key.
Victims trained by SGD are reported beside them; points of size 50 are not what their rate was
chosen for. A look at the range of pixels finds all of them.
Data: scikit-learn's 1,797 scanned digits (1,400 train, 397 test), embedded, no network.
Device: any; minutes on 2 CPU cores.

    python -m experiments.digits_gradient_canceling
"""

import dataclasses

import jaxpoison as jp
from jaxpoison.report import AddedConfig, Player, added_arm, added_job, command_line

ARMS = ("random-points", "label-flip", "canceling", "canceling-unscaled", "canceling-box")


@dataclasses.dataclass(frozen=True)
class Config(AddedConfig):
    """Settings of gradient canceling on digits."""

    shares: tuple[float, ...] = (0.03, 0.1, 0.3)
    victims: int = 2
    craft_seeds: int = 5
    arms: tuple[str, ...] = ()
    """Some of the arms by name; none given means all. Random points are the others' control."""
    radius: float = 3.0
    """Of the corruption of the clean parameters that makes the target."""
    scale: float = 0.05
    """Factor of the target of points that must be images."""
    free_scale: float = 0.1
    """Of points of any size."""
    weight_decay: float = 1e-3
    """Of every victim; the attacks know it."""
    steps: int = 600
    """Of Adam on points that must be images; a third of it for L-BFGS on points of any size."""
    epochs: int = 30
    """Of the victim that is trained by SGD (rate 0.1, momentum 0.9, batch 64, cosine)."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "arms", tuple(self.arms))
        for name in self.arms:
            jp.check.one_of(ARMS, arms=name)
        jp.check.at_least(3, steps=self.steps)
        jp.check.at_least(1, epochs=self.epochs)
        jp.check.number(least=0, weight_decay=self.weight_decay)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: one share, few steps, points of any size."""
        few = {"shares": (0.05,), "victims": 2, "craft_seeds": 1, "steps": 6, "epochs": 2}
        return cls(**few | {"arms": ("random-points", "canceling")} | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    train, test = jp.data.digits("train"), jp.data.digits("test")
    head = jp.models.logistic_regression(train.image.shape[1:], 10, bias=False)
    lbfgs = jp.victims.ToConvergence(config.weight_decay, tolerance=2e-5, max_steps=3000)
    sgd = jp.victims.Recipe(
        epochs=config.epochs,
        batch_size=64,
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=config.weight_decay,
        source="jaxpoison",
    )

    def canceling(expect, *, scale, **options):
        return added_arm(
            jp.attacks.gradient_canceling,
            head,
            expect=expect,
            corruption=jp.attacks.Corruption(
                radius=config.radius, scale=scale, batch_size=len(train.label), passes=30
            ),
            weight_decay=config.weight_decay,
            num_classes=10,
            **options,
        )

    player = Player(
        head,
        {"lbfgs": lbfgs, "sgd": sgd},
        "lbfgs",
        filters={"range": jp.defenses.range_filter(), "loss": jp.defenses.largest_loss(head)},
        trusted=jp.Dataset(train.image[:100], train.label[:100]),
    )
    search = {"optimizer": "lbfgs", "labels": "free", "steps": config.steps // 3}
    images = {"constraint": jp.perturb.Constraint("box"), "labels": "random"}
    adam = {"steps": config.steps, "learning_rate": 0.05}
    arms = {
        "random-points": added_arm(
            jp.attacks.random_points,
            num_classes=10,
            constraint=jp.perturb.Constraint("box"),
            expect="as clean",
        ),
        "label-flip": added_arm(jp.attacks.label_flip, num_classes=10, expect="as clean"),
        "canceling": canceling(
            "its target's accuracy, about 8.6, at any share", scale=config.free_scale, **search
        ),
        "canceling-unscaled": canceling("88.2, 37.4 at 3, 10 %", scale=1.0, **search),
        "canceling-box": canceling(
            "95.6, 88.2, 74.8 at 3, 10, 30 %", scale=config.scale, **images, **adam
        ),
    }
    arms = {name: one for name, one in arms.items() if name in (config.arms or ARMS)}
    return added_job(
        "digits_gradient_canceling",
        config,
        players={"": player},
        split=jp.Split(train, test),
        source={"name": "digits", "split": "train"},
        arms=arms,
        main="canceling" if "canceling" in arms else list(arms)[-1],
        clean="98.0",
        chunk=None,
    )


if __name__ == "__main__":
    command_line(main, Config, __doc__)
