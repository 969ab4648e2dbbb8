"""Gradient canceling: added points that make given parameters a stationary point of training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree
from jaxpoison.types import Hypergrad, InputError, Key, Perturbation, Scenario, Variables, Victim
from jaxpoison.victims import mean_gradient, partial_variables, partial_victim
from jaxpoison.victims.checks import check_variables
from jaxpoison.victims.head import join, part

__all__ = ["Canceling", "canceling", "opposing_labels"]

Which = str | Callable[[Any], Any]
"""Of the parameters: "all", "weights", "first", or (params) -> a pytree of Python bools like it."""

NORMALIZE = ("clean", "all")
PARAMS = ("all", "weights", "first")


class Canceling(NamedTuple):
    """Phi of `canceling`; constant.

    Attributes:
      target: the network whose parameters shall be stationary.
      clean: like target.params, what the added points have to cancel: the mean gradient of the
        clean set there, and the pull of weight decay; zeros where nothing is to be canceled.
    """

    target: Variables
    clean: Any


def canceling(
    victim: Victim,
    space: Perturbation,
    *,
    target: Callable[[Key, Scenario], Variables] | None = None,
    params: Which = "all",
    weight: float | Float[Array, ""] | None = None,
    weight_decay: float = 0.0,
    normalize: str = "clean",
    objective: str = "sq",
    sums: bool = False,
    batch_size: int = 1000,
) -> Hypergrad:
    """J(r),  r = g_clean(w) + lambda w + (eps / P) sum_j d CE(x_j, y_j) / d w.

    Two passes over the added points, no second-order graph: first r, then
    dJ/dx_j = (eps / P) d/dx_j <d CE(x_j, y_j) / d w, v>, v = dJ/dr held, a Hessian-vector product
    forward over reverse. g_clean is taken once, in `init`. The network is in eval mode throughout.

      objective   J                            v
      "sq"        ||r||^2 / 2                  r
      "l2"        ||r||                        r / ||r||
      "tensors"   sum over arrays k ||r_k||    r_k / ||r_k||

    The outer loss that it gives is ||r||^2 / 2 whatever the objective: r is zero where the target
    is stationary, and ||r|| = sqrt(2 outer_loss).

    Args:
      victim: the network, or a `partial_victim` of it.
      space: of P added points (`perturb.free_points`).
      target: (key, scenario) -> the target; None takes `scenario.aux`, Variables.
      params: in which parameters the gradient is canceled: "all"; "weights", arrays of two axes or
        more, not biases and scales; "first", the first of those by name (Conv_0 before Dense_0), as
        a released code does; or a function of the parameters that marks them. Where some are left
        out the target is stationary for a victim that does not train them.
      weight: eps, the weight of all added points together against the clean mean; None is P / N, as
        a victim that trains on all rows alike weighs them.
      weight_decay: lambda of the victim's (lambda / 2) ||w||^2.
      normalize: what that stands beside, see `victims.ToConvergence`: "clean", g_clean + eps g_p;
        "all", the mean over all rows, so that lambda (1 + eps) stands in r.
      objective: J.
      sums: J of N r, the sum over rows, as released codes have it: gradients of "l2" and "tensors"
        are N times, those of "sq" N^2 times as large.
      batch_size: rows at a time in all passes, at the most; the points are shared out evenly. All
        at once is fastest where memory allows, as it does for a head on features.

    Returns: a Hypergrad; phi is `Canceling`.
    Errors: InputError for a bad argument or a space that adds no rows; at init for an empty
      `scenario.aux` or `scenario.index`, a target of another network, and if no parameter is
      marked.
    Source: Lu et al. 2023 (ICML), equation of gradient canceling; means in the place of sums. The
      un-squared objectives and `sums`: its released code, and a later one for heads.
    """
    check.at_least(1, batch_size=batch_size)
    check.number(least=0, weight_decay=weight_decay)
    check.one_of(NORMALIZE, normalize=normalize)
    check.one_of(OBJECTIVES, objective=objective)
    if not callable(params):
        check.one_of(PARAMS, params=params)
    if weight is not None:
        check.positive(weight=weight)
    if (points := space.added) is None:
        raise InputError("canceling needs a space of added points, such as perturb.free_points")

    def init(key, scenario):
        check.some_rows(scenario)
        network = scenario.aux if target is None else target(key, scenario)
        if not isinstance(network, Variables):
            raise InputError(
                "scenario.aux must be the Variables of a network trained on clean data"
            )
        check_variables(victim, network, "scenario.aux")
        mask = _mask(params, network.params)
        own = partial_variables(network, mask)
        clean = mean_gradient(
            partial_victim(victim, mask), own, scenario.train, batch_size=batch_size
        )
        decay = weight_decay * (1 + _eps(weight, scenario) if normalize == "all" else 1)
        clean = tree.axpy(decay, own.params, clean)
        rest = jax.tree.map(jnp.zeros_like, part(network.params, mask)[1])
        return Canceling(network, join(mask, clean, rest))

    def estimate(key, theta, phi, scenario):
        del key
        num, added = scenario.train.label.shape[0], scenario.index.shape[0]
        image, pull = jax.vjp(lambda t: points(t, scenario).image, theta)
        label = points(theta, scenario).label
        count = -(-added // batch_size)
        batches = tree.batches((image, label), -(-added // count))
        mask = _mask(params, phi.target.params)
        own, stats = partial_variables(phi.target, mask)
        total = _total(partial_victim(victim, mask), stats, _eps(weight, scenario) / added)

        def add(carry, job):
            (x, y), w = job
            return tree.axpy(1.0, jax.grad(total)(own, x, y, w), carry), None

        residual, _ = lax.scan(add, part(phi.clean, mask)[0], batches)
        steepest = OBJECTIVES[objective](residual)
        direction = jax.tree.map(lambda r, p: r.astype(p.dtype), steepest, own)

        def product(job):
            (x, y), w = job
            slope = jax.grad(total, argnums=1)
            return jax.jvp(lambda p: slope(p, x, y, w), (own,), (direction,))[1]

        gradient = lax.map(product, batches)
        gradient = gradient.reshape(-1, *image.shape[1:])[:added].astype(image.dtype)
        if sums:
            gradient = gradient * (num**2 if objective == "sq" else num)
        return pull(gradient)[0], phi, tree.dot(residual, residual) / 2

    return Hypergrad(init, estimate)


def opposing_labels(
    victim: Victim,
    phi: Canceling,
    image: Float[Array, "p h w c"],
    *,
    num_classes: int,
    scenario: Scenario,
    params: Which = "all",
    weight: float | Float[Array, ""] | None = None,
) -> Int[Array, " p"]:
    """Labels of added points that cancel most, point after point.

    y_j = argmin over y of ||r_j + (eps / P) g_j(y)||,  r_(j+1) = r_j + (eps / P) g_j(y_j),
    with g_j(y) = d CE(x_j, y) / d w at the target, and r_0 what is to be canceled.

    Args:
      victim: as in `canceling`, like `params` and `weight`.
      phi: of its `init`.
      image: where the points are.
      num_classes: L.
      scenario: for P and N.
      params: as there.
      weight: as there.

    Returns: [P], int32.
    Cost: L gradients of one row per point, and L gradients in memory.
    """
    mask = _mask(params, phi.target.params)
    own, stats = partial_variables(phi.target, mask)
    share = _eps(weight, scenario) / image.shape[0]
    total = _total(partial_victim(victim, mask), stats, share)
    every = jnp.arange(num_classes, dtype=jnp.int32)

    def choose(residual, x):
        def after(label):
            ones = jnp.ones(1, x.dtype)
            return tree.axpy(1.0, jax.grad(total)(own, x[None], label[None], ones), residual)

        left = jax.vmap(after)(every)
        best = jnp.argmin(jax.vmap(lambda r: tree.dot(r, r))(left)).astype(jnp.int32)
        return tree.take(left, best), best

    _, labels = lax.scan(choose, part(phi.clean, mask)[0], image)
    return labels


def _total(victim, stats, share):
    """The points' part of the training loss: share sum_j w_j CE(x_j, y_j)."""

    def total(params, image, label, weight):
        scores, _ = victim.apply(Variables(params, stats), image, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, label)
        return share * jnp.sum(losses * weight.astype(losses.dtype))

    return total


def _eps(weight, scenario):
    if weight is not None:
        return weight
    return scenario.index.shape[0] / scenario.train.label.shape[0]


def _mask(which: Which, params: Any) -> Any:
    """Python bools like the parameters, True where the gradient is to be canceled."""
    if callable(which):
        mask = which(params)
        if jax.tree.structure(mask) != jax.tree.structure(params):
            raise InputError("the mask that params(...) gives has not the form of the parameters")
    elif which == "all":
        mask = jax.tree.map(lambda x: True, params)
    else:
        mask = jax.tree.map(lambda x: x.ndim >= 2, params)
    leaves, structure = jax.tree.flatten(mask)
    if not any(leaves):
        raise InputError("no parameter is marked; there is nothing to cancel")
    if which == "first":
        first = leaves.index(True)
        mask = structure.unflatten([i == first for i in range(len(leaves))])
    return mask


def _unit(value: Any) -> Any:
    size = tree.norm(value)
    return jax.tree.map(lambda x: x / jnp.where(size > 0, size, 1).astype(x.dtype), value)


OBJECTIVES = {
    "sq": lambda residual: residual,
    "l2": _unit,
    "tensors": lambda residual: jax.tree.map(_unit, residual),
}
