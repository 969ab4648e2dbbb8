"""How far a poison gradient p is from a target gradient t, and which t is wanted.

t and p are lists of tensors, the leaves of the parameter pytree; <., .> and norms without an index
run over all of them together. Everything is float32 or wider, whatever the network computes in.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import tree

__all__ = ["LOSSES", "TARGET_LOSSES", "margin"]

Tensors = Sequence[Array]
Loss = Callable[[Tensors, Tensors, Sequence[bool]], Float[Array, ""]]
"""(t, p, which tensors are the last layer) -> scalar."""

MARGIN_FLOOR = -100.0
TINY = 1e-12  # below every gradient norm of a network that still learns


def similarity(t: Tensors, p: Tensors, last: Sequence[bool]) -> Float[Array, ""]:
    """1 - <t, p> / (||t|| ||p||)."""
    del last
    return 1 - tree.cosine(t, p)


def _largest(num: int) -> Loss:
    """1 - sum_S <t_i, p_i> / (||t|| ||p_S||), S the `num` tensors with the largest ||t_i||.

    ||t|| runs over all tensors, so that this is no cosine.
    """

    def loss(t: Tensors, p: Tensors, last: Sequence[bool]) -> Float[Array, ""]:
        del last
        sizes = jnp.stack([tree.norm(t_i) for t_i in t])
        chosen = lax.top_k(sizes, min(num, len(t)))[1]
        keep = jnp.zeros_like(sizes).at[chosen].set(1)
        return 1 - tree.cosine(t, [keep[i].astype(p_i.dtype) * p_i for i, p_i in enumerate(p)])

    return loss


def similarity_narrow(t: Tensors, p: Tensors, last: Sequence[bool]) -> Float[Array, ""]:
    """`similarity` + sum over the last layer's tensors of ||p_i||^2 / (2 ||t||)."""
    head = [p_i for p_i, is_last in zip(p, last, strict=True) if is_last]
    return similarity(t, p, last) + tree.dot(head, head) / (2 * _size(t))


def scalar_product(t: Tensors, p: Tensors, last: Sequence[bool]) -> Float[Array, ""]:
    """- <t, p> / ||t||."""
    del last
    return -tree.dot(t, p) / _size(t)


def cosine1(t: Tensors, p: Tensors, last: Sequence[bool]) -> Float[Array, ""]:
    """- sum_i cos(t_i, p_i) / ||t||."""
    del last
    cosines = [tree.cosine(t_i, p_i) for t_i, p_i in zip(t, p, strict=True)]
    return -sum(cosines, jnp.zeros(())) / _size(t)


def squared_error(t: Tensors, p: Tensors, last: Sequence[bool]) -> Float[Array, ""]:
    """sum_i ||t_i - p_i||^2 / (2 ||t||)."""
    del last
    gap = tree.axpy(-1.0, list(p), list(t))
    return tree.dot(gap, gap) / (2 * _size(t))


def mean_squared_error(t: Tensors, p: Tensors, last: Sequence[bool]) -> Float[Array, ""]:
    """sum_i mean((t_i - p_i)^2) / ||t||, the mean over the entries of tensor i."""
    del last
    means = [tree.dot(gap, gap) / gap.size for gap in tree.axpy(-1.0, list(p), list(t))]
    return sum(means, jnp.zeros(())) / _size(t)


LOSSES: dict[str, Loss] = {
    "similarity": similarity,
    "top5-similarity": _largest(5),
    "top10-similarity": _largest(10),
    "top20-similarity": _largest(20),
    "similarity-narrow": similarity_narrow,
    "scalar_product": scalar_product,
    "cosine1": cosine1,
    "SE": squared_error,
    "MSE": mean_squared_error,
}
"""By the names of the released code (Geiping et al. 2021)."""


def margin(logits: Float[Array, "t l"], wanted: Int[Array, " t"]) -> Float[Array, " t"]:
    """max(max_{c != y_adv} z_c - z_adv, -100), row by row.

    Source: Carlini and Wagner 2017, loss f_6. The released code of gradient matching takes the
    maximum over all classes, so that the loss and its gradient vanish where it should stop at -100.
    """
    own = jnp.arange(logits.shape[1])[None] == wanted[:, None]
    best = jnp.max(jnp.where(own, -jnp.inf, logits), axis=1)
    mine = jnp.sum(jnp.where(own, logits, 0), axis=1)
    return jnp.maximum(best - mine, MARGIN_FLOOR)


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels

TARGET_LOSSES: dict[str, Callable[..., Float[Array, " t"]]] = {
    "cross_entropy": _cross_entropy,
    "margin": margin,
    "untargeted": lambda logits, true: -_cross_entropy(logits, true),
}
"""(logits of the targets [T, L], labels of `scenario.goal` [T]) -> [T], which the attacker wants
low: `cross_entropy` and `margin` to the wanted class, `untargeted` away from the true one."""


def _size(t: Tensors) -> Float[Array, ""]:
    return jnp.maximum(tree.norm(t), TINY)
