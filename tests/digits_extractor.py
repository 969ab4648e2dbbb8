"""An extractor trained on digits with labels, as in the reference's runs: an MLP 64-128-32."""

import functools

import jax
import jax.numpy as jnp

import jaxpoison as jp


@functools.cache
def digits():
    """The split, on the device."""
    return jp.Split(*(jax.tree.map(jnp.asarray, jp.data.digits(s)) for s in ("train", "test")))


@functools.cache
def extractor():
    """150 steps of Adam(1e-2) on all rows; 32 features behind a ReLU, divided by their std."""
    victim = jp.models.mlp((8, 8, 1), 10, hidden=(128, 32), batch_norm=False)
    recipe = jp.victims.Recipe(150, 1400, 0.01, optimizer="adam")
    training = jp.victims.victim_training(victim, recipe, 1400)
    phi, _ = jp.run(training, jax.random.key(1), digits(), num_steps=150)
    known = jp.victims.Extractor(victim, phi.variables)
    size = jnp.std(jp.victims.extract(known, digits().train).image)
    layer = jax.tree.map(lambda x: x / size, phi.params["Dense_1"])
    params = phi.params | {"Dense_1": layer}
    return jp.victims.Extractor(victim, jp.Variables(params, phi.stats))
