"""What every shipped generator shares: its name card, its compute dtype, its bounded output."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison.models.adapt import adapt_generator
from jaxpoison.models.layers import batch_norm
from jaxpoison.types import Generator, InputError

__all__ = ["compute_dtype", "direction", "shipped"]


def shipped(
    name: str, module: nn.Module, image_shape: tuple[int, int, int], **options: Any
) -> Generator:
    """The generator of `module`, with the name of its factory and that factory's keywords."""
    network = adapt_generator(module, image_shape)
    return network._replace(name=name, options=tuple(options.items()))


def compute_dtype(dtype: Any) -> str:
    """The name of a floating dtype, "bfloat16" for `jnp.bfloat16`, so that it can be written down.

    Errors: InputError for what is none.
    """
    try:
        kind = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        raise InputError(f"dtype = {dtype}; it must be a floating dtype, as float32 or bfloat16")
    return kind.name


def direction(x: Float[Array, "b *d"], *, train: bool, norm: bool = True) -> Float[Array, "b *d"]:
    """tanh(BN(x)), or tanh(x) without `norm`, both in at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.tanh(batch_norm(x, train=train, dtype=x.dtype, name="norm_last") if norm else x)
