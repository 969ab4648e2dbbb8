"""What victims make of an attacker's target images: classes, probabilities, losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax
from jaxtyping import Array, Float, Int, Num

from jaxpoison.types import InputError, Variables, Victim
from jaxpoison.victims.checks import stacked
from jaxpoison.victims.evaluate import logits

__all__ = ["OnTargets", "all_logits", "on_targets", "read_targets"]


class OnTargets(NamedTuple):
    """R victims on T targets; every array is [R], a mean over targets.

    Attributes:
      success: share of the targets that are classified as the attacker wants.
      intended: softmax probability of the wanted label.
      true: of the true label.
      intended_loss: cross-entropy to the wanted label, -log p.
      true_loss: to the true label.
    """

    success: Float[np.ndarray, " r"]
    intended: Float[np.ndarray, " r"]
    true: Float[np.ndarray, " r"]
    intended_loss: Float[np.ndarray, " r"]
    true_loss: Float[np.ndarray, " r"]


def on_targets(
    victim: Victim,
    variables: Variables,
    image: Num[Array | np.ndarray, "t h w c"],
    *,
    wanted: Int[Array | np.ndarray, " t"],
    true: Int[Array | np.ndarray, " t"],
    batch_size: int = 500,
    statistics: str = "running",
) -> OnTargets:
    """Victims of one or several seeds on target images, as they are after training.

    Args:
      victim: the network.
      variables: of one victim, or with a leading axis R.
      image: the targets, unmodified.
      wanted: labels that the attacker wants.
      true: their own labels.
      batch_size: as of `logits`, like `statistics`.
      statistics: "running" (eval mode) or "batch".

    Raises: InputError as `logits` and `read_targets`.
    """
    how = {"batch_size": batch_size, "statistics": statistics}
    return read_targets(all_logits(victim, stacked(victim, variables), image, **how), wanted, true)


def all_logits(
    victim: Victim,
    variables: Variables,
    image: Num[Array | np.ndarray, "n h w c"],
    *,
    batch_size: int = 500,
    statistics: str = "running",
) -> Float[np.ndarray, "r n l"]:
    """`logits` of R victims, one after another; variables have a leading axis R."""
    return np.asarray(_logits(victim, variables, jnp.asarray(image), batch_size, statistics))


def read_targets(
    scores: Float[Array | np.ndarray, "r t l"],
    wanted: Int[Array | np.ndarray, " t"],
    true: Int[Array | np.ndarray, " t"],
) -> OnTargets:
    """What logits of the targets say, in float64.

    Args:
      scores: of R victims on T targets.
      wanted: labels that the attacker wants.
      true: labels that the targets have.

    Raises: InputError for no target, or a label that has no logit.
    """
    scores = np.asarray(scores, np.float64)
    _, num, classes = scores.shape
    if not num:
        raise InputError("there are no targets")
    logs = scipy.special.log_softmax(scores, axis=2)
    log = {}
    for name, label in (("wanted", np.asarray(wanted)), ("true", np.asarray(true))):
        if label.min() < 0 or label.max() >= classes:
            raise InputError(
                f"{name} labels run from {label.min()} to {label.max()}; the network has "
                f"{classes} classes"
            )
        log[name] = np.take_along_axis(logs, label[None, :, None], axis=2)[:, :, 0]
    hit = scores.argmax(axis=2) == np.asarray(wanted)
    return OnTargets(
        hit.mean(axis=1),
        np.exp(log["wanted"]).mean(axis=1),
        np.exp(log["true"]).mean(axis=1),
        -log["wanted"].mean(axis=1),
        -log["true"].mean(axis=1),
    )


@jax.jit(static_argnums=(0, 3, 4))
def _logits(victim, variables, image, batch_size, statistics):
    options = {"batch_size": batch_size, "statistics": statistics}
    return lax.map(lambda one: logits(victim, one, image, **options), variables)
