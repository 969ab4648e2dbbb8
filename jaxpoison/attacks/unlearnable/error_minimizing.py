"""EM, error-minimizing noise (Huang et al. 2021): images that a network has nothing to learn from.

min_phi  mean_i  min_{|delta_i| <= eps}  CE(f_phi(x_i + delta_i), y_i)

Threat model: training images may change within eps, labels stay; no trained model is needed.
Differs from the released code: the full signed noise is applied (there the negative half is lost,
as with `legacy_positive_only`); noise and image box are projected jointly, so model steps see
clipped images as the victim will; the fixed order of sample-wise surrogate batches goes on over the
end of the set (there a short batch); class-wise surrogate batches are drawn with replacement (there
shuffled epochs).

Against a frozen extractor (`frozen_error_minimizing`) the network is a head on its features and
phi are the head's parameters alone.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, perturb, tree
from jaxpoison.attacks.bilevel import of_classes
from jaxpoison.hypergrad import poisoned_training, rowwise_loss
from jaxpoison.perturb import Budget, class_wise, per_sample, project_ball
from jaxpoison.types import (
    Attack,
    Dataset,
    InputError,
    Learner,
    Perturbation,
    Scenario,
    TrainState,
    Variables,
    Victim,
    as_float,
)
from jaxpoison.victims import learner, on_features

__all__ = ["error_minimizing", "frozen_error_minimizing"]


class State(NamedTuple):
    """Noise, surrogate, rows the surrogate has seen so far (modulo N), and whether it stopped."""

    theta: Array
    phi: TrainState
    cursor: Array
    done: Array


class RoundInfo(NamedTuple):
    """Diagnostics of one round.

    Attributes:
      outer_loss: mean CE on the visited rows before the last update of the noise; class-wise, each
        batch counts before its own update.
      grad_norm: L2 norm of its gradient with respect to the noise.
      finite: whether both are finite.
      error: share of poisoned rows the surrogate gets wrong after the round; it stops the rounds.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    error: Float[Array, "..."]


def error_minimizing(
    victim: Victim,
    *,
    eps: float | Float[Array, ""],
    num_classes: int,
    noise: Literal["sample", "class"] = "sample",
    train_steps: int = 10,
    sweep_steps: int = 20,
    step_size: float | Float[Array, ""] | None = None,
    stop_error: float = 0.01,
    portion: float = 0.2,
    tx: optax.GradientTransformation | None = None,
    batch_size: int = 512,
    frozen: bool = False,
    random_start: bool = False,
    legacy_positive_only: bool = False,
) -> Attack:
    """Rounds of a few surrogate updates and a full sweep over the noise, until it is fitted.

    A round: `train_steps` updates of the surrogate on poisoned batches (train mode), then
    delta <- P(delta - step_size sign(d CE / d delta)) in eval mode: for sample-wise noise
    `sweep_steps` times on every image; for class-wise noise once per batch, batch after batch,
    D[c] <- P(mean of the stepped noise of class c in the batch). Once the surrogate's error on the
    poisoned rows is at most `stop_error` further steps only report. Run 20 to 40 steps.

    Args:
      victim: the surrogate network.
      eps: L-infinity radius, pixel units (8/255).
      num_classes: L.
      noise: one delta per image ("sample") or per class ("class").
      train_steps: M; 10 on CIFAR-10, 20 on CIFAR-100, 100 on ImageNet subsets.
      sweep_steps: T, for sample-wise noise.
      step_size: pixel units; None is eps / 10.
      stop_error: fraction of poisoned rows (0.01; 0.1 on ImageNet subsets).
      portion: share of the rows, drawn each round, that a class-wise sweep and stop test visit.
      tx: the surrogate's optimizer; None is SGD 0.1, momentum 0.9, weight decay 5e-4, clip 5.
      batch_size: of surrogate updates and sweeps.
      frozen: whether `victim` is one of `victims.on_features` or `partial_victim`, whose constants
        are those of `scenario.aux` (its Variables); its parameters are drawn as ever.
      random_start: whether the noise starts uniform in the ball, as the code's flag of this name
        has it; else at zero.
      legacy_positive_only: whether images get max(delta, 0), the noise that the released code
        stores; it is crafted, and the rounds stop, as ever.

    Returns: an Attack; step = one round, info = RoundInfo.
    Raises: InputError for a bad value, named; on tracing, with `frozen` for aux of another network.
    Source: Huang et al. 2021, section 3 and released code (CIFAR-10 settings).
    """
    check.at_least(1, train_steps=train_steps, sweep_steps=sweep_steps, batch_size=batch_size)
    check.at_least(2, num_classes=num_classes)
    check.one_of(("sample", "class"), noise=noise)
    check.number(above=0, most=1, portion=portion)
    check.fraction(stop_error=stop_error)
    budget = Budget("linf", eps)
    if step_size is None:
        step_size = budget.eps / 10
    else:
        check.positive(step_size=step_size)
    model = learner(victim, _surrogate_rule() if tx is None else tx)
    start = "uniform" if random_start else "zero"
    if noise == "sample":
        space = per_sample(budget, init=start)
        kind = _sample_wise(model, space, step_size, sweep_steps, batch_size)
    else:
        space = class_wise(budget, num_classes, init=start)
        kind = _class_wise(model, space, budget, step_size, portion, batch_size)
    attack = _rounds(model, kind, train_steps, stop_error, batch_size, frozen)
    if legacy_positive_only:
        attack = attack._replace(poison=lambda s, data: _positive(space, s.theta, data))
    return attack._replace(check=of_classes(num_classes, victim))


