"""Checkpoints along one training run, kept on the device: an ensemble for the price of a run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxpoison import check
from jaxpoison.types import InputError, Training, TrainState, Variables

__all__ = ["Checkpointed", "checkpoint_epochs", "checkpoints_along"]


class Checkpointed(NamedTuple):
    """A run on its way.

    Attributes:
      phi: its training state.
      epoch: how many epochs it has trained.
      variables: the networks kept so far, leaves [M, ...]; those still to come are as at the start.
        `Scenario.aux` of an ensemble.
    """

    phi: TrainState
    epoch: Int[Array, ""]
    variables: Variables


def checkpoint_epochs(num: int, epochs: int) -> list[int]:
    """The epochs e_k = floor(k E / M), k = 1..M, after which a network is kept; the last is E.

    Raises: InputError for num or epochs < 1, or more checkpoints than epochs.
    """
    check.at_least(1, checkpoints=num, epochs=epochs)
    if num > epochs:
        raise InputError(f"checkpoints = {num}; a run of {epochs} epochs has at most {epochs}")
    return [k * epochs // num for k in range(1, num + 1)]


def checkpoints_along(training: Training, num: int, epochs: int) -> Training:
    """`training`, of whose single run M equidistant networks are kept.

    Args:
      training: one epoch a step; run the result for `epochs` steps too.
      num: M.
      epochs: E.

    Returns: a Training whose state is `Checkpointed` and whose info is that of `training`.
    Raises: InputError as `checkpoint_epochs`, and for restarts of a training.
    Cost: M copies of the network in memory.
    """
    after = np.asarray(checkpoint_epochs(num, epochs), np.int32)
    if training.single is not None:
        raise InputError("checkpoints are of one run: repeat checkpoints_along, not what it is of")

    def init(key, split) -> Any:
        phi = training.init(key, split)
        kept = jax.tree.map(lambda x: jnp.repeat(x[None], num, axis=0), phi.variables)
        return Checkpointed(phi, jnp.int32(0), kept)

    def step(key, state, split) -> Any:
        phi, info = training.step(key, state.phi, split)
        epoch = state.epoch + 1
        slot = jnp.searchsorted(after, epoch)
        slot = jnp.where(jnp.isin(epoch, after), slot, num)  # beyond the last: dropped
        kept = jax.tree.map(
            lambda all_, one: all_.at[slot].set(one, mode="drop"), state.variables, phi.variables
        )
        return Checkpointed(phi, epoch, kept), info

    return Training(init, step)
