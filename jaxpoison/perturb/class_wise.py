"""One delta per class, shared by all its images."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.perturb.budget import Budget
from jaxpoison.perturb.initial import check_initial
from jaxpoison.perturb.projections import project_ball
from jaxpoison.types import Batch, Key, Perturbation, Scenario, as_float

__all__ = ["class_wise"]

Theta = Float[Array, "l h w c"]


def class_wise(budget: Budget, num_classes: int, *, init: Any = "zero") -> Perturbation:
    """Image r of class y becomes clip(x_r + theta[y], 0, 1) if r is in `scenario.index`.

    Args:
      budget: norm and radius that `project` keeps. The box is kept by the clip in `apply`, which
        only shrinks a change; theta itself is shared by images and knows no box.
      num_classes: L; labels must lie in [0, L).
      init: "zero", "uniform" (in the ball), "normal" (eps N(0, I)) or a function
        (key, shape, dtype, budget) -> delta; what it draws is projected.

    Returns:
      Perturbation with theta [L, H, W, C] float32 (float64 where the images are). The gradient is
      zero where the clip holds and, by the rule of jnp.clip, one half where x + theta is exactly
      0 or 1. At eps = 0 the images are the clean bits.

    Errors:
      InputError: `num_classes` is no whole number >= 1, `init` is unknown, or (at init, outside
        jit) a label is out of range.
    """
    check.at_least(1, num_classes=num_classes)
    draw = check_initial(init)

    def start(key: Key, scenario: Scenario) -> Theta:
        check.labels(num_classes, labels=scenario.train.label)
        image = scenario.train.image
        dtype = jnp.promote_types(as_float(image[:0]).dtype, jnp.float32)
        delta = draw(key, (num_classes, *image.shape[1:]), dtype, budget)
        return project_ball(delta, budget)

    def apply(theta: Theta, scenario: Scenario, rows: Int[Array, " b"]) -> Batch:
        clean = as_float(scenario.train.image[rows])
        label = scenario.train.label[rows]
        member = jnp.zeros(scenario.train.label.shape, bool).at[scenario.index].set(True)
        changed = member[rows].reshape(-1, 1, 1, 1)
        image = jnp.where(changed, jnp.clip(clean + theta[label], 0, 1), clean)
        return Batch(image, label, jnp.ones(rows.shape, jnp.float32), rows.astype(jnp.int32))

    def keep(theta: Theta, scenario: Scenario) -> Theta:
        del scenario
        return project_ball(theta, budget)

    return Perturbation(init=start, apply=apply, project=keep)
