"""TGDA, total gradient descent ascent (Lu et al. 2022): added points against a follower that rests.

max over x of L_val(w*(x)),  w*(x) = argmin_w f(x, w),  f = CE over clean rows and added points:
D_x L_val = -d/dx <d f / d w, v>,  v = H^-1 d L_val / d w  (`hypergrad.implicit`).

The attacker knows training set, network and recipe and adds P = eps N points; clean rows stay. A
part of the training rows is L_val's and not f's. The points are optimized directly, or made by a
leader network of base images. The follower takes a few steps of gradient descent for each one of
the leader's, as published, or is trained to the end each time (`follower_steps=None`; for heads,
whose f is convex).
Differs from the released code: rows behind the last whole batch take part in no step.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, hypergrad, perturb, tree
from jaxpoison.attacks.bilevel import BilevelState
from jaxpoison.attacks.bilevel import info as step_info
from jaxpoison.types import (
    Attack,
    Bilevel,
    Dataset,
    InputError,
    Leader,
    Perturbation,
    Variables,
    Victim,
    as_float,
)
from jaxpoison.victims import ToConvergence, converge, on_features
from jaxpoison.victims.checks import check_classes, check_variables

__all__ = ["TGDA", "Stackelberg", "TotalGradientInfo", "total_gradient"]


@dataclasses.dataclass(frozen=True)
class Stackelberg:
    """The constants of the game.

    Attributes:
      source: where they are from.
      leader_rate: of the leader's optax rule, in units of what it moves.
      rule: rate -> that rule; `optax.sgd` is the plain gradient, `optax.sign_sgd` its sign.
      follower_steps: of gradient descent on the leader's batch, after each step of the leader; None
        trains to the end, before the first one too, and needs batch_size=None.
      follower_rate: of these steps, like momentum.
      momentum: its velocity lives on over batches.
      weight_decay: lambda of f = data + lambda ||w||^2 / 2.
      batch_size: rows of a batch; None for all. Batches are cut once and never shuffled, batch k of
        K has the k-th of K slices of the points: each point is always seen beside the same rows.
      validation: share of a batch, its last rows, that L_val reads and f does not; None reads
        `scenario.goal` as L_val and all rows as f.
      share: whether the points weigh eps = P / N against the mean of f's clean rows, as they do in
        a victim's training; else f is the mean over all of its rows, which are fewer here.
      solver: as in `hypergrad.implicit`, like iterations, damping and tolerance.
      iterations: as there.
      damping: as there.
      tolerance: as there.
      gradient_tolerance: of the follower that is trained to the end, as in `ToConvergence`.
      epochs: passes over the batches, for `num_steps`.

    Errors: InputError for a value that cannot be used.
    """

    source: str
    leader_rate: float = 0.01
    rule: Callable[..., optax.GradientTransformation] = optax.sgd
    follower_steps: int | None = 20
    follower_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int | None = 1000
    validation: float | None = 0.3
    share: bool = False
    solver: Callable[..., Any] = hypergrad.normal_cg
    iterations: int = 16
    damping: float = 0.0
    tolerance: float = 0.0
    gradient_tolerance: float = 1e-5
    epochs: int = 201

    def __post_init__(self):
        check.positive(leader_rate=self.leader_rate, follower_rate=self.follower_rate)
        check.positive(gradient_tolerance=self.gradient_tolerance)
        check.number(least=0, weight_decay=self.weight_decay)
        check.number(least=0, below=1, momentum=self.momentum)
        check.number(least=0, damping=self.damping, tolerance=self.tolerance)
        check.at_least(1, iterations=self.iterations, epochs=self.epochs)
        if self.follower_steps is not None:
            check.at_least(1, follower_steps=self.follower_steps)
        if self.batch_size is not None:
            check.at_least(2, batch_size=self.batch_size)
            if self.follower_steps is None:
                raise InputError(
                    f"batch_size = {self.batch_size}; a follower that is trained to the end "
                    "(follower_steps=None) needs None: the leader reads the batch that is next, on "
                    "which it would not rest"
                )
        if self.validation is not None:
            check.number(above=0, below=1, validation=self.validation)

    def num_batches(self, num_train: int) -> int:
        """K = floor(N / B)."""
        size = self.batch_size or num_train
        if size > num_train:
            raise InputError(f"batch_size = {size}; the training set has {num_train} rows")
        return num_train // size

    def num_steps(self, num_train: int, epochs: int | None = None) -> int:
        """Steps of so many passes over the batches, None for all."""
        epochs = self.epochs if epochs is None else epochs
        check.at_least(1, epochs=epochs)
        return epochs * self.num_batches(num_train)


_HEAD = Stackelberg(
    "a public code base of the same line of work, linear heads",
    leader_rate=0.1, follower_steps=10, momentum=0.9, tolerance=0.01,
)  # fmt: skip

TGDA: Mapping[str, Stackelberg] = check.presets(
    "TGDA",
    {
        "mnist": Stackelberg("released code of TGDA, MNIST"),
        "cifar10": Stackelberg("released code of TGDA, CIFAR-10", batch_size=256),
        "head_mnist": dataclasses.replace(_HEAD, epochs=200),
        "head_cifar10": dataclasses.replace(_HEAD, follower_rate=0.001, epochs=2000),
        "exact": Stackelberg(
            "reference run on digits: a convex head solved again for each step of signs",
            leader_rate=0.1,
            rule=optax.sign_sgd,
            follower_steps=None,
            weight_decay=1e-2,
            batch_size=None,
            share=True,
            solver=hypergrad.cg,
            iterations=200,
            tolerance=1e-4,
            epochs=25,
        ),
    },
)
"""By setting. The released ones are of leader networks: for points themselves their plain gradient
is far too small a step, use "exact" or another `rule`."""


class TotalGradientInfo(NamedTuple):
    """Diagnostics of one step; scalars.

    Attributes:
      outer_loss: -L_val, before the update.
      grad_norm: as in `Info`, like finite.
      finite: as there.
      residual: relative, of the linear solve.
      iterations: of the linear solve.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    residual: Float[Array, "..."]
    iterations: Int[Array, "..."]


