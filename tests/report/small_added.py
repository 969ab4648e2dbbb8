"""A whole job of added points in seconds: a linear head without bias on blobs of 8 x 8 pixels."""

import functools
import pathlib

import jax

import jaxpoison as jp
from jaxpoison.perturb import Constraint
from jaxpoison.report import AddedConfig, Player, added_arm, added_job
from jaxpoison.types import Dataset, Split
from jaxpoison.victims import ToConvergence, recipes

SHAPE, CLASSES, EPS = (8, 8, 1), 3, 0.1
DECAY = 1e-2
CORRUPTION = jp.attacks.Corruption(radius=8.0, batch_size=24, scale=0.2)
HEAD = jp.models.logistic_regression(SHAPE, CLASSES, bias=False)


@functools.cache
def split():
    """48 rows for training, 24 for testing."""
    every = jp.data.synthetic.blobs(jax.random.key(7), 72, CLASSES, SHAPE, noise=0.3)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(48), slice(48, None))))


def canceling(kind, eps=None, *, steps=200, **options):
    """The arm of gradient canceling under a constraint."""
    return added_arm(
        jp.attacks.gradient_canceling,
        HEAD,
        corruption=CORRUPTION,
        learning_rate=0.3,
        steps=steps,
        labels="random",
        num_classes=CLASSES,
        constraint=Constraint(kind, eps),
        expect="lower",
        **options,
    )


def followers():
    return {
        "sgd": recipes.small(epochs=3, batch_size=16),
        "lbfgs": ToConvergence(DECAY, tolerance=1e-5),
    }


def arms():
    """Points anywhere, and in a small ball around their bases."""
    return {"free": canceling("none"), "ball": canceling("linf", EPS, shares=(0.5,))}


def run(runs, *, data=None, players=None, own=None, main="free", **options):
    """The record of two arms and two followers."""
    config = {"runs": pathlib.Path(runs), "victims": 2, "shares": (0.25, 0.5)}
    return added_job(
        "small",
        AddedConfig(**config | options),
        players={"": Player(HEAD, followers(), "lbfgs")} if players is None else players,
        split=data or split(),
        source={"name": "blobs"},
        arms=own or arms(),
        main=main,
    )
