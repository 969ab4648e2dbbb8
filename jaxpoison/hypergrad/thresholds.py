"""Closed forms of reachability: thresholds, floors and points that cancel a gradient; float64.

g is the clean mean gradient at the target w, nu the mean gradient of the added points, eps their
weight: w is stationary where g + eps nu = 0. Points are unconstrained, their labels free, unless a
function says otherwise. Kernels are [D, L] as networks store them, one column per class; of two
classes w = column 1 minus column 0 is a vector [D], labels are -1 and 1, b is b_1 - b_0.
Source: Lu et al. 2023 (ICML); the forms with bias, several classes and other losses are derived in
the docstrings' terms: omega is the most that one point can give to -<w, d loss / d w>.
"""

import math
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from jaxpoison import check
from jaxpoison.types import InputError

__all__ = [
    "HINGE",
    "LOGISTIC",
    "effective_gradient",
    "floor",
    "joint_floor",
    "joint_threshold",
    "omega",
    "omega_squared",
    "root",
    "single_point",
    "threshold",
    "two_points",
]

LOGISTIC = float(lambertw(1 / math.e).real)
"""Omega of two classes without bias, 0.27846...: the most that t sigma(-t) can be."""
HINGE = 1.0
"""Omega of the hinge loss; not attained."""


def omega(num_classes: int = 2, *, bias: Any = None, label: int | None = None) -> float:
    """Omega of the cross entropy: max over points of -<W, d CE / d W> = z_y - E_p[z], z = W x.

    W_0((L - 1) / e); with a frozen bias b [L], max over y of W_0(S_y / e), S_y = sum_{k != y}
    exp(b_k - b_y), or that of one label. Exact for two classes; for more with a bias an upper
    bound. At the maximum all wrong logits are equal and z_y - z_k = 1 + omega without a bias.

    Args:
      num_classes: L; not read where a bias is given.
      bias: [L], frozen: the gradient of b is not canceled.
      label: y, 0 to L - 1, if points must have that one; None for any.
    """
    if bias is None:
        check.at_least(2, num_classes=num_classes)
        return _lambert((num_classes - 1) / math.e)
    b = finite_array("bias", bias, 1)
    check.at_least(2, num_classes=len(b))
    odds = np.exp(b[None, :] - b[:, None]).sum(axis=1) - 1
    if label is not None:
        check.one_of(range(len(b)), label=label)
        odds = odds[label : label + 1]
    return _lambert(float(odds.max()) / math.e)


def omega_squared(bound: float) -> float:
    """Omega of (<w, x> - y)^2 / 2 with |y| <= bound: bound^2 / 4, infinite for free labels."""
    if bound != math.inf:
        check.positive(bound=bound)
    return bound**2 / 4


def root(c: float, *, branch: int = 0, bias: float = 0.0) -> float:
    """The t with t / (1 + e^(t + b)) = c:  t = c - W_k(-c e^(b + c)).

    Args:
      c: at most W_0(e^(-b - 1)), which is omega.
      branch: k. 0, the solution of smaller norm; -1, the other one, for c > 0.
      bias: b, of the label's side: y b.

    Errors: InputError for a c above omega, or branch -1 without c > 0.
    """
    check.one_of((0, -1), branch=branch)
    top = _lambert(math.exp(-bias - 1))
    if c > top * (1 + 1e-12):
        raise InputError(f"c = {c:g}; t / (1 + e^(t + {bias:g})) reaches {top:g} at the most")
    if branch and c <= 0:
        raise InputError(f"c = {c:g}; the second root needs c > 0")
    if branch and c < 1e-300:
        raise InputError(f"c = {c:g} is too small for the second root")
    inside = max(-c * math.exp(bias + c), -math.exp(-1))
    return c - _lambert(inside, branch)


def effective_gradient(
    weight: Any, gradient: Any, share: float, *, weight_decay: float = 0.0, normalize: str = "clean"
) -> np.ndarray:
    """What added points must cancel in the place of g, where the victim has weight decay lambda.

    g + lambda w if data are normalized by the clean rows, so that eps nu stands beside the clean
    mean; g + lambda (1 + eps) w if by all rows (`victims.ToConvergence.normalize`).
    """
    check.number(least=0, weight_decay=weight_decay, share=share)
    check.one_of(("clean", "all"), normalize=normalize)
    factor = weight_decay * (1 if normalize == "clean" else 1 + share)
    return finite_array("gradient", gradient) + factor * finite_array("weight", weight)


