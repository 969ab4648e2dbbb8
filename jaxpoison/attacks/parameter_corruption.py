"""Parameter corruption (GradPC; Sun et al. 2021): parameters near trained ones that are far worse.

max over a of L(w + a), ||a||_p <= radius, at most n entries of a nonzero. What indiscriminate
attacks take as their target parameters (Lu et al. 2023); it poisons nothing by itself.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree
from jaxpoison.types import Dataset, InputError, Key, Variables, Victim, as_float
from jaxpoison.victims.checks import check_classes, check_variables

__all__ = ["Corruption", "check_corruption", "parameter_corruption", "scale_target"]


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Settings of `parameter_corruption`; the released ones of MNIST's small networks.

    Attributes:
      radius: of the ball that the corruption stays in, in units of the parameters.
      norm: of that ball, over all parameters together: "l2", "linf", or a number p > 1.
      num: n, how many entries may change; None for all.
      step_size: of one mini-batch's step, in the same norm.
      batch_size: rows of a mini-batch; the last one may be smaller.
      passes: over the training set.
      scale: s in (0, 1], by which the result is multiplied, see `scale_target`.
      train: gradients with batch statistics and dropout, as the released code takes them, in the
        place of the network as it is used. Running statistics stay as they are in both.

    Errors:
      InputError: a value that cannot be used.

    Source: Lu et al. 2023, released code (radius 0.5, one pass, batch 64, step 1); a head on frozen
      features: radius 1, step 0.1, batch 1000.
    """

    radius: float = 0.5
    norm: str | float = "l2"
    num: int | None = None
    step_size: float = 1.0
    batch_size: int = 64
    passes: int = 1
    scale: float = 1.0
    train: bool = False

    def __post_init__(self):
        if isinstance(self.norm, str):
            if self.norm not in ("l2", "linf"):
                raise InputError(f"norm = {self.norm!r}; allowed are l2, linf, a number above 1")
        if not math.isinf(self.order):
            check.number(above=1, norm=self.order)
        check.positive(radius=self.radius, step_size=self.step_size)
        check.at_least(1, batch_size=self.batch_size, passes=self.passes)
        if self.num is not None:
            check.at_least(1, num=self.num)
        check.number(above=0, most=1, scale=self.scale)

    @property
    def order(self) -> float:
        """The p of the norm, inf for "linf"."""
        if isinstance(self.norm, str):
            return {"l2": 2.0, "linf": math.inf}[self.norm]
        return self.norm


def check_corruption(corruption: Any) -> None:
    """A Corruption, or None."""
    if corruption is not None and not isinstance(corruption, Corruption):
        raise InputError(
            f"corruption = {corruption!r}; it must be a Corruption, such as "
            "Corruption(radius=0.5), or None"
        )


