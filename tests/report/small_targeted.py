"""A whole targeted run in seconds."""

import functools
import pathlib

import numpy as np

import jaxpoison as jp
from jaxpoison.attacks.crafting import Crafting
from jaxpoison.attacks.targeted.gradient_matching import gradient_matching
from jaxpoison.data import Setup
from jaxpoison.report import StudyConfig, Trainee, arm, control, targeted_job
from jaxpoison.victims import recipes
from tests.report import small_job

EPS, STEPS = 0.2, 4
BUDGET = jp.perturb.Budget("linf", EPS)
MLP = jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=(6,))
LINEAR = jp.models.logistic_regression(small_job.SHAPE, small_job.CLASSES)
RECIPE = recipes.small(epochs=2, batch_size=16)


def setup(number, **fields):
    """Target `number` of the test set, to be read as the next class, by six rows of that class."""
    train, test = small_job.split()
    true = int(test.label[number])
    wanted = (true + 1) % small_job.CLASSES
    rows = np.flatnonzero(np.asarray(train.label) == wanted)
    drawn = np.random.default_rng(number).permutation(rows)[:6]
    labels = np.array([wanted]), np.array([true])
    return Setup(f"s{number}", drawn, np.array([number]), *labels)._replace(**fields)


@functools.cache
def matching(steps=STEPS):
    """The arm of gradient matching, the better of two restarts."""
    return arm(
        gradient_matching,
        MLP,
        eps=EPS,
        crafting=Crafting(steps=steps),
        restarts=2,
        budget=BUDGET,
        expect="targets are read as wanted",
    )


def run(runs, *, experiment="small", setups=None, **options):
    """The record of two setups, each with noise and gradient matching, two victims each."""
    fields = {"name", "victims", "share", "craft_seeds", "probes", "overwrite"}
    config = {"runs": pathlib.Path(runs), "victims": 2}
    config |= {k: options.pop(k) for k in fields & options.keys() if k != "victims"}
    if isinstance(options.get("victims"), int):
        config["victims"] = options.pop("victims")
    job = {
        "setups": [setup(0), setup(1)] if setups is None else setups,
        "victims": {"": Trainee(MLP, RECIPE)},
        "split": small_job.split(),
        "source": {"name": "blobs"},
        "arms": control(BUDGET) | {"gradient-matching": matching()},
        "main": "gradient-matching",
        "surrogates": [Trainee(MLP, RECIPE)],
        "chunk": None,
    }
    return targeted_job(experiment, StudyConfig(**config), **job | options)
