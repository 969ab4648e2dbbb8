"""What a generator's parameters and running statistics do under an optax rule."""

import chex
import jax.numpy as jnp
import numpy as np
import optax

from jaxpoison.perturb import moving
from jaxpoison.types import Variables


def test_parameters_follow_the_rule_and_statistics_become_the_new_ones(strict_dtypes):
    """SGD 0.5 with momentum 0.9, by hand over two steps; its state knows parameters alone."""
    rule = moving(optax.sgd(0.5, momentum=0.9))
    theta = Variables({"w": jnp.array([1.0, -2.0])}, {"mean": jnp.array([3.0])})
    state = rule.init(theta)
    shapes = chex.assert_trees_all_equal_shapes_and_dtypes
    shapes(state[0].trace, theta.params)
    for wanted, stats in (([0.5, -2.5], 0.25), ([-0.45, -3.45], -7.0)):
        gradient = Variables({"w": jnp.ones(2)}, {"mean": jnp.array([stats])})
        updates, state = rule.update(gradient, state, theta)
        moved = optax.apply_updates(theta, updates)
        shapes(moved, theta)
        np.testing.assert_allclose(moved.params["w"], wanted, rtol=1e-6)
        np.testing.assert_allclose(moved.stats["mean"], [stats], rtol=1e-6)
        theta = moved
