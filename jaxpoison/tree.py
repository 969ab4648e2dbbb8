"""Vector algebra on pytrees. Inner products and norms are accumulated in at least float32."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["all_finite", "axpy", "batches", "cosine", "dot", "norm", "take"]

PyTree = Any


def dot(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """<a, b> = sum over leaves and entries of a * b.  Trees of equal structure and shapes."""
    products = jax.tree.map(lambda u, v: jnp.sum(_wide(u) * _wide(v)), a, b)
    return jnp.asarray(jax.tree.reduce(jnp.add, products, 0.0))


def norm(a: PyTree) -> Float[Array, ""]:
    """||a||_2 over all leaves. Its gradient is zero, not NaN, at a = 0."""
    square = dot(a, a)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def cosine(a: PyTree, b: PyTree, *, floor: float = 1e-12) -> Float[Array, ""]:
    """<a, b> / max(||a|| ||b||, floor), one cosine over all leaves together."""
    return dot(a, b) / jnp.maximum(norm(a) * norm(b), floor)


def axpy(alpha: float | Float[Array, ""], x: PyTree, y: PyTree) -> PyTree:
    """Alpha * x + y, leaf by leaf, in the dtype of y."""
    return jax.tree.map(lambda u, v: (alpha * u + v).astype(v.dtype), x, y)


def all_finite(a: PyTree) -> Array:
    """Scalar bool: every entry of every floating leaf is finite."""
    leaves = [x for x in jax.tree.leaves(a) if jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves] or [True]))


def batches(a: PyTree, size: int) -> tuple[PyTree, Float[Array, "k b"]]:
    """Cut leaves [N, ...] into K = ceil(N / B) batches [K, B, ...] of B = min(size, N) rows.

    The last one is filled up with zeros. Returns (batches, weights [K, B]), weights 1 for rows of
    `a` and 0 for the filling.
    """
    num = jax.tree.leaves(a)[0].shape[0]
    size = min(size, num)
    count = -(-num // size)

    def cut(x):
        filled = jnp.pad(x, [(0, count * size - num)] + [(0, 0)] * (x.ndim - 1))
        return filled.reshape(count, size, *x.shape[1:])

    return jax.tree.map(cut, a), cut(jnp.ones(num, jnp.float32))


def take(a: PyTree, i: int | Array) -> PyTree:
    """Entry i of every leaf's leading axis."""
    return jax.tree.map(lambda x: x[i], a)


def _wide(x: Array) -> Array:
    wide = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    return x if wide else x.astype(jnp.float32)
