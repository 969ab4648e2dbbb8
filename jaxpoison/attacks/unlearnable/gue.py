"""GUE, game unlearnable examples (Liu et al. 2024): a Stackelberg game for a poison generator.

min_{xi, theta}  E max_{k != y} CE(f(x; theta), k)    subject to
theta in argmin  E CE(f(clip(x + eps g(x; xi), 0, 1); theta), y)

GUE-adv is the same game against a follower that trains with TRADES. Threat model: training images
may change within eps, labels stay; no trained model is needed. The generator poisons any image of
the same shape, without its label.
Differs from the released code: the noise of a mini-batch is made once, not 12 times; the last
partial batch of a pass is left out; the generator is in train mode throughout training; checkpoints
are selected on held-out training rows, by running statistics (there: the test set, batch ones).
"""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxpoison import check, perturb
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.attacks.selection import keep_best, monitor, num_steps
from jaxpoison.hypergrad import generator_game, minibatches, value_function
from jaxpoison.types import Attack, Generator, Hypergrad, InputError, Victim
from jaxpoison.victims import Recipe, learner, recipes, trades_learner

__all__ = ["GUE", "GUE_ADV", "Preset", "gue", "gue_adv", "payoff"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """The constants of one of the two released scripts."""

    passes: int
    """Over the rows that the generator is trained on."""
    decay_passes: tuple[int, ...] = ()
    """After which both rates fall tenfold."""
    eps: float = 8 / 255
    """L-infinity radius, pixel units."""
    batch_size: int = 256
    """B."""
    select_passes: int = 5
    """Of one round of selection."""
    select_epochs: int = 5
    """Of its victim."""

    def options(self, num_train: int) -> dict[str, Any]:
        """Keyword arguments of `gue` or `gue_adv` for a generator trained on `num_train` rows."""
        check.at_least(self.batch_size, num_train=num_train)
        steps = num_train // self.batch_size
        decay = {"decay_steps": tuple(steps * p for p in self.decay_passes)}
        return {
            "eps": self.eps,
            "batch_size": self.batch_size,
            "select_every": self.select_passes * steps,
            "select_epochs": self.select_epochs,
        } | (decay if self.decay_passes else {})

    def num_steps(self, num_train: int, passes: int | None = None) -> int:
        """Steps to run for so many passes, None for all, with their rounds of selection.

        Raises: InputError for passes that are no whole number of rounds.
        """
        passes = self.passes if passes is None else passes
        check.at_least(1, passes=passes)
        if passes % self.select_passes:
            raise InputError(f"passes = {passes}; it must be a multiple of {self.select_passes}")
        rounds, every = passes // self.select_passes, self.options(num_train)["select_every"]
        return num_steps(rounds, every=every, epochs=self.select_epochs)


GUE = Preset(passes=50)
GUE_ADV = Preset(passes=150, decay_passes=(120, 140))


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
    select_every: int = 975,
    select_epochs: int = 5,
    holdout: float = 0.1,
) -> Attack:
    """A generator and one surrogate, moved together by value-function descent.

    A step is one mini-batch: see `hypergrad.value_function`, with `payoff` as the leader's loss.
    Both networks begin once and are never begun anew. The paper runs 50 passes, of floor(S / B)
    steps each, over S = `generator_train_fraction` of the rows; the whole of `scenario.index` is
    poisoned, by the generator in eval mode.

    Too long a training weakens the poison. So after every `select_every` steps a fresh victim (SGD
    0.01, momentum 0.9, weight decay 5e-4, batches of B) learns the poison for `select_epochs`
    epochs, and the generator is kept whose victim reads clean held-out rows worst: see `keep_best`.
    Run `selection.num_steps(rounds, every=select_every, epochs=select_epochs)` steps; without
    selection the passes alone. `GUE` has both for a number of rows.

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
      select_every: steps of one round of selection, 5 passes over 50,000 rows; 0 for none: the last
        generator counts.
      select_epochs: of its victim.
      holdout: share of the training rows that judge it.

    Returns: an Attack with `generator`; info = GameInfo, with `held_out` and `best` of `keep_best`.
    Raises: InputError for a bad value, named; on tracing, for a batch larger than the rows that
      take part.
    Source: Liu et al. 2024, released code (gue.py); the numbers are those of its README (`GUE`).
    """
    check.positive(generator_rate=generator_rate, follower_rate=follower_rate)
    check.at_least(1, select_epochs=select_epochs)
    follower_tx = optax.sgd(follower_rate)
    game = generator_game(learner(victim, follower_tx), network, eps=eps, payoff=payoff)
    rule = _descent(game, follower_tx, inner_steps, inner_rate, barrier, norm_updates)
    batches = _batches(rule, batch_size, generator_train_fraction)
    space = perturb.generator(network, eps=eps)
    attack = _shown(bilevel(space, batches, perturb.moving(optax.sgd(generator_rate))))
    recipe = dataclasses.replace(
        recipes.gue_monitor(epochs=select_epochs), batch_size=batch_size, drop_last=True
    )
    return _selected(attack, victim, recipe, select_every, holdout)