class Follower(NamedTuple):
    """The follower, its optimizer's state, and the batch that is next."""

    params: Any
    stats: Any
    opt_state: Any
    batch: Int[Array, ""]


def total_gradient(
    victim: Victim,
    *,
    game: Stackelberg = TGDA["exact"],  # noqa: B008
    network: Leader | None = None,
    extractor: Victim | None = None,
    constraint: perturb.Constraint = perturb.Constraint("box"),  # noqa: B008
    labels: str = "base",
    start: str = "base",
    num_classes: int | None = None,
    tx: optax.GradientTransformation | None = None,
) -> Attack:
    """One batch a step: the leader ascends L_val by the total gradient, then the follower answers.

    `scenario.aux` is a network trained on the clean set, Variables of the victim (with an extractor
    of `on_features`), where the follower starts; with a leader network the pair of these and the
    leader's own, see `attacks.pretrain_leader`. Networks run in eval mode: running statistics as in
    `aux`, no dropout. The same in pixels and in features (`victims.extract`).

    Args:
      victim: the network, or a `partial_victim` of it (its last layer), or a head on features.
      game: the constants, by default those for heads; see `TGDA`.
      network: makes the points of base rows (labels are theirs); None optimizes points directly.
      extractor: for a head on features, in pixels: the network whose features they are. The same as
        `on_features(extractor, victim)` in the place of the victim, but each image passes the
        extractor once a step and not once for each of the follower's.
      constraint: where the points may be.
      labels: as in `perturb.free_points`, like start and num_classes; for points alone.
      start: as there.
      num_classes: as there.
      tx: the leader's rule, in the place of the game's.

    Returns: an Attack whose poison has N + P rows, the added ones last; its info is
      `TotalGradientInfo`.
    Errors: InputError for a bad argument; of a scenario for a batch larger than its training set,
      labels that are none of the network's classes, and pixels' constraints on other values.
    Source: Lu et al. 2022, released code; constants in `TGDA`.
    """
    check.kind(Victim, victim=victim)
    check.kind(Stackelberg, game=game, hint=", such as TGDA['mnist']")
    if extractor is not None:
        check.kind(Victim, extractor=extractor)
    if tx is not None:
        check.kind(optax.GradientTransformation, tx=tx)
    if network is None:
        space = perturb.free_points(constraint, labels=labels, start=start, num_classes=num_classes)
    else:
        if (labels, start) != ("base", "base"):
            raise InputError(
                f"labels = {labels!r}, start = {start!r}; a leader network keeps the labels of its "
                "base rows and starts from its own parameters"
            )
        space = perturb.generated_points(network, constraint)
    problem = _game(victim, extractor, space, game, paired=network is not None)
    rule = hypergrad.implicit(
        problem,
        solver=game.solver,
        iterations=game.iterations,
        damping=game.damping,
        tolerance=game.tolerance,
    )
    leader = game.rule(game.leader_rate) if tx is None else tx

    def init(key, scenario):
        theta_key, phi_key = jax.random.split(key)
        theta = space.init(theta_key, scenario) if network is None else scenario.aux[1]
        phi = rule.init(phi_key, scenario)
        if game.follower_steps is None:
            phi = phi._replace(follower=problem.inner_step(key, theta, phi.follower, scenario)[0])
        return BilevelState(theta, phi, leader.init(theta))

    def step(key, state, scenario):
        gradient, phi, loss = rule.estimate(key, state.theta, state.phi, scenario)
        updates, opt_state = leader.update(gradient, state.opt_state, state.theta)
        theta = space.project(optax.apply_updates(state.theta, updates), scenario)
        follower, _ = problem.inner_step(key, theta, phi.follower, scenario)
        state = BilevelState(theta, hypergrad.Implicit(follower, phi.solve), opt_state)
        return state, TotalGradientInfo(*step_info(loss, gradient), *phi.solve)

    def poison(state, scenario):
        return perturb.poison(space, state.theta, scenario)

    def sound(scenario):
        constraint.check(scenario)
        whole = victim if extractor is None else on_features(extractor, victim)
        check_classes(whole, scenario.train, num_classes)

    return Attack(init, step, poison, check=sound)


