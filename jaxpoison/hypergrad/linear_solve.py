"""Linear systems H v = b known by products H p alone: conjugate gradients, of H and of H^2."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree

__all__ = ["Solve", "cg", "hvp", "neumann", "normal_cg"]

PyTree = Any
Product = Callable[[PyTree], PyTree]


class Solve(NamedTuple):
    """How far a solve came.

    Attributes:
      residual: ||b - (H + damping) v|| / ||b||; 0 for b = 0.
      iterations: done.
    """

    residual: Float[Array, "..."]
    iterations: Int[Array, "..."]


def hvp(fn: Callable[[PyTree], Float[Array, ""]], at: PyTree, direction: PyTree) -> PyTree:
    """(d^2 fn / d at^2) direction, forward over reverse: no second reverse pass.

    For many products at one place `jax.linearize(jax.grad(fn), at)[1]` does the part that does not
    depend on the direction once.
    """
    return jax.jvp(jax.grad(fn), (at,), (direction,))[1]


def cg(
    matvec: Product,
    b: PyTree,
    *,
    iterations: int,
    tolerance: float | Float[Array, ""] = 0.0,
    damping: float | Float[Array, ""] = 0.0,
) -> tuple[PyTree, Solve]:
    """V with (H + damping I) v = b by conjugate gradients from v = 0, one product an iteration.

    For H + damping I positive definite; ends early before a direction p with <p, H p> <= 0, of
    which it knows no minimum. `jax.scipy.sparse.linalg.cg` is the same recurrence but says neither
    residual nor iterations.

    Args:
      matvec: p -> H p on trees like b; H symmetric.
      b: any tree of floats.
      iterations: at most.
      tolerance: ends at a residual ||b - H v|| <= tolerance ||b||; 0 goes on to the last iteration.
      damping: added to the diagonal.

    Returns: (v like b, Solve).
    Errors: InputError for iterations < 1, a tolerance or damping below 0.
    Source: Hestenes and Stiefel 1952.
    """
    product = _damped(matvec, iterations, tolerance, damping)
    size = tree.dot(b, b)

    def more(carry):
        k, _, _, _, square, curved = carry
        return (k < iterations) & (square > tolerance**2 * size) & curved

    def step(carry):
        k, v, r, p, square, _ = carry
        moved = product(p)
        curvature = tree.dot(p, moved)
        curved = curvature > 0
        length = jnp.where(curved, square / jnp.where(curved, curvature, 1), 0)
        v, r = tree.axpy(length, p, v), tree.axpy(-length, moved, r)
        ahead = tree.dot(r, r)
        p = tree.axpy(ahead / square, p, r)
        return k + jnp.where(curved, 1, 0), v, r, p, ahead, curved

    start = jnp.int32(0), _zeros(b), b, b, size, size > 0
    k, v, _, _, square, _ = lax.while_loop(more, step, start)
    return v, _solve(square, size, k)


def normal_cg(
    matvec: Product,
    b: PyTree,
    *,
    iterations: int = 16,
    tolerance: float | Float[Array, ""] = 0.0,
    damping: float | Float[Array, ""] = 0.0,
) -> tuple[PyTree, Solve]:
    """V with (H + damping I)^2 v = (H + damping I) b by conjugate gradients from v = 0.

    The least residual of H v = b, also where H is indefinite or singular; two products an
    iteration. H^2 is never formed: <p, H^2 p> = ||H p||^2.

    Args:
      matvec: p -> H p on trees like b; H symmetric.
      b: any tree of floats.
      iterations: at most; the released code of TGDA has 16.
      tolerance: ends at ||H (b - H v)|| <= tolerance ||H b||; 0 goes on to the last iteration.
      damping: added to the diagonal.

    Returns: (v like b, Solve), its residual that of H v = b.
    Errors: InputError as `cg`.
    Source: Hestenes and Stiefel 1952 (CGNR); Lu et al. 2022 (TGDA), released code.
    """
    product = _damped(matvec, iterations, tolerance, damping)
    slope = product(b)
    first = tree.dot(slope, slope)

    def more(carry):
        k, _, _, _, square = carry
        return (k < iterations) & (square > tolerance**2 * first)

    def step(carry):
        k, v, r, p, square = carry
        moved = product(p)
        curvature = tree.dot(moved, moved)
        length = jnp.where(curvature > 0, square / jnp.where(curvature > 0, curvature, 1), 0)
        v, r = tree.axpy(length, p, v), tree.axpy(-length, moved, r)
        slope = product(r)
        ahead = tree.dot(slope, slope)
        return k + 1, v, r, tree.axpy(ahead / square, p, slope), ahead

    start = jnp.int32(0), _zeros(b), b, slope, first
    k, v, r, _, _ = lax.while_loop(more, step, start)
    return v, _solve(tree.dot(r, r), tree.dot(b, b), k)


def neumann(
    matvec: Product,
    b: PyTree,
    *,
    iterations: int,
    step_size: float | Float[Array, ""],
    tolerance: float | Float[Array, ""] = 0.0,
    damping: float | Float[Array, ""] = 0.0,
) -> tuple[PyTree, Solve]:
    """V = a sum_{k<K} (I - a H)^k b, K gradient steps on v^T H v / 2 - b^T v from v = 0.

    What reverse mode through K inner steps of rate a gives at a minimum (Lorraine et al. 2020).

    Args:
      matvec: as in `cg`, like b, iterations, tolerance and damping.
      b: as there.
      iterations: K.
      step_size: a, below 2 / ||H||.
      tolerance: as there.
      damping: as there.

    Returns: (v like b, Solve).
    Errors: InputError as `cg`, or for a step size that is not positive.
    """
    check.positive(step_size=step_size)
    product = _damped(matvec, iterations, tolerance, damping)
    size = tree.dot(b, b)

    def more(carry):
        k, _, _, square = carry
        return (k < iterations) & (square > tolerance**2 * size)

    def step(carry):
        k, v, r, _ = carry
        v, r = tree.axpy(step_size, r, v), tree.axpy(-step_size, product(r), r)
        return k + 1, v, r, tree.dot(r, r)

    k, v, _, square = lax.while_loop(more, step, (jnp.int32(0), _zeros(b), b, size))
    return v, _solve(square, size, k)


def _damped(matvec: Product, iterations: int, tolerance: Any, damping: Any) -> Product:
    check.at_least(1, iterations=iterations)
    check.number(least=0, tolerance=tolerance, damping=damping)
    return lambda p: tree.axpy(damping, p, matvec(p))


def _zeros(b: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, b)


def _solve(square: Array, size: Array, k: Array) -> Solve:
    relative = jnp.where(size > 0, jnp.sqrt(square / jnp.where(size > 0, size, 1)), 0)
    return Solve(relative, k)
