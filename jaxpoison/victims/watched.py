"""A victim whose reading of some images is noted after every epoch, as attackers of a target do."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from jaxpoison.types import Dataset, Training, Victim
from jaxpoison.victims.evaluate import targeted

__all__ = ["Watched", "WatchedInfo", "watched"]


class Watched(NamedTuple):
    """What a watched victim is trained and judged on.

    Attributes:
      data: of its training: a Split, or a TransferSplit.
      targets: images with the labels that an attacker wants for them.
    """

    data: Any
    targets: Dataset


class WatchedInfo(NamedTuple):
    """Diagnostics of one epoch: those of `EpochInfo`, and two after the epoch on the targets.

    Attributes:
      outer_loss: as there, like all up to `test_accuracy`.
      grad_norm: as there.
      finite: as there.
      train_accuracy: as there.
      test_accuracy: as there.
      success: share of the targets that are classified as wanted.
      intended: mean probability of the wanted label.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    train_accuracy: Float[Array, "..."]
    test_accuracy: Float[Array, "..."]
    success: Float[Array, "..."]
    intended: Float[Array, "..."]


def watched(process: Training, victim: Victim) -> Training:
    """`process` over a `Watched`: the same training, and one look at the targets after each epoch.

    In eval mode with running statistics; it costs a forward pass of the targets.

    Args:
      process: one victim's training, from `victim_training` or the like; repeat the result, with
        `over_restarts` or `spread`, not what it is made of.
      victim: its network.
    """

    def init(key, data):
        return process.init(key, data.data)

    def step(key, phi, data):
        phi, info = process.step(key, phi, data.data)
        success, intended = targeted(victim, phi.variables, data.targets)
        return phi, WatchedInfo(**info._asdict(), success=success, intended=intended)

    return Training(init, step)
