"""Error-minimizing noise against a linear head on a frozen extractor of scanned digits.

Claim (Lu et al. 2024, the unlearnable-example baseline of their input-space attacks; noise of Huang
et al. 2021): noise that makes images look already learned costs a head that is trained on frozen
features of them more than random noise does. The extractor, an MLP 64-128-32, has seen classes 0 to
4; the head learns all ten, from changed images. With `--classes 10` the extractor has seen all of
them and little is to be expected: features that cannot change keep telling the classes apart.
Expected (no number of the paper is at hand; runs of ours at eps 0.1 on all rows): clean 80, random
noise 2 points lower; sample-wise noise 15 or more below random noise; class-wise noise, which stops
at an error of 10 %, some points below it.
Data: scikit-learn's 1,797 scanned digits (1,400 train, 397 test), embedded, no network.
Device: any; under a minute on 2 CPU cores.

    python -m experiments.digits_frozen_error_minimizing
"""

import dataclasses

import jax
import jax.numpy as jnp

import jaxpoison as jp
from jaxpoison.report import StudyConfig, Trainee, arm, command_line, control, main_job
from jaxpoison.victims import Extractor, Recipe, join_head, on_features, transfer

HEAD = jp.models.logistic_regression((1, 1, 32), 10)
ARMS = {
    "sample": ("error-minimizing", "15 or more below random noise"),
    "class": ("error-minimizing-class", "some below random noise"),
}


@dataclasses.dataclass(frozen=True)
class Config(StudyConfig):
    """Settings of error-minimizing noise against a head on a frozen extractor."""

    eps: float = 0.1
    """L-infinity radius, pixels in [0, 1]."""
    rounds: int = 20
    """Of both forms of noise at the most; they end by themselves."""
    kinds: tuple[str, ...] = ("sample", "class")
    """Of noise: one per image, one per class."""
    classes: int = 5
    """How many classes, from 0, the extractor was trained on."""
    extractor_steps: int = 150
    """Of Adam(0.01) on their labels, all rows at once."""
    epochs: int = 60
    """Of the head by SGD (rate 0.1, momentum 0.9, weight decay 0.0005, batch 128, cosine)."""

    def __post_init__(self):
        super().__post_init__()
        jp.check.radius("linf", self.eps)
        object.__setattr__(self, "kinds", tuple(self.kinds))
        jp.check.at_least(1, **{"number of kinds": len(self.kinds)})
        for kind in self.kinds:
            jp.check.one_of(tuple(ARMS), kinds=kind)
        jp.check.at_least(1, rounds=self.rounds, extractor_steps=self.extractor_steps)
        jp.check.at_least(1, epochs=self.epochs)
        jp.check.at_least(2, classes=self.classes)
        jp.check.number(most=10, classes=self.classes)

    @classmethod
    def smoke(cls, **options) -> "Config":
        """Seconds: few rounds, steps and epochs."""
        few = {"kinds": ("sample",), "rounds": 1, "extractor_steps": 10, "epochs": 2, "victims": 2}
        return cls(**few | options)


def main(config: Config) -> dict:
    """Run the study and return its record."""
    split = jp.Split(jp.data.digits("train"), jp.data.digits("test"))
    known = pretrained(config, split)
    victim = on_features(known.victim, HEAD)
    start = join_head(known.variables, HEAD.init(jax.random.key(config.seed)))
    recipe = Recipe(config.epochs, 128, 0.1, schedule="cosine", weight_decay=5e-4)
    head = transfer("linear", start)
    budget = jp.perturb.Budget("linf", config.eps)

    def noise(kind):
        return arm(
            jp.attacks.frozen_error_minimizing,
            known.victim,
            HEAD,
            num_classes=10,
            eps=config.eps,
            noise=kind,
            num_steps=config.rounds,
            budget=budget,
            expect=ARMS[kind][1],
        )

    return main_job(
        "digits_frozen_error_minimizing",
        config,
        victim=victim,
        recipe=recipe,
        transfer=head,
        surrogate=Trainee(victim, recipe, head),
        split=split,
        source={"name": "digits", "split": "train"},
        arms=control(budget) | {ARMS[kind][0]: noise(kind) for kind in config.kinds},
        main=ARMS[config.kinds[0]][0],
        clean="80",
        chunk=None,
    )


def pretrained(config: Config, split: jp.Split) -> Extractor:
    """The extractor, its features divided by their standard deviation over all training rows."""
    victim = jp.models.mlp((8, 8, 1), config.classes, hidden=(128, 32), batch_norm=False)
    some = jp.Split(*(_of(part, config.classes) for part in split))
    num = len(some.train.label)
    recipe = Recipe(config.extractor_steps, num, 0.01, optimizer="adam")
    training = jp.victims.victim_training(victim, recipe, num)
    key = jax.random.key(config.seed)
    phi, _ = jp.run(training, key, some, num_steps=config.extractor_steps)
    size = jnp.std(jp.victims.extract(Extractor(victim, phi.variables), split.train).image)
    last = jax.tree.map(lambda x: x / size, phi.params["Dense_1"])  # of features behind a ReLU
    return Extractor(victim, jp.Variables(phi.params | {"Dense_1": last}, phi.stats))


def _of(dataset: jp.Dataset, classes: int) -> jp.Dataset:
    rows = jnp.flatnonzero(jnp.asarray(dataset.label) < classes)
    return jp.Dataset(jnp.asarray(dataset.image)[rows], jnp.asarray(dataset.label)[rows])


if __name__ == "__main__":
    command_line(main, Config, __doc__)
