"""Victims of scikit-learn on flattened pixels, judged as the networks are."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpoison import check
from jaxpoison.data import check_dataset
from jaxpoison.types import Dataset, InputError, as_float
from jaxpoison.victims.evaluate import Interval, Judgment, interval, judgment

__all__ = ["CLASSICAL", "Classical", "fit_classical", "judge_classical", "judge_fits", "score_fits"]


class Classical(NamedTuple):
    """A classifier that is no network.

    Attributes:
      make: (seed) -> an estimator with scikit-learn's fit(x, y) and predict(x).
      seeded: whether the fit depends on the seed.
      source: where its constants come from.
    """

    make: Callable[[int], Any]
    seeded: bool
    source: str


def judge_classical(
    victim: str | Classical, train: Dataset, test: Dataset, *, num: int = 1, seed: int = 0
) -> Judgment:
    """Fits of a classifier on a (poisoned) training set, judged on clean test data.

    It sees pixels in [0, 1], flattened to [N, H W C], float32. There are no epochs: the peak is the
    final accuracy and the curve has one point. A fit that no seed changes (RBF SVM, logistic
    regression) is made once whatever `num` is: one value, and so no interval.

    Args:
      victim: a key of CLASSICAL, or a Classical of your own.
      train: the training set it sees.
      test: clean test set.
      num: R, fits with seeds seed, seed + 1, ...
      seed: the first seed, at least 0.

    Returns: the Judgment, as `judge` gives it for networks.
    Errors: InputError for an unknown name, a bad count, or sets that cannot be used.
    Cost: on the CPU. The SVM's time grows with N^2 H W C: minutes on MNIST, hours on CIFAR-10
      (`data.first_per_class` makes a smaller set); the forest's with N log N, the regression's
      with N H W C per iteration.
    """
    check.at_least(1, num=num)
    check.at_least(0, seed=seed)
    if isinstance(victim, str):
        check.one_of(CLASSICAL, victim=victim)
    _check_pair(train, test)
    return judge_fits(fit_classical(victim, train, num=num, seed=seed), train, test)


def fit_classical(
    victim: str | Classical, train: Dataset, *, num: int = 1, seed: int = 0
) -> tuple[Any, ...]:
    """The fits themselves, to be judged (`judge_fits`) and shown other images (`score_fits`).

    Args:
      victim: as in `judge_classical`, like all others.
      train: as there.
      num: as there.
      seed: as there.

    Returns: R fitted estimators; one where no seed changes a fit.
    """
    if isinstance(victim, str):
        check.one_of(CLASSICAL, victim=victim)
        victim = CLASSICAL[victim]
    check.at_least(1, num=num)
    check.at_least(0, seed=seed)
    seen = _flat(check_dataset(train, source="the training set"))
    if len(set(seen.label.tolist())) < 2:
        raise InputError(f"every training label is {seen.label[0]}; a classifier needs two classes")
    numbers = range(seed, seed + (num if victim.seeded else 1))
    return tuple(victim.make(number).fit(seen.image, seen.label) for number in numbers)


def judge_fits(fits: Sequence[Any], train: Dataset, test: Dataset) -> Judgment:
    """`judge_classical` of classifiers that are fitted.

    Args:
      fits: from `fit_classical`.
      train: the training set they saw.
      test: clean test set.
    """
    train, test = _check_pair(train, test)
    seen, held_out = _flat(train), _flat(test)
    classes = range(1 + max(seen.label.max(), held_out.label.max()))
    table = np.array(
        [_confusion(held_out.label, one.predict(held_out.image), classes) for one in fits]
    )
    right = np.array([np.mean(one.predict(seen.image) == seen.label) for one in fits])
    final = np.trace(table, axis1=1, axis2=2) / table.sum(axis=(1, 2))
    return judgment(table, right, final[None])


def score_fits(fits: Sequence[Any], dataset: Dataset) -> Interval:
    """Share of rows that fitted classifiers read as labeled, over fits.

    Args:
      fits: from `fit_classical`.
      dataset: [N, H, W, C] uint8 or float, N >= 1; floats may lie outside [0, 1], as noise does.
    """
    if not len(dataset.label):
        raise InputError("there are no images to classify")
    rows = _flat(dataset)
    return interval([float(np.mean(one.predict(rows.image) == rows.label)) for one in fits])


def _check_pair(train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    train = check_dataset(train, source="the training set")
    test = check_dataset(test, source="the test set")
    if train.image.shape[1:] != test.image.shape[1:]:
        raise InputError(
            f"training images are {train.image.shape[1:]}, test images {test.image.shape[1:]}"
        )
    return train, test


def _random_forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=300, random_state=seed, n_jobs=-1)


def _rbf_svm(seed: int) -> Any:
    from sklearn.svm import SVC

    del seed
    return SVC(kernel="rbf", gamma=0.01, C=200.0, cache_size=1000)  # MB; results stay


def _logistic_regression(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    del seed
    return LogisticRegression(max_iter=1000)


CLASSICAL = {
    "random_forest": Classical(_random_forest, True, "Feng et al. 2019, figure 6: 300 trees"),
    "rbf_svm": Classical(_rbf_svm, False, "DeepConfuse code, MNIST: gamma 0.01, C 200"),
    "logistic_regression": Classical(
        _logistic_regression, False, "scikit-learn's defaults (L2, C 1, L-BFGS), to 1000 iterations"
    ),
}
"""The classifiers of the papers; where these state nothing, scikit-learn's defaults."""


class _Rows(NamedTuple):
    image: np.ndarray
    label: np.ndarray


def _flat(dataset: Dataset) -> _Rows:
    image = np.asarray(as_float(dataset.image), np.float32)
    return _Rows(image.reshape(len(image), -1), np.asarray(dataset.label))


def _confusion(label: np.ndarray, predicted: np.ndarray, classes: range) -> np.ndarray:
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(label, predicted, labels=list(classes))
