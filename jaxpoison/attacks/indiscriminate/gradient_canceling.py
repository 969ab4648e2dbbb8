"""Gradient canceling (Lu et al. 2023): added points that make bad parameters a place of rest.

min over x_1 .. x_P of ||g_clean(w) + (eps / P) sum_j d CE(x_j, y_j) / d w||^2 / 2 at a target w.
The attacker knows training set, network and recipe, and adds P = eps N points; clean rows stay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxpoison import check, hypergrad, perturb
from jaxpoison.attacks.bilevel import BilevelState, bilevel, info
from jaxpoison.attacks.parameter_corruption import (
    Corruption,
    check_corruption,
    parameter_corruption,
)
from jaxpoison.attacks.update_rules import check_channels
from jaxpoison.types import Attack, Batch, InputError, Victim
from jaxpoison.victims.checks import check_classes

__all__ = ["CANCELINGS", "CancelingInfo", "gradient_canceling"]

LABELS = ("base", "random", "balanced", "free")
OPTIMIZERS = ("adam", "gd", "momentum", "lbfgs")
SCHEDULES = {
    "cosine": optax.cosine_decay_schedule,
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "rising": lambda rate, steps: lambda count: rate * (1 + count / 10_000),
}

_RELEASED = {"optimizer": "gd", "objective": "l2", "sums": True, "params": "first"}
_HEAD = {"optimizer": "momentum", "objective": "tensors", "sums": True, "schedule": "constant"}
_POINT = {"optimizer": "gd", "schedule": "constant", "learning_rate": 0.2, "steps": 2000}
CANCELINGS: Mapping[str, Mapping[str, Any]] = check.presets(
    "CANCELINGS",
    {
        "lr": _RELEASED | {"learning_rate": 10.0, "steps": 1000},
        "nn": _RELEASED | {"learning_rate": 10.0, "steps": 2000},
        "cnn": _RELEASED | {"learning_rate": 5.0, "steps": 2000},
        "point": _POINT,
        "head_a": _RELEASED
        | {
            "params": "weights",
            "learning_rate": 1e5,
            "schedule": "rising",
            "steps": 2000,
            "tolerance": 1.0,
        },
        "head_b": _HEAD | {"learning_rate": 1.0, "steps": 100},
        "head_b_slow": _HEAD | {"learning_rate": 0.01, "steps": 2000},
        "bounded": {
            "schedule": "constant",
            "learning_rate": 0.1,
            "steps": 100,
            "constraint": perturb.Constraint("linf", 16 / 255),
        },
    },
)
"""Published variants: `gradient_canceling(victim, **CANCELINGS["lr"], std=(0.3081,), ...)`.

  "lr", "nn", "cnn"  MNIST: logistic regression, 784-128-10, and a small CNN. Lu et al. 2023,
                     released code: gradient descent on the norm (not squared) of the summed
                     gradients of the first weight array, no clipping, rate falling as a cosine, in
                     units of normalized pixels: give `std`. The code as it was released has the
                     squared norm, with which its rates diverge.
  "point"            the same release, toy set and MNIST 1 against 7: ||r||^2 at rate 0.1; there one
                     point of weight eps (`weight=`) starts at the clean gradient, here at its base.
  "head_a"           a linear head on features, weights alone; rate 1e5 + 10 step, stops where
                     N ||r|| < 1. Like both head_b from an unpolished development tree of the same
                     line of research: hints, not the settings of a paper.
  "head_b"           sum over weights and biases of the norms; start "base", or "zeros" or "uniform"
                     with random labels; constraint none, "range", or that with `sigmoid`.
  "bounded"          Adam in a ball around the base images, a third party's reproduction. There
                     poisons replace their base rows, here they are added to them.
"""


class CancelingInfo(NamedTuple):
    """Diagnostics of one step, before its update.

    Attributes:
      outer_loss: ||r||^2 / 2, whatever the objective.
      grad_norm: L2 norm of the objective's gradient in the points.
      finite: whether both are finite.
      residual: ||r||, of means over rows.
      largest: the largest absolute value of the points after the step.
      stopped: whether ||r|| was within the tolerance, so that nothing moves any more.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    residual: Float[Array, "..."]
    largest: Float[Array, "..."]
    stopped: Array