def threshold(
    weight: Any,
    gradient: Any,
    *,
    omega: float = LOGISTIC,
    weight_decay: float = 0.0,
    normalize: str = "clean",
) -> float:
    """Tau, the eps below which no set of points makes the target stationary.

    tau = max(0, <w, g> + lambda ||w||^2) / omega; with data normalized by all rows max(0, ...) /
    (omega - lambda ||w||^2), infinite where that is not positive.

    For two classes without bias, or with a frozen one, eps >= tau is also sufficient; for L classes
    without bias eps > tau is, where the centered kernel has rank L - 1; else it is necessary only.

    Args:
      weight: w [D], or W [D, L].
      gradient: like weight, the clean mean gradient of the data term there.
      omega: of the loss: `omega(L)`, `omega(bias=b)`, `omega_squared(bound)`, `HINGE`.
      weight_decay: lambda of the victim.
      normalize: as in `effective_gradient`.
    """
    check.number(least=0, weight_decay=weight_decay)
    check.one_of(("clean", "all"), normalize=normalize)
    w, g = alike(weight, gradient)
    decay = weight_decay * float(np.vdot(w, w))
    need = max(0.0, float(np.vdot(w, g)) + decay)
    left = omega - (decay if normalize == "all" else 0)
    if need == 0:
        return 0.0
    return need / left if left > 0 else math.inf


def floor(weight: Any, gradient: Any, share: float, *, omega: float = LOGISTIC) -> float:
    """The smallest ||g + eps nu||: max(0, <w, g> - eps omega) / ||w||, of a kernel / ||W - mean||.

    The infimum where `threshold` is exact, else a lower bound.

    Args:
      weight: w [D], or W [D, L], whose mean over classes is taken off: softmax does not see it.
      gradient: like weight; with weight decay the `effective_gradient`.
      share: eps.
      omega: as in `threshold`.
    """
    check.number(least=0, share=share)
    w, g = alike(weight, gradient)
    gap = float(np.vdot(w, g)) - share * omega
    return 0.0 if gap <= 0 else gap / float(np.linalg.norm(centered(w)))


def joint_threshold(weight: Any, bias: float, gradient: Any, bias_gradient: float) -> float:
    """Tau of two classes where w and b are both canceled; exact.

    With s = <w, g> + b g_b: reachable iff a = |g_b| / eps < 1 and s / eps <= h(max(a, q*)),
    h(q) = q ln((1 - q) / q), q* = omega / (1 + omega). Solved for eps: s / omega where s >= (1 +
    omega) |g_b|, else |g_b| (1 + e^(s / |g_b|)), which is above |g_b|.

    Args:
      weight: w [D].
      bias: b.
      gradient: g [D].
      bias_gradient: g_b.
    """
    w, g = alike(weight, gradient)
    s, size = float(np.vdot(w, g)) + bias * bias_gradient, abs(bias_gradient)
    if not size or s >= (1 + LOGISTIC) * size:
        return max(0.0, s) / LOGISTIC
    return size * (1 + math.exp(s / size))


def joint_floor(
    weight: Any, bias: float, gradient: Any, bias_gradient: float, share: float
) -> float:
    """The smallest ||(g, g_b) + eps (nu, nu_b)|| of two classes, w and b both canceled.

    Points reach every nu with T = <w, nu> + b nu_b >= -h(max(|nu_b|, q*)) and |nu_b| < 1, closed
    and convex: the distance to it is a minimum over nu_b. Where the face |nu_b| <= q* is the
    nearest it is (s - eps omega) / ||(w, b)||.

    Args:
      weight: as in `joint_threshold`, like bias, gradient and bias_gradient.
      bias: as there.
      gradient: as there.
      bias_gradient: as there.
      share: eps.
    """
    check.number(least=0, share=share)
    w, g = alike(weight, gradient)
    size, along = float(np.linalg.norm(w)), float(np.vdot(w, g))
    lowest = LOGISTIC / (1 + LOGISTIC)

    def square(beta):
        q = min(max(abs(beta), lowest), 1 - 1e-15)
        most = q * math.log((1 - q) / q)
        rest = max(0.0, along - share * (most + bias * beta))
        if rest and not size:
            return math.inf  # w = 0 gives no point a way to do it
        return (rest / size if rest else 0.0) ** 2 + (bias_gradient + share * beta) ** 2

    options = {"xatol": 1e-13}
    found = minimize_scalar(square, bounds=(-1, 1), method="bounded", options=options)
    exact = -bias_gradient / share if share else 0.0
    candidates = [float(found.x), 0.0, lowest, -lowest, min(max(exact, -1.0), 1.0)]
    return math.sqrt(min(square(beta) for beta in candidates))


