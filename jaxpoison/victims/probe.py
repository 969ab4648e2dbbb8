"""How much features tell: a linear classifier on them, trained to convergence."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpoison import check, models
from jaxpoison.types import Dataset, Split, Victim, as_float
from jaxpoison.victims.convergence import Solved, ToConvergence, converge
from jaxpoison.victims.evaluate import accuracy
from jaxpoison.victims.extract import Extractor, extract

__all__ = ["Probe", "linear_probe"]


class Probe(NamedTuple):
    """A linear probe; accuracies are fractions.

    Attributes:
      accuracy: on the test set.
      train_accuracy: on the training set.
      solved: where the solver stopped.
    """

    accuracy: float
    train_accuracy: float
    solved: Solved


def linear_probe(
    extractor: Extractor | None,
    split: Split,
    *,
    num_classes: int,
    weight_decay: float = 1e-3,
    tolerance: float = 1e-3,
    max_steps: int = 500,
    batch_size: int = 500,
) -> Probe:
    """Multinomial logistic regression on frozen features, each divided by its spread.

    min_W,b  mean CE(W (phi - m) / s + b, y) + (weight_decay / 2) (||W||^2 + ||b||^2), by L-BFGS
    from zero; m and s are mean and standard deviation of each feature over the training set (s of a
    constant one is 1).

    Args:
      extractor: whose features; None for the pixels.
      split: training and test set.
      num_classes: L.
      weight_decay: on standardized features.
      tolerance: on the norm of the gradient.
      max_steps: of L-BFGS.
      batch_size: rows at a time through the extractor.

    Returns: the Probe.
    Errors: InputError as `extract` and `converge`, and for labels outside [0, L).
    """
    check.kind(Split, split=split)
    check.at_least(2, num_classes=num_classes)
    labels = {"training labels": split.train.label, "test labels": split.test.label}
    check.labels(num_classes, **labels)
    train, test = (_rows(extractor, dataset, batch_size) for dataset in split)
    mean = jnp.mean(train.image, axis=0, keepdims=True)
    spread = jnp.std(train.image, axis=0, keepdims=True)
    spread = jnp.where(spread > 1e-6, spread, 1)
    train, test = (Dataset((x.image - mean) / spread, x.label) for x in (train, test))
    head = _head(train.image.shape[-1], num_classes)
    settings = ToConvergence(weight_decay=weight_decay, tolerance=tolerance, max_steps=max_steps)
    shapes = jax.eval_shape(head.init, jax.random.key(0))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    found, solved = converge(head, start, train, settings, num_clean=len(train.label))
    scores = [float(accuracy(head, found, data)) for data in (test, train)]
    return Probe(scores[0], scores[1], solved)


def _rows(extractor: Extractor | None, dataset: Dataset, batch_size: int) -> Dataset:
    """Features, or pixels, [N, 1, 1, D]."""
    if extractor is not None:
        return extract(extractor, dataset, batch_size=batch_size)
    pixels = as_float(jnp.asarray(dataset.image))
    return Dataset(pixels.reshape(len(pixels), 1, 1, -1), dataset.label)


@functools.cache
def _head(width: int, num_classes: int) -> Victim:
    """Made once: a static argument of the solver."""
    return models.logistic_regression((1, 1, width), num_classes)
