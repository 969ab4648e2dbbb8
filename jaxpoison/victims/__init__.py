"""Victims in training: how they learn, by which recipe, and how they are judged."""

from jaxpoison.victims import recipes
from jaxpoison.victims.evaluate import (
    Interval,
    Judgment,
    Similarity,
    accuracy,
    confusion,
    hits,
    interval,
    judge,
    logits,
    similarity,
    targeted,
)
from jaxpoison.victims.learner import learner
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.train import training, victim_training

__all__ = [
    "Interval",
    "Judgment",
    "Recipe",
    "Similarity",
    "accuracy",
    "confusion",
    "hits",
    "interval",
    "judge",
    "learner",
    "logits",
    "recipes",
    "similarity",
    "targeted",
    "training",
    "victim_training",
]
