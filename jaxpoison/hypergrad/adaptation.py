"""Adaptation: a few steps of training on the poisons shall lower the loss of the targets."""

import jax
import jax.numpy as jnp
import optax

from jaxpoison import check, tree
from jaxpoison.hypergrad.unrolled import unrolled
from jaxpoison.types import (
    Batch,
    Bilevel,
    Dataset,
    Objective,
    TrainState,
    Variables,
    Victim,
    as_float,
)

__all__ = ["adaptation"]


def adaptation(victim: Victim, *, steps: int = 2, learning_rate: float = 1e-4) -> Objective:
    """The targets' loss after K steps of gradient descent on the poisons, from the surrogate on.

    CE(f(x_t; w_K), y_adv),  w_k = w_{k-1} - a d CE(f(x_P + delta; w_{k-1}), y_P) / d w,  w_0 the
    surrogate, both CE means over their images, BatchNorm in eval mode throughout. The
    gradient goes through all K steps (`unrolled`); for K = 1 it is -a d<t', p> / d delta, t' the
    target gradient at w_1: an unnormalized scalar product where a is small.

    Args:
      victim: the surrogate network.
      steps: K, "nadapt".
      learning_rate: a; the surrogate's at the end of its training: 1e-4 of a recipe that starts at
        0.1 and decays three times by 0.1, 1e-5 of one that starts at 0.01.

    Returns: an Objective without an aim.
    Raises: InputError for a bad value, named.
    Source: Geiping et al. 2021, released code, recipe "metapoison"; reference, section 13.
    Cost: about 9 K forward passes of the batch (12 K above K = 2, rematerialized), where gradient
      matching takes 7.
    """
    check.at_least(1, steps=steps)
    check.positive(learning_rate=learning_rate)

    def mean_loss(params, stats, image, label):
        logits, _ = victim.apply(Variables(params, stats), image, train=False)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

    def inner_init(key, scenario):
        del key
        params, stats = scenario.aux
        return TrainState(params, stats, ())

    def inner_loss(key, image, phi, scenario):
        del key
        return mean_loss(phi.params, phi.stats, image, scenario.train.label)

    def inner_step(key, image, phi, scenario):
        def loss(params):
            return inner_loss(key, image, TrainState(params, phi.stats, ()), scenario)

        value, gradient = jax.value_and_grad(loss)(phi.params)
        params = tree.axpy(-learning_rate, gradient, phi.params)
        return TrainState(params, phi.stats, ()), value

    def outer_loss(key, image, phi, scenario):
        del key, image
        goal = scenario.goal
        return mean_loss(phi.params, phi.stats, as_float(goal.image), goal.label)

    problem = Bilevel(inner_init, inner_step, inner_loss, outer_loss)
    whole = unrolled(problem, steps=steps, remat=steps > 2)

    def aim(key, variables, scenario):
        del key, variables, scenario
        return ()

    def value_and_grad(key, variables, aim, batch: Batch, scenario):
        del aim
        poisons = scenario._replace(train=Dataset(batch.image, batch.label), aux=variables)
        start = inner_init(key, poisons)
        gradient, _, loss = whole.estimate(key, batch.image, start, poisons)
        return loss, gradient

    return Objective(aim, value_and_grad)
