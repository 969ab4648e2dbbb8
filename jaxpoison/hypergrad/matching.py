"""Gradient matching: training on the poisons shall move a network as the attacker's loss would."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxpoison import check, tree
from jaxpoison.hypergrad.matching_losses import LOSSES, TARGET_LOSSES
from jaxpoison.types import Objective, Variables, Victim, as_float
from jaxpoison.victims import head_mask

__all__ = ["matching"]


def matching(
    victim: Victim,
    *,
    loss: str = "similarity",
    target_loss: str = "cross_entropy",
    targets: str = "mean",
    params: str = "all",
    centreg: float = 0.0,
    normreg: float = 0.0,
) -> Objective:
    """B = l(t, p) + centreg CE + normreg ||p||, by default 1 - <t, p> / (||t|| ||p||).

    t = d mean_j L(f(x_t^j), y^j) / d params,  p = d CE / d params,  CE = mean_i CE(f(x_i), y_i) of
    the poisons x_i. The network is in eval mode: running statistics are constants, no dropout. With
    v = dB/dp held constant, the image gradient is one Hessian-vector product,

        dB/dx = d/ds  d CE_{params + s v} / dx  at s = 0  (+ centreg d CE / dx, its primal),

    taken forward over reverse: no second reverse pass. v has length 1 in that pass and its own
    length afterwards, so that small gradients survive a network that computes in bfloat16.

    Args:
      victim: the surrogate network.
      loss: l, a name in `matching_losses.LOSSES`: "similarity"; "top5-", "top10-",
        "top20-similarity"; "similarity-narrow", "scalar_product", "cosine1", "SE", "MSE".
      target_loss: L, a name in `matching_losses.TARGET_LOSSES`: "cross_entropy" or "margin"
        (Carlini and Wagner) to the labels of `scenario.goal`, those that the attacker wants;
        "untargeted", minus the cross-entropy to them: the goal then holds the true labels.
      targets: "mean", one t of all targets; "each", one t_j per target and the sum of l(t_j, p).
      params: "all", or "head": t and p of the last layer alone (linear transfer).
      centreg: weight of the poisons' own loss, to keep them well classified.
      normreg: weight of ||p||.

    Returns: an Objective whose aim is t, a list of tensors.
    Raises: InputError for a bad value, named; when called, for a network without a last layer where
      that is needed ("head", "similarity-narrow").
    Cost: 7 forward passes of the poisons.
    Source: Geiping et al. 2021, equation 3 and released code; "each" its successor's
      gradient-matching-mt.
    """
    check.one_of(LOSSES, loss=loss)
    check.one_of(TARGET_LOSSES, target_loss=target_loss)
    check.one_of(("mean", "each"), targets=targets)
    check.one_of(("all", "head"), params=params)
    check.number(least=0, centreg=centreg, normreg=normreg)
    distance, goal_loss = LOSSES[loss], TARGET_LOSSES[target_loss]

    def chosen(variables, image):
        """The tensors that count, how to put them back, and which of them are the last layer."""
        leaves, structure = jax.tree.flatten(variables.params)
        last = [False] * len(leaves)
        if params == "head" or loss == "similarity-narrow":
            last = jax.tree.leaves(head_mask(victim, image.shape[1:]))
        counts = last if params == "head" else [True] * len(leaves)

        def variables_of(tensors):
            new = iter(tensors)
            full = [next(new) if c else old for c, old in zip(counts, leaves, strict=True)]
            return Variables(jax.tree.unflatten(structure, full), variables.stats)

        own = [leaf for leaf, c in zip(leaves, counts, strict=True) if c]
        return own, variables_of, [x for x, c in zip(last, counts, strict=True) if c]

    def aim(key, variables, scenario):
        del key
        image, label = as_float(scenario.goal.image), scenario.goal.label
        own, variables_of, _ = chosen(variables, image)

        def gradient(batch):
            def mean_loss(own):
                logits, _ = victim.apply(variables_of(own), batch[0], train=False)
                return jnp.mean(goal_loss(logits, batch[1]))

            return jax.grad(mean_loss)(own)

        if targets == "mean":
            return gradient((image, label))
        return lax.map(gradient, (image[:, None], label[:, None]))

    def value_and_grad(key, variables, aim, batch, scenario):
        del key, scenario
        own, variables_of, last = chosen(variables, batch.image)

        def poison_loss(own, image):
            logits, _ = victim.apply(variables_of(own), image, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.label)
            return jnp.mean(losses)

        def match(p):
            if targets == "mean":
                value = distance(aim, p, last)
            else:
                value = jnp.sum(jax.vmap(lambda t: distance(t, p, last))(aim))
            return value if _off(normreg) else value + normreg * tree.norm(p)

        own_loss, p = jax.value_and_grad(poison_loss)(own, batch.image)
        value, direction = jax.value_and_grad(match)(p)
        length = tree.norm(direction)
        unit = [x / jnp.where(length > 0, length, 1).astype(x.dtype) for x in direction]
        slope, mixed = jax.jvp(
            lambda own: jax.grad(poison_loss, 1)(own, batch.image), (own,), (unit,)
        )
        gradient = length.astype(mixed.dtype) * mixed
        if _off(centreg):
            return value, gradient
        return value + centreg * own_loss, gradient + centreg * slope

    return Objective(aim, value_and_grad)


def _off(weight: Any) -> bool:
    """Whether a term needs no code: its weight is a plain zero, not a traced number."""
    return not isinstance(weight, jax.core.Tracer) and float(weight) == 0
