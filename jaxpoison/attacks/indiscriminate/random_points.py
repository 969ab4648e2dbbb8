"""Random points: the control of attacks that add points, without intent and under their constraint.

x_j ~ U over what the constraint allows, or N(0, std^2) where nothing limits it; labels uniform.
Not of a paper; no model is needed.
"""

import jax
import jax.numpy as jnp

from jaxpoison import check
from jaxpoison.attacks.bilevel import closed_form
from jaxpoison.perturb import Constraint, Points, check_constraint, free_points
from jaxpoison.types import Attack, InputError

__all__ = ["random_points"]

COORDINATE = Constraint("coordinate")


def random_points(
    *,
    num_classes: int | None = None,
    labels: str = "random",
    constraint: Constraint = COORDINATE,
    std: float | None = None,
) -> Attack:
    """One random point for each row of `scenario.index`.

    Args:
      num_classes: L, of random labels.
      labels: "random", uniform over all classes; "base", those of the base rows.
      constraint: "box", U[0, 1]; "range", uniform between the smallest and the largest value of the
        clean set; "coordinate", the same for every coordinate; "nonnegative", |N(0, std^2)|;
        "linf", +-eps around the base row, then cut to [0, 1]; "none", N(0, std^2).
      std: of "none" and "nonnegative", in units of the values; for "none" as large as the values
        of the attack it is the control of. None for the others.

    Returns: an Attack without steps.
    Errors: InputError for a bad argument; random labels need num_classes, a Gaussian its std. Of a
      scenario for labels outside [0, L), no rows, or pixels' constraints on other values.
    """
    check_constraint(constraint=constraint)
    gaussian = constraint.kind in ("none", "nonnegative")
    if gaussian != (std is not None):
        raise InputError(
            f"std = {std}; constraint {constraint.kind!r} needs {'one' if gaussian else 'none'}"
        )
    if std is not None:
        check.positive(std=std)
    space = free_points(constraint, labels=labels, num_classes=num_classes)

    def init(key, scenario):
        check.some_rows(scenario)
        label_key, value_key = jax.random.split(key)
        points = space.init(label_key, scenario)
        value = _draw(value_key, points.value, constraint, std, scenario)
        return Points(constraint.project(value, scenario), points.label)

    def sound(scenario):
        constraint.check(scenario)
        if num_classes is not None:
            check.labels(num_classes, **{"labels of the training set": scenario.train.label})

    return closed_form(space._replace(init=init))._replace(check=sound)


def _draw(key, base, constraint, std, scenario):
    """[P, H, W, C] in the dtype of the base rows."""
    shape, dtype = base.shape, base.dtype
    if std is not None:
        noise = std * jax.random.normal(key, shape, dtype)
        return jnp.abs(noise) if constraint.kind == "nonnegative" else noise
    if constraint.kind == "linf":
        return base + constraint.eps * jax.random.rademacher(key, shape, dtype)
    low, high = constraint.bounds(scenario, dtype)
    return low + (high - low) * jax.random.uniform(key, shape, dtype)
