"""Two attacks on the same setups, compared setup by setup."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from jaxpoison.types import InputError
from jaxpoison.victims.evaluate import Interval, interval

__all__ = ["Paired", "mcnemar", "paired", "sign_test", "wilcoxon"]

_EXACT = 50  # differences up to which scipy's exact distribution of the rank sum is cheap
_FLIPS = 12  # tied ones up to which all 2^n signs are tried


class Paired(NamedTuple):
    """How much more one attack reaches than another, over n setups.

    Attributes:
      difference: mean of a_i - b_i with its 95 % t-interval.
      sign_test_p: one-sided sign test, see `sign_test`.
      wilcoxon_p: one-sided signed-rank test, see `wilcoxon`.
      n: pairs.
    """

    difference: Interval
    sign_test_p: float
    wilcoxon_p: float
    n: int


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Paired:
    """Whether a exceeds b: d_i = a_i - b_i, mean(d) +- t s_d / sqrt(n), and two tests of d > 0.

    Pairs must be independent of each other: one number for each setup (its mean over victims), not
    one for each victim, as victims of one setup share poison and target.

    Args:
      a: n numbers.
      b: n numbers of the same setups, in the same order.

    Raises: InputError for none, or unequal lengths.
    """
    differences = _differences(a, b)
    return Paired(
        interval(differences), sign_test(differences), wilcoxon(differences), len(differences)
    )


def sign_test(differences: Sequence[float] | np.ndarray) -> float:
    """P of at least k positive signs among m nonzero ones by chance: sum_{j>=k} C(m, j) / 2^m.

    One-sided: small where differences are positive. Zeros are left out; of none left, p = 1.

    Source: Dixon and Mood 1946.
    """
    signs = np.sign(np.asarray(differences, np.float64))
    num = int(np.count_nonzero(signs))
    if not num:
        return 1.0
    wins = int((signs > 0).sum())
    return float(scipy.stats.binomtest(wins, num, 0.5, alternative="greater").pvalue)


def wilcoxon(differences: Sequence[float] | np.ndarray) -> float:
    """P of the signed-rank test of d > 0: W = sum of the ranks of |d_i| where d_i > 0.

    Zeros are left out (Wilcoxon's rule); of none left, p = 1. The distribution of W is exact up to
    50 differences without ties, and with ties up to 12 (all 2^m signs); else it is normal, its
    variance corrected for ties. Sizes that agree in ten digits are ties: of rates in thirds 1 - 2/3
    and 1/3 differ in their last bit.

    Source: Wilcoxon 1945; `scipy.stats.wilcoxon`.
    """
    values = np.asarray(differences, np.float64)
    values = np.array([float(f"{value:.9e}") for value in values[values != 0]])
    num = len(values)
    if not num:
        return 1.0
    tied = len(np.unique(np.abs(values))) < num
    how: object = "asymptotic"
    if not tied and num <= _EXACT:
        how = "exact"
    elif tied and num <= _FLIPS:
        how = scipy.stats.PermutationMethod(n_resamples=2**num)
    return float(scipy.stats.wilcoxon(values, alternative="greater", method=how).pvalue)


def mcnemar(a: Sequence[bool] | np.ndarray, b: Sequence[bool] | np.ndarray) -> float:
    """P that a succeeds more often than b where they differ: sum_{j>=n10} C(m, j) / 2^m.

    n10 pairs with success of a alone, n01 of b alone, m = n10 + n01; one-sided and exact. It is the
    sign test of yes and no; of no differing pair, p = 1.

    Args:
      a: n outcomes, yes or no.
      b: n outcomes of the same setups, in the same order.

    Raises: InputError for none, or unequal lengths.
    Source: McNemar 1947, exact form.
    """
    return sign_test(_differences(np.asarray(a, bool), np.asarray(b, bool)))


def _differences(a, b) -> np.ndarray:
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise InputError(f"pairs of shapes {first.shape} and {second.shape}; two lists [n] needed")
    return first - second