def parameter_corruption(
    key: Key,
    victim: Victim,
    variables: Variables,
    dataset: Dataset,
    corruption: Corruption,
    *,
    order: Int[Array, " n"] | None = None,
) -> Variables:
    """Ascent from trained parameters w, mini-batch after mini-batch, inside the ball around them.

    From a = 0, for every mini-batch B:

      g = d L_B(w + a) / d params,  L_B the mean CE
      a <- P(a + step_size u(g)),   u_i = sign(g_i) |g_i|^(1 / (p - 1)) / || |g|^(1 / (p - 1)) ||_p
      P: all but the n largest |a_i| to 0, then a min(1, radius / ||a||_p); of linf clip(a)

    u is the direction of norm 1 in which L rises most: g / ||g||_2 for p = 2, sign(g) for linf; all
    parameters are one vector. One step on the whole set, long enough to reach the ball, is the
    closed form of first order, L + radius ||h||_q with h the n largest gradients and
    1/p + 1/q = 1. Of entries of a that are equal the n with the larger gradient stay.

    Args:
      key: of the order, and of dropout.
      victim: the network; a `partial_victim` corrupts the parameters that it has.
      variables: trained on clean data.
      dataset: N clean rows; read as they are, no augmentation.
      corruption: settings.
      order: [N], in which rows are taken in every pass; None shuffles each pass.

    Returns: Variables, params scale (w + a), statistics as they were.
    Errors: InputError for an order of another length, for no rows, labels that are none of the
      network's classes, more entries than it has, or arrays of another network.
    Cost: one gradient per mini-batch; a sort of all parameters too where `num` is given.
    Source: Sun et al. 2021 (AAAI), sections on the closed form and on gradient-based corruption;
      Lu et al. 2023, released code; for other p by Hoelder's inequality.
    """
    check.kind(Corruption, corruption=corruption)
    total = dataset.label.shape[0]
    check.at_least(1, rows=total)
    check_variables(victim, variables, "the network to corrupt")
    check_classes(victim, dataset)
    if order is not None and order.shape != (total,):
        raise InputError(f"order has shape {order.shape}; the data set has {total} rows")
    start, unravel = ravel_pytree(variables.params)
    if corruption.num is not None and corruption.num > start.size:
        raise InputError(f"num = {corruption.num}; the network has {start.size} parameters")
    size = min(corruption.batch_size, total)
    full = total // size

    def loss(vector, key, rows):
        own = Variables(unravel(vector), variables.stats)
        image, label = as_float(dataset.image[rows]), dataset.label[rows]
        scores, _ = victim.apply(own, image, train=corruption.train, key=key)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, label))

    def step(carry, rows):
        number, change = carry
        gradient = jax.grad(loss)(start + change, jax.random.fold_in(dropout_key, number), rows)
        change = change + corruption.step_size * _direction(gradient, corruption.order)
        if corruption.num is not None:
            change = _largest(change, gradient, corruption.num)
        return (number + 1, _into_ball(change, corruption)), None

    def one_pass(carry, number):
        rows = order
        if rows is None:
            rows = jax.random.permutation(jax.random.fold_in(order_key, number), total)
        carry, _ = lax.scan(step, carry, rows[: full * size].reshape(full, size))
        if full * size < total:
            carry, _ = step(carry, rows[full * size :])
        return carry, None

    order_key, dropout_key = jax.random.split(key)
    carry = jnp.zeros((), jnp.int32), jnp.zeros_like(start)
    (_, change), _ = lax.scan(one_pass, carry, jnp.arange(corruption.passes))
    return scale_target(Variables(unravel(start + change), variables.stats), corruption.scale)


def scale_target(variables: Variables, scale: float | Float[Array, ""]) -> Variables:
    """All parameters times s: of a linear classifier the same predictions, from smaller scores.

    The smaller s, the fewer added points make a linear head's parameters stationary, down to none
    as s -> 0 (without a bias). A network with more than one layer predicts otherwise.
    """
    return Variables(jax.tree.map(lambda x: scale * x, variables.params), variables.stats)


def _direction(gradient: Float[Array, " d"], p: float) -> Float[Array, " d"]:
    """The u of norm 1 with the largest <gradient, u>; 0 for a gradient of zeros."""
    if math.isinf(p):
        return jnp.sign(gradient)
    top = jnp.max(jnp.abs(gradient))
    size = jnp.abs(gradient) / jnp.where(
        top > 0, top, 1
    )  # powers of it neither over- nor underflow
    power = size ** (1 / (p - 1))
    norm = _norm(power, p)
    return jnp.sign(gradient) * power / jnp.where(norm > 0, norm, 1)


def _largest(change: Float[Array, " d"], gradient: Float[Array, " d"], num: int) -> Array:
    order = jnp.lexsort((jnp.abs(gradient), jnp.abs(change)))
    keep = jnp.zeros(change.shape, bool).at[order[-num:]].set(True)
    return jnp.where(keep, change, 0)


def _into_ball(change: Float[Array, " d"], corruption: Corruption) -> Float[Array, " d"]:
    radius = corruption.radius
    if math.isinf(corruption.order):
        return jnp.clip(change, -radius, radius)
    norm = _norm(change, corruption.order)
    return change * jnp.minimum(1, radius / jnp.where(norm > 0, norm, 1))


def _norm(vector: Float[Array, " d"], p: float) -> Float[Array, ""]:
    if p == 2:
        return tree.norm(vector)
    top = jnp.max(jnp.abs(vector))
    safe = jnp.where(top > 0, top, 1)
    return top * jnp.sum((jnp.abs(vector) / safe) ** p) ** (1 / p)
