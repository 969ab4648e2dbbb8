"""EM, error-minimizing noise (Huang et al. 2021): images that a network has nothing to learn from.

min_phi  mean_i  min_{|delta_i| <= eps}  CE(f_phi(x_i + delta_i), y_i)

Threat model: training images may change within eps, labels stay; no trained model is needed.
Differs from the released code: the full signed noise is applied (there the negative half is lost),
noise and image box are projected jointly, so model steps see clipped images as the victim will.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import perturb, tree
from jaxpoison.hypergrad import alternating, poisoned_training, rowwise_loss
from jaxpoison.perturb import Budget, class_wise, per_sample, project_ball
from jaxpoison.types import Attack, InputError, Scenario, TrainState, Victim, as_float
from jaxpoison.victims import learner

__all__ = ["error_minimizing"]


class State(NamedTuple):
    """Noise, surrogate, rows the surrogate has seen so far (modulo N), and whether it stopped."""

    theta: Array
    phi: TrainState
    cursor: Array
    done: Array


class RoundInfo(NamedTuple):
    """Diagnostics of one round.

    Attributes:
      outer_loss: mean CE on the poisoned rows before the last update of the noise.
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
    eps: float,
    num_classes: int,
    noise: Literal["sample", "class"] = "sample",
    train_steps: int = 10,
    sweep_steps: int = 20,
    step_size: float | None = None,
    stop_error: float = 0.01,
    portion: float = 0.2,
    tx: optax.GradientTransformation | None = None,
    batch_size: int = 512,
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

    Returns: an Attack; step = one round, info = RoundInfo.
    Raises: InputError for a bad value, named.
    Source: Huang et al. 2021, section 3 and released code (CIFAR-10 settings).
    """
    for name, value, low in (
        ("train_steps", train_steps, 1),
        ("sweep_steps", sweep_steps, 1),
        ("batch_size", batch_size, 1),
    ):
        if value < low:
            raise InputError(f"{name} = {value}; it must be at least {low}")
    if noise not in ("sample", "class"):
        raise InputError(f"noise = {noise!r}; allowed are 'sample' and 'class'")
    if not 0 < portion <= 1:
        raise InputError(f"portion = {portion}; allowed is above 0, up to 1")
    budget = Budget("linf", eps)
    step_size = eps / 10 if step_size is None else step_size
    sample_wise = noise == "sample"
    space = per_sample(budget) if sample_wise else class_wise(budget, num_classes)
    model = learner(victim, _surrogate_rule() if tx is None else tx)

    def row_loss(key, phi, image, label):
        del key
        logits, _ = victim.apply(phi.variables, image, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    outer_loss = rowwise_loss(row_loss, space, batch_size=batch_size)
    problem = poisoned_training(model, space, batch_size=batch_size, outer_loss=outer_loss)
    held = alternating(problem, inner_steps=0)

    def init(key, scenario):
        theta_key, phi_key = jax.random.split(key)
        theta = space.init(theta_key, scenario)
        return State(theta, model.init(phi_key), jnp.int32(0), jnp.array(False))

    def train(key, state, scenario):
        num = scenario.train.label.shape[0]

        def update(k, carry):
            phi, cursor = carry
            step_key = jax.random.fold_in(key, k)
            if not sample_wise:
                return problem.inner_step(step_key, state.theta, phi, scenario)[0], cursor
            rows = (cursor + jnp.arange(min(batch_size, num))) % num  # the order never changes
            batch = space.apply(state.theta, scenario, rows)
            return model.step(step_key, phi, batch)[0], (cursor + batch_size) % num

        return lax.fori_loop(0, train_steps, update, (state.phi, state.cursor))

    def sample_sweep(key, theta, phi, scenario, index):
        del index

        def update(_, carry):
            theta = carry[0]
            gradient, _, loss = held.estimate(key, theta, phi, scenario)
            stepped = theta - step_size * jnp.sign(gradient)
            return space.project(stepped, scenario), loss, tree.norm(gradient)

        zero = jnp.zeros((), jnp.float32)
        return lax.fori_loop(0, sweep_steps, update, (theta, zero, zero))

    def class_sweep(key, theta, phi, scenario, index):
        def update(theta, batch):
            rows, weight = batch
            clean, label = as_float(scenario.train.image[rows]), scenario.train.label[rows]
            image = jnp.clip(clean + theta[label], 0, 1)

            def total(image):
                return jnp.sum(weight * row_loss(key, phi, image, label))

            loss, gradient = jax.value_and_grad(total)(image)
            stepped = project_ball(image - step_size * jnp.sign(gradient) - clean, budget)
            member = jax.nn.one_hot(label, num_classes, dtype=jnp.float32) * weight[:, None]
            count = jnp.sum(member, axis=0)[:, None, None, None]
            mean = jnp.einsum("bl,bhwc->lhwc", member, stepped) / jnp.maximum(count, 1)
            theta = project_ball(jnp.where(count > 0, mean, theta), budget)
            return theta, (loss, tree.norm(gradient), jnp.sum(weight))

        theta, (loss, size, seen) = lax.scan(update, theta, tree.batches(index, batch_size))
        return theta, jnp.sum(loss) / jnp.sum(seen), jnp.mean(size)

    sweep = sample_sweep if sample_wise else class_sweep

    def visited(key, scenario):
        if sample_wise:
            return scenario.index
        count = max(1, math.ceil(portion * scenario.index.shape[0]))
        return jax.random.permutation(key, scenario.index)[:count]

    def step(key, state, scenario):
        train_key, sweep_key, rows_key = jax.random.split(key, 3)
        index = visited(rows_key, scenario)

        def one_round(state):
            phi, cursor = train(train_key, state, scenario)
            theta, loss, size = sweep(sweep_key, state.theta, phi, scenario, index)
            return theta, phi, cursor, loss, size

        def rest(state):
            loss = outer_loss(sweep_key, state.theta, state.phi, scenario)
            return state.theta, state.phi, state.cursor, loss, jnp.zeros_like(loss)

        theta, phi, cursor, loss, size = lax.cond(state.done, rest, one_round, state)
        error = _error(victim, space, phi, theta, scenario, index, batch_size)
        done = state.done | (error <= stop_error)
        finite = jnp.isfinite(loss) & jnp.isfinite(size)
        return State(theta, phi, cursor, done), RoundInfo(loss, size, finite, error)

    def poison(state, scenario):
        return perturb.poison(space, state.theta, scenario)

    return Attack(init, step, poison)


def _surrogate_rule() -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(5.0), optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9)
    )


def _error(
    victim: Victim,
    space: Any,
    phi: TrainState,
    theta: Array,
    scenario: Scenario,
    index: Array,
    batch_size: int,
) -> Float[Array, ""]:
    """Share of the poisoned rows `index` that the surrogate gets wrong, in eval mode."""

    def wrong(batch):
        rows, weight = batch
        poisoned = space.apply(theta, scenario, rows)
        logits, _ = victim.apply(phi.variables, poisoned.image, train=False)
        return jnp.sum(weight * (jnp.argmax(logits, axis=1) != poisoned.label))

    return jnp.sum(lax.map(wrong, tree.batches(index, batch_size))) / index.shape[0]
