"""The loss gradients of all rows as an operator G [N, D], never as a matrix.

Rows are cut into blocks of one class each, so that every class has a direction of its own at the
cost of one pass over the rows. The top singular vector of every class' centered gradients comes
from Lanczos' method on their Gram matrix, whose vectors have one number per row, not D.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import tree
from jaxpoison.types import Dataset, InputError, Key, Variables, Victim, as_float
from jaxpoison.victims import Extractor, extract, head_mask, logits

__all__ = [
    "OPERATORS",
    "Blocks",
    "Gradients",
    "class_blocks",
    "gradient_gaps",
    "head_gradients",
    "mean_gradients",
    "parameter_gradients",
    "singular_scores",
]

LARGEST_BLOCK = 256


class Blocks(NamedTuple):
    """Rows in K blocks of B, each of one group; the last block of a group is filled up.

    Attributes:
      rows: [K, B] int32, N where there is none.
      owner: [K] int32, the group of a block.
      num: G, groups.
    """

    rows: Int[Array, "k b"]
    owner: Int[Array, " k"]
    num: int

    def real(self, num_rows: int) -> Float[Array, "k b"]:
        """1 where there is a row."""
        return (self.rows < num_rows).astype(jnp.float32)

    def cut(self, values: Array) -> Array:
        """[N, ...] in blocks [K, B, ...]; zeros where there is no row."""
        return values.at[self.rows].get(mode="fill", fill_value=0)

    def rejoin(self, values: Array, num_rows: int) -> Array:
        """[K, B] as [N]."""
        return jnp.zeros(num_rows, values.dtype).at[self.rows].set(values, mode="drop")

    def total(self, values: Array) -> Array:
        """[K, B] summed over the rows of every group: [G]."""
        return jax.ops.segment_sum(jnp.sum(values, axis=1), self.owner, self.num)

    def of_group(self, values: Array) -> Array:
        """[G] for every block: [K, 1]."""
        return values[self.owner][:, None]


class Gradients(NamedTuple):
    """G, the gradients g_i of the losses of all rows, in blocks.

    Attributes:
      times: (one vector per group, a tree with leading axis G) -> [K, B], <g_i, v_group(i)>.
      transposed: ([K, B] u) -> such a tree, sum over the rows of each group of u_i g_i.
      norm: () -> [K, B], ||g_i||.
      like: one vector, a tree of shapes.
    """

    times: Callable[[Any], Array]
    transposed: Callable[[Array], Any]
    norm: Callable[[], Array]
    like: Any


def class_blocks(group: Int[Array, " n"], num: int) -> Blocks:
    """Blocks of at most 256 rows; at most a quarter as many slots are empty as there are rows.

    Args:
      group: [N] from 0 to G - 1.
      num: G.
    """
    rows = group.shape[0]
    size = max(1, min(LARGEST_BLOCK, rows // (4 * num)))
    blocks = rows // size + num  # of every group at most one is not full
    count = jnp.bincount(group, length=num)
    own = -(-count // size)
    ends = jnp.cumsum(own)
    order = jnp.argsort(group, stable=True)
    ordered = group[order]
    rank = jnp.arange(rows) - (jnp.cumsum(count) - count)[ordered]
    slot = (ends - own)[ordered] * size + rank
    place = jnp.full(blocks * size, rows, jnp.int32).at[slot].set(order.astype(jnp.int32))
    owner = jnp.searchsorted(ends, jnp.arange(blocks), side="right")
    owner = jnp.minimum(owner, num - 1).astype(jnp.int32)
    return Blocks(place.reshape(blocks, size), owner, num)


def head_gradients(
    victim: Victim, variables: Variables, dataset: Dataset, blocks: Blocks
) -> Gradients:
    """With respect to the last layer, in closed form: g_i = (p_i - e_y) phi_i^T, and its bias.

    Args:
      victim: a network whose last layer is linear in its features: a linear head, a
        `partial_victim`, or a whole network, whose other parameters are not read.
      variables: its arrays.
      dataset: N rows.
      blocks: of these rows.

    Errors: InputError for a last layer that is not W phi (+ b), such as one with BatchNorm behind.
    Cost: two forward passes over the set, once; then 2 N L D operations per product, and the
      features in memory twice.
    """
    features = extract(Extractor(victim, variables), dataset).image
    phi = features.reshape(features.shape[0], -1)
    scores = logits(victim, variables, dataset.image)
    if _has_bias(victim, dataset.image.shape[1:], phi.shape[1], scores.shape[1]):
        phi = jnp.concatenate([phi, jnp.ones_like(phi[:, :1])], axis=1)
    error = jax.nn.softmax(scores) - jax.nn.one_hot(dataset.label, scores.shape[1])
    error = error.astype(phi.dtype)
    phi, error = blocks.cut(phi), blocks.cut(error)

    def times(direction):
        return jnp.einsum("kbl,kbd,kld->kb", error, phi, direction[blocks.owner])

    def transposed(u):
        parts = jnp.einsum("kbl,kbd->kld", u[:, :, None] * error, phi)
        return jax.ops.segment_sum(parts, blocks.owner, blocks.num)

    def norm():
        return jnp.linalg.norm(error, axis=2) * jnp.linalg.norm(phi, axis=2)

    like = jax.ShapeDtypeStruct((error.shape[2], phi.shape[2]), phi.dtype)
    return Gradients(times, transposed, norm, like)


def parameter_gradients(
    victim: Victim, variables: Variables, dataset: Dataset, blocks: Blocks
) -> Gradients:
    """With respect to all parameters, in eval mode, by products of the network's derivatives.

    G v is a forward-mode product, G^T u a reverse-mode one, block by block; nothing is kept. Cost:
    a forward and backward pass over the set per product.
    """
    num = dataset.label.shape[0]
    params, real = variables.params, blocks.real(num)

    def losses(params, rows, real):
        rows = jnp.minimum(rows, num - 1)
        image = as_float(dataset.image[rows])
        z, _ = victim.apply(Variables(params, variables.stats), image, train=False)
        loss = optax.softmax_cross_entropy_with_integer_labels(z, dataset.label[rows])
        return jnp.where(real > 0, loss, 0)

    def times(direction):
        def block(job):
            rows, real, owner = job
            own = jax.tree.map(lambda v: v[owner], direction)
            return jax.jvp(lambda p: losses(p, rows, real), (params,), (own,))[1]

        return lax.map(block, (blocks.rows, real, blocks.owner))

    def transposed(u):
        def block(total, job):
            rows, real, owner, u = job
            loss, pull = jax.vjp(lambda p: losses(p, rows, real), params)
            (slope,) = pull(u.astype(loss.dtype))
            return jax.tree.map(lambda t, s: t.at[owner].add(s), total, slope), None

        zero = jax.tree.map(lambda p: jnp.zeros((blocks.num, *p.shape), p.dtype), params)
        return lax.scan(block, zero, (blocks.rows, real, blocks.owner, u))[0]

    def norm():
        def one(job):
            row, real = job
            slope = jax.grad(lambda p: losses(p, row[None], real[None])[0])(params)
            return optax.tree.norm(slope)

        return lax.map(lambda job: jax.vmap(lambda *row: one(row))(*job), (blocks.rows, real))

    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    return Gradients(times, transposed, norm, like)


def mean_gradients(gradients: Gradients, blocks: Blocks, num_rows: int) -> Any:
    """The mean of every group, a tree with leading axis G; NaN for an empty group."""
    real = blocks.real(num_rows)
    count, total = blocks.total(real), gradients.transposed(real)
    return jax.tree.map(lambda t: t / count.reshape(-1, *[1] * (t.ndim - 1)), total)


def gradient_gaps(gradients: Gradients, blocks: Blocks, mean: Any) -> Float[Array, "k b"]:
    """||g_i - mean_group(i)||, the mean as of `mean_gradients`."""
    square = jax.vmap(lambda m: tree.dot(m, m))(mean)
    gap = gradients.norm() ** 2 - 2 * gradients.times(mean) + blocks.of_group(square)
    return jnp.sqrt(jnp.maximum(gap, 0))


def singular_scores(
    key: Key,
    gradients: Gradients,
    blocks: Blocks,
    weight: Float[Array, "k b"],
    *,
    iterations: int,
) -> Float[Array, "k b"]:
    """|G^ v| in every group: G^ = (G - its mean) / sqrt(n), v its top right singular vector.

    With u the top left singular vector and s the singular value, G^ v = s u: an eigenvector of
    G^ G^T, found in the Krylov space of a random direction by Lanczos' method, every vector made
    orthogonal to all earlier ones twice (Parlett 1998, sections 13.1 and 13.8).

    Args:
      key: of the direction where it starts, the same in every group.
      gradients: G.
      blocks: its rows.
      weight: [K, B], 1 for the n rows of a group that count, 0 for others, whose score is 0.
      iterations: M, dimension of the Krylov space. Exact where a group has at most M rows.

    Cost: 2 M + 1 products with G; [M, K, B] numbers.
    """
    count = jnp.maximum(blocks.total(weight), 1)

    def center(u):
        return weight * (u - blocks.of_group(blocks.total(weight * u) / count))

    def gram(u):
        return center(gradients.times(gradients.transposed(u))) / blocks.of_group(count)

    leaves, structure = jax.tree.flatten(gradients.like)
    keys = jax.random.split(key, len(leaves))
    start = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    start = [jnp.broadcast_to(x[None], (blocks.num, *x.shape)) for x in start]
    first = center(gradients.times(jax.tree.unflatten(structure, start)))
    size = jnp.sqrt(blocks.total(first**2))
    first = first / blocks.of_group(jnp.where(size > 0, size, 1))
    basis = jnp.zeros((iterations, *first.shape), first.dtype).at[0].set(first)
    smallest = 100 * jnp.finfo(first.dtype).eps

    def against(basis, w):
        parts = jnp.sum(basis * w[None], axis=2)
        inner = jax.vmap(lambda x: jax.ops.segment_sum(x, blocks.owner, blocks.num))(parts)
        return w - jnp.einsum("mk,mkb->kb", inner[:, blocks.owner], basis)

    def step(carry, number):
        basis, scale = carry
        q = basis[number]
        w = gram(q)
        alpha = blocks.total(q * w)
        w = against(basis, against(basis, w))
        beta = jnp.sqrt(blocks.total(w**2))
        scale = jnp.maximum(scale, jnp.maximum(alpha, beta))
        goes_on = beta > smallest * scale  # else the Krylov space is all there is
        beta = jnp.where(goes_on, beta, 0)
        w = w * blocks.of_group(jnp.where(goes_on, 1 / jnp.where(goes_on, beta, 1), 0))
        basis = basis.at[number + 1].set(w, mode="drop")
        return (basis, scale), (alpha, beta)

    scale = jnp.zeros(blocks.num, first.dtype)
    (basis, _), (alpha, beta) = lax.scan(step, (basis, scale), jnp.arange(iterations))
    small = jax.vmap(jnp.diag, 1)(alpha)
    side = jax.vmap(lambda b: jnp.diag(b, 1), 1)(beta[:-1])
    values, vectors = jnp.linalg.eigh(small + side + side.swapaxes(1, 2))
    top = vectors[:, :, -1].T  # [M, G]
    left = jnp.einsum("mk,mkb->kb", top[:, blocks.owner], basis)
    value = jnp.sqrt(jnp.maximum(values[:, -1], 0))
    return weight * jnp.abs(left) * blocks.of_group(value)


def _has_bias(victim: Victim, shape: tuple[int, ...], width: int, classes: int) -> bool:
    """Whether the last layer is W phi + b, not W phi; an InputError if it is neither."""
    mask = jax.tree.leaves(head_mask(victim, shape))
    params = jax.tree.leaves(jax.eval_shape(victim.init, jax.random.key(0)).params)
    shapes = [tuple(p.shape) for p, own in zip(params, mask, strict=True) if own]
    found = sorted(shapes, key=len, reverse=True)
    if found not in ([(width, classes)], [(width, classes), (classes,)]):
        raise InputError(
            f"the last layer has arrays of shapes {shapes}, features [{width}] and {classes} "
            "classes: it is not linear; use gradients = all"
        )
    return len(found) == 2


OPERATORS = {"head": head_gradients, "all": parameter_gradients}
"""By which parameters losses are differentiated: the last layer's, or all of the victim's."""
