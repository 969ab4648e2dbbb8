"""DeepConfuse (Feng et al. 2019): a generator of noise on which a victim learns the wrong thing.

max_xi  sum CE(f(x; phi*(xi)), y),   phi*(xi) = argmin_phi sum CE(f(clip(x + eps g(x; xi))), y)

or, label-specific, min_xi sum CE(f(x; phi*(xi)), eta(y)). Threat model: training images may change
within eps (L-infinity), labels stay; the architecture of a surrogate is chosen, victims may differ.
Differs from the released code: passes have no partial batch; the best generator is the best on a
held-out slice of the training set, not on the test set; poisons are made once, in eval mode, before
any augmentation (its own protocol is `victims.poisoned_online`), and rounded to grey levels in the
poison folder (`domain="float"` keeps them as they are). Of ImageNet: training images are as given,
not cropped anew at random; AMSGrad is that of optax, whose maximum is over second moments that are
corrected for their bias (in PyTorch over raw ones, and the maximum is corrected).
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.attacks.selection import keep_best, monitor, num_steps
from jaxpoison.hypergrad import frozen, generator_game, minibatches, trajectory
from jaxpoison.perturb import generator, moving
from jaxpoison.types import Attack, Generator, InputError, Victim
from jaxpoison.victims import Recipe, learner

__all__ = ["CIFAR10", "IMAGENET2", "MNIST", "Preset", "deepconfuse"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """The constants of one data set, as the released code runs them."""

    eps: float
    """L-infinity radius, pixel units."""
    batch_size: int
    """B."""
    passes: int
    """Over the training set, in one trial."""
    trials: int
    """T of the paper; the released checkpoints took 563 (MNIST) and 232 (ImageNet)."""
    learning_rate: float = 0.01
    """a_f, of the follower."""
    generator_rate: float = 1e-4
    """a_g, of Adam."""
    amsgrad: bool = False
    """Adam with the largest second moment so far."""

    def options(self, num_train: int) -> dict[str, Any]:
        """Keyword arguments of `deepconfuse` for a training set of `num_train` rows."""
        check.at_least(self.batch_size, num_train=num_train)
        return {
            "eps": self.eps,
            "batch_size": self.batch_size,
            "trial_steps": self.passes * (num_train // self.batch_size),
            "learning_rate": self.learning_rate,
            "generator_rate": self.generator_rate,
            "tx": optax.amsgrad if self.amsgrad else optax.adam,
            "select_epochs": self.passes,
        }

    def num_steps(self, num_train: int, trials: int | None = None) -> int:
        """Steps to run for so many trials, None for T, each followed by its monitor."""
        every = self.options(num_train)["trial_steps"]
        trials = self.trials if trials is None else trials
        return num_steps(trials, every=every, epochs=self.passes)


MNIST = Preset(eps=0.3, batch_size=64, passes=1, trials=500)
CIFAR10 = Preset(eps=0.032, batch_size=256, passes=20, trials=500)  # the paper has batch 64
IMAGENET2 = Preset(
    eps=0.1, batch_size=32, passes=5, trials=500, generator_rate=1e-3, amsgrad=True
)  # the paper has rates 0.1 and 1e-4, plain Adam


def deepconfuse(
    victim: Victim,
    network: Generator,
    *,
    eps: float | Float[Array, ""],
    trial_steps: int,
    batch_size: int = 64,
    label_map: Sequence[int] | None = None,
    learning_rate: float | Float[Array, ""] = 0.01,
    generator_rate: float | Float[Array, ""] = 1e-4,
    tx: Callable[..., optax.GradientTransformation] = optax.adam,
    generator_train_fraction: float = 1.0,
    form: Literal["memory", "trajectory"] = "memory",
    select_every: int = 1,
    select_epochs: int = 1,
    holdout: float = 0.1,
) -> Attack:
    """A generator trained against a surrogate that starts anew every trial; a step = a mini-batch.

    Trial: a fresh surrogate, and a frozen copy of the generator whose poison it learns from by SGD.
    Each step the learning generator moves by the gradient of the clean loss after one pseudo-step
    of the surrogate; its optimizer's state lives on over trials. With `scenario.index` a part of
    the rows, the generator is trained on these rows and poisons these alone.

    After every `select_every` trials a fresh surrogate learns the released poison for
    `select_epochs` epochs (SGD a_f, batches of B), and the generator is kept whose victim reads
    clean held-out rows worst, or most often as eta(y); see `keep_best`. So run
    `selection.num_steps(rounds, every=select_every * trial_steps, epochs=select_epochs)` steps;
    without selection trials * trial_steps.

    Args:
      victim: the surrogate network; BatchNorm on its logits (`models.mlp`, the LeNets) keeps the
        pseudo-step well scaled.
      network: the generator g.
      eps: L-infinity radius, pixel units: 0.3 on MNIST, 0.032 on CIFAR-10, 0.1 on ImageNet.
      trial_steps: I, mini-batches of one trial; one pass is floor(P / B).
      batch_size: B; 64 on MNIST, 256 on CIFAR-10.
      label_map: eta as L whole numbers: images of class y shall be read as label_map[y]; the paper
        has (y + 1) mod L. None is untargeted.
      learning_rate: a_f, of the surrogate's SGD and of the pseudo-step.
      generator_rate: a_g, of the generator's optimizer; 1e-3 on ImageNet.
      tx: its optax rule, called with that rate (`optax.amsgrad` on ImageNet).
      generator_train_fraction: share of the rows that may change from which the generator learns.
      form: "memory" (Algorithm 2) or "trajectory" (Algorithm 1, which records a whole trial: I
        copies of the surrogate in memory); see `hypergrad.frozen` and `hypergrad.trajectory`.
      select_every: trials of one round of selection; 0 for none: the last generator counts.
      select_epochs: of its victim; the paper has as many as a trial has passes.
      holdout: share of the training rows that judge it.

    Returns: an Attack; `outer_loss` is minus the clean loss at the pseudo-step, label-specific the
      clean loss toward eta(y). `poison` uses the kept generator in eval mode, and `generator` gives
      its variables.
    Raises: InputError for a bad value, named; on tracing, for a label map that does not fit the
      victim's classes, or a batch larger than the rows that take part.
    Source: Feng et al. 2019, eq. 4 to 6, Algorithms 1 and 2; constants of the released code
      (`MNIST`, `CIFAR10`, `IMAGENET2`).
    """
    check.positive(learning_rate=learning_rate, generator_rate=generator_rate)
    check.number(above=0, most=1, generator_train_fraction=generator_train_fraction)
    check.at_least(0, select_every=select_every)
    check.at_least(1, select_epochs=select_epochs)
    check.one_of(("memory", "trajectory"), form=form)
    space = generator(network, eps=eps)
    model = learner(victim, optax.sgd(learning_rate))
    game = generator_game(model, network, eps=eps, payoff=_payoff(label_map))
    trial = {"learning_rate": learning_rate, "trial_steps": trial_steps}
    batches = {"batch_size": batch_size, "train_fraction": generator_train_fraction}
    if form == "memory":
        estimator = minibatches(frozen(game, space, **trial), **batches)
    else:
        estimator = trajectory(game, space, **trial, **batches)
    attack = bilevel(space, estimator, moving(tx(generator_rate)))
    attack = attack._replace(generator=operator.attrgetter("theta"))
    if not select_every:
        return attack
    recipe = Recipe(select_epochs, batch_size, learning_rate, momentum=0.0, drop_last=True)
    return keep_best(
        attack,
        monitor(victim, recipe),
        every=select_every * trial_steps,
        epochs=select_epochs,
        holdout=holdout,
        label_map=label_map,
    )


def _payoff(label_map):
    """(logits, label) -> [B], minimized: -CE(z, y), or CE(z, eta(y))."""
    ce = optax.softmax_cross_entropy_with_integer_labels
    if label_map is None:
        return lambda logits, label: -ce(logits, label)
    for y, wanted in enumerate(label_map):
        check.at_least(0, **{f"label_map[{y}]": wanted})
        check.number(most=len(label_map) - 1, **{f"label_map[{y}]": wanted})
    eta = tuple(int(wanted) for wanted in label_map)

    def toward(logits, label):
        if logits.shape[1] != len(eta):
            raise InputError(
                f"label_map has {len(eta)} entries; the victim has {logits.shape[1]} classes"
            )
        return ce(logits, jnp.asarray(eta, jnp.int32)[label])

    return toward
