"""Gradient canceling (Lu et al. 2023): added points that make bad parameters a place of rest.

min over x_1 .. x_P of ||g_clean(w) + (eps / P) sum_j d CE(x_j, y_j) / d w||^2 / 2 at a target w.
The attacker knows training set, network and recipe, and adds P = eps N points; clean rows stay.
"""

import optax

from jaxpoison import check, hypergrad, perturb
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.attacks.parameter_corruption import Corruption, parameter_corruption
from jaxpoison.types import Attack, Victim

__all__ = ["gradient_canceling"]


def gradient_canceling(
    victim: Victim,
    *,
    constraint: perturb.Constraint = perturb.Constraint(),  # noqa: B008
    labels: str = "base",
    start: str = "base",
    num_classes: int | None = None,
    corruption: Corruption | None = None,
    weight: float | None = None,
    steps: int = 1000,
    learning_rate: float = 0.1,
    batch_size: int = 1000,
) -> Attack:
    """Adam on the added points, its rate falling to 0 as a cosine over `steps`.

    `scenario.aux` are Variables of the victim, trained on the clean set: the target is a corruption
    of them, or they themselves; `scenario.index` the base rows, one for each added point; `goal` is
    not read. The same in pixels and, of a head, in features
    (`victims.extract`). The outer loss is half of the squared residual.

    Args:
      victim: the network, or a `partial_victim` of it (its last layer).
      constraint: where the points may be.
      labels: as in `perturb.free_points`, like start and num_classes.
      start: as there.
      num_classes: as there.
      corruption: how the target is made of `scenario.aux`; None takes that as the target.
      weight: as in `hypergrad.canceling`, like batch_size.
      steps: to run.
      learning_rate: of Adam, in units of the values.
      batch_size: as in `hypergrad.canceling`.

    Returns: an Attack whose poison has N + P rows, the added ones last.
    Errors: InputError for a bad argument.
    """
    check.at_least(1, steps=steps)
    check.positive(learning_rate=learning_rate)
    space = perturb.free_points(constraint, labels=labels, start=start, num_classes=num_classes)

    def target(key, scenario):
        if corruption is None:
            return scenario.aux
        return parameter_corruption(key, victim, scenario.aux, scenario.train, corruption)

    rule = hypergrad.canceling(victim, space, target=target, weight=weight, batch_size=batch_size)
    rate = optax.cosine_decay_schedule(learning_rate, steps)
    attack = bilevel(space, rule, optax.adam(rate))
    return attack._replace(num_steps=steps, target=lambda state: state.phi.target)
