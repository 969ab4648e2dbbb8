"""Contrastive losses: NT-Xent (SimCLR) and InfoNCE (MoCo), and MoCo-v3's momentum schedule."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

__all__ = ["cosine_momentum", "info_nce", "nt_xent", "unit"]


def nt_xent(
    first: Float[Array, "b d"], second: Float[Array, "b d"], *, temperature: float | Array
) -> Float[Array, " b"]:
    """The normalized temperature-scaled cross-entropy of two views, a mean over both directions.

    l(i, j) = -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ),  s = cosine of z_i and z_j,
    over the 2B embeddings z = (first, second); row n gets (l(n, B + n) + l(B + n, n)) / 2.

    Args:
      first: [B, d] embeddings of the first views.
      second: [B, d] of the second views, in the same order.
      temperature: t, above 0.

    Returns: [B]; their mean is the loss.
    Source: Chen et al. 2020, eq. 1 and algorithm 1.
    """
    num = first.shape[0]
    z = unit(jnp.concatenate([first, second]))
    scores = _products(z, z) / temperature
    scores = jnp.where(jnp.eye(2 * num, dtype=bool), -jnp.inf, scores)
    partner = (jnp.arange(2 * num) + num) % (2 * num)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, partner)
    return jnp.mean(losses.reshape(2, num), axis=0)


def info_nce(
    query: Float[Array, "b d"], key: Float[Array, "b d"], *, temperature: float | Array
) -> Float[Array, " b"]:
    """2 t CE(softmax of the cosines of query n and every key over t, n): which key is its own.

    The factor 2 t is MoCo-v3's. No gradient through the keys is stopped here.

    Args:
      query: [B, d].
      key: [B, d], in the same order.
      temperature: t, above 0.

    Returns: [B].
    Source: Chen, Xie and He 2021, eq. 1 and algorithm 1.
    """
    scores = _products(unit(query), unit(key)) / temperature
    own = jnp.arange(query.shape[0])
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, own)
    return 2 * temperature * losses


def cosine_momentum(start: float, count: Array, total: int) -> Float[Array, "..."]:
    """m_k = 1 - (1 - m_0) (1 + cos(pi k / K)) / 2: from m_0 to 1 over K updates.

    Source: Chen, Xie and He 2021, appendix; after Grill et al. 2020.
    """
    return 1 - (1 - start) * (1 + jnp.cos(jnp.pi * count / total)) / 2


def unit(z: Float[Array, "b d"]) -> Float[Array, "b d"]:
    """Rows divided by their L2 norm; a row of zeros stays, with gradient zero."""
    square = jnp.sum(z**2, axis=1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _products(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