def gradient_canceling(
    victim: Victim,
    *,
    constraint: perturb.Constraint = perturb.Constraint(),  # noqa: B008
    labels: str = "base",
    start: str = "base",
    num_classes: int | None = None,
    sigmoid: bool = False,
    corruption: Corruption | None = None,
    params: str | Callable[[Any], Any] = "all",
    weight: float | Float[Array, ""] | None = None,
    weight_decay: float = 0.0,
    normalize: str = "clean",
    objective: str = "sq",
    sums: bool = False,
    optimizer: str = "adam",
    steps: int = 1000,
    learning_rate: float | Float[Array, ""] = 0.1,
    schedule: str = "cosine",
    std: Sequence[float] = (1.0,),
    tolerance: float = 0.0,
    batch_size: int = 1000,
) -> Attack:
    """Descent on the added points until their gradients cancel the clean one.

    `scenario.aux` are Variables of the victim, trained on the clean set: the target is a corruption
    of them, or they themselves; `scenario.index` the base rows, one for each added point; `goal` is
    not read. The same in pixels and, of a head, in features (`victims.extract`). Published variants
    are in `CANCELINGS`. `state.phi.target` is the target.

    With x' = x / std what a normalized network sees (std of the data set, pixel units), steps are
    those of x': a rate of plain descent there is std^2 times that in x.

    Args:
      victim: the network, or a `partial_victim` of it (its last layer).
      constraint: where the points may be.
      labels: those of the base rows, "base"; "random" or "balanced", see `perturb.free_points`; or
        "free": chosen at the start, see `hypergrad.opposing_labels`. All but the first need
        num_classes.
      start: as in `perturb.free_points`, like num_classes and sigmoid.
      num_classes: as there.
      sigmoid: as there.
      corruption: how the target is made of `scenario.aux`; None takes that as the target.
      params: as in `hypergrad.canceling`, like all down to `sums`.
      weight: as there.
      weight_decay: as there.
      normalize: as there.
      objective: as there.
      sums: as there.
      optimizer: "adam"; "gd", plain descent; "momentum", 0.9; or "lbfgs" with a line search, for
        small problems without clipping, of the objective "sq" without `sums`.
      steps: to run.
      learning_rate: of the first step, in units of x'; not read by "lbfgs".
      schedule: "cosine", to 0 over `steps`; "constant"; "rising", by a 10,000th per step.
      std: see above; one number, or one per channel.
      tolerance: the points rest once ||r|| (N ||r|| with `sums`) is at most this.
      batch_size: as in `hypergrad.canceling`.

    Returns: an Attack whose poison has N + P rows, the added ones last; info is `CancelingInfo`.
    Errors: InputError for a bad argument; of a scenario as `canceling`, for labels that are none of
      the network's classes, and for pixels' constraints on other values.
    """
    check.kind(Victim, victim=victim)
    check_corruption(corruption)
    if not isinstance(std, Sequence):
        raise InputError(f"std = {std}; it must be a sequence, one number or one per channel")
    check.one_of(LABELS, labels=labels)
    check.one_of(OPTIMIZERS, optimizer=optimizer)
    check.one_of(SCHEDULES, schedule=schedule)
    check.at_least(1, steps=steps)
    check.positive(learning_rate=learning_rate, **{f"std[{c}]": s for c, s in enumerate(std)})
    check.number(least=0, tolerance=tolerance)
    if labels == "free":
        check.at_least(2, num_classes=num_classes)
    if optimizer == "lbfgs" and (sums or objective != "sq"):
        raise InputError(f"optimizer 'lbfgs' needs objective 'sq' without sums, not {objective!r}")
    if optimizer == "lbfgs" and not (sigmoid or constraint.kind == "none"):
        raise InputError(
            f"optimizer 'lbfgs' does not clip: constraint {constraint.kind!r} needs sigmoid=True"
        )

    def target(key, scenario):
        if corruption is None:
            return scenario.aux
        return parameter_corruption(key, victim, scenario.aux, scenario.train, corruption)

    space = perturb.free_points(
        constraint,
        labels="base" if labels == "free" else labels,
        start=start,
        num_classes=num_classes,
        sigmoid=sigmoid,
    )
    points = cast(Callable[..., Batch], space.added)
    rule = hypergrad.canceling(
        victim, space, target=target, params=params, weight=weight, weight_decay=weight_decay,
        normalize=normalize, objective=objective, sums=sums, batch_size=batch_size,
    )  # fmt: skip
    searched = optimizer == "lbfgs"
    tx = _rule(optimizer, SCHEDULES[schedule](learning_rate, steps), std)
    attack = bilevel(space, rule, optax.identity() if searched else tx)

    def init(key, scenario):
        check_channels(std, scenario.train.image.shape)
        state = attack.init(key, scenario)
        theta = state.theta
        if labels == "free":
            label = hypergrad.opposing_labels(
                victim, state.phi, points(theta, scenario).image, num_classes=num_classes or 0,
                scenario=scenario, params=params, weight=weight,
            )  # fmt: skip
            theta = perturb.Points(theta.value, label.astype(theta.label.dtype))
        return BilevelState(theta, state.phi, tx.init(theta.value if searched else theta))

    def step(key, state, scenario):
        if searched:
            after, found = _searched(tx, rule, key, state, scenario)
        else:
            after, found = attack.step(key, state, scenario)
        residual = jnp.sqrt(2 * found.outer_loss)
        scale = scenario.train.label.shape[0] if sums else 1
        stopped = scale * residual <= tolerance
        moving = after.theta, after.opt_state
        resting = state.theta, state.opt_state
        moving = jax.tree.map(lambda old, new: jnp.where(stopped, old, new), resting, moving)
        after = BilevelState(moving[0], after.phi, moving[1])
        largest = jnp.max(jnp.abs(points(after.theta, scenario).image))
        return after, CancelingInfo(
            found.outer_loss, found.grad_norm, found.finite, residual, largest, stopped
        )

    def sound(scenario):
        constraint.check(scenario)
        check_classes(victim, scenario.train, num_classes)

    return attack._replace(
        init=init,
        step=step,
        num_steps=steps,
        target=lambda state: state.phi.target,
        check=sound,
    )


