"""The leak probe: how well a linear model reads labels from images that should not tell them.

With random labels images say nothing about the label, so that what a probe finds is the poison,
or what a purifier that knows the labels has written into the data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Num
from scipy import linalg

from jaxpoison import check
from jaxpoison.types import InputError

__all__ = ["Leak", "leak_probe"]

RIDGES = (1.0, 10.0, 100.0)


class Leak(NamedTuple):
    """What a probe reads.

    Attributes:
      accuracy: on the second half of the rows, of the best ridge constant.
      gap: |accuracy - 1 / L|. An accuracy below chance is a leak, too: a purifier fitted to the
        labels of the rows that are scored may have written them in with the opposite sign.
      ridge: the constant.
    """

    accuracy: float
    gap: float
    ridge: float


def leak_probe(
    images: Num[np.ndarray | Array, "n h w c"],
    labels: Int[np.ndarray | Array, " n"],
    *,
    num_classes: int,
    ridges: Sequence[float] = RIDGES,
) -> Leak:
    """Accuracy of ridge regression on pixels, fitted on the first half, scored on the second.

    min over W, b of sum_i |y_i - W x_i - b|^2 + ridge |W|^2 over rows i < N // 2, y one of L, then
    argmax of W x + b. Rows stand in an order that has nothing to do with their labels; shuffle them
    otherwise. The best of several constants is taken as it scores, so the least weak poison is
    reported: with 750 scored rows and random labels that lifts chance by about 0.01.

    Args:
      images: [N, H, W, C], uint8 or float in [0, 1].
      labels: [N], in [0, L); random ones, so that only a poison tells them.
      num_classes: L.
      ridges: constants, in units of squared pixels in [0, 1].

    Returns: a Leak.
    Errors: InputError for fewer than 4 rows, arrays of different lengths, labels outside [0, L), a
      constant that is not positive, or none.
    Cost: one Gram matrix and a Cholesky factor for each constant, of side min(N / 2, H W C), on the
      host in float64.
    Source: ridge regression in its dual form, Saunders et al. 1998.
    """
    check.at_least(2, num_classes=num_classes)
    if not isinstance(ridges, Sequence):
        raise InputError(f"ridges = {ridges}; they must be a sequence, such as (1.0, 10.0)")
    if not ridges:
        raise InputError("ridges is empty; it needs one constant at least")
    check.positive(**{f"ridges[{i}]": x for i, x in enumerate(ridges)})
    check.at_least(4, rows=len(images))
    images, labels = jax.device_get((images, labels))
    if len(labels) != len(images):
        raise InputError(f"{len(images)} images have {len(labels)} labels; each must have one")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"labels run from {labels.min()} to {labels.max()}; num_classes = {num_classes} "
            f"allows 0 to {num_classes - 1}"
        )
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    x = images.reshape(len(images), -1).astype(np.float64) / scale
    half = len(x) // 2
    scores = _scores(x[:half], np.eye(num_classes)[labels[:half]], x[half:], ridges)
    right = np.mean(np.argmax(scores, axis=2) == labels[None, half:], axis=1)
    best = int(np.argmax(right))
    accuracy = float(right[best])
    return Leak(accuracy, abs(accuracy - 1 / num_classes), float(ridges[best]))


def _scores(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n l"],
    other: Float[np.ndarray, "m d"],
    ridges: Sequence[float],
) -> Float[np.ndarray, "r m l"]:
    """W z + b at the rows z of `other`, for each constant.

    W^T = X^T (X X^T + ridge)^-1 Y = (X^T X + ridge)^-1 X^T Y, X and Y less their means: by the
    smaller of the two matrices.
    """
    center, base = x.mean(axis=0), y.mean(axis=0)
    x, y, other = x - center, y - base, other - center
    dual = len(x) <= x.shape[1]
    gram, y, other = (x @ x.T, y, other @ x.T) if dual else (x.T @ x, x.T @ y, other)
    found = []
    for ridge in ridges:
        shifted = gram + ridge * np.eye(len(gram))
        found.append(other @ linalg.solve(shifted, y, assume_a="pos") + base)
    return np.stack(found)
