"""REM, robust error-minimizing noise (Fu et al. 2022), and SEM (Liu et al. 2024).

min_phi  mean_i  min_{|d_i| <= rho_u}  E_t  max_{|e_i| <= rho_a}  CE(f_phi(t(x_i + d_i) + e_i), y_i)

Threat model: training images may change within rho_u, labels stay; no trained model is needed; the
victim may augment its images (t: crop, flip) and train adversarially at radius rho_a. SEM has one
random e in the place of the maximum. As in the released code, but that crops are matrix products
(`data.augment`) and that grey levels of the noise stay inside the radius.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, perturb, tree
from jaxpoison.attacks.bilevel import info, of_classes
from jaxpoison.data import augment as augmentations
from jaxpoison.data.augment import Augmentation
from jaxpoison.hypergrad.minibatch import next_rows
from jaxpoison.perturb import Budget, per_sample, project_ball, project_linf
from jaxpoison.perturb.initial import uniform
from jaxpoison.perturb.per_sample import slots
from jaxpoison.types import Attack, InputError, TrainState, Victim, as_float
from jaxpoison.victims import learner, pgd

__all__ = ["finish_steps_for", "robust_error_minimizing"]

STEP_PER_EPS = 0.2  # both radii: 1.6 / 255 at 8 / 255, 0.8 / 255 at 4 / 255
DROP = 2 / 5  # of all steps, after which the surrogate's rate falls: 2000 of 5000, 1200 of 3000
AUGMENT = augmentations.compose(augmentations.crop(padding=4), augmentations.flip())


class State(NamedTuple):
    """Stored noise, the surrogate, its pass over the rows, and how many steps were taken."""

    theta: Float[Array, "p h w c"]
    phi: TrainState
    order: Int[Array, " n"]
    cursor: Int[Array, ""]
    count: Int[Array, ""]


def robust_error_minimizing(
    victim: Victim,
    *,
    eps: float | Float[Array, ""] = 8 / 255,
    adversarial_eps: float | Float[Array, ""] = 4 / 255,
    inner: Literal["pgd", "random"] = "pgd",
    steps: int = 5000,
    finish_steps: int = 1,
    noise_steps: int = 10,
    step_size: float | Float[Array, ""] | None = None,
    draws: int = 5,
    adversarial_steps: int = 10,
    adversarial_step: float | Float[Array, ""] | None = None,
    augment: Augmentation = AUGMENT,
    tx: optax.GradientTransformation | None = None,
    batch_size: int = 128,
) -> Attack:
    """Fresh noise for a batch, then one adversarial update of the surrogate on it; S times.

    A step, on the next B rows (every pass shuffled anew); the surrogate f in eval mode in (a):

      (a) d ~ U[-rho_u, rho_u]; K_u times: G = 0, J times:
            v = t(clip(x + d, 0, 1)),  w = v + e,  e from `victims.pgd` at radius rho_a (K_a steps),
            G <- G + t^T dCE(f(w), y)/dw,  pulled back through t alone, w held constant;
          d <- clip(d - a_u sign(G), -rho_u, rho_u)
      (b) noise of the rows <- d in whole grey levels (those below 1/255 are none), then inside the
          image box
      (c) phi <- SGD on CE(f(w), y) in train mode, w as above from v = t(x + noise)

    Step S ends with (a) and (b) once more on every row that may change: the noise of the final
    surrogate is the poison. Until then `poison` gives what was stored, and clean rows that had no
    turn. This pass over ceil(P / B) batches may be spread over steps S, S + 1, ..., S + F - 1, so
    that loops can save, or stop, in between. Steps after those go through it again, with new draws.

    ImageNet subsets (100 classes): steps 3000, noise_steps and adversarial_steps 7, step_size
    2/255, adversarial_step 1/255, draws 4. With adversarial_eps = 0 and inner = "random" it is
    error-minimizing noise under expected augmentation.

    Args:
      victim: the surrogate network; the code's has mean = 0.5 and std = 1 (pixels in [-0.5, 0.5]).
      eps: rho_u, L-infinity radius of the noise, pixel units.
      adversarial_eps: rho_a, of e; at most as large as rho_u to be of use.
      inner: "pgd", REM, or "random", SEM: e ~ U[-rho_a, rho_a] inside the box, in (a) and (c).
      steps: S.
      finish_steps: F, at most ceil(P / B).
      noise_steps: K_u.
      step_size: a_u, pixel units; None is rho_u / 5.
      draws: J, augmentations of one step of the noise.
      adversarial_steps: K_a, read by "pgd".
      adversarial_step: pixel units, read by "pgd"; None is rho_a / 5.
      augment: t, (key, image [B, H, W, C]) -> image, differentiable; crop and flip.
      tx: the surrogate's optimizer; None is SGD 0.1, x 0.1 every 2/5 of S, momentum 0.9, weight
        decay 5e-4.
      batch_size: B; the whole set where it is smaller.

    Returns: an Attack of num_steps S + F - 1; `outer_loss` is the mean CE at w, over the J draws,
      before the last step of the noise, of all rows visited in the step that may change.
    Raises: InputError for a bad value, named; at init for an empty `scenario.index` and for more
      finish_steps than batches.
    Cost: K_u J (K_a + 1) + K_a + 1 passes of B rows per step (561), SEM 51; the last pass has as
      many, less K_a + 1, for each batch of the set besides.
    Source: Fu et al. 2022, section 3.2 and Algorithm 1, released code; Liu et al. 2024 (SEM).
    """
    numbers = {"steps": steps, "finish_steps": finish_steps}
    numbers |= {"noise_steps": noise_steps, "draws": draws}
    check.at_least(1, **numbers, adversarial_steps=adversarial_steps, batch_size=batch_size)
    check.one_of(("pgd", "random"), inner=inner)
    budget, around = Budget("linf", eps), Budget("linf", adversarial_eps)
    sizes: dict[str, Any] = {"step_size": step_size, "adversarial_step": adversarial_step}
    check.positive(**{k: v for k, v in sizes.items() if v is not None})
    rate = STEP_PER_EPS * budget.eps if step_size is None else step_size
    climb = STEP_PER_EPS * around.eps if adversarial_step is None else adversarial_step

    def worst(key, loss, image):
        if inner == "random":
            e = uniform(key, image.shape, image.dtype, around)
            return project_linf(e, image, eps=1.0)
        options = {"step_size": jnp.maximum(climb, 1e-12), "steps": adversarial_steps}
        return pgd(key, loss, image, eps=around.eps, **options)

    noise = _noise(victim, worst, budget, rate, noise_steps, draws, augment)
    model = learner(victim, _surrogate_rule(steps) if tx is None else tx)
    space = per_sample(budget)

    def init(key, scenario):
        check.some_rows(scenario)
        num = scenario.train.label.shape[0]
        batches = -(-scenario.index.shape[0] // min(batch_size, num))
        if finish_steps > batches:
            raise InputError(
                f"finish_steps = {finish_steps}; the rows that may change are {batches} batches"
            )
        order_key, phi_key = jax.random.split(key)
        order = jax.random.permutation(order_key, jnp.arange(num, dtype=jnp.int32))
        zero = jnp.int32(0)
        return State(space.init(key, scenario), model.init(phi_key), order, zero, zero)

    def update(key, theta, phi, scenario, rows):
        augment_key, worst_key, step_key = jax.random.split(key, 3)
        batch = space.apply(theta, scenario, rows)
        image = augment(augment_key, jnp.clip(batch.image, 0, 1))
        loss = _loss(victim, phi, batch.label, jnp.ones_like(batch.weight))
        image = image + worst(worst_key, loss, image)
        return model.step(step_key, phi, batch._replace(image=image))[0]

    def step(key, state, scenario):
        order_key, noise_key, update_key = jax.random.split(key, 3)
        num, changed = scenario.train.label.shape[0], scenario.index.shape[0]
        size = min(batch_size, num)
        order, cursor, first = next_rows(order_key, state.order, state.cursor, size)
        first_slot = slots(scenario)[first]
        first_slot = jnp.where(first_slot < 0, changed, first_slot)  # beyond the last: not stored

        count = state.count + 1
        batches, late = -(-changed // size), count - steps
        part = late % finish_steps  # of as many batches as the others, or one more
        begin = jnp.where(late >= 0, part * batches // finish_steps, 0)
        end = jnp.where(late >= 0, (part + 1) * batches // finish_steps, 0)
        training = (late <= 0).astype(jnp.int32)

        def visit(j, carry):
            """Batch j of the last pass; before its first, in training, the next of the shuffle."""
            theta, phi, total = carry
            shuffled = j < begin
            slot = j * size + jnp.arange(size, dtype=jnp.int32)
            rows = scenario.index[jnp.clip(slot, 0, changed - 1)]
            rows, slot = jnp.where(shuffled, first, rows), jnp.where(shuffled, first_slot, slot)
            clean, label = as_float(scenario.train.image[rows]), scenario.train.label[rows]
            weight = (slot < changed).astype(jnp.float32)
            visit_key = jax.random.fold_in(noise_key, j + 1)
            delta, loss, slope = noise(visit_key, phi, clean, label, weight)
            theta = theta.at[slot].set(_grey_levels(delta, clean, budget), mode="drop")
            phi = lax.cond(
                shuffled, lambda: update(update_key, theta, phi, scenario, rows), lambda: phi
            )
            found = jnp.stack([loss, slope, jnp.sum(weight)])
            return theta, phi, total + found

        carry = state.theta, state.phi, jnp.zeros(3, jnp.float32)
        theta, phi, total = lax.fori_loop(begin - training, end, visit, carry)
        loss, slope = total[:2] / jnp.maximum(total[2], 1)
        return State(theta, phi, order, cursor, count), info(loss, slope)

    def poison(state, scenario):
        return perturb.poison(space, state.theta, scenario)

    num_steps = steps + finish_steps - 1
    return Attack(init, step, poison, num_steps=num_steps, check=of_classes(None, victim))


def finish_steps_for(num_rows: int, batch_size: int = 128) -> int:
    """`finish_steps` of P rows by which a step of the last pass is ten batches or a few more."""
    return max(1, num_rows // (10 * batch_size))


def _noise(
    victim: Victim,
    worst: Callable[..., Array],
    budget: Budget,
    step_size: Any,
    noise_steps: int,
    draws: int,
    augment: Augmentation,
) -> Callable[..., tuple[Array, Array, Array]]:
    """(a): (key, phi, x, y, weight [B]) -> (d, sum of CE by weight, norm of its gradient)."""

    def noise(key, phi, clean, label, weight):
        start_key, draws_key = jax.random.split(key)
        loss = _loss(victim, phi, label, weight)

        def draw(j, carry, key, d):
            augment_key, worst_key = jax.random.split(jax.random.fold_in(key, j))
            moved = functools.partial(augment, augment_key)
            view, pull = jax.vjp(moved, jnp.clip(clean + d, 0, 1))
            value, slope = jax.value_and_grad(loss)(view + worst(worst_key, loss, view))
            return carry[0] + value.astype(jnp.float32) / draws, carry[1] + pull(slope)[0] / draws

        def descend(k, carry):
            d, step_key = carry[0], jax.random.fold_in(draws_key, k)
            none = jnp.zeros((), jnp.float32), jnp.zeros_like(d)
            value, slope = lax.fori_loop(0, draws, lambda j, c: draw(j, c, step_key, d), none)
            d = project_ball(d - step_size * jnp.sign(slope), budget)
            return d, value, tree.norm(slope).astype(jnp.float32)

        zero = jnp.zeros((), jnp.float32)
        start = uniform(start_key, clean.shape, clean.dtype, budget)
        return lax.fori_loop(0, noise_steps, descend, (start, zero, zero))

    return noise


def _loss(victim: Victim, phi: TrainState, label: Any, weight: Any) -> Callable[[Array], Array]:
    """Image -> sum of CE by weight, in eval mode."""
    variables = lax.stop_gradient(phi.variables)

    def loss(image):
        logits, _ = victim.apply(variables, image, train=False)
        ce = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return jnp.sum(weight * ce)

    return loss


def _grey_levels(delta: Array, clean: Array, budget: Budget) -> Array:
    """The nearest whole grey levels inside the radius, then inside the box."""
    most = jnp.floor(255 * jnp.asarray(budget.eps, delta.dtype) + 1e-3)
    level = jnp.clip(jnp.round(255 * delta), -most, most)
    return project_linf(level / 255, clean, eps=budget.eps)


def _surrogate_rule(steps: int) -> optax.GradientTransformation:
    rate = optax.exponential_decay(0.1, max(1, int(DROP * steps)), 0.1, staircase=True)
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, 0.9))
