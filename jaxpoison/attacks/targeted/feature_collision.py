"""Feature collision, "Poison Frogs!" (Shafahi et al. 2018): each poison meets the target.

min over x_i of  ||phi(x_i) - phi(x_t)||^2 + beta / 2 ||x_i - b_i||^2,  b_i the clean image

Threat model: the images of `scenario.index` change, within eps or held back by beta alone, labels
stay (the wanted class in the paper); phi is trained beforehand; the victim trains a last layer on
it. `scenario.goal` holds the targets.
Two attacks: `feature_collision`, published, solves for every poison by itself, with its own step;
`mean_feature_collision`, what Witches' Brew calls Poison Frogs, moves the mean of all poisons.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxpoison import check, perturb
from jaxpoison.attacks.bilevel import info
from jaxpoison.attacks.crafting import (
    WITCHES_BREW,
    Crafting,
    Networks,
    as_networks,
    check_aux,
    craft,
)
from jaxpoison.hypergrad import Aimed, feature_distances, feature_objective
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, InputError, Victim, as_float

__all__ = ["CollisionState", "feature_collision", "mean_feature_collision"]

BACKTRACK = 0.2  # of the step of a poison whose objective would rise


class CollisionState(NamedTuple):
    """All poisons side by side.

    Attributes:
      theta: [P, H, W, C], x_i - b_i.
      phi: the surrogates, and the features [P, D] that each poison is to meet.
      value: [P], the objective at theta.
      gradient: [P, H, W, C], that of the first term there.
      step_size: [P].
      done: [P], whether the poison's last accepted step was a small one; it then stands still.
    """

    theta: Float[Array, "p h w c"]
    phi: Aimed
    value: Float[Array, " p"]
    gradient: Float[Array, "p h w c"]
    step_size: Float[Array, " p"]
    done: Bool[Array, " p"]


def feature_collision(
    victim: Networks,
    *,
    eps: float,
    beta: float = 0.0,
    steps: int = 120,
    step_size: float = 0.001,
    opacity: float = 0.3,
    tolerance: float = 1e-5,
    batch_size: int = 512,
    ensemble: int = 1,
) -> Attack:
    """Forward-backward splitting with backtracking, one problem per poison; run it for `steps`.

    Start: delta_i = P(opacity (x_t - b_i)).
    Step:  delta_i <- P((delta_i - s_i g_i) / (1 + s_i beta)),  g_i = d ||phi(b_i + delta_i) -
    phi(x_t)||^2 / d delta_i, P the ball and then the image box: together the proximal step of all
    that is not the first term. It is taken if the objective does not rise; else s_i shrinks to a
    fifth. A poison stops at a step of ||change|| < tolerance ||x_i||. Of several targets, poison i
    has target i mod T. Of several surrogates phi is all their features together, so that the first
    term is their sum.

    Differs from the released code: that starts from the watermark before P; in the eps form it
    compares values from before the step and keeps the step that made them rise, after which the
    same poison never moves again; in the beta form its objective has beta, not beta / 2, so that it
    is not the one that its proximal step minimizes.

    Args:
      victim: the surrogate network, or several; their trained `Variables` are `scenario.aux`, in
        the form that `attacks.crafting.craft` says.
      eps: L-infinity radius, pixel units: 8/255 in the public benchmark; 1.0, the image box alone,
        for the published attack.
      beta: weight of the distance to the clean image: 0 in the benchmark, 0.1 in the published
        attack (4.0 for a network that standardizes its input).
      steps: the most steps of a poison.
      step_size: s at the start.
      opacity: of the watermark at the start, in [0, 1].
      tolerance: see above.
      batch_size: poisons per pass; changes memory only.
      ensemble: K surrogates.

    Returns: an Attack; `outer_loss` is the mean objective before the step, `grad_norm` that of all
      g_i, and its info also has `done`, the fraction of poisons that stopped.
    Raises: InputError for a bad value, named; at init if `scenario.aux` or `scenario.index` is
      empty.
    Source: Shafahi et al. 2018, Algorithm 1; settings of the public benchmark's released code.
    """
    budget = Budget("linf", eps)
    check.number(least=0, beta=beta)
    check.at_least(1, steps=steps, batch_size=batch_size, ensemble=ensemble)
    check.positive(step_size=step_size)
    check.fraction(opacity=opacity)
    check.number(least=0, tolerance=tolerance)
    networks = as_networks(victim, ensemble)
    features = _features(networks, ensemble)
    space = per_sample(budget)

    def objective(theta, phi, scenario):
        image = _clean(scenario) + theta
        found = feature_distances(
            lambda x: features(phi.variables, x), image, phi.aim, batch_size=batch_size
        )
        return found.value + beta / 2 * jnp.sum(theta**2, axis=(1, 2, 3)), found.gradient

    def init(key, scenario):
        del key
        check.some_rows(scenario)
        if not jax.tree.leaves(scenario.aux):
            raise InputError("scenario.aux is empty; it must be the trained surrogate's Variables")
        check_aux(networks, Crafting(ensemble=ensemble), scenario.aux)
        variables = jax.tree.map(jnp.asarray, scenario.aux)
        clean, target = lax.optimization_barrier(  # as pixels first, in every program: same bits
            (_clean(scenario), as_float(scenario.goal.image))
        )
        own = jnp.arange(clean.shape[0]) % target.shape[0]
        theta = space.project(opacity * (target[own] - clean), scenario)
        phi = Aimed(variables, features(variables, target)[own])
        value, gradient = objective(theta, phi, scenario)
        step_sizes = jnp.full(value.shape, step_size, value.dtype)
        done = jnp.zeros(value.shape, bool)
        return CollisionState(theta, phi, value, gradient, step_sizes, done)

    def step(key, state, scenario):
        del key
        size = _each(state.step_size)
        moved = (state.theta - size * state.gradient) / (1 + size * beta)
        moved = space.project(moved, scenario)
        value, gradient = objective(moved, state.phi, scenario)
        better = value <= state.value  # not of a NaN
        small = _length(moved - state.theta) < tolerance * _length(_clean(scenario) + state.theta)
        take = better & ~state.done
        shrink = jnp.where(better | state.done, 1.0, BACKTRACK)
        after = CollisionState(
            theta=jnp.where(_each(take), moved, state.theta),
            phi=state.phi,
            value=jnp.where(take, value, state.value),
            gradient=jnp.where(_each(take), gradient, state.gradient),
            step_size=shrink * state.step_size,
            done=state.done | (take & small),
        )
        report = info(jnp.mean(state.value), state.gradient)
        return after, CollisionInfo(*report, jnp.mean(after.done, dtype=jnp.float32))

    def poison(state, scenario):
        return perturb.poison(space, state.theta, scenario)

    return Attack(init, step, poison, num_steps=steps)


class CollisionInfo(NamedTuple):
    """`types.Info` and `done`, the fraction of poisons that have stopped after the step."""

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    done: Float[Array, "..."]


def mean_feature_collision(
    victim: Networks, *, eps: float, crafting: Crafting = WITCHES_BREW
) -> Attack:
    """The mean of the poisons' features against each target's; run it for `crafting.steps`.

    min_{|delta_i| <= eps}  mean over j and the D features of (mean_i phi(x_i + delta_i) -
    phi(x_t^j))^2

    This is what Witches' Brew compares itself with as Poison Frogs. Its gradient is that of
    `bullseye_polytope(normalized=False)`, its value larger by the targets' variance. More poisons
    than `crafting.batch_size` are cut into batches, and each batch has its own mean.

    Args:
      victim: the surrogate network, or several; their trained `Variables` are `scenario.aux`, in
        the form that `attacks.crafting.craft` says.
      eps: L-infinity radius, pixel units (8/255).
      crafting: settings of the outer loop; Witches' Brew sets batch_size to 128 for this attack.

    Returns: an Attack; `outer_loss` is the loss before the step.
    Raises: InputError for a bad value, named; at init if `scenario.aux` or `scenario.index` is
      empty.
    Source: Geiping et al. 2021, released code.
    """

    def objective(victim):
        return feature_objective(victim, _mean_square)

    return craft(victim, objective, eps=eps, crafting=crafting)


def _mean_square(key, poison, target):
    del key
    return jnp.mean((jnp.mean(poison, axis=0, keepdims=True) - target) ** 2)


def _features(networks: tuple[Victim, ...], ensemble: int) -> Callable[..., Array]:
    """(variables as in `crafting.craft`, image [B, H, W, C]) -> [B, D], of all surrogates."""
    if ensemble == 1:
        return networks[0].features

    def of_network(network, variables, image):
        found = lax.map(lambda member: network.features(member, image), variables)  # [K, B, D]
        return jnp.moveaxis(found, 0, 1).reshape(image.shape[0], -1)

    def features(variables, image):
        each = (variables,) if len(networks) == 1 else variables
        pairs = zip(networks, each, strict=True)
        return jnp.concatenate([of_network(*pair, image) for pair in pairs], axis=1)

    return features


def _clean(scenario) -> Float[Array, "p h w c"]:
    return as_float(scenario.train.image[scenario.index])


def _length(x: Float[Array, "p h w c"]) -> Float[Array, " p"]:
    return jnp.sqrt(jnp.sum(x**2, axis=(1, 2, 3)))


def _each(x: Array) -> Array:
    """[P] as [P, 1, 1, 1]."""
    return x.reshape(-1, 1, 1, 1)
