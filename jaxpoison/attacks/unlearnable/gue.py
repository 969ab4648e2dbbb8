"""GUE, game unlearnable examples (Liu et al. 2024): a Stackelberg game for a poison generator.

min_{xi, theta}  E max_{k != y} CE(f(x; theta), k)    subject to
theta in argmin  E CE(f(clip(x + eps g(x; xi), 0, 1); theta), y)

Threat model: training images may change within eps, labels stay; no trained model is needed. The
generator poisons any image of the same shape, without its label.
Differs from the released code: the noise of a mini-batch is made once, not 12 times; the last
partial batch of a pass is left out; the generator is in train mode throughout training.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxpoison import check, perturb
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.hypergrad import generator_game, minibatches, value_function
from jaxpoison.types import Attack, Generator, Victim
from jaxpoison.victims import learner

__all__ = ["gue", "payoff"]


class GameInfo(NamedTuple):
    """Diagnostics of one mini-batch, before its update.

    Attributes:
      outer_loss: f, the leader's payoff on the clean batch; falls toward log(L-1) .. log L.
      grad_norm: L2 norm of lam d q / d xi, the generator's gradient.
      finite: whether both are finite.
      follower_loss: g on the poisoned batch; falls toward 0.
      gap: q, what T inner steps gain on it; small, positive.
      multiplier: lam.
      gap_norm: ||grad q|| over both networks; lam gap_norm <= eta gap_norm + lead_norm.
      lead_norm: ||d f / d theta||.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    follower_loss: Float[Array, "..."]
    gap: Float[Array, "..."]
    multiplier: Float[Array, "..."]
    gap_norm: Float[Array, "..."]
    lead_norm: Float[Array, "..."]


def gue(
    victim: Victim,
    network: Generator,
    *,
    eps: float | Float[Array, ""],
    batch_size: int = 256,
    inner_steps: int = 10,
    inner_rate: float | Float[Array, ""] = 1e-4,
    barrier: float | Float[Array, ""] = 1.5,
    generator_rate: float | Float[Array, ""] = 0.1,
    follower_rate: float | Float[Array, ""] = 0.01,
    generator_train_fraction: float = 1.0,
    norm_updates: int = 1,
) -> Attack:
    """A generator and one surrogate, moved together by value-function descent.

    A step is one mini-batch: see `hypergrad.value_function`, with `payoff` as the leader's loss.
    Both networks begin once and are never begun anew. Run 50 passes over the data, that is
    50 floor(S / B) steps over S = `generator_train_fraction` of the rows; the whole of
    `scenario.index` is poisoned, by the generator in eval mode.

    Args:
      victim: the surrogate (ResNet-18 in the paper).
      network: the generator (`models.create_generator("unet", ...)` in the paper).
      eps: L-infinity radius, pixel units (8/255).
      batch_size: B.
      inner_steps: T of the follower's best response.
      inner_rate: of its Adam.
      barrier: eta; how fast the follower's gap must fall.
      generator_rate: of plain SGD.
      follower_rate: of plain SGD.
      generator_train_fraction: share of the rows that the generator is trained on, in (0, 1].
      norm_updates: 12 moves the generator's running statistics as the released code does.

    Returns: an Attack with `generator`; info = GameInfo.
    Raises: InputError for a bad value, named.
    Source: Liu et al. 2024, released code (gue.py); the numbers are those of its README.
    """
    check.positive(
        inner_rate=inner_rate, generator_rate=generator_rate, follower_rate=follower_rate
    )
    check.number(above=0, most=1, generator_train_fraction=generator_train_fraction)
    game = generator_game(
        learner(victim, optax.sgd(follower_rate)), network, eps=eps, payoff=payoff
    )
    descent = value_function(
        game,
        inner_steps=inner_steps,
        inner_tx=optax.adam(inner_rate),
        barrier=barrier,
        follower_tx=optax.sgd(follower_rate),
        norm_updates=norm_updates,
    )
    batches = minibatches(descent, batch_size=batch_size, train_fraction=generator_train_fraction)
    space = perturb.generator(network, eps=eps)
    return _with_figures(bilevel(space, batches, perturb.moving(optax.sgd(generator_rate))))


def payoff(logits: Float[Array, "b l"], label: Int[Array, " b"]) -> Float[Array, " b"]:
    """max_{k != y} CE(z, k) = logsumexp(z) - min_{k != y} z_k, of every row; minimized.

    At least log(L-1), approached where the true class has probability 0 and the others share it
    equally; log L at a uniform prediction. Its gradient is softmax(z) - onehot(k*).

    Args:
      logits: [B, L]; L is read from here, so any number of classes is right.
      label: [B] true classes.

    Source: Liu et al. 2024, released code (there a maximum over cross-entropies).
    """
    own = jax.nn.one_hot(label, logits.shape[1], dtype=bool)
    lowest = jnp.min(jnp.where(own, jnp.inf, logits), axis=1)
    return jax.nn.logsumexp(logits, axis=1) - lowest


def _with_figures(attack: Attack) -> Attack:
    """The same attack; its info says what the descent saw, and it gives its generator away."""

    def step(key, state, scenario):
        state, info = attack.step(key, state, scenario)
        return state, GameInfo(*info, *state.phi.phi.last)

    def generator(state):
        return state.theta

    return Attack(attack.init, step, attack.poison, generator=generator)
