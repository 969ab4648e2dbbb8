"""How much features, or the noise of a poison, tell: linear classifiers on them."""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxpoison import check, models
from jaxpoison.types import Dataset, InputError, Split, Victim, as_float
from jaxpoison.victims.convergence import Solved, ToConvergence, converge
from jaxpoison.victims.evaluate import accuracy
from jaxpoison.victims.extract import Extractor, extract

__all__ = ["Probe", "linear_probe", "linear_separability"]


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


def linear_separability(
    delta: Float[np.ndarray, "n h w c"] | Float[jax.Array, "n h w c"],
    label: Int[np.ndarray, " n"] | Int[jax.Array, " n"],
    *,
    max_iter: int = 1000,
) -> float:
    """How much of the noise of a poison a linear classifier tells apart by class.

    Every delta is flattened and scaled to a root mean square of 1 (one of zeros stays so);
    scikit-learn's logistic regression with its defaults (L2, C 1, L-BFGS) is fitted to all of them.
    1 is what availability poisons come near; with fewer images than pixels any noise does.

    Args:
      delta: [N, H, W, C] change of the images, of any size.
      label: [N], at least two classes.
      max_iter: of L-BFGS.

    Returns: accuracy on the same rows, a fraction.
    Errors: InputError for other shapes, values that are not finite, or a single class.
    Source: Yu et al. 2022, section 3, and released code.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    check.at_least(1, max_iter=max_iter)
    noise, label = np.asarray(delta, np.float64), np.asarray(label)
    if noise.ndim != 4 or label.shape != noise.shape[:1]:
        raise InputError(
            f"delta {noise.shape} and label {label.shape} must be [N, H, W, C] and [N]"
        )
    if not np.isfinite(noise).all():
        raise InputError("delta has values that are not finite")
    if len(np.unique(label)) < 2:
        raise InputError("label names a single class; at least two are needed")
    flat = noise.reshape(len(noise), -1)
    size = np.sqrt(np.mean(flat**2, axis=1, keepdims=True))
    flat = flat / np.where(size > 0, size, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the accuracy stands by then
        return float(LogisticRegression(max_iter=max_iter).fit(flat, label).score(flat, label))


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
