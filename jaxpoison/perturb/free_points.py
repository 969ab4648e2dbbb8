"""Points that the attacker adds to the training set; nothing that was there changes.

The rows of `scenario.index` are their bases: one point is added for each, P of them, and starts
there unless the space says otherwise. eps_d = P / N is relative to the clean set.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.types import Batch, Dataset, InputError, Perturbation, Scenario, as_float

__all__ = ["Constraint", "Points", "check_constraint", "free_points"]

PIXELS = ("box", "linf")
"""Constraints on images in [0, 1]: a clip would silently change features."""
KINDS = ("none", "box", "range", "coordinate", "nonnegative", "linf")
LABELS = ("base", "random", "balanced")
STARTS = ("base", "zeros", "uniform")
ENDS = {"none": (-jnp.inf, jnp.inf), "box": (0, 1), "nonnegative": (0, jnp.inf)}
MARGIN = 0.01  # of the way, that a start keeps from both ends under a sigmoid, which is flat there


class Points(NamedTuple):
    """Theta of added points.

    Attributes:
      value: [P, H, W, C], what is optimized: pixels, or features as [P, 1, 1, D]; with `sigmoid`
        any real numbers, from which those are made.
      label: [P], whole numbers in the dtype of `value`, so that theta is a tree of floats; its
        gradient is zero.
    """

    value: Float[Array, "p h w c"]
    label: Float[Array, " p"]


@dataclasses.dataclass(frozen=True)
class Constraint:
    """Where added points may be.

    Attributes:
      kind: "none"; "box", pixels in [0, 1]; "range", between the smallest and the largest value of
        the clean set; "coordinate", the same for every coordinate; "nonnegative" (features behind a
        ReLU); "linf", within `eps` of the base row and in [0, 1].
      eps: of "linf", pixel units; else None.

    Errors:
      InputError: the kind is unknown, or `eps` is missing or has no meaning.
    """

    kind: str = "none"
    eps: float | None = None

    def __post_init__(self):
        check.one_of(KINDS, constraint=self.kind)
        if (self.eps is None) == (self.kind == "linf"):
            raise InputError(f"eps = {self.eps}; constraint {self.kind!r} needs "
                             f"{'a radius' if self.kind == 'linf' else 'none'}")  # fmt: skip
        if self.eps is not None:
            check.radius("linf", self.eps)

    def check(self, scenario: Scenario) -> None:
        """An InputError for "box" and "linf" of base rows outside [0, 1]; traced ones pass."""
        image, index = scenario.train.image, scenario.index
        unseen = isinstance(image, jax.core.Tracer | jax.ShapeDtypeStruct)
        if self.kind not in PIXELS or unseen or image.dtype == np.uint8:
            return
        base = np.asarray(image)[np.asarray(index)]
        low, high = base.min(initial=0), base.max(initial=1)
        if low < 0 or high > 1:
            raise InputError(
                f"constraint = {self.kind} is for pixels in [0, 1], base rows hold "
                f"{low if low < 0 else high:.4g}; features may have none, range, coordinate or "
                "nonnegative"
            )

    def project(self, value: Array, scenario: Scenario) -> Array:
        """The nearest allowed values [P, H, W, C]."""
        if self.kind == "none":
            return value
        return jnp.clip(value, *self.bounds(scenario, value.dtype))

    def bounds(self, scenario: Scenario, dtype: Any = jnp.float32) -> tuple[Array, Array]:
        """The least and the largest allowed values, of shapes that broadcast to [P, H, W, C]."""
        if self.eps is not None:
            base = _base(scenario, dtype)
            return jnp.maximum(base - self.eps, 0), jnp.minimum(base + self.eps, 1)
        if self.kind in ENDS:
            low, high = ENDS[self.kind]
            return jnp.full((1, 1, 1, 1), low, dtype), jnp.full((1, 1, 1, 1), high, dtype)
        axes = None if self.kind == "range" else 0
        clean = scenario.train.image
        low, high = (as_float(f(clean, axes, keepdims=True)) for f in (jnp.min, jnp.max))
        return low.astype(dtype), high.astype(dtype)


def check_constraint(**values: Any) -> None:
    """Constraints, not the words of their kinds."""
    for name, value in values.items():
        if not isinstance(value, Constraint):
            raise InputError(f"{name} = {value!r}; write Constraint(...), see its kinds")


def free_points(
    constraint: Constraint = Constraint(),  # noqa: B008
    *,
    labels: str = "base",
    start: str = "base",
    num_classes: int | None = None,
    sigmoid: bool = False,
) -> Perturbation:
    """P points of their own beside the N clean rows: row N + j is theta.value[j], theta.label[j].

    Args:
      constraint: where they may be; `project` keeps it.
      labels: "base", those of the base rows; "random", uniform over all classes; "balanced", a
        random order of every class equally often: of few points uniform draws may leave a class
        out or with one point, and the gradient of its scores is then not to be canceled.
      start: "base"; "zeros"; "uniform" in [0, 10], as a released code starts (then projected).
      num_classes: L, for labels that are drawn.
      sigmoid: points are low + (high - low) / (1 + exp(-value)) between the constraint's bounds, so
        that no step leaves them; a start keeps 1 % of the way from both ends. In the place of
        clipping after each step.

    Returns: Perturbation with theta a `Points`; `apply` takes rows 0 to N + P - 1, `release` gives
      all of them. Values stay as they are, also outside [0, 1] where the constraint lets them.
    Errors: InputError for a bad argument; other labels need num_classes, a sigmoid two bounds.
    """
    check_constraint(constraint=constraint)
    check.one_of(LABELS, labels=labels)
    check.one_of(STARTS, start=start)
    if labels != "base":
        check.at_least(2, num_classes=num_classes)
    count = num_classes or 0
    if sigmoid and constraint.kind in ("none", "nonnegative"):
        raise InputError(f"a sigmoid needs two bounds; constraint {constraint.kind!r} has not both")

    def shown(theta, scenario):
        if not sigmoid:
            return theta.value
        low, high = constraint.bounds(scenario, theta.value.dtype)
        return low + (high - low) * jax.nn.sigmoid(theta.value)

    def init(key, scenario):
        label_key, start_key = jax.random.split(key)
        value, label = _base(scenario), scenario.train.label[scenario.index]
        if labels == "random":
            label = jax.random.randint(label_key, label.shape, 0, count)
        elif labels == "balanced":
            label = jax.random.permutation(label_key, jnp.arange(len(label)) % count)
        if start == "zeros":
            value = jnp.zeros_like(value)
        elif start == "uniform":
            value = jax.random.uniform(start_key, value.shape, value.dtype, 0, 10)
        value = constraint.project(value, scenario)
        if sigmoid:
            low, high = constraint.bounds(scenario, value.dtype)
            way = (value - low) / jnp.where(high > low, high - low, 1)
            value = jax.scipy.special.logit(jnp.clip(way, MARGIN, 1 - MARGIN))
        return Points(value, label.astype(value.dtype))

    def apply(theta, scenario, rows):
        num = scenario.train.label.shape[0]
        added, slot = rows >= num, jnp.maximum(rows - num, 0)
        clean = jnp.minimum(rows, num - 1)
        image = jnp.where(
            added.reshape(-1, 1, 1, 1),
            shown(theta, scenario)[slot],
            as_float(scenario.train.image[clean]).astype(theta.value.dtype),
        )
        label = jnp.where(added, _labels(theta)[slot], scenario.train.label[clean])
        weight = jnp.ones(rows.shape, image.dtype)
        return Batch(image, label.astype(jnp.int32), weight, rows.astype(jnp.int32))

    def project(theta, scenario):
        if sigmoid:
            return theta
        return Points(constraint.project(theta.value, scenario), theta.label)

    def release(theta, scenario):
        clean = as_float(scenario.train.image).astype(theta.value.dtype)
        image = jnp.concatenate([clean, shown(theta, scenario)])
        label = jnp.concatenate([scenario.train.label, _labels(theta)])
        return Dataset(image, label.astype(jnp.int32))

    def added(theta, scenario):
        num, points = scenario.train.label.shape[0], theta.label.shape[0]
        rows = num + jnp.arange(points, dtype=jnp.int32)
        return Batch(
            shown(theta, scenario), _labels(theta), jnp.ones(points, theta.value.dtype), rows
        )

    return Perturbation(init, apply, project, release, added)


def _base(scenario: Scenario, dtype=None) -> Float[Array, "p h w c"]:
    base = as_float(scenario.train.image[scenario.index])
    return base.astype(dtype or jnp.promote_types(base.dtype, jnp.float32))


def _labels(theta: Points) -> Array:
    return jax.lax.stop_gradient(theta.label).astype(jnp.int32)