def frozen_error_minimizing(
    extractor: Victim,
    head: Victim,
    *,
    num_classes: int,
    eps: float | Float[Array, ""] = 8 / 255,
    noise: Literal["sample", "class"] = "sample",
    **options: Any,
) -> Attack:
    """EMN-IS: input-space unlearnable noise for a head on a frozen extractor.

    min_w  mean_i  min_{|delta_i| <= eps}  CE(h_w(f(x_i + delta_i)), y_i),  f in eval mode; rounds
    as in `error_minimizing`: 10 steps of the head, then 20 sign steps of eps / 10 on every image
    (class-wise one per batch), until 1 % (class-wise 10 %) of the noisy rows are misread.

    It changes the rows in `scenario.index` (all of them, as published) instead of adding any: judge
    it by a head on `victims.extract(extractor, poisoned)`. `scenario.aux` is
    `victims.join_head(extractor's Variables, head's)`; the head's parameters there are not read.
    Little damage is to be expected where the extractor knows the classes: features that cannot
    change keep telling them apart. Where it does not there is more: ten digits on an extractor of
    five, eps 0.1, 79.8 to 61.1 % (experiments/results/digits_frozen_error_minimizing.json).

    Args:
      extractor: the frozen network, in input space.
      head: a network on its features [B, 1, 1, D].
      num_classes: L.
      eps: L-infinity radius, pixel units.
      noise: one delta per image ("sample") or per class ("class").
      **options: of `error_minimizing`, but `frozen`.

    Returns: an Attack as `error_minimizing`.
    Raises: InputError as `error_minimizing`.
    Source: Lu et al. 2024 (feature extractors), the unlearnable-example baseline; settings of Huang
      et al. 2021, released code.
    """
    check.one_of(("sample", "class"), noise=noise)
    settings: dict[str, Any] = {"stop_error": 0.01 if noise == "sample" else 0.1} | options
    network = on_features(extractor, head)
    return error_minimizing(
        network, eps=eps, num_classes=num_classes, noise=noise, frozen=True, **settings
    )


class _Noise(NamedTuple):
    """What tells sample-wise from class-wise noise.

    Attributes:
      space: per image or per class.
      loss: (key, theta, phi, scenario) -> mean CE on the rows that may change.
      visit: (key, scenario) -> rows that the sweep and the stop test of one round visit.
      train: (key, theta, (phi, cursor), scenario) -> (phi, cursor) after one surrogate update.
      sweep: (key, theta, phi, scenario, rows) -> (theta, loss, gradient norm).
    """

    space: Perturbation
    loss: Callable[..., Array]
    visit: Callable[..., Array]
    train: Callable[..., tuple[TrainState, Array]]
    sweep: Callable[..., tuple[Array, Array, Array]]


def _rounds(
    model: Learner,
    kind: _Noise,
    train_steps: int,
    stop_error: float,
    batch_size: int,
    frozen: bool,
) -> Attack:
    """Train the surrogate, sweep the noise, test whether to stop."""

    def init(key, scenario):
        check.some_rows(scenario)
        theta_key, phi_key = jax.random.split(key)
        theta = kind.space.init(theta_key, scenario)
        phi = model.init(phi_key)
        if frozen:
            phi = TrainState(phi.params, _constants(phi.stats, scenario.aux), phi.opt_state)
        return State(theta, phi, jnp.int32(0), jnp.array(False))

    def one_round(train_key, sweep_key, state, scenario, rows):
        def update(k, learned):
            return kind.train(jax.random.fold_in(train_key, k), state.theta, learned, scenario)

        phi, cursor = lax.fori_loop(0, train_steps, update, (state.phi, state.cursor))
        theta, loss, size = kind.sweep(sweep_key, state.theta, phi, scenario, rows)
        return theta, phi, cursor, loss, size

    def rest(key, state, scenario, rows):
        del rows
        loss = kind.loss(key, state.theta, state.phi, scenario)
        return state.theta, state.phi, state.cursor, loss, jnp.zeros_like(loss)

    def step(key, state, scenario):
        train_key, sweep_key, rows_key = jax.random.split(key, 3)
        rows = kind.visit(rows_key, scenario)
        theta, phi, cursor, loss, size = lax.cond(
            state.done,
            lambda: rest(sweep_key, state, scenario, rows),
            lambda: one_round(train_key, sweep_key, state, scenario, rows),
        )
        error = _error(model.victim, kind.space, phi, theta, scenario, rows, batch_size)
        done = state.done | (error <= stop_error)
        finite = jnp.isfinite(loss) & jnp.isfinite(size)
        return State(theta, phi, cursor, done), RoundInfo(loss, size, finite, error)

    def poison(state, scenario):
        return perturb.poison(kind.space, state.theta, scenario)

    return Attack(init, step, poison)


