"""Where a perturbation starts: zero, uniform in the ball, normal, or any initializer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison.perturb.budget import Budget
from jaxpoison.types import InputError, Key

__all__ = ["check_initial", "normal", "uniform", "zero"]

Draw = Callable[..., Array]
"""(key, shape, dtype, budget) -> delta of that shape, not yet projected."""


def zero(key: Key, shape: tuple[int, ...], dtype: Any, budget: Budget) -> Float[Array, "n h w c"]:
    """No change: delta = 0.

    Args:
      key: not used.
      shape: (N, H, W, C).
      dtype: a float dtype.
      budget: not used.

    Returns:
      [N, H, W, C] zeros.
    """
    del key, budget
    return jnp.zeros(shape, dtype)


def uniform(
    key: Key, shape: tuple[int, ...], dtype: Any, budget: Budget
) -> Float[Array, "n h w c"]:
    """Uniform in the ball; under l0 eps random pixels with entries uniform in [-1, 1].

    linf: delta ~ U[-eps, eps].  l2: delta = eps r^(1/D) g / ||g||, g ~ N(0, I_D), r ~ U[0, 1].

    Args:
      key: source of randomness.
      shape: (N, H, W, C).
      dtype: a float dtype.
      budget: norm and radius.

    Returns:
      [N, H, W, C], inside the ball; projection onto the box is left to the caller.
    """
    return _UNIFORM[budget.norm](key, shape, dtype, jnp.asarray(budget.eps, dtype))


def normal(key: Key, shape: tuple[int, ...], dtype: Any, budget: Budget) -> Float[Array, "n h w c"]:
    """Delta = eps N(0, I), to be projected; under l0, where eps is a count, N(0, I).

    Args:
      key: source of randomness.
      shape: (N, H, W, C).
      dtype: a float dtype.
      budget: norm and radius.

    Returns:
      [N, H, W, C], in general outside the ball.
    """
    scale = 1 if budget.norm == "l0" else jnp.asarray(budget.eps, dtype)
    return scale * jax.random.normal(key, shape, dtype)


def check_initial(init: Any) -> Draw:
    """The drawing function behind a literal; a function passes as it is.

    Args:
      init: "zero", "uniform", "normal", or (key, shape, dtype, budget) -> delta.

    Returns:
      The function.

    Errors:
      InputError: neither one of the literals nor callable.
    """
    if callable(init):
        return init
    if not isinstance(init, str) or init not in _NAMED:
        raise InputError(f"init = {init!r}; allowed are {', '.join(_NAMED)} or a function")
    return _NAMED[init]


def _uniform_linf(key: Key, shape: tuple[int, ...], dtype: Any, eps: Array) -> Array:
    return eps * jax.random.uniform(key, shape, dtype, minval=-1, maxval=1)


def _uniform_l2(key: Key, shape: tuple[int, ...], dtype: Any, eps: Array) -> Array:
    key_direction, key_radius = jax.random.split(key)
    direction = jax.random.normal(key_direction, shape, dtype)
    length = jnp.sqrt(jnp.sum(direction**2, axis=(1, 2, 3), keepdims=True))
    fraction = jax.random.uniform(key_radius, (shape[0], 1, 1, 1), dtype)
    size = shape[1] * shape[2] * shape[3]
    return eps * fraction ** (1 / size) * direction / jnp.maximum(length, 1e-12)


def _uniform_l0(key: Key, shape: tuple[int, ...], dtype: Any, eps: Array) -> Array:
    key_place, key_value = jax.random.split(key)
    num, height, width, _ = shape
    order = jnp.argsort(jax.random.uniform(key_place, (num, height * width)), axis=1)
    keep = (order.astype(dtype) < eps).reshape(num, height, width, 1)
    value = jax.random.uniform(key_value, shape, dtype, minval=-1, maxval=1)
    return jnp.where(keep, value, jnp.zeros_like(value))


_UNIFORM = {"linf": _uniform_linf, "l2": _uniform_l2, "l0": _uniform_l0}
_NAMED = {"zero": zero, "uniform": uniform, "normal": normal}
