"""Screenings judged by hand counts, and the sets they leave; quantiles against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.defenses.removal import group_quantiles, keep_below

KEEP = np.array([0, 1, 1, 0, 1, 1], bool)
SCREENING = jp.Screening(jnp.asarray(KEEP), jnp.array([9.0, 1, 8, 5, 2, 3]))
TRUTH = np.array([1, 0, 1, 0, 0, 0], bool)
SET = jp.Dataset(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), np.arange(6, dtype=np.int32))


def test_detection_counts():
    found = jp.defenses.detection(SCREENING, TRUTH)
    assert found == (2, 0.5, 0.25, 0.5, 1.0)


def test_detection_without_poison_or_without_removal_says_none():
    nothing = SCREENING._replace(keep=jnp.ones(6, bool))
    found = jp.defenses.detection(nothing, np.zeros(6, bool))
    assert found == (0, None, 0.0, None, None)


def test_detection_names_a_wrong_length():
    with pytest.raises(jp.InputError, match=r"poisoned has shape \(5,\)"):
        jp.defenses.detection(SCREENING, TRUTH[:5])


def test_filtered_keeps_rows_in_order():
    left = jp.defenses.filtered(SET, SCREENING)
    np.testing.assert_array_equal(left.label, [1, 2, 4, 5])
    np.testing.assert_array_equal(left.image.ravel(), [1, 2, 4, 5])
    with pytest.raises(jp.InputError, match="nothing is left"):
        jp.defenses.filtered(SET, SCREENING._replace(keep=jnp.zeros(6, bool)))
    with pytest.raises(jp.InputError, match="the screening is of 5 rows; the set has 6"):
        jp.defenses.filtered(SET, SCREENING._replace(keep=jnp.ones(5, bool)))


def test_refilled_has_kept_rows_alone_and_each_of_them():
    refill = jax.jit(lambda seed: jp.defenses.refilled(jax.random.key(seed), SET, SCREENING.keep))
    label = np.asarray(refill(0).label)
    np.testing.assert_array_equal(label[KEEP], [1, 2, 4, 5])
    assert set(label) == {1, 2, 4, 5}
    assert {int(refill(i).label[0]) for i in range(40)} == {1, 2, 4, 5}


def test_group_quantiles_are_numpys(x64):
    rng = np.random.default_rng(0)
    score, group = rng.normal(size=101), rng.integers(0, 4, 101)
    group[group == 2] = 4  # 2 is empty, 4 is no group
    find = jax.jit(lambda level: group_quantiles(jnp.asarray(score), jnp.asarray(group), 4, level))
    for level in (0.0, 0.3, 0.5, 0.97, 1.0):
        want = [np.quantile(score[group == g], level) if g != 2 else np.inf for g in range(4)]
        np.testing.assert_allclose(find(level), want, rtol=1e-14)


def test_keep_below_is_the_release_rule():
    score = jnp.array([0.0, 0, 0, 5, 1, 1, 1, 2, 3, jnp.nan])
    group = jnp.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    find = jax.jit(lambda group, share: keep_below(score, group, 3, share))
    keep, limit = find(group, 0.4)
    # The quantile of the first group is 0; no score of the second lies below its quantile.
    np.testing.assert_array_equal(keep, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_allclose(limit, [0, 1, 2.8], rtol=1e-6)
    assert find(group, 0.0)[0].all()
    left_out = find(jnp.where(group == 2, 3, group), 0.4)[0]
    assert left_out[:6].all() and not left_out[6:].any()
