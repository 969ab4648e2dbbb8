"""Victims that start from a pretrained network: its last layer alone, or all of its weights.

The pretrained arrays are part of the data (`TransferSplit.start`), never of the program: one
compiled training serves every pretrained network of an architecture.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxpoison import check
from jaxpoison.data.manifest import tree_sha256
from jaxpoison.types import (
    Dataset,
    InputError,
    Split,
    Training,
    TrainState,
    Variables,
    Victim,
)
from jaxpoison.victims.checks import is_stacked
from jaxpoison.victims.head import (
    head_mask,
    new_head,
    part,
    partial_variables,
    partial_victim,
    whole_variables,
)
from jaxpoison.victims.parallel import everywhere
from jaxpoison.victims.recipe import Recipe
from jaxpoison.victims.store import Trained, load
from jaxpoison.victims.train import victim_training

__all__ = [
    "Transfer",
    "TransferSplit",
    "fine_tuning",
    "linear_transfer",
    "transfer",
    "transfer_training",
]

MODES = ("linear", "fine_tuning")


class TransferSplit(NamedTuple):
    """What a victim that starts from a pretrained network is trained and judged on.

    Attributes:
      train: the (poisoned) training set.
      test: held-out clean data; read by evaluation only.
      start: the pretrained network.
    """

    train: Dataset
    test: Dataset
    start: Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Transfer:
    """How a trainee uses a pretrained network; made by `transfer`.

    Attributes:
      mode: "linear" (`linear_transfer`) or "fine_tuning" (`fine_tuning`).
      start: the pretrained network.
    """

    mode: str
    start: Variables

    def facts(self) -> dict[str, str]:
        """The mode and the SHA-256 of the pretrained arrays, which bind a run folder to them."""
        return {"mode": self.mode, "start_sha256": tree_sha256(self.start)}

    def data(self, split: Split) -> TransferSplit:
        """The split with the pretrained network, as the trainings here take it."""
        return TransferSplit(split.train, split.test, self.start)


def transfer(
    mode: str,
    pretrained: Variables | Trained | str | os.PathLike[str],
    *,
    member: int | None = None,
) -> Transfer:
    """How a trainee uses a pretrained network.

    Args:
      mode: "linear" (`linear_transfer`) or "fine_tuning" (`fine_tuning`).
      pretrained: its arrays, what `load` returned, or a folder of `save`. Of another number of
        classes where the last layer is a new one.
      member: which one of a folder of several; None where there is one.

    Raises: InputError for another mode, as `load`, and for a member that is not there.
    """
    check.one_of(MODES, mode=mode)
    if isinstance(pretrained, str | os.PathLike):
        pretrained = load(pretrained)
    if not isinstance(pretrained, Trained):
        if member is not None:
            raise InputError("member is for saved victims; give the variables of one network")
        return Transfer(mode, pretrained)
    variables, num = pretrained.variables, pretrained.card.num
    if num is None:
        if member is not None:
            raise InputError(f"member = {member}; a single network is saved there")
        return Transfer(mode, variables)
    if member is None or not 0 <= member < num:
        raise InputError(f"member = {member}; {num} networks are saved there: 0 to {num - 1}")
    return Transfer(mode, jax.tree.map(lambda x: x[member], variables))


def transfer_training(
    mode: str | None,
    victim: Victim,
    recipe: Recipe,
    num_train: int,
    *,
    warm: bool = False,
    **options: Any,
) -> Training:
    """The training of a trainee, by the mode of its `Transfer`.

    Args:
      mode: "linear" or "fine_tuning", and the data are `Transfer.data(split)`; None is from scratch
        and the data are the split.
      victim: the network.
      recipe: how it is trained.
      num_train: N of the training sets it will see.
      warm: fine-tuning goes on with the last layer of the start, as victims do, instead of with a
        new one, as the clean surrogate does; the other modes do not read it.
      **options: accumulate, mesh and axis of `victim_training`.
    """
    check.one_of((None, *MODES), mode=mode)
    if mode is None:
        return victim_training(victim, recipe, num_train, **options)
    if mode == "linear":
        return linear_transfer(victim, recipe, num_train, **options)
    return fine_tuning(victim, recipe, num_train, warm=warm, **options)


def linear_transfer(
    victim: Victim,
    recipe: Recipe,
    num_train: int,
    *,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    axis: str = "batch",
) -> Training:
    """A new last layer on a frozen extractor: `victim_training` in which nothing else moves.

    z = head(features(x)), the whole network in eval mode (running BatchNorm statistics, which stay;
    no dropout). Gradient, momentum, weight decay and clipping are of the last layer's parameters
    alone (see `head_mask`), so a step costs a forward pass and the last layer's backward pass. The
    layer is drawn anew by the key of the run, also where the start has one of that shape.

    Args:
      victim: the network.
      recipe: how its last layer is trained; run it for `recipe.epochs` steps.
      num_train: N of the training sets it will see.
      accumulate: micro-batches per update.
      mesh: devices to spread each batch over; see `victims.training`.
      axis: name of its axis.

    Returns: Training over a `TransferSplit`; its TrainState is of the whole network, but for the
      optimizer's state.
    Raises: InputError as `victim_training`, for a recipe with batch statistics; on tracing, for a
      start of another extractor, a network without a last layer, sets that stay on disk.
    Source: Geiping et al. 2021, released code (data-poisoning), scenario "transfer"; Schwarzschild
      et al. 2021.
    """
    if recipe.statistics != "running":
        raise InputError(
            f"statistics = {recipe.statistics!r}; a frozen network is judged with running ones"
        )
    options: dict[str, Any] = {"accumulate": accumulate, "mesh": mesh, "axis": axis}
    victim_training(victim, recipe, num_train, **options)  # checks

    def init(key, data):
        image_shape = _on_device(data)
        variables = new_head(key, victim, data.start, image_shape=image_shape)
        own, _ = part(variables.params, head_mask(victim, image_shape))
        rule = recipe.optimizer_for(num_train)
        return everywhere(TrainState(variables.params, variables.stats, rule.init(own)), mesh)

    def step(key, phi, data):
        mask = head_mask(victim, _on_device(data))
        head = victim_training(partial_victim(victim, mask), recipe, num_train, **options)
        own = partial_variables(phi.variables, mask)
        inner = TrainState(own.params, own.stats, phi.opt_state)
        inner, info = head.step(key, inner, Split(data.train, data.test))
        variables = whole_variables(inner.variables, mask)
        return TrainState(variables.params, variables.stats, inner.opt_state), info

    return Training(init, step)


def fine_tuning(
    victim: Victim,
    recipe: Recipe,
    num_train: int,
    *,
    warm: bool = True,
    accumulate: int = 1,
    mesh: Mesh | None = None,
    axis: str = "batch",
) -> Training:
    """`victim_training` of all weights, from a pretrained network instead of fresh weights.

    Run it with a recipe of a low rate: `recipes.witches_brew_fine_tuning`.

    Args:
      victim: the network.
      recipe: how it is trained; run it for `recipe.epochs` steps.
      num_train: N of the training sets it will see.
      warm: whether the last layer starts from the pretrained network's too ("complete warm start",
        what victims do); else the key of the run draws a new one, which is how the clean
        fine-tuned surrogate is made of a network that was pretrained on other data.
      accumulate: micro-batches per update.
      mesh: devices to spread each batch over; see `victims.training`.
      axis: name of its axis.

    Returns: Training over a `TransferSplit`.
    Raises: InputError as `victim_training`; on tracing, for a start of another network, sets that
      stay on disk.
    Source: Geiping et al. 2021, released code (data-poisoning), scenario "finetuning".
    """
    options: dict[str, Any] = {"accumulate": accumulate, "mesh": mesh, "axis": axis}
    process = victim_training(victim, recipe, num_train, **options)

    def init(key, data):
        image_shape, variables = _on_device(data), data.start
        if not warm:
            variables = new_head(key, victim, variables, image_shape=image_shape)
        elif is_stacked(victim, variables):
            raise InputError("the start has a leading axis of networks; one network is needed")
        variables = jax.tree.map(jnp.array, variables)  # a copy: the loops donate their state
        rule = recipe.optimizer_for(num_train)
        return everywhere(
            TrainState(variables.params, variables.stats, rule.init(variables.params)), mesh
        )

    return Training(init, process.step)


def _on_device(data: Any) -> tuple[int, ...]:
    """The shape of the images, if the training set is in memory and has a start."""
    if not isinstance(data, TransferSplit):
        raise InputError("a pretrained network is needed: give a TransferSplit with its start")
    if not isinstance(data.train, Dataset):
        raise InputError("the training set stays on disk; transfer needs it in memory")
    return data.train.image.shape[1:]