def _rule(optimizer, rate, std) -> optax.GradientTransformation:
    """The rule of x / std, taken on x; of label leaves, whose gradient is zero, nothing moves."""
    if optimizer == "lbfgs":
        return optax.lbfgs()
    rules = {
        "adam": optax.adam,
        "gd": optax.sgd,
        "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    }

    def scale(updates, params=None):
        del params
        factor = jnp.asarray(np.asarray(std).reshape(1, 1, 1, -1), updates.value.dtype)
        return perturb.Points(updates.value * factor, updates.label)

    unit = optax.stateless(scale)
    return optax.chain(unit, rules[optimizer](rate), unit)


def _searched(tx, rule, key, state, scenario):
    """One step of L-BFGS; the line search takes values and slopes from the rule."""

    def value_and_slope(value):
        theta = perturb.Points(value, state.theta.label)
        slope, _, loss = rule.estimate(key, theta, state.phi, scenario)
        return loss, slope.value

    @jax.custom_vjp
    def objective(value):
        return value_and_slope(value)[0]

    def pull(slope, cotangent):
        return (cotangent.astype(slope.dtype) * slope,)

    objective.defvjp(value_and_slope, pull)
    value = state.theta.value
    loss, slope = optax.value_and_grad_from_state(objective)(value, state=state.opt_state)
    updates, opt_state = tx.update(
        slope, state.opt_state, value, value=loss, grad=slope, value_fn=objective
    )
    theta = perturb.Points(value + updates, state.theta.label)
    return BilevelState(theta, state.phi, opt_state), info(loss, slope)
