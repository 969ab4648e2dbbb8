import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison.data.rounding import change_size, promised, to_uint8
from jaxpoison.types import InputError

quick = settings(max_examples=40, deadline=None, derandomize=True)
SHAPE = (5, 4, 3, 2)


def float_poison(seed, norm, eps):
    """Clean grey levels and a float32 poison inside ball and box, often on the ball's surface."""
    rng = np.random.default_rng(seed)
    clean = np.clip(rng.integers(-60, 316, SHAPE), 0, 255).astype(np.uint8)
    base = clean / np.float32(255)
    if norm == "linf":
        change = np.clip(rng.normal(0, max(eps, 1e-9), SHAPE), -eps, eps)
    elif norm == "l2":
        change = rng.standard_normal(SHAPE) * rng.choice([0.01, 1.0], SHAPE)
        change *= eps / np.sqrt((change**2).sum(axis=(1, 2, 3), keepdims=True))
    else:
        order = rng.random((5, 12)).argsort(axis=1).reshape(5, 4, 3, 1)
        change = np.where(order < eps, rng.uniform(-1, 1, SHAPE), 0)
    change = np.clip(change, -base, 1 - base)
    return (base + change).astype(np.float32), clean


def radii(norm):
    if norm == "l0":
        return st.integers(0, 12)
    return st.one_of(st.just(0.0), st.sampled_from([1 / 255, 8 / 255]), st.floats(1e-3, 0.9))


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
@quick
@given(draws=st.data(), seed=st.integers(0, 10**6))
def test_stored_levels_never_leave_the_budget(norm, rounding, draws, seed):
    eps = draws.draw(radii(norm))
    poisoned, clean = float_poison(seed, norm, eps)
    stored = to_uint8(poisoned, clean, norm=norm, eps=eps, rounding=rounding)
    assert stored.dtype == np.uint8
    shift = stored.astype(np.int64) - clean
    if norm == "linf":
        assert np.abs(shift).max() <= eps * 255 + 1e-6
    elif norm == "l2":
        length = np.sqrt((shift**2).sum(axis=(1, 2, 3)))
        assert (length <= eps * 255 * (1 + 1e-6)).all()
    else:
        assert (shift.any(axis=3).sum(axis=(1, 2)) <= eps).all()
    assert not change_size(stored, clean, norm=norm, eps=eps)[1].any()
    # Within one level of the wish: only what the ball forbids is taken back.
    assert np.abs(stored - 255 * np.float64(poisoned)).max() <= 1 + 1e-3
    np.testing.assert_array_equal(stored[shift == 0], clean[shift == 0])
    if eps == 0:
        np.testing.assert_array_equal(stored, clean)


@quick
@given(seed=st.integers(0, 10**6), eps=st.floats(1e-3, 0.9))
def test_l2_moves_the_entries_rounded_farthest_and_no_more_than_needed(seed, eps):
    poisoned, clean = float_poison(seed, "l2", eps)
    stored = to_uint8(poisoned, clean, norm="l2", eps=eps)
    exact = 255 * poisoned.astype(np.float64) - clean
    limit = (255 * eps) ** 2 * (1 + 1e-6)
    for row in range(len(clean)):
        wish = np.rint(exact[row]).ravel()
        excess = np.abs(wish) - np.abs(exact[row].ravel())
        for i in sorted(np.flatnonzero(wish), key=lambda i: -excess[i]):
            if (wish**2).sum() <= limit:
                break
            wish[i] -= np.sign(wish[i])
        np.testing.assert_array_equal((stored[row].astype(int) - clean[row]).ravel(), wish)


def test_without_a_norm_it_is_plain_rounding_and_truncation_keeps_exact_levels():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    for value in (levels / np.float32(255), levels.astype(np.float32) * np.float32(1 / 255)):
        for rounding in ("nearest", "truncate"):
            same = to_uint8(value, levels, norm=None, eps=None, rounding=rounding)
            np.testing.assert_array_equal(same, levels)
    half = np.full((1, 1, 1, 2), 10.7 / 255, np.float32)
    clean = np.full((1, 1, 1, 2), 100, np.uint8)
    assert to_uint8(half, clean, norm=None, eps=None).ravel().tolist() == [11, 11]
    truncated = to_uint8(half, clean, norm=None, eps=None, rounding="truncate")
    assert truncated.ravel().tolist() == [10, 10]


