"""A generator small enough to write down, and an attack whose generator stays as it was drawn."""

import functools

import jax
import jax.numpy as jnp

from jaxpoison import attacks, perturb
from jaxpoison.types import Attack, Generator, Variables


@functools.cache
def network(image_shape=(8, 8, 1), name="", **options):
    """tanh(3 (roll(x) - mean) @ w - x): no images that stand for themselves, no two alike."""
    channels = image_shape[-1]

    def init(key):
        w_key, mean_key = jax.random.split(key)
        w = jax.random.normal(w_key, (channels, channels))
        return Variables({"w": w}, {"mean": jax.random.uniform(mean_key, (channels,))})

    def apply(variables, image, *, train):
        mean = jnp.mean(image, axis=(0, 1, 2)) if train else variables.stats["mean"]
        moved = jnp.roll(image, 1, axis=2) - mean[None, None, None]
        return jnp.tanh(3 * moved @ variables.params["w"] - image), {"mean": mean}

    return Generator(init, apply, name, image_shape if name else (), tuple(options.items()))


def untrained(network: Generator, *, eps: float) -> Attack:
    """The noise of a generator with random parameters, as an attack that has trained it."""
    attack = attacks.closed_form(perturb.generator(network, eps=eps))
    return attack._replace(generator=lambda state: state)
