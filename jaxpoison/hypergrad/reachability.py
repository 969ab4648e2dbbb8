"""Whether added points can make a linear head stationary: thresholds, certificates, and a record.

Gradient canceling cannot do below tau what tau says no points can (Lu et al. 2023). Everything here
runs on the host in float64. `thresholds` has the closed forms, `certificates` the bounds under a
constraint; this module has both under one name, and `reach`, which reads a trained head.

A head scaled by s > 0 (`attacks.scale_target`) predicts the same, and without a bias its tau goes
to 0 with s; points must be as large as ||g|| / eps then, so that what protects at small shares is
a constraint on them.
"""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpoison import check
from jaxpoison.hypergrad.certificates import (
    box_share,
    direction_share,
    largest_supremum,
    ray_share,
)
from jaxpoison.hypergrad.thresholds import (
    HINGE,
    LOGISTIC,
    centered,
    effective_gradient,
    floor,
    joint_floor,
    joint_threshold,
    omega,
    omega_squared,
    root,
    single_point,
    threshold,
    two_points,
)
from jaxpoison.types import InputError, Variables

__all__ = [
    "HINGE",
    "LOGISTIC",
    "Reachability",
    "box_share",
    "direction_share",
    "effective_gradient",
    "floor",
    "is_linear_head",
    "joint_floor",
    "joint_threshold",
    "largest_supremum",
    "omega",
    "omega_squared",
    "ray_share",
    "reach",
    "root",
    "single_point",
    "threshold",
    "two_points",
]


class Reachability(NamedTuple):
    """Whether a target head is reachable at a share; Python values, for a record.

    Attributes:
      share: eps, the weight of the added points against the clean mean.
      tau: the share that the conditions ask for, the largest of them.
      reachable: False below tau; True from there on where the conditions are sufficient; None where
        they are only necessary.
      floor: a lower bound of the residual norm ||r|| over the head's parameters; attained, at least
        in the limit, where the conditions are sufficient.
      conditions: the share that each condition asks for, by its formula; infinite for one that no
        share meets.
    """

    share: float
    tau: float
    reachable: bool | None
    floor: float
    conditions: dict[str, float]


def reach(
    head: Variables,
    gradient: Any,
    share: float,
    *,
    bias: str = "joint",
    weight_decay: float = 0.0,
    normalize: str = "clean",
    low: Any = None,
    high: Any = None,
    constrained: bool = False,
) -> Reachability:
    """Can points of weight `share` make this softmax head stationary?

    Sufficient, not only necessary: two classes, whatever the bias; more classes without a bias
    whose centered kernel has rank L - 1 (that needs D >= L - 1); never for constrained points.

    Args:
      head: its params hold one kernel [D, L] and at most one bias [L]: Variables of
        `logistic_regression`, of `on_features`, or of the `partial_victim` of a last layer.
      gradient: like head.params, the clean mean gradient there (`victims.mean_gradient`).
      share: eps, P / N for added rows of weight 1.
      bias: "joint", its gradient is canceled as well, as `hypergrad.canceling` does; "frozen", that
        of the kernel alone. Not read of a head without one.
      weight_decay: lambda of the victim, bias included; tau is then that of the gradient at this
        share.
      normalize: as in `effective_gradient`.
      low: [D] or a number: points are in a box, in the units that the kernel multiplies; with high.
      high: likewise.
      constrained: whether points are constrained in a way that no box says, as features of images.

    Errors: InputError for a head of another form, or only one side of the box.
    """
    check.positive(share=share)
    check.one_of(("joint", "frozen"), bias=bias)
    if (low is None) != (high is None):
        raise InputError("low and high belong together: give both, or neither")
    share, (w, b) = float(share), _leaves(head.params)
    if isinstance(gradient, Variables):
        raise InputError("gradient is a Variables; it must be like head.params: its `.params`")
    g, g_b = _leaves(gradient)
    if g.shape != w.shape or (g_b is None) != (b is None):
        raise InputError(f"the gradient's kernel is {g.shape}, the head's {w.shape}, or one lacks "
                         "the bias")  # fmt: skip
    decay: dict[str, Any] = {"weight_decay": weight_decay, "normalize": normalize}
    g = centered(effective_gradient(w, g, share, **decay))
    parts = [(w, centered(w))]
    if b is not None and g_b is not None and bias == "joint":
        g_b = effective_gradient(b, g_b, share, **decay)
        parts.append((b, b - b.mean()))
        conditions, lowest = _joint(centered(w), b - b.mean(), g, g_b - g_b.mean(), share)
    else:
        conditions, lowest = _weights(centered(w), b, g, share)
    num_classes = w.shape[1]
    exact = num_classes == 2 or (b is None and _rank(centered(w)) == num_classes - 1)
    if low is not None:
        conditions["<G, G> / sup over the box"] = box_share(centered(w), g, low, high)
    size, stuck = _uncancelable(parts)
    if weight_decay and stuck > 1e-5 * size:  # of float32 parameters
        conditions["lambda ||mean over classes of W|| = 0"] = math.inf
        lowest = math.hypot(lowest, stuck * weight_decay * (1 + share * (normalize == "all")))
    tau = max(conditions.values())
    free = exact and low is None and not constrained
    # For more than two classes the threshold itself is a limit of points without bound.
    enough = share >= tau if num_classes == 2 else share > tau
    reachable = False if share < tau else (True if free and enough else None)
    return Reachability(share, tau, reachable, lowest, conditions)