def single_point(
    weight: Any,
    gradient: Any,
    share: float,
    *,
    label: int = 1,
    bias: float = 0.0,
    branch: int = 0,
) -> np.ndarray:
    """The point x [D] of which P copies with weight eps together cancel g the best; two classes.

    x = y g / (eps q), q = sigma(-(t + y b)), t = y <w, x> the `root` of t q = <w, g> / eps, where
    eps >= tau for this label: the gradient in w then vanishes. Below tau x = y (t* w / ||w||^2 +
    P g / (eps q*)), P the projection off w, which attains `floor`, t* = 1 + omega, q* = omega / t*.

    Args:
      weight: w [D], not zero.
      gradient: g [D]; with weight decay the `effective_gradient`.
      share: eps.
      label: y, -1 or 1.
      bias: b, frozen.
      branch: of `root`, where eps >= tau.
    """
    check.one_of((-1, 1), label=label)
    check.positive(share=share)
    w, g = alike(weight, gradient)
    c, side = float(np.vdot(w, g)) / share, label * bias
    top = _lambert(math.exp(-side - 1))
    if c <= top:
        t = root(c, branch=branch, bias=side)
        return label * (1 + math.exp(t + side)) * g / share
    square = float(np.vdot(w, w))
    across = g - w * (float(np.vdot(w, g)) / square)
    return label * ((1 + top) / square * w + (1 + top) / top * across / share)


def two_points(
    weight: Any, bias: float, gradient: Any, bias_gradient: float, share: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Points (x_1 with label 1, x_0 with label -1) and rho that cancel the gradients of w and of b.

    Weight eps rho on x_1 and eps (1 - rho) on x_0: q = sigma(-t), t the `root` of t q = (<w, g> + b
    g_b) / eps, rho = (1 + g_b / (eps q)) / 2, x = (+-t - b) w / ||w||^2 +- P g / (eps q).

    Args:
      weight: as in `joint_threshold`, like bias, gradient and bias_gradient; w is not zero.
      bias: as there.
      gradient: as there.
      bias_gradient: as there.
      share: eps.

    Errors: InputError where these two cannot: eps below tau, or |g_b| > eps q.
    """
    check.positive(share=share)
    w, g = alike(weight, gradient)
    t = root((float(np.vdot(w, g)) + bias * bias_gradient) / share)
    q = 1 / (1 + math.exp(t))
    if abs(bias_gradient) > share * q:
        raise InputError(
            f"share = {share:g}; two points cancel a bias gradient of {bias_gradient:g} up to "
            f"{share * q:g}"
        )
    square = float(np.vdot(w, w))
    across = (g - w * (float(np.vdot(w, g)) / square)) / (share * q)
    rho = (1 + bias_gradient / (share * q)) / 2
    return (t - bias) / square * w + across, (-t - bias) / square * w - across, rho


def finite_array(name: str, value: Any, ndim: int | None = None) -> np.ndarray:
    """The value in float64, if it is finite."""
    array = np.asarray(value, np.float64)
    if not array.size or not np.all(np.isfinite(array)):
        raise InputError(f"{name} must hold finite numbers")
    if ndim is not None and array.ndim != ndim:
        raise InputError(f"{name} has shape {array.shape}; {ndim} axes are needed")
    return array


def alike(weight: Any, gradient: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, if they are [D] or [D, L] alike."""
    w, g = finite_array("weight", weight), finite_array("gradient", gradient)
    if w.shape != g.shape or w.ndim not in (1, 2):
        raise InputError(f"weight {w.shape} and gradient {g.shape}; both must be [D], or [D, L]")
    return w, g


def centered(w: np.ndarray) -> np.ndarray:
    """A kernel [D, L] without its mean over classes; a vector as it is."""
    return w if w.ndim == 1 else w - w.mean(axis=1, keepdims=True)


def _lambert(x: float, branch: int = 0) -> float:
    return float(lambertw(x, branch).real)
