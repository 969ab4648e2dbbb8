"""Value-function descent: the leader moves along with the follower, first-order gradients only."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check, tree
from jaxpoison.hypergrad.game import clean_batch
from jaxpoison.types import Batch, Game, Hypergrad, TrainState, Variables

__all__ = ["Descent", "DescentState", "multiplier", "value_function"]

MOMENTUM = 0.9  # of the running averages in `models`
FLOOR = 1e-8  # of the multiplier's denominator, as in the released code


class Descent(NamedTuple):
    """What one joint step saw; scalars.

    Attributes:
      follower_loss: g(theta, phi), on the poisoned batch.
      gap: q = g(theta, phi) - g(theta, phi~): what the follower could still gain.
      multiplier: lam.
      gap_norm: ||grad q||_2 over both networks; lam gap_norm <= eta gap_norm + lead_norm.
      lead_norm: ||d f / d phi||_2.
    """

    follower_loss: Float[Array, "..."]
    gap: Float[Array, "..."]
    multiplier: Float[Array, "..."]
    gap_norm: Float[Array, "..."]
    lead_norm: Float[Array, "..."]


class DescentState(NamedTuple):
    """The follower, and what the last step saw (zeros before the first)."""

    follower: TrainState
    last: Descent


def value_function(
    game: Game,
    *,
    inner_steps: int = 10,
    inner_tx: optax.GradientTransformation | None = None,
    barrier: float | Float[Array, ""] = 1.5,
    follower_tx: optax.GradientTransformation | None = None,
    norm_updates: int = 1,
) -> Hypergrad:
    """Minimize f(phi), subject to q(theta, phi) = g(theta, phi) - min_phi' g(theta, phi') = 0.

    Per mini-batch (all rows of the scenario), with the poison made once:
    phi~ = phi after T steps of `inner_tx`, from a fresh state, on g(theta, .); constant from here;
    q_theta = d (g(theta, phi) - g(theta, phi~)) / d theta,  q_phi = d g(theta, phi) / d phi,
    lam = `multiplier` of <d f / d phi, q_phi> and n2 = ||q_theta||^2 + ||q_phi||^2;
    gradient for theta: lam q_theta;  phi <- phi + follower_tx(d f / d phi + lam q_phi).

    The direction is the one nearest to the leader's gradient (0, d f / d phi) that lowers q at a
    rate of at least eta n2. The follower is never begun anew. f is read on the clean batch and g on
    the poisoned one, each normalized by its own statistics; running statistics follow the poisoned
    one. All evaluations of g share their random draws: phi~ is fitted to the g that is measured.

    Args:
      game: `game.follower.loss` is g (its own optimizer is not used), `game.lead` is f.
      inner_steps: T >= 0.
      inner_tx: None is Adam 1e-4.
      barrier: eta.
      follower_tx: None is SGD 0.01.
      norm_updates: n; running averages r of the generator's BatchNorm (momentum 0.9) move by the
        batch's m to 0.9^n r + (1 - 0.9^n) m. The released code moves them T + 2 = 12 times.

    Returns: a Hypergrad; phi is a DescentState, the loss is f before the step.
    Raises: InputError for inner_steps < 0, norm_updates < 1, or a barrier that is not positive.
    Cost: T + 2 forward and backward passes of the follower (the first of the T also gives q_phi),
      one of the generator.
    Source: Liu et al. 2024 (GUE), released code; the dynamic barrier is of Ye et al. 2022 (BOME).
    """
    check.at_least(0, inner_steps=inner_steps)
    check.at_least(1, norm_updates=norm_updates)
    check.positive(barrier=barrier)
    inner_rule = optax.adam(1e-4) if inner_tx is None else inner_tx
    follower_rule = optax.sgd(0.01) if follower_tx is None else follower_tx

    def init(key, scenario):
        del scenario
        phi = game.follower.init(key)
        state = TrainState(phi.params, phi.stats, follower_rule.init(phi.params))
        return DescentState(state, Descent(*[jnp.zeros(())] * len(Descent._fields)))

    def estimate(key, theta, phi, scenario):
        follow_key, lead_key = jax.random.split(key)
        batch, (params, stats, opt_state) = clean_batch(scenario), phi.follower
        image, pull, averages = jax.vjp(
            lambda p: game.poison(Variables(p, theta.stats), batch.image),
            theta.params,
            has_aux=True,
        )

        def follow(image, params, stats):
            poisoned = Batch(image, batch.label, batch.weight, batch.index)
            loss, (_, stats) = game.follower.loss(follow_key, params, stats, poisoned)
            return loss, stats

        def look(params, stats):
            """(g, statistics after it), (d g / d image, d g / d phi)."""
            return jax.value_and_grad(follow, argnums=(0, 1), has_aux=True)(image, params, stats)

        def fit(k, carry):
            """Evaluation k of T + 1; the step after the last one is not used."""
            (params, stats, opt_state), first, _ = carry
            now = look(params, stats)
            (_, stats), (_, gradient) = now
            updates, opt_state = inner_rule.update(gradient, opt_state, params)
            first = jax.tree.map(lambda new, old: jnp.where(k == 0, new, old), now, first)
            ahead = now[0][0], now[1][0]
            return (optax.apply_updates(params, updates), stats, opt_state), first, ahead

        blank = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(look, params, stats)
        )
        start = (params, stats, inner_rule.init(params)), blank, (blank[0][0], blank[1][0])
        _, first, last = lax.fori_loop(0, inner_steps + 1, fit, start)
        (now, after), (image_now, q_phi) = first
        ahead, image_ahead = last
        (q_theta,) = pull(image_now - image_ahead)
        lead, f_phi = jax.value_and_grad(game.lead, argnums=1)(lead_key, params, stats, batch)

        square = tree.dot(q_theta, q_theta) + tree.dot(q_phi, q_phi)
        lam = multiplier(tree.dot(f_phi, q_phi), square, barrier)
        updates, opt_state = follower_rule.update(tree.axpy(lam, q_phi, f_phi), opt_state, params)
        follower = TrainState(optax.apply_updates(params, updates), after, opt_state)
        gradient = Variables(
            jax.tree.map(lambda q: (lam * q).astype(q.dtype), q_theta),
            _moved(averages, theta.stats, norm_updates),
        )
        seen = Descent(now, now - ahead, lam, jnp.sqrt(square), tree.norm(f_phi))
        return gradient, DescentState(follower, seen), lead

    return Hypergrad(init, estimate)


def multiplier(
    inner: Float[Array, ""], square: Float[Array, ""], barrier: float | Float[Array, ""]
) -> Float[Array, ""]:
    """The dynamic barrier: lam = max(0, (eta n2 - <f', q'>) / (n2 + 1e-8)).

    The least lam >= 0 with <(0, f') + lam q', q'> >= eta n2, up to the 1e-8 that makes it 0, not
    NaN, where q' = 0. It may be huge where q' is small; lam ||q'|| is bounded.

    Args:
      inner: <f', q'>.
      square: n2 = ||q'||^2.
      barrier: eta.

    Source: Liu et al. 2024, released code.
    """
    return jnp.maximum(0.0, (barrier * square - inner) / (square + FLOOR))


def _moved(once: Any, before: Any, times: int) -> Any:
    """Running averages after `times` updates by the same batch, from those after one."""
    factor = (1 - MOMENTUM**times) / (1 - MOMENTUM) if times > 1 else 1.0
    return jax.tree.map(lambda r, a: a if times == 1 else r + factor * (a - r), before, once)
