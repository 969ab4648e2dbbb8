"""Adversarial training: PGD, and losses of what it finds (Madry et al., TRADES), as defenses.

The attack of a step is an inner maximization whose result is a constant: no gradient flows through
it, whatever the loss is differentiated with respect to.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check, tree
from jaxpoison.perturb import Budget, project, project_linf
from jaxpoison.perturb.initial import Draw, check_initial
from jaxpoison.types import (
    Dataset,
    InputError,
    Key,
    Learner,
    TrainingDefense,
    Variables,
    Victim,
    as_float,
)
from jaxpoison.victims.checks import stacked
from jaxpoison.victims.evaluate import Assessment, checked_assessment, confusion
from jaxpoison.victims.learner import cross_entropy, learner, row_losses

__all__ = [
    "adversarial",
    "adversarial_learner",
    "assess_robust",
    "pgd",
    "trades",
    "trades_learner",
]

NORMS = ("linf", "l2")
STEP_NORMAL = "step_normal"
STARTS = ("zero", "uniform", "normal", STEP_NORMAL)
STEP_PER_EPS = 1 / 4  # GUE's code, both of its attacks; 2/255 at 8/255 as in Madry et al.
TRADES_START = 0.01  # standard deviation of the Gaussian start, pixel units


def pgd(
    key: Key,
    loss: Callable[[Array], Array],
    image: Float[Array, "b h w c"],
    *,
    eps: float | Float[Array, ""],
    step_size: float | Float[Array, ""] | None = None,
    steps: int = 10,
    start: str | Draw = "uniform",
    norm: str = "linf",
) -> Float[Array, "b h w c"]:
    """Projected steepest ascent in the L-infinity or L2 ball: delta, about argmax of a loss.

    delta_0 = clip(x + d, 0, 1) - x,  d drawn by `start`;
    delta <- P(delta + step_size u(g)),  g = d loss(x + delta) / d delta,  P onto ball and box,
    u(g) = sign(g) for "linf",  g / ||g||_2 of every image for "l2" (0 where g is 0).

    As in the published codes the start is put into the box alone; the ball is first enforced by the
    projection of step 1.

    Args:
      key: of the start.
      loss: image [B, H, W, C] -> scalar, to be maximized; its scale does not matter.
      image: x, float in [0, 1].
      eps: radius, pixel units; may be traced.
      step_size: pixel units, length of a step in that norm; None is eps / 4.
      steps: K, at least 1.
      start: "uniform" in the ball, "zero", "normal" (eps N(0, I)), "step_normal" (step_size
        N(0, I)), or (key, shape, dtype, budget) -> d, as of `perturb.per_sample`.
      norm: of the ball, "linf" or "l2" (over all H W C entries of an image).

    Returns: delta [B, H, W, C], ||delta|| <= eps and x + delta in [0, 1], detached: a constant to
      every derivative.
    Raises: InputError for a bad value, named.
    Cost: K forward and backward passes to the images, in one loop.
    Source: Madry et al. 2018, section 2.1; L2 as in APBench's code.
    """
    budget, step_size, draw = _checked(eps, step_size, steps, start, norm)
    image = lax.stop_gradient(image)
    step = lax.stop_gradient(jnp.asarray(step_size, image.dtype))
    if draw == STEP_NORMAL:
        first = step * jax.random.normal(key, image.shape, image.dtype)
    else:
        first = draw(key, image.shape, image.dtype, budget)
    ahead = jnp.sign if norm == "linf" else _unit

    def climb(_, delta):
        slope = jax.grad(lambda d: loss(image + d))(delta)
        return project(delta + step * ahead(slope), image, budget)

    delta = lax.fori_loop(0, steps, climb, project_linf(first, image, eps=1.0))
    return lax.stop_gradient(delta)


def adversarial(
    *,
    eps: float | Float[Array, ""] = 8 / 255,
    step_size: float | Float[Array, ""] | None = None,
    steps: int = 10,
    start: str | Draw = "uniform",
    norm: str = "linf",
    train_mode: bool = False,
) -> TrainingDefense:
    """Adversarial training (PGD-AT): the losses of adversarial examples alone.

    l_i = CE(f(x_i + delta_i), y_i), f in train mode;  delta from `pgd` on the same losses, the
    network in eval mode (running statistics, no dropout) meanwhile. Running statistics move by the
    one forward pass of the update.

    Args:
      eps: radius of the examples, pixel units; of "l2" 0.25 to 0.75 are usual on CIFAR-10.
      step_size: pixel units; None is eps / 4.
      steps: of `pgd`, at least 1.
      start: of `pgd`; D-VAE's code starts by "step_normal".
      norm: of the radius, "linf" or "l2".
      train_mode: attack with the network in train mode instead (batch statistics, one dropout mask
        for all steps).

    Returns: a TrainingDefense. Of losses other than the cross-entropy, such as those of mixed
      images, it attacks these, with the draws of the update. Logits, and so the accuracy in train
      mode, are of the adversarial examples. Differentiable in the images too, through x + delta
      with delta constant.
    Raises: InputError for a bad value, named.
    Cost: K + 1 times the passes of a step.
    Source: Madry et al. 2018, eq. 2.1; constants and modes of GUE's code, evaluation.py.
    """
    options = _attack(eps, step_size, steps, start, norm)

    def defense(losses):
        def changed(victim, key, variables, batch):
            attack_key, mask_key, key = jax.random.split(key, 3)
            fixed = lax.stop_gradient(variables)
            mode: dict[str, Any] = {"train": True, "key": mask_key} if train_mode else {}

            def look(variables, image, *, train, key=None):
                del train, key
                return victim.apply(variables, image, **(mode or {"train": False}))

            def attacked(image):
                looking = victim._replace(apply=look)
                return jnp.sum(losses(looking, key, fixed, batch._replace(image=image))[0])

            delta = pgd(attack_key, attacked, batch.image, **options)
            return losses(victim, key, variables, batch._replace(image=batch.image + delta))

        return changed

    return defense


def adversarial_learner(
    victim: Victim,
    tx: optax.GradientTransformation,
    *,
    eps: float | Float[Array, ""],
    step_size: float | Float[Array, ""] | None = None,
    steps: int = 10,
    start: str | Draw = "uniform",
    norm: str = "linf",
    train_mode: bool = False,
    accumulate: int = 1,
) -> Learner:
    """`victims.learner` by `adversarial` training.

    Args:
      victim: the network.
      tx: as of `learner`, like `accumulate`.
      eps: as of `adversarial`, like what follows.
      step_size: likewise.
      steps: likewise.
      start: likewise.
      norm: likewise.
      train_mode: likewise.
      accumulate: micro-batches per update.

    Raises: InputError for a bad value, named.
    """
    attack: dict[str, Any] = {"step_size": step_size, "steps": steps, "start": start, "norm": norm}
    defense = adversarial(eps=eps, train_mode=train_mode, **attack)
    return learner(victim, tx, accumulate=accumulate, losses=defense(cross_entropy))


def trades(
    *,
    eps: float | Float[Array, ""] = 4 / 255,
    step_size: float | Float[Array, ""] | None = None,
    steps: int = 10,
    start: str | Draw | None = None,
    norm: str = "linf",
    beta: float | Float[Array, ""] = 1.0,
) -> TrainingDefense:
    """The TRADES objective: clean accuracy, and the same answer nearby.

    l_i = CE(z_i, y_i) + beta KL(p_i || q_i),  KL = sum_k p_ik (log p_ik - log q_ik),
    p = softmax(z), z = f(x), q = softmax(f(x + delta)).

    One forward pass in train mode over the 2B rows [x; x + delta], normalized together; running
    statistics move by it alone. Gradients reach parameters and images through both branches (p is
    not detached). delta is constant: `pgd` on the KL with p detached, the network in train mode
    (statistics of the B rows it is given, one dropout mask for all steps).

    Args:
      eps: radius of delta, pixel units.
      step_size: pixel units; None is eps / 4.
      steps: of `pgd`, at least 1.
      start: of `pgd`; None is 0.01 N(0, I). Never "zero": there the divergence has no gradient.
      norm: of the radius, "linf" or "l2".
      beta: weight of the divergence, at least 0.

    Returns: a TrainingDefense of the cross-entropy alone: of several, the last. Logits are of x.
    Raises: InputError for a bad value, named; for other losses than the cross-entropy.
    Cost: K + 1 forward and K backward passes of B rows, then both of 2B rows.
    Source: Zhang et al. 2019, eq. 5; modes and constants of GUE's code, gue_adv.py. Differs from
      it: passes of the attack leave running statistics alone.
    """
    if start == "zero":
        raise InputError("start = 'zero'; the divergence that TRADES climbs has no gradient there")
    options = _attack(eps, step_size, steps, _trades_start if start is None else start, norm)
    check.number(least=0, beta=beta)

    def defense(losses):
        if losses is not cross_entropy:
            raise InputError("TRADES is a loss of its own; of several defenses it must be the last")

        def changed(victim, key, variables, batch):
            attack_key, mask_key, key = jax.random.split(key, 3)
            fixed = lax.stop_gradient(variables)

            def log_softmax(image):
                return jax.nn.log_softmax(victim.apply(fixed, image, train=True, key=mask_key)[0])

            reference = log_softmax(lax.stop_gradient(batch.image))

            def divergence(image):
                return jnp.sum(_divergence(log_softmax(image), reference))

            delta = pgd(attack_key, divergence, batch.image, **options)
            both = jnp.concatenate([batch.image, batch.image + delta])
            scores, stats = victim.apply(variables, both, train=True, key=key)
            clean, near = jnp.split(scores, 2)
            drift = _divergence(jax.nn.log_softmax(near), jax.nn.log_softmax(clean))
            return row_losses(clean, batch) + beta * drift, (clean, stats)

        return changed

    return defense


def trades_learner(
    victim: Victim,
    tx: optax.GradientTransformation,
    *,
    eps: float | Float[Array, ""] = 4 / 255,
    step_size: float | Float[Array, ""] | None = None,
    steps: int = 10,
    start: str | Draw | None = None,
    norm: str = "linf",
    beta: float | Float[Array, ""] = 1.0,
    accumulate: int = 1,
) -> Learner:
    """`victims.learner` on the `trades` objective.

    Args:
      victim: the network.
      tx: as of `learner`, like `accumulate`.
      eps: as of `trades`, like what follows.
      step_size: likewise.
      steps: likewise.
      start: likewise.
      norm: likewise.
      beta: likewise.
      accumulate: micro-batches per update.

    Raises: InputError for a bad value, named.
    """
    attack: dict[str, Any] = {"step_size": step_size, "steps": steps, "start": start, "norm": norm}
    defense = trades(eps=eps, beta=beta, **attack)
    return learner(victim, tx, accumulate=accumulate, losses=defense(cross_entropy))


def assess_robust(
    key: Key,
    victim: Victim,
    variables: Variables,
    dataset: Dataset,
    *,
    eps: float | Float[Array, ""],
    step_size: float | Float[Array, ""] | None = None,
    steps: int = 10,
    start: str | Draw = "uniform",
    norm: str = "linf",
    batch_size: int = 500,
) -> Assessment:
    """`assess` on the PGD examples of every victim, made against itself: robust accuracy.

    One run of `pgd` on the cross-entropy, victim in eval mode: an upper bound on the accuracy under
    any attack of that radius.

    Args:
      key: of the starts; folded by victim and batch.
      victim: the network.
      variables: of one trained victim, or of R with a leading axis.
      dataset: clean images and labels.
      eps: radius, pixel units.
      step_size: as of `pgd`, like what follows.
      steps: K.
      start: where the attack begins.
      norm: of the radius.
      batch_size: rows at a time.

    Returns: the Assessment; accuracy is the share still classified as labeled.
    Raises: InputError for a bad value, named, and as `assess`.
    Cost: K + 1 forward and K backward passes over the set per victim.
    """
    budget, step_size, draw = _checked(eps, step_size, steps, start, norm)
    check.at_least(1, batch_size=batch_size, **{"number of images": len(dataset.label)})
    sizes = jnp.float32(budget.eps), jnp.float32(step_size)
    several = stacked(victim, variables)
    counts = _robust_counts(victim, steps, draw, norm, batch_size, key, several, dataset, *sizes)
    return checked_assessment(counts, dataset)


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
_divergence = optax.losses.kl_divergence_with_log_targets  # (log q, log p) -> KL(p || q) [B]


def _trades_start(key: Key, shape: tuple[int, ...], dtype: Any, budget: Budget) -> Array:
    del budget
    return TRADES_START * jax.random.normal(key, shape, dtype)


def _unit(slope: Array) -> Array:
    """Every image's gradient at length 1; zero stays."""
    largest = jnp.max(jnp.abs(slope), axis=(1, 2, 3), keepdims=True)
    slope = slope / jnp.where(largest > 0, largest, 1)  # squares of small ones vanish
    length = jnp.sqrt(jnp.sum(slope**2, axis=(1, 2, 3), keepdims=True))
    return slope / jnp.where(length > 0, length, 1)


