"""Paired tests against sums by hand and against all signs counted out."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from jaxpoison.types import InputError
from jaxpoison.victims import mcnemar, paired, sign_test, wilcoxon


def counted_out(values):
    """P(W >= observed) over all 2^n signs, ranks of ties shared; by hand."""
    values = np.array([v for v in values if v != 0])
    size = np.abs(values)
    ranks = np.array([np.mean(np.flatnonzero(np.sort(size) == s) + 1) for s in size])
    seen = ranks[values > 0].sum()
    sums = [ranks[np.array(s, bool)].sum() for s in itertools.product((0, 1), repeat=len(size))]
    return np.mean([total >= seen - 1e-9 for total in sums])


@pytest.mark.parametrize(
    "values",
    [
        [0.3, 0.1, -0.05, 0.2, 0.15],
        [0.25, 0.25, -0.25, 0.5, 0.0, 0.5],  # ties, as of success in quarters, and a zero
        [1.0, 1.0, 1.0, 1.0],
        [-0.1, -0.2],
        [0.5],
    ],
)
def test_small_samples_are_exact(values):
    assert wilcoxon(values) == pytest.approx(counted_out(values))
    wins, num = sum(v > 0 for v in values), sum(v != 0 for v in values)
    tail = sum(math.comb(num, j) for j in range(wins, num + 1)) / 2**num
    assert sign_test(values) == pytest.approx(tail)


def test_rates_in_thirds_are_tied_where_their_last_bits_differ():
    thirds = [1 - 2 / 3, 1 / 3, -1 / 3, 2 / 3, 1 - 2 / 3, 1.0]
    assert len(set(map(abs, thirds))) == 4
    assert wilcoxon(thirds) == pytest.approx(counted_out([1, 1, -1, 2, 1, 3]))


def test_many_ties_are_normal_with_their_variance():
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 6, 40) / 8
    values = values[values != 0]
    num, size = len(values), np.abs(values)
    ranks = scipy.stats.rankdata(size)
    _, counts = np.unique(size, return_counts=True)
    variance = num * (num + 1) * (2 * num + 1) / 24 - np.sum(counts**3 - counts) / 48
    z = (ranks[values > 0].sum() - num * (num + 1) / 4) / np.sqrt(variance)
    assert wilcoxon(values) == pytest.approx(scipy.stats.norm.sf(z), rel=1e-6)


def test_nothing_that_differs_is_no_evidence():
    assert sign_test([0.0, 0.0]) == wilcoxon([0.0]) == mcnemar([True, False], [True, False]) == 1.0


def test_five_of_five_setups_are_the_least_that_a_sign_test_takes_for_significant():
    found = paired([0.5, 0.4, 0.3, 0.2, 0.1], np.zeros(5))
    assert found.sign_test_p == found.wilcoxon_p == 1 / 32 and found.n == 5
    spread = 2.776445 * np.std([0.5, 0.4, 0.3, 0.2, 0.1], ddof=1) / np.sqrt(5)
    assert found.difference.mean == pytest.approx(0.3)
    assert found.difference.low == pytest.approx(0.3 - spread)
    with pytest.raises(InputError, match="shapes"):
        paired([0.5], [0.1, 0.2])
    with pytest.raises(InputError, match="shapes"):
        paired([], [])


def test_mcnemar_counts_the_pairs_that_disagree():
    a = [True] * 7 + [False] * 2 + [True] * 3
    b = [False] * 7 + [True] * 2 + [True] * 3  # 7 against 2, three agree
    tail = sum(math.comb(9, j) for j in range(7, 10)) / 2**9
    assert mcnemar(a, b) == pytest.approx(tail)
    assert mcnemar(b, a) == pytest.approx(sum(math.comb(9, j) for j in range(2, 10)) / 2**9)