def _weights(w, b, g, share):
    """Conditions and floor where the gradient of the kernel alone is canceled."""
    top = omega(w.shape[1], bias=b)
    return {"<W, G> / omega": threshold(w, g, omega=top)}, floor(w, g, share, omega=top)


def _joint(w, b, g, g_b, share):
    """The same where those of kernel and bias are."""
    if w.shape[1] == 2:
        binary = w[:, 1] - w[:, 0], float(b[1] - b[0]), g[:, 1], float(g_b[1])
        name = "|g_b| < eps, (<W, G> + <b, g_b>) / eps <= h"
        lowest = math.sqrt(2) * joint_floor(*binary, share)  # both classes hold the residual
        return {name: joint_threshold(*binary)}, lowest
    whole, slope = np.concatenate([w, b[None]]), np.concatenate([g, g_b[None]])
    top, size = omega(w.shape[1]), float(np.abs(g_b).sum())
    conditions = {
        "(<W, G> + <b, g_b>) / omega": threshold(whole, slope, omega=top),
        "||g_b||_1 / 2": size / 2,
    }
    from_bias = max(0.0, size - 2 * share) / math.sqrt(w.shape[1])
    return conditions, max(floor(whole, slope, share, omega=top), from_bias)


def _uncancelable(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """The norm of all parameters, and that of their mean over classes, which no gradient holds."""
    whole, means = (np.concatenate([x.ravel() for x in some]) for some in zip(*parts, strict=True))
    return float(np.linalg.norm(whole)), float(np.linalg.norm(whole - means))


def _rank(w: np.ndarray) -> int:
    sizes = np.linalg.svd(w, compute_uv=False)
    return int(np.sum(sizes > 1e-6 * sizes[0]))  # of float32 parameters


def is_linear_head(params: Any) -> bool:
    """Whether the parameters are one kernel [D, L] and at most a bias [L], all that tau reads."""
    shapes = [np.shape(x) for x in jax.tree.leaves(params)]
    kernels, biases = ([s for s in shapes if len(s) == n] for n in (2, 1))
    alone = len(kernels) == 1 and len(biases) <= 1 and len(shapes) == len(kernels) + len(biases)
    return alone and (not biases or biases[0] == kernels[0][1:])


def _leaves(params: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The kernel [D, L] and the bias [L] of a linear head."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
    if not is_linear_head(params):
        shapes = ", ".join(str(x.shape) for x in leaves) or "none"
        raise InputError(f"a linear head has a kernel [D, L] and at most a bias [L]; this has "
                         f"{shapes}")  # fmt: skip
    if not all(np.all(np.isfinite(x)) for x in leaves):
        raise InputError("the head holds numbers that are not finite")
    kernel = next(x for x in leaves if x.ndim == 2)
    return kernel, next((x for x in leaves if x.ndim == 1), None)
