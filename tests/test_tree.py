"""Tree algebra against numpy in float64."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpoison import tree

pytestmark = pytest.mark.usefixtures("strict_dtypes")


class Pair(NamedTuple):
    first: object
    second: object


def flat(a):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(a)])


def random_tree(seed, dtype=jnp.float32):
    rng = np.random.RandomState(seed)
    leaves = {"m": rng.randn(3, 4), "v": rng.randn(5)}
    return Pair(jax.tree.map(lambda x: jnp.asarray(x, dtype), leaves), jnp.asarray(0.7, dtype))


@given(seed=st.integers(0, 2**31 - 2))
@settings(max_examples=15, deadline=None)
def test_dot_norm_cosine_and_axpy_are_those_of_the_flattened_vectors(seed):
    with jax.numpy_dtype_promotion("strict"):
        a, b = random_tree(seed), random_tree(seed + 1)
        u, v = flat(a), flat(b)
        np.testing.assert_allclose(tree.dot(a, b), u @ v, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(tree.norm(a), np.linalg.norm(u), rtol=1e-6)
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        np.testing.assert_allclose(tree.cosine(a, b), cosine, atol=1e-6)
        np.testing.assert_allclose(flat(tree.axpy(-0.5, a, b)), v - 0.5 * u, atol=1e-6)
        assert jax.tree.structure(tree.axpy(2.0, a, b)) == jax.tree.structure(b)


def test_float64_is_kept(x64):
    a, b = random_tree(0, jnp.float64), random_tree(1, jnp.float64)
    assert tree.dot(a, b).dtype == jnp.float64
    np.testing.assert_allclose(tree.dot(a, b), flat(a) @ flat(b), rtol=1e-14)
    np.testing.assert_allclose(tree.norm(a), np.linalg.norm(flat(a)), rtol=1e-14)


def test_bfloat16_is_accumulated_in_float32():
    ones = {"x": jnp.full(4097, 1 / 16, jnp.bfloat16), "y": jnp.ones(3, jnp.float32)}
    assert tree.dot(ones, ones).dtype == jnp.float32
    assert float(tree.dot(ones, ones)) == 4097 / 256 + 3  # bfloat16 has no 4097
    assert tree.norm(ones).dtype == jnp.float32
    moved = tree.axpy(jnp.asarray(2, jnp.bfloat16), ones["x"], ones["x"])
    assert moved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(moved, np.float32), np.float32(3 / 16))


def test_a_tree_without_leaves():
    assert float(tree.dot((), ())) == 0 and float(tree.norm({})) == 0
    assert bool(tree.all_finite(()))


def test_gradient_of_the_norm():
    x = jnp.asarray([3.0, 4.0])
    np.testing.assert_allclose(jax.grad(tree.norm)(x), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(tree.norm)(jnp.zeros(3)), np.zeros(3))
    zero = jnp.zeros(2)
    assert float(tree.cosine(zero, x)) == 0
    assert np.all(np.isfinite(jax.grad(tree.cosine)(zero, x)))


@pytest.mark.parametrize(("size", "count"), [(1, 7), (3, 3), (7, 1), (100, 1)])
def test_batches_hold_every_row_once_and_weigh_the_filling_zero(size, count):
    rows = {"x": jnp.arange(1.0, 15).reshape(7, 2), "i": jnp.arange(7)}
    cut, weight = tree.batches(rows, size)
    size = min(size, 7)
    assert cut["x"].shape == (count, size, 2) and weight.shape == (count, size)
    assert cut["i"].dtype == rows["i"].dtype and weight.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(cut["x"]).reshape(-1, 2)[:7], rows["x"])
    np.testing.assert_array_equal(np.asarray(cut["i"]).ravel()[:7], np.arange(7))
    np.testing.assert_array_equal(np.asarray(weight).ravel(), np.arange(count * size) < 7)
    assert not np.asarray(cut["x"]).reshape(-1, 2)[7:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_all_finite_looks_at_every_floating_leaf(bad):
    good = (jnp.ones(3), jnp.asarray([1, 2]), jnp.asarray(True))
    assert bool(tree.all_finite(good))
    assert not bool(tree.all_finite((*good, jnp.asarray([0.0, bad]))))
    assert not bool(tree.all_finite(jnp.asarray([bad], jnp.bfloat16)))


def test_take_is_an_entry_of_every_leaf():
    a = Pair(jnp.arange(6).reshape(3, 2), {"y": jnp.asarray([1.0, 2.0, 3.0])})
    second = jax.jit(tree.take)(a, jnp.int32(1))
    np.testing.assert_array_equal(second.first, [2, 3])
    assert float(second.second["y"]) == 2.0