def gue_adv(
    victim: Victim,
    network: Generator,
    *,
    eps: float | Float[Array, ""],
    adversarial_eps: float | Float[Array, ""] = 4 / 255,
    adversarial_step: float | Float[Array, ""] | None = None,
    adversarial_steps: int = 10,
    adversarial_beta: float | Float[Array, ""] = 1.0,
    batch_size: int = 256,
    inner_steps: int = 10,
    inner_rate: float | Float[Array, ""] = 1e-4,
    barrier: float | Float[Array, ""] = 1.5,
    generator_rate: float | Float[Array, ""] = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    follower_rate: float | Float[Array, ""] = 0.01,
    decay_steps: Sequence[int] = (23_400, 27_300),
    generator_train_fraction: float = 1.0,
    norm_updates: int = 1,
    select_every: int = 975,
    select_epochs: int = 5,
    holdout: float = 0.1,
) -> Attack:
    """GUE against victims that train adversarially: the follower's loss is that of TRADES.

    g = CE(z, y) + beta KL(softmax(z) || softmax(z')) on [P; P + delta], see `trades_learner`; the
    leader reads clean images as in `gue`. Its monitoring victim trains on PGD examples of the same
    radius. About 11 times the cost of `gue`.

    Args:
      victim: as in `gue`, like all that is not named here.
      network: as in `gue`.
      eps: of the poison.
      adversarial_eps: L-infinity radius of delta, pixel units.
      adversarial_step: pixel units; None is a quarter of the radius.
      adversarial_steps: of PGD.
      adversarial_beta: beta.
      batch_size: B.
      inner_steps: T.
      inner_rate: of Adam.
      barrier: eta.
      generator_rate: of SGD with momentum.
      momentum: of the generator's SGD.
      weight_decay: of the generator, coupled (L2).
      follower_rate: of plain SGD.
      decay_steps: after which both rates fall tenfold: 120 and 140 of 150 passes over 50,000 rows.
      generator_train_fraction: share of the rows.
      norm_updates: of the generator's running statistics.
      select_every: steps of one round of selection; 0 for none.
      select_epochs: of its victim.
      holdout: share of the training rows that judge it.

    Returns: an Attack, as `gue`.
    Raises: InputError for a bad value, named.
    Source: Liu et al. 2024, released code (gue_adv.py; `GUE_ADV`). Differs from it: the monitoring
      victim's statistics move (there they stay at their start).
    """
    check.positive(generator_rate=generator_rate, follower_rate=follower_rate)
    check.number(least=0, below=1, momentum=momentum)
    check.number(least=0, weight_decay=weight_decay, adversarial_beta=adversarial_beta)
    check.fraction(adversarial_eps=adversarial_eps)
    check.at_least(1, adversarial_steps=adversarial_steps, select_epochs=select_epochs)
    if adversarial_step is not None:
        check.positive(adversarial_step=adversarial_step)
    for step in decay_steps:
        check.at_least(1, decay_steps=step)
    if len(set(decay_steps)) < len(decay_steps):
        raise InputError(f"decay_steps = {tuple(decay_steps)}; name each step once")
    falls = {int(step): 0.1 for step in decay_steps}
    follower_tx = optax.sgd(optax.piecewise_constant_schedule(follower_rate, falls))
    generator_tx = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(optax.piecewise_constant_schedule(generator_rate, falls), momentum),
    )
    model = trades_learner(
        victim,
        follower_tx,
        eps=adversarial_eps,
        step_size=adversarial_step,
        steps=adversarial_steps,
        beta=adversarial_beta,
    )
    game = generator_game(model, network, eps=eps, payoff=payoff)
    rule = _descent(game, follower_tx, inner_steps, inner_rate, barrier, norm_updates)
    batches = _batches(rule, batch_size, generator_train_fraction)
    space = perturb.generator(network, eps=eps)
    attack = _shown(bilevel(space, batches, perturb.moving(generator_tx)))
    recipe = dataclasses.replace(
        recipes.gue_adversarial_monitor(epochs=select_epochs),
        adversarial_eps=adversarial_eps,
        batch_size=batch_size,
        drop_last=True,
        adversarial_step=adversarial_step,
        adversarial_steps=adversarial_steps,
    )
    return _selected(attack, victim, recipe, select_every, holdout)


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


def _descent(game, follower_tx, inner_steps, inner_rate, barrier, norm_updates) -> Hypergrad:
    check.positive(inner_rate=inner_rate)
    return value_function(
        game,
        inner_steps=inner_steps,
        inner_tx=optax.adam(inner_rate),
        barrier=barrier,
        follower_tx=follower_tx,
        norm_updates=norm_updates,
    )


def _batches(rule: Hypergrad, batch_size: int, generator_train_fraction: float) -> Hypergrad:
    check.number(above=0, most=1, generator_train_fraction=generator_train_fraction)
    return minibatches(rule, batch_size=batch_size, train_fraction=generator_train_fraction)


def _shown(attack: Attack) -> Attack:
    """The same attack; its info says what the descent saw, and it gives its generator away."""

    def step(key, state, scenario):
        state, info = attack.step(key, state, scenario)
        return state, GameInfo(*info, *state.phi.phi.last)

    return Attack(attack.init, step, attack.poison, generator=operator.attrgetter("theta"))


def _selected(
    attack: Attack, victim: Victim, recipe: Recipe, select_every: int, holdout: float
) -> Attack:
    """`attack` with its best generator kept, unless `select_every` is 0."""
    check.at_least(0, select_every=select_every)
    if not select_every:
        return attack
    watching = monitor(victim, recipe)
    return keep_best(attack, watching, every=select_every, epochs=recipe.epochs, holdout=holdout)
