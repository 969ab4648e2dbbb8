"""The game of a generator: its poison of a batch is made once, both sides then read the images."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpoison.perturb import Budget, generated
from jaxpoison.types import Batch, Game, Generator, Learner, Scenario, Variables, as_float

__all__ = ["clean_batch", "generator_game"]


def generator_game(
    learner: Learner,
    network: Generator,
    *,
    eps: float | Float[Array, ""],
    payoff: Callable[..., Float[Array, " b"]],
) -> Game:
    """A follower that learns from generated poison, and a leader that reads it on clean images.

    poison(theta, x) = clip(x + eps g(x; theta), 0, 1);
    lead(phi; x, y) = mean_i payoff(z_i, y_i),  z = f(x; phi) in train mode: a clean batch is
    normalized by its own statistics, apart from the poisoned one.

    Args:
      learner: the follower; `learner.loss` may be adversarial.
      network: the generator g.
      eps: L-infinity radius, pixel units.
      payoff: (logits [B, L], label [B]) -> [B], minimized by the attacker.

    Raises: InputError if `eps` is no radius.
    """
    radius = Budget("linf", eps).eps

    def poison(theta, image):
        return generated(network, theta, image, eps=radius, train=True)

    def release(theta, image):
        return generated(network, theta, image, eps=radius, train=False)[0]

    def lead(key, params, stats, batch):
        variables = Variables(params, stats)
        logits, _ = learner.victim.apply(variables, batch.image, train=True, key=key)
        return jnp.mean(payoff(logits, batch.label))

    return Game(poison, release, learner, lead)


def clean_batch(scenario: Scenario) -> Batch:
    """All rows of a scenario as one batch, as `minibatches` hands them to an estimator."""
    image, label = scenario.train
    ones = jnp.ones(label.shape, jnp.float32)
    return Batch(as_float(image), label, ones, jnp.arange(label.shape[0], dtype=jnp.int32))
