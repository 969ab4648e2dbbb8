"""Trained victims on disk: their arrays as a checkpoint, and `victim.json`, which says whose.

    <path>/victim.json    network, image shape, classes, recipe, training set, versions, accuracy
    <path>/00000000/      the arrays (orbax) with the SHA-256 of every file

The folder is whole or absent, see `data.saved`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import check, models
from jaxpoison.data import saved
from jaxpoison.data.manifest import key_record, versions
from jaxpoison.data.verification import fingerprint
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.types import Dataset, InputError, Key, TrainState, Variables, Victim
from jaxpoison.victims.checks import is_stacked, num_logits
from jaxpoison.victims.contrastive import MoCoV3, SimCLR, as_dict, from_dict
from jaxpoison.victims.evaluate import Interval
from jaxpoison.victims.recipe import Recipe

__all__ = ["Card", "Trained", "load", "save"]

KIND = saved.Kind("victim.json", "saved victim")


@dataclasses.dataclass(frozen=True)
class Card:
    """Everything about saved victims but their arrays; `victim.json` has the same names.

    Attributes:
      network: its name in `models.create`; None for a network of the user's own.
      options: its keyword arguments there.
      image_shape: (H, W, C).
      num_classes: L.
      num: R victims with a leading axis, or None for a single one without.
      recipe: how they were trained, if known.
      contrastive: of a self-supervised pretraining its method; None of a supervised one.
      train: number of rows and SHA-256 of the arrays of the training set, if given.
      accuracy: clean test accuracy of each victim, if given.
      versions: package -> version at the time of saving.
      key: of the training, {"impl", "data"} as in a manifest, or an integer seed, if given.
    """

    network: str | None
    options: dict[str, Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    num: int | None
    recipe: Recipe | None
    train: dict[str, Any] | None
    accuracy: list[float] | None
    versions: dict[str, str]
    contrastive: SimCLR | MoCoV3 | None = None
    key: dict[str, Any] | int | None = None


class Trained(NamedTuple):
    """What `load` found.

    Attributes:
      victim: the network.
      variables: its arrays, as `Victim.apply`, `assess` and `Scenario.aux` take them.
      card: all else.
    """

    victim: Victim
    variables: Variables
    card: Card


def save(
    path: str | os.PathLike[str],
    state: TrainState | Variables,
    *,
    network: str | Victim,
    image_shape: Sequence[int],
    num_classes: int = 10,
    options: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    train: Dataset | None = None,
    accuracy: Interval | Sequence[float] | None = None,
    contrastive: SimCLR | MoCoV3 | None = None,
    key: Key | int | None = None,
) -> Card:
    """Stores trained victims, one or R with a leading axis; the optimizer's state is left out.

    Args:
      path: the folder to make; its parents are made too.
      state: as `run` of a training returns it, or the network's variables alone.
      network: its name in `models.create`, or a Victim of your own, which `load` then asks for.
      image_shape: (H, W, C).
      num_classes: L.
      options: keyword arguments of `models.create`: numbers, text, sequences of them, a dtype.
      recipe: how they were trained.
      train: the training set they saw; its hash is stored.
      accuracy: clean test accuracy of each, such as `Judgment.final_accuracy`.
      contrastive: the method, of networks pretrained self-supervised; give their own arrays
        (`victims.pretrained`).
      key: by which they were trained, or a seed.

    Returns: the Card.
    Errors: InputError for a network that the arrays are not of, an option that cannot be stored,
      an existing or unwritable path, a full disk; nothing is left behind then.
    """
    victim, name = _network(network, image_shape, num_classes, dict(options or {}))
    variables = state.variables if isinstance(state, TrainState) else state
    num = len(jax.tree.leaves(variables)[0]) if is_stacked(victim, variables) else None
    card = Card(
        name,
        saved.plain_options(options or {}),
        _checked_shape(victim, image_shape, num_classes),
        num_classes,
        num,
        recipe,
        None if train is None else fingerprint(train),
        _values(accuracy, num or 1),
        versions(),
        contrastive,
        key_record(key),
    )
    content: dict[str, Any] = dataclasses.asdict(card)
    if contrastive is not None:
        content["contrastive"] = as_dict(contrastive)
    saved.write(pathlib.Path(path), KIND, content, variables)
    return card


def load(path: str | os.PathLike[str], *, victim: Victim | None = None) -> Trained:
    """Trained victims as `save` left them; the arrays come to the default device.

    Args:
      path: the folder.
      victim: the network, where it is one of your own; it replaces one of `models.create`, as for
        another compute dtype.

    Errors: InputError, one line: nothing saved there, a damaged or changed file, a network that
      the arrays are not of, or no network for arrays of your own.
    """
    folder = pathlib.Path(path)
    card, seal = saved.read_card(folder, KIND, _card)
    if victim is None:
        if card.network is None:
            raise InputError(f"{folder} holds a network of your own; pass it as victim= of load")
        victim = models.create(card.network, card.image_shape, card.num_classes, **card.options)
    _checked_shape(victim, card.image_shape, card.num_classes)
    lead = () if card.num is None else (card.num,)
    shapes = jax.eval_shape(victim.init, jax.random.key(0))
    like = jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), shapes)
    return Trained(victim, saved.read_arrays(folder, seal, like), card)


def _network(
    network: str | Victim, image_shape: Sequence[int], num_classes: int, options: dict[str, Any]
) -> tuple[Victim, str | None]:
    """The network as `load` will make it, and its name, if it has one."""
    if isinstance(network, str):
        kept = saved.typed_options(saved.plain_options(options))
        return models.create(network, image_shape, num_classes, **kept), network
    if options:
        raise InputError("options are for a network of models.create; yours has its own")
    return network, None


def _checked_shape(
    victim: Victim, image_shape: Sequence[int], num_classes: int
) -> tuple[int, int, int]:
    """The image shape, if the network takes such images and gives that many logits."""
    height, width, channels = check_image_shape(image_shape)
    found = num_logits(victim, (height, width, channels))
    if found != num_classes:
        raise InputError(f"the network gives {found} logits; num_classes = {num_classes}")
    return height, width, channels


def _values(accuracy: Interval | Sequence[float] | None, num: int) -> list[float] | None:
    if accuracy is None:
        return None
    values = accuracy.values if isinstance(accuracy, Interval) else accuracy
    numbers = np.asarray(values, np.float64).reshape(-1).tolist()
    for number in numbers:
        check.fraction(accuracy=number)
    if len(numbers) != num:
        raise InputError(f"there are {len(numbers)} accuracies for {num} victims")
    return numbers


def _card(content: dict[str, Any]) -> Card:
    """The card that has these entries."""
    fields = content | {"options": saved.typed_options(content["options"])}
    if fields["recipe"] is not None:
        fields["recipe"] = Recipe(**{k: saved.tuples(v) for k, v in fields["recipe"].items()})
    if fields.get("contrastive") is not None:  # absent in folders of before
        fields["contrastive"] = from_dict(fields["contrastive"])
    return Card(**fields | {"image_shape": tuple(content["image_shape"])})