def test_a_cast_leaves_the_ball_by_one_level_as_published():
    """15 of the 256 grey levels under saturated noise of -8/255 (reference: GUE, section 6)."""
    clean = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    value = clean / np.float32(255)
    noisy = np.clip(value - np.float32(8 / 255), 0, 1)
    published = (255 * noisy).astype(np.uint8)  # float32, as the code casts
    stored = to_uint8(noisy, clean, norm="linf", eps=8 / 255, rounding="cast")
    np.testing.assert_array_equal(stored, published)
    shift = stored.astype(int) - clean
    assert (shift < -8).sum() == 15 and shift.min() == -9
    assert to_uint8(noisy, clean, norm="linf", eps=8 / 255, rounding="truncate").max() <= 247
    assert promised("linf", 8 / 255, "cast") == 8 / 255 + 1 / 255
    assert not change_size(stored, clean, norm="linf", eps=promised("linf", 8 / 255, "cast"))[1]
    assert [promised(norm, 1, "cast") for norm in ("linf", "l0")] == [1, 1]
    assert promised("linf", 8 / 255, "truncate") == 8 / 255
    for same in (value, clean.astype(np.float32) * np.float32(1 / 255)):
        kept = to_uint8(same, clean, norm="linf", eps=8 / 255, rounding="cast")
        np.testing.assert_array_equal(kept, clean)  # a pixel without noise stays
    for norm, eps, how, message in [
        ("l2", 1, "cast", "^rounding = 'cast' keeps no l2 budget; allowed are nearest and trunc"),
        ("linf", 0.1, "up", "^rounding = 'up'; allowed are nearest, truncate, cast$"),
    ]:
        with pytest.raises(InputError, match=message):
            to_uint8(value, clean, norm=norm, eps=eps, rounding=how)


def test_large_sets_go_block_by_block(monkeypatch):
    poisoned, clean = float_poison(1, "l2", 0.3)
    whole = to_uint8(poisoned, clean, norm="l2", eps=0.3)
    monkeypatch.setattr("jaxpoison.data.rounding._BLOCK_ENTRIES", 30)
    np.testing.assert_array_equal(to_uint8(poisoned, clean, norm="l2", eps=0.3), whole)
    np.testing.assert_array_equal(
        change_size(whole, clean, norm="l2", eps=0.3)[0],
        np.sqrt(((whole.astype(float) - clean) ** 2).sum(axis=(1, 2, 3))) / 255,
    )


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", 0.05, "poisoned row 2 differs by 0.1 in linf; the budget is 0.05"),
        ("l2", 0.05, "poisoned row 2 differs by 0.1 in l2; the budget is 0.05"),
        ("l0", 0, "poisoned row 2 differs by 1 in l0; the budget is 0"),
        ("linf", 8, "eps = 8 looks like grey levels; write 8/255"),
        ("l2", None, "eps = None; it must be a finite number at least 0"),
        ("l0", 0.5, "eps = 0.5 counts pixels under l0; write a whole number"),
        ("l7", 1, "norm = 'l7'; allowed are linf, l2, l0, None"),
        (None, 0.1, "eps = 0.1 without a norm; allowed is None"),
    ],
)
def test_a_float_poison_outside_its_budget_is_one_line(norm, eps, message):
    clean = np.zeros((3, 2, 2, 1), np.uint8)
    poisoned = np.zeros((3, 2, 2, 1), np.float32)
    poisoned[2, 0, 0, 0] = 0.1
    with pytest.raises(InputError) as caught:
        to_uint8(poisoned, clean, norm=norm, eps=eps)
    assert str(caught.value) == message


def test_values_that_are_no_pixels_are_one_line():
    clean = np.zeros((2, 1, 1, 1), np.uint8)
    for value in (np.nan, -0.1, 1.1, np.inf):
        poisoned = np.array([0, value], np.float32).reshape(2, 1, 1, 1)
        with pytest.raises(InputError, match=r"poisoned row 1 holds the value .*; allowed is \[0"):
            to_uint8(poisoned, clean, norm=None, eps=None)
    with pytest.raises(InputError, match="rounding = 'up'"):
        to_uint8(poisoned, clean, norm=None, eps=None, rounding="up")
    with pytest.raises(InputError, match="must match"):
        to_uint8(poisoned[:1], clean, norm=None, eps=None)
    with pytest.raises(InputError, match="needs uint8"):
        to_uint8(poisoned, poisoned, norm=None, eps=None)
