"""Gradient matching: training on the poisons shall move a network as the attacker's loss would."""

import jax
import jax.numpy as jnp
import optax

from jaxpoison import tree
from jaxpoison.types import Objective, Variables, Victim, as_float

__all__ = ["matching"]


def matching(victim: Victim) -> Objective:
    """B = 1 - <t, p> / (||t|| ||p||), one cosine over all trainable parameters together.

    t = d CE(f(x_t), y_adv) / d params,  p = d CE(f(x_P + delta), y_P) / d params, both means over
    their images, in eval mode. With v = dB/dp held constant, dB/dx is one Hessian-vector product,

        dB/dx = d/ds  d CE(f_{params + s v}(x)) / dx  at s = 0,

    taken forward over reverse: no second reverse pass.

    Args:
      victim: the surrogate network.

    Returns: an Objective whose aim is t.
    Source: Geiping et al. 2021, equation 3; derivative as in the reference, section 2.
    """

    def mean_loss(params, stats, image, label):
        logits, _ = victim.apply(Variables(params, stats), image, train=False)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

    def aim(key, variables, scenario):
        del key
        image, label = as_float(scenario.goal.image), scenario.goal.label
        return jax.grad(mean_loss)(variables.params, variables.stats, image, label)

    def value_and_grad(key, variables, aim, batch, scenario):
        del key, scenario
        params, stats = variables

        def gradient(params, argnums):
            return jax.grad(mean_loss, argnums)(params, stats, batch.image, batch.label)

        value, direction = jax.value_and_grad(_similarity)(gradient(params, 0), aim)
        _, mixed = jax.jvp(lambda params: gradient(params, 2), (params,), (direction,))
        return value, mixed

    return Objective(aim, value_and_grad)


def _similarity(p, t):
    return 1 - tree.cosine(t, p)