def _constants(like: Any, aux: Any) -> Any:
    """The `stats` of the Variables in aux, which are those of the network; a copy."""
    if not isinstance(aux, Variables) or jax.tree.structure(aux.stats) != jax.tree.structure(like):
        raise InputError(
            "scenario.aux is not of this network: give join_head(extractor's Variables, head's)"
        )
    return jax.tree.map(jnp.array, aux.stats)  # the loops donate their state


def _positive(space: Perturbation, theta: Array, scenario: Scenario) -> Dataset:
    return perturb.poison(space, jnp.maximum(theta, 0), scenario)


def _sample_wise(model, space, step_size, sweep_steps, batch_size) -> _Noise:
    """Batches in the stored order; a sweep is `sweep_steps` sign steps on every image."""
    mean_loss = rowwise_loss(_row_loss(model.victim), space, batch_size=batch_size)

    def visit(key, scenario):
        del key
        return scenario.index

    def train(key, theta, learned, scenario):
        phi, cursor = learned
        num = scenario.train.label.shape[0]
        rows = (cursor + jnp.arange(min(batch_size, num))) % num  # the order never changes
        batch = space.apply(theta, scenario, rows)
        return model.step(key, phi, batch)[0], (cursor + batch_size) % num

    def sweep(key, theta, phi, scenario, rows):
        del rows

        def update(_, carry):
            theta = carry[0]
            loss, gradient = jax.value_and_grad(mean_loss, argnums=1)(key, theta, phi, scenario)
            stepped = theta - step_size * jnp.sign(gradient)
            return space.project(stepped, scenario), loss, tree.norm(gradient)

        zero = jnp.zeros((), jnp.float32)
        return lax.fori_loop(0, sweep_steps, update, (theta, zero, zero))

    return _Noise(space, mean_loss, visit, train, sweep)


def _class_wise(model, space, budget, step_size, portion, batch_size) -> _Noise:
    """Random batches; a sweep is one sign step per batch, averaged over each class in it."""
    row_loss = _row_loss(model.victim)
    mean_loss = rowwise_loss(row_loss, space, batch_size=batch_size)
    problem = poisoned_training(model, space, batch_size=batch_size, outer_loss=mean_loss)

    def visit(key, scenario):
        count = max(1, math.ceil(portion * scenario.index.shape[0]))
        return jax.random.permutation(key, scenario.index)[:count]

    def train(key, theta, learned, scenario):
        phi, cursor = learned
        return problem.inner_step(key, theta, phi, scenario)[0], cursor

    def sweep(key, theta, phi, scenario, rows):
        def update(theta, batch):
            rows, weight = batch
            clean, label = as_float(scenario.train.image[rows]), scenario.train.label[rows]
            image = jnp.clip(clean + theta[label], 0, 1)

            def total(image):
                return jnp.sum(weight * row_loss(key, phi, image, label))

            loss, gradient = jax.value_and_grad(total)(image)
            stepped = project_ball(image - step_size * jnp.sign(gradient) - clean, budget)
            theta = project_ball(_class_means(stepped, label, weight, theta), budget)
            return theta, (loss, tree.norm(gradient), jnp.sum(weight))

        theta, (loss, size, seen) = lax.scan(update, theta, tree.batches(rows, batch_size))
        return theta, jnp.sum(loss) / jnp.sum(seen), jnp.mean(size)

    return _Noise(space, mean_loss, visit, train, sweep)


def _class_means(
    delta: Float[Array, "b h w c"],
    label: Int[Array, " b"],
    weight: Float[Array, " b"],
    otherwise: Float[Array, "l h w c"],
) -> Float[Array, "l h w c"]:
    """The weighted mean of each class's rows; a class without rows keeps its `otherwise`."""
    member = jax.nn.one_hot(label, otherwise.shape[0], dtype=jnp.float32) * weight[:, None]
    count = jnp.sum(member, axis=0)[:, None, None, None]
    total = jnp.einsum("bl,bhwc->lhwc", member, delta, precision=lax.Precision.HIGHEST)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), otherwise)


def _row_loss(victim: Victim) -> Callable[..., Float[Array, " b"]]:
    """CE of every row, in eval mode."""

    def row_loss(key, phi, image, label):
        del key
        logits, _ = victim.apply(phi.variables, image, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    return row_loss


def _surrogate_rule() -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(5.0), optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9)
    )


def _error(victim, space, phi, theta, scenario, index, batch_size) -> Float[Array, ""]:
    """Share of the poisoned rows `index` that the surrogate gets wrong, in eval mode."""

    def wrong(batch):
        rows, weight = batch
        poisoned = space.apply(theta, scenario, rows)
        logits, _ = victim.apply(phi.variables, poisoned.image, train=False)
        return jnp.sum(weight * (jnp.argmax(logits, axis=1) != poisoned.label))

    return jnp.sum(lax.map(wrong, tree.batches(index, batch_size))) / index.shape[0]
