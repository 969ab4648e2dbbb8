"""Hypergradients taken along a surrogate's own training on clean data, one epoch per estimate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxpoison import check
from jaxpoison.hypergrad.unrolled import unrolled
from jaxpoison.types import (
    Batch,
    Bilevel,
    Dataset,
    Hypergrad,
    InputError,
    Key,
    Learner,
    Perturbation,
    Scenario,
    TrainState,
    Victim,
    as_float,
)
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.train import check_batch, make_learner

__all__ = ["Surrogate", "along_training"]


FEW = 2  # steps whose activations fit in memory together: no rematerialization


class Surrogate(NamedTuple):
    """A network in training on clean data.

    Attributes:
      state: of its training.
      epoch: how many epochs it has trained since its start.
    """

    state: TrainState
    epoch: Int[Array, ""]


def along_training(
    victim: Victim,
    space: Perturbation,
    recipe: Recipe,
    *,
    steps: int,
    target_loss: Callable[..., Array],
    restart_after: int,
    penalty: Callable[[Any], Array] | None = None,
) -> Hypergrad:
    """D L / d theta, summed up while a surrogate trains for one epoch on clean data.

    The epoch has batches b = 0, 1, ...; w^b is the surrogate before batch b. From every batch that
    holds a row of `scenario.index` K steps are unrolled, the first on that batch poisoned, the
    others on the clean batches that follow (past the end those of the beginning):

        w_1 = step(w^b; poisoned batch b),   w_{k+1} = step(w_k; clean batch b + k),
        L = mean_b mean_{k=1..K} l(f(x_t; w_k), y_t)  [+ penalty(theta) / number of such b].

    Then the unrolled weights are dropped and w^{b+1} = step(w^b; clean batch b). After
    `restart_after` epochs the surrogate is drawn anew. Steps are those of the recipe, its optimizer
    and schedule included, on batches of its size, shuffled every epoch; the last batch is filled up
    with the epoch's first rows (or left out, as the recipe says).

    With BatchNorm, always in train mode, the targets stand in every batch with weight 0, so that
    they share its statistics; where the loss is read after step k that is clean batch b + k.

    Args:
      victim: the surrogate network.
      space: how theta enters the images.
      recipe: of the surrogate's training; its augmentation is drawn for clean and poisoned alike.
      steps: K.
      target_loss: (logits [G, L], label [G]) -> scalar, minimized; reads `scenario.goal`.
      restart_after: epochs after which the surrogate is drawn anew.
      penalty: (theta) -> scalar, added to the sum over batches.

    Returns: a Hypergrad whose phi is `Surrogate`; `init` trains it for `scenario.aux` epochs, an
      int32 scalar below `restart_after`, on the device. outer_loss is L.
    Raises: InputError for a bad value, named, an adversarial recipe; at init for an empty
      `scenario.index` or a batch larger than the training set.
    Source: Huang et al. 2020 (MetaPoison), Algorithm 1 and released code.
    Cost: an epoch of training, and for every batch with poisons K steps differentiated twice.
    """
    check.at_least(1, steps=steps, restart_after=restart_after)
    if recipe.adversarial != "none":
        raise InputError(f"adversarial = {recipe.adversarial!r}; surrogates train on clean data")
    augment = recipe.augment()

    def epoch_of(key, scenario):
        num = scenario.train.label.shape[0]
        order_key, batches_key = jax.random.split(key)
        shape = recipe.steps_per_epoch(num), recipe.batch_size
        rows = jnp.resize(jax.random.permutation(order_key, num), shape)
        return _Epoch(scenario, rows, batches_key, jnp.int32(0))

    def learner_of(scenario):
        return make_learner(victim, recipe, scenario.train.label.shape[0], 1)

    def init(key, scenario):
        check.some_rows(scenario)
        check_batch(recipe, scenario.train.label.shape[0])
        start_key, train_key = jax.random.split(key)
        model = learner_of(scenario)

        def epoch(e, state):
            plain = epoch_of(jax.random.fold_in(train_key, e), scenario)
            numbers = jnp.arange(plain.rows.shape[0])
            return lax.scan(
                lambda s, b: (_advance(model, augment, s, plain, b), ()), state, numbers
            )[0]

        epochs = jnp.asarray(scenario.aux, jnp.int32)
        return Surrogate(lax.fori_loop(0, epochs, epoch, model.init(start_key)), epochs)

    def estimate(key, theta, phi, scenario):
        epoch_key, start_key = jax.random.split(key)
        model, epoch = learner_of(scenario), epoch_of(epoch_key, scenario)
        problem = _unrolled_problem(model, augment, target_loss)
        unroll = unrolled(problem, steps=steps, remat=steps > FEW, every_step=True)
        changed = jnp.zeros(scenario.train.label.shape, bool).at[scenario.index].set(True)

        def read(state, b):
            def poisoned(theta):
                image = space.apply(theta, scenario, epoch.rows[b]).image
                return augment(_keys(epoch, b)[0], image)

            image, pull = jax.vjp(poisoned, theta)
            start = _Unroll(state, jnp.int32(0))
            at_image, _, loss = unroll.estimate(_keys(epoch, b)[2], image, start, epoch.starting(b))
            return loss, pull(at_image)[0]

        def batch(carry, b):
            state, total = carry
            found = jnp.any(changed[epoch.rows[b]])
            nothing = jax.tree.map(_zeros, jax.eval_shape(read, state, b))
            new = lax.cond(found, lambda: read(state, b), lambda: nothing)
            total = jax.tree.map(jnp.add, total, (*new, found.astype(jnp.int32)))
            return (_advance(model, augment, state, epoch, b), total), ()

        none = jax.tree.map(_zeros, (*jax.eval_shape(read, phi.state, 0), jnp.int32(0)))
        numbers = jnp.arange(epoch.rows.shape[0])
        (state, (loss, gradient, count)), _ = lax.scan(batch, (phi.state, none), numbers)
        if penalty is not None:
            more = jax.value_and_grad(penalty)(theta)
            loss, gradient = jax.tree.map(jnp.add, (loss, gradient), more)
        scale = 1 / jnp.maximum(count, 1).astype(loss.dtype)
        loss, gradient = jax.tree.map(lambda x: scale * x, (loss, gradient))
        over = phi.epoch + 1 >= restart_after
        state = lax.cond(over, lambda: model.init(start_key), lambda: state)
        return gradient, Surrogate(state, jnp.where(over, 0, phi.epoch + 1)), loss

    return Hypergrad(init, estimate)


class _Epoch(NamedTuple):
    """The batches of an epoch, rows [batches, B]; a problem reads them from batch `first` on."""

    scenario: Scenario
    rows: Int[Array, "b r"]
    key: Key
    first: Int[Array, ""]

    def starting(self, first: Int[Array, ""]) -> "_Epoch":
        return self._replace(first=first)


class _Unroll(NamedTuple):
    """Weights on their way along an unroll, and how many steps they took."""

    state: TrainState
    step: Int[Array, ""]


def _unrolled_problem(model: Learner, augment: Any, target_loss: Callable[..., Array]) -> Bilevel:
    """Theta is the poisoned images of the first batch; the scenario is an `_Epoch`."""

    def inner_init(key, epoch):
        del epoch
        return _Unroll(model.init(key), jnp.int32(0))

    def batch_of(image, phi, epoch):
        clean = _clean(augment, epoch, epoch.first + phi.step)
        return clean._replace(image=jnp.where(phi.step == 0, image, clean.image))

    def inner_loss(key, image, phi, epoch):
        batch = _beside_targets(batch_of(image, phi, epoch), epoch.scenario.goal, phi.state)
        return model.loss(key, phi.state.params, phi.state.stats, batch)[0]

    def inner_step(key, image, phi, epoch):
        batch = _beside_targets(batch_of(image, phi, epoch), epoch.scenario.goal, phi.state)
        state, info = model.step(key, phi.state, batch)
        return _Unroll(state, phi.step + 1), info

    def outer_loss(key, image, phi, epoch):
        del image
        goal, state = epoch.scenario.goal, phi.state
        seen = as_float(goal.image)
        if jax.tree.leaves(state.stats):
            seen = _beside_targets(
                _clean(augment, epoch, epoch.first + phi.step), goal, state
            ).image
        logits, _ = model.victim.apply(state.variables, seen, train=True, key=key)
        return target_loss(logits[-goal.label.shape[0] :], goal.label)

    return Bilevel(inner_init, inner_step, inner_loss, outer_loss)


def _advance(
    model: Learner, augment: Any, state: TrainState, epoch: _Epoch, number: Int[Array, ""]
) -> TrainState:
    """The surrogate's own step, on clean batch `number`."""
    batch = _beside_targets(_clean(augment, epoch, number), epoch.scenario.goal, state)
    return model.step(_keys(epoch, number)[1], state, batch)[0]


def _clean(augment: Any, epoch: _Epoch, number: Int[Array, ""]) -> Batch:
    """Clean batch `number` of the epoch, counted around its end."""
    number = number % epoch.rows.shape[0]
    rows, train = epoch.rows[number], epoch.scenario.train
    image = augment(_keys(epoch, number)[0], as_float(train.image[rows]))
    return Batch(image, train.label[rows], jnp.ones(rows.shape, jnp.float32), rows)


def _keys(epoch: _Epoch, number: Int[Array, ""]) -> Array:
    """Of a batch: its augmentation, the step on it, the unroll from it."""
    return jax.random.split(jax.random.fold_in(epoch.key, number), 3)


def _beside_targets(batch: Batch, goal: Dataset, state: TrainState) -> Batch:
    """The batch with the targets behind it at weight 0, if batch statistics matter."""
    if not jax.tree.leaves(state.stats):
        return batch
    num = goal.label.shape[0]
    image = as_float(goal.image).astype(batch.image.dtype)
    targets = Batch(image, goal.label, jnp.zeros(num), jnp.full(num, -1, jnp.int32))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), batch, targets)


def _zeros(x: Any) -> Array:
    return jnp.zeros(x.shape, x.dtype)