def _attack(eps: Any, step_size: Any, steps: int, start: str | Draw, norm: str) -> dict[str, Any]:
    """The options of `pgd`, checked before a learner is built."""
    _checked(eps, step_size, steps, start, norm)
    return {"eps": eps, "step_size": step_size, "steps": steps, "start": start, "norm": norm}


def _checked(
    eps: Any, step_size: Any, steps: int, start: Any, norm: str
) -> tuple[Budget, Any, Any]:
    """(budget, step size, what draws the start, or `STEP_NORMAL`)."""
    check.one_of(NORMS, norm=norm)
    budget = Budget(norm, eps)
    check.at_least(1, steps=steps)
    if step_size is None:
        step_size = STEP_PER_EPS * budget.eps
    else:
        check.positive(step_size=step_size)
    return budget, step_size, check_start(start)


def check_start(start: Any) -> Any:
    """What draws the start of `pgd`, or `STEP_NORMAL`, whose size is that of a step."""
    if isinstance(start, str):
        check.one_of(STARTS, start=start)
    return start if start == STEP_NORMAL else check_initial(start)


@jax.jit(static_argnums=(0, 1, 2, 3, 4))
def _robust_counts(victim, steps, draw, norm, batch_size, key, several, dataset, eps, step_size):
    """Counts [R, L, L] on PGD examples, true class by predicted class."""
    options = {"eps": eps, "step_size": step_size, "steps": steps, "start": draw, "norm": norm}
    (image, label), _ = tree.batches((dataset.image, dataset.label), batch_size)

    def of_victim(job):
        r, variables = job

        def predicted(batch):
            b, image, label = batch

            def attacked(x):
                return jnp.sum(_cross_entropy(victim.apply(variables, x, train=False)[0], label))

            image = as_float(image)
            batch_key = jax.random.fold_in(jax.random.fold_in(key, r), b)
            image = image + pgd(batch_key, attacked, image, **options)
            return victim.apply(variables, image, train=False)[0]

        scores = lax.map(predicted, (jnp.arange(label.shape[0]), image, label))
        scores = scores.reshape(-1, scores.shape[-1])[: len(dataset.label)]
        return confusion(dataset.label, jnp.argmax(scores, axis=1), scores.shape[1])

    return lax.map(of_victim, (jnp.arange(jax.tree.leaves(several)[0].shape[0]), several))
