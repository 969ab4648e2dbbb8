"""SEP, self-ensemble protection (Chen et al. 2023): examples against checkpoints of one run.

min_{|delta_i| <= eps}  (1/M) sum_k l_k(x_i + delta_i),  t_i = (y_i + L // 2) mod L

  SEP  l_k(x) = CE(f_k(x), t_i)
  FA   l_k(x) = mean_d (h_k(x) - m_k[t_i])_d^2,  m_k[c] = mean of h_k over clean images of class c

Threat model: training images may change within eps, labels stay; f_1..f_M (features h_k) are
equidistant checkpoints of one training run on clean data (`victims.checkpoints_along`, by
`victims.recipes.sep_surrogate`). FA-VR takes the FA loss by variance-reduced steps. As in the paper
and its code, but that every feature of FA-VR is of the checkpoint that was drawn (there in one
place of the last one), and that noise and image box are projected jointly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check, tree
from jaxpoison.attacks.bilevel import bilevel, of_classes
from jaxpoison.ensemble import over_ensemble
from jaxpoison.hypergrad import loss_at_surrogate, rowwise_loss
from jaxpoison.perturb import Budget, per_sample, project_linf
from jaxpoison.types import Attack, Dataset, Hypergrad, Scenario, Variables, Victim, as_float

__all__ = ["feature_alignment", "self_ensemble"]

STEP_SIZE = 1 / 255  # 30 steps
SEP, FA, FA_VR = 30, 30, 15  # checkpoints


def self_ensemble(
    victim: Victim,
    *,
    num_classes: int,
    eps: float | Float[Array, ""] = 2 / 255,
    checkpoints: int = SEP,
    step_size: float | Float[Array, ""] = STEP_SIZE,
    batch_size: int = 512,
) -> Attack:
    """SEP: x <- P(x - step_size sign((1/M) sum_k grad CE(f_k(x), t))) from x; run it for 30 steps.

    Args:
      victim: the surrogate network; `scenario.aux` are Variables of M checkpoints of it, stacked on
        a leading axis, or of c M, of which every c-th is taken and so the last.
      num_classes: L; the target class is L // 2 further on.
      eps: L-infinity radius, pixel units; 2/255 as in the code, 8/255 in comparisons.
      checkpoints: M.
      step_size: pixel units.
      batch_size: rows of one pass; changes memory only.

    Returns: an Attack; `outer_loss` is the mean loss above, before the step.
    Raises: InputError for a bad value, named; at init for an aux that is not M networks, or an
      empty `scenario.index`.
    Cost: M forward and backward passes over the rows per step.
    Source: Chen et al. 2023, section 3, and released code (ens.py).
    """

    def loss(key, variables, image, label):
        del key
        logits, _ = victim.apply(variables, image, train=False)
        ce = optax.softmax_cross_entropy_with_integer_labels
        return ce(logits, _target(label, num_classes))

    budget = _checked(eps, num_classes, checkpoints, step_size, batch_size)
    mean = _over_checkpoints(loss, None, budget, checkpoints, batch_size)
    attack = bilevel(per_sample(budget), mean, optax.sign_sgd(step_size))
    return attack._replace(check=of_classes(num_classes, victim))


def feature_alignment(
    victim: Victim,
    *,
    num_classes: int,
    variance_reduced: bool = False,
    eps: float | Float[Array, ""] = 2 / 255,
    checkpoints: int | None = None,
    step_size: float | Float[Array, ""] = STEP_SIZE,
    inner_steps: int = 15,
    batch_size: int = 512,
) -> Attack:
    """FA, and with `variance_reduced` FA-VR: features toward the target class' clean mean.

    FA steps as `self_ensemble`. A step of FA-VR, a = step_size, P onto ball and box:

      g_k = grad l_k(x),  g = (1/M) sum_k g_k,  G = 0,  v = x
      K times:  k ~ U{1..M};  G <- G + grad l_k(v) - (g_k - g);  v <- P(v - a sign(G))
      x <- P(x - a sign(G))

    with one draw of k for each batch of rows.

    Args:
      victim: as in `self_ensemble`, like all that is not named here.
      num_classes: L.
      variance_reduced: FA-VR instead of FA.
      eps: L-infinity radius, pixel units.
      checkpoints: M; None is 30 for FA, 15 for FA-VR.
      step_size: a, pixel units.
      inner_steps: K of FA-VR.
      batch_size: rows of one pass; of FA-VR also those that share their draws (its gradients of
        all M checkpoints are held for so many rows).

    Returns: an Attack; `outer_loss` is the mean loss before the step. A class without a clean image
      has no mean: the run is not finite where it is a target.
    Raises: InputError as `self_ensemble`.
    Cost: M passes over the rows per step, of FA-VR M + K.
    Source: Chen et al. 2023, section 3, and released code (ens_feature.py, ens_feature_svre.py).
    """
    check.at_least(1, inner_steps=inner_steps)
    if checkpoints is None:
        checkpoints = FA_VR if variance_reduced else FA
    budget = _checked(eps, num_classes, checkpoints, step_size, batch_size)

    def loss(key, phi, image, label):
        del key
        wanted = phi.mean[_target(label, num_classes)]
        return jnp.mean(jnp.square(victim.features(phi.variables, image) - wanted), axis=1)

    def prepare(variables, scenario):
        means = _class_means(victim, variables, scenario.train, num_classes, batch_size)
        return _Aligned(variables, means)

    rule = _over_checkpoints(loss, prepare, budget, checkpoints, batch_size)
    if variance_reduced:
        rule = _variance_reduced(
            rule, loss, budget, checkpoints, step_size, inner_steps, batch_size
        )
    attack = bilevel(per_sample(budget), rule, optax.sign_sgd(step_size))
    return attack._replace(check=of_classes(num_classes, victim))


class _Aligned(NamedTuple):
    """A checkpoint and the mean features of its clean classes [L, D]."""

    variables: Variables
    mean: Float[Array, "..."]


def _checked(eps, num_classes, checkpoints, step_size, batch_size) -> Budget:
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, checkpoints=checkpoints, batch_size=batch_size)
    check.positive(step_size=step_size)
    return Budget("linf", eps)


def _over_checkpoints(
    loss: Callable[..., Array], prepare: Any, budget: Budget, num: int, batch_size: int
) -> Hypergrad:
    """The mean gradient at `num` of the networks in aux, which only `init` reads."""
    outer_loss = rowwise_loss(loss, per_sample(budget), batch_size=batch_size)
    member = loss_at_surrogate(outer_loss, prepare=prepare)
    stacked = over_ensemble(member, num, aux_axis=0)

    def every(x):
        found = jnp.shape(x)[:1]
        return x[found[0] // num - 1 :: found[0] // num] if found and not found[0] % num else x

    def init(key, scenario):
        return stacked.init(key, scenario._replace(aux=jax.tree.map(every, scenario.aux)))

    def estimate(key, theta, phi, scenario):
        return mean.estimate(key, theta, phi, scenario._replace(aux=()))

    mean = over_ensemble(member, num)
    return Hypergrad(init, estimate)


def _target(label, num_classes: int):
    return (label + num_classes // 2) % num_classes


def _class_means(
    victim: Victim, variables: Variables, train: Dataset, num_classes: int, batch_size: int
) -> Float[Array, "l d"]:
    """Mean features of the clean images of each class; NaN for a class without any."""

    def sums(batch):
        (image, label), weight = batch
        member = jax.nn.one_hot(label, num_classes, dtype=weight.dtype) * weight[:, None]
        features = victim.features(variables, as_float(image))
        total = jnp.matmul(member.T, features, precision=lax.Precision.HIGHEST)
        return total, jnp.sum(member, axis=0)

    total, count = lax.map(sums, tree.batches((train.image, train.label), batch_size))
    return jnp.sum(total, axis=0) / jnp.sum(count, axis=0)[:, None]


def _variance_reduced(
    mean: Hypergrad,
    loss: Callable[..., Array],
    budget: Budget,
    num: int,
    step_size: Any,
    inner_steps: int,
    batch_size: int,
) -> Hypergrad:
    """G of `feature_alignment`, batch of rows by batch; phi are the checkpoints of `mean`."""

    def estimate(key, theta, phi, scenario: Scenario):
        rows = scenario.index
        clean, label = as_float(scenario.train.image[rows]), scenario.train.label[rows]

        def one(job):
            number, (clean, label, delta), weight = job

            def value_and_grad(member, delta):
                def total(delta):
                    return jnp.sum(weight * loss(key, member, clean + delta, label))

                return jax.value_and_grad(total)(delta)

            values, at_start = lax.map(lambda member: value_and_grad(member, delta), phi)
            gradient = jnp.mean(at_start, axis=0)
            drawn = jax.random.randint(jax.random.fold_in(key, number), (inner_steps,), 0, num)

            def inner(carry, k):
                total, v = carry
                slope = value_and_grad(tree.take(phi, k), v)[1]
                total = total + slope - (at_start[k] - gradient)
                stepped = v - step_size * jnp.sign(total)
                return (total, project_linf(stepped, clean, eps=budget.eps)), None

            (total, _), _ = lax.scan(inner, (jnp.zeros_like(delta), delta), drawn)
            return total, jnp.mean(values)

        batches, weight = tree.batches((clean, label, theta), batch_size)
        totals, values = lax.map(one, (jnp.arange(len(weight)), batches, weight))
        total = totals.reshape(-1, *theta.shape[1:])[: len(rows)]
        return total, phi, jnp.sum(values) / len(rows)

    return Hypergrad(mean.init, estimate)