def _game(
    victim: Victim,
    extractor: Victim | None,
    space: Perturbation,
    game: Stackelberg,
    *,
    paired: bool,
) -> Bilevel:
    """Both sides on the batch that is next; `inner_step` is the follower's whole answer."""
    sgd = optax.sgd(game.follower_rate, game.momentum or None)

    def sizes(scenario):
        num = scenario.train.label.shape[0]
        batches = game.num_batches(num)
        rows = game.batch_size or num
        own = rows if game.validation is None else rows - round(game.validation * rows)
        check.at_least(1, **{"rows of f": own})
        return batches, rows, own

    def look(phi, image):
        """What the victim is shown: the images, or their features."""
        if extractor is None:
            return image
        return extractor.features(phi.stats["extractor"], image)[:, None, None, :]

    def seen(phi):
        return phi.stats if extractor is None else phi.stats["stats"]

    def clean(phi, scenario, first, count):
        image, label = (
            lax.dynamic_slice_in_dim(x, first, count)
            for x in (jnp.asarray(scenario.train.image), jnp.asarray(scenario.train.label))
        )
        return look(phi, as_float(image)), label

    def inner_rows(theta, phi, scenario):
        """Rows of f on this batch, clean ones first, and their weights, whose f is the sum."""
        batches, rows, own = sizes(scenario)
        num, added = scenario.train.label.shape[0], scenario.index.shape[0]
        size = -(-added // batches)
        slots = phi.batch * size + jnp.arange(size, dtype=jnp.int32)
        there = (slots < added).astype(jnp.float32)
        if batches == 1 and space.added is not None:
            points = space.added(theta, scenario)
        else:
            points = space.apply(theta, scenario, num + jnp.minimum(slots, added - 1))
        shown = look(phi, points.image)
        image, label = clean(phi, scenario, phi.batch * rows, own)
        weight = there * (own / rows if game.share else 1)
        dataset = Dataset(
            jnp.concatenate([image.astype(shown.dtype), shown]),
            jnp.concatenate([label, points.label]),
        )
        return dataset, jnp.concatenate([jnp.ones(own, jnp.float32), weight]), own

    def follow(params, phi, rows):
        dataset, weight, own = rows
        losses = _losses(victim, Variables(params, seen(phi)), dataset)
        whole = own if game.share else jnp.sum(weight)
        data = jnp.sum(losses * weight.astype(losses.dtype)) / whole
        return data + game.weight_decay / 2 * tree.dot(params, params)

    def inner_init(key, scenario):
        del key
        check.some_rows(scenario)
        known = scenario.aux[0] if paired and len(scenario.aux) else scenario.aux
        whole = victim if extractor is None else on_features(extractor, victim)
        check_variables(whole, known, "the network in scenario.aux")
        params, stats = known
        return Follower(params, stats, sgd.init(params), jnp.int32(0))

    def inner_loss(key, theta, phi, scenario):
        del key
        return follow(phi.params, phi, inner_rows(theta, phi, scenario))

    def outer_loss(key, theta, phi, scenario):
        del key, theta
        _, rows, own = sizes(scenario)
        if game.validation is None:
            held = look(phi, as_float(scenario.goal.image)), scenario.goal.label
        else:
            held = clean(phi, scenario, phi.batch * rows + own, rows - own)
        return -jnp.mean(_losses(victim, Variables(phi.params, seen(phi)), Dataset(*held)))

    def inner_step(key, theta, phi, scenario):
        del key
        rows = inner_rows(theta, phi, scenario)
        if game.follower_steps is None:
            params, opt_state = settled(phi, rows), phi.opt_state
        else:

            def step(carry, _):
                params, opt_state = carry
                slope = jax.grad(follow)(params, phi, rows)
                updates, opt_state = sgd.update(slope, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

            start = phi.params, phi.opt_state
            (params, opt_state), _ = lax.scan(step, start, None, length=game.follower_steps)
        ahead = (phi.batch + 1) % sizes(scenario)[0]
        return Follower(params, phi.stats, opt_state, ahead), None

    def settled(phi, rows):
        dataset, weight, own = rows
        settings = ToConvergence(
            weight_decay=game.weight_decay,
            normalize="clean" if game.share else "all",
            tolerance=game.gradient_tolerance,
        )
        found, _ = converge(
            victim, Variables(phi.params, seen(phi)), dataset, settings,
            num_clean=own, row_weights=weight,
        )  # fmt: skip
        return jax.tree.map(lambda new, old: new.astype(old.dtype), found.params, phi.params)

    return Bilevel(inner_init, inner_step, inner_loss, outer_loss)


def _losses(victim: Victim, variables: Variables, dataset: Dataset) -> Float[Array, " b"]:
    """CE of each row, eval mode."""
    scores, _ = victim.apply(variables, dataset.image, train=False)
    return optax.softmax_cross_entropy_with_integer_labels(scores, dataset.label)
