"""Trained victims on disk: their arrays as a checkpoint, and `victim.json`, which says whose.

    <path>/victim.json    network, image shape, classes, recipe, training set, versions, accuracy
    <path>/00000000/      the arrays (orbax) with the SHA-256 of every file

The folder is filled under a temporary name and renamed, so it is whole or absent. No pickle.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import check, checkpoint, hosts, models
from jaxpoison.data.manifest import as_json, leftovers, versions
from jaxpoison.data.verification import fingerprint
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.types import Dataset, InputError, TrainState, Variables, Victim
from jaxpoison.victims.evaluate import Interval, is_stacked
from jaxpoison.victims.recipe import Recipe

__all__ = ["Card", "Trained", "load", "save"]

SCHEMA = 1
CARD = "victim.json"


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
      train: number of rows and SHA-256 of the arrays of the training set, if given.
      accuracy: clean test accuracy of each victim, if given.
      versions: package -> version at the time of saving.
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

    Returns: the Card.
    Errors: InputError for a network that the arrays are not of, an option that cannot be stored,
      an existing or unwritable path, a full disk; nothing is left behind then.
    """
    target = pathlib.Path(path)
    victim, name = _network(network, image_shape, num_classes, dict(options or {}))
    variables = state.variables if isinstance(state, TrainState) else state
    num = len(jax.tree.leaves(variables)[0]) if is_stacked(victim, variables) else None
    card = Card(
        name,
        _plain_options(options or {}),
        _checked_shape(victim, image_shape, num_classes),
        num_classes,
        num,
        recipe,
        None if train is None else fingerprint(train),
        _values(accuracy, num or 1),
        versions(),
    )
    content = {"schema": SCHEMA} | as_json(dataclasses.asdict(card), CARD)
    with _placed(target) as staging:
        seal = checkpoint.sealed(content)
        hosts.first(lambda: checkpoint.write_json(staging / CARD, seal))
        checkpoint.save(staging, 0, variables, notes={"card": seal["sha256"]})
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
    card, seal = _read(folder)
    if victim is None:
        if card.network is None:
            raise InputError(f"{folder} holds a network of your own; pass it as victim=")
        victim = models.create(card.network, card.image_shape, card.num_classes, **card.options)
    _checked_shape(victim, card.image_shape, card.num_classes)
    lead = () if card.num is None else (card.num,)
    shapes = jax.eval_shape(victim.init, jax.random.key(0))
    like = jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), shapes)
    try:
        found = checkpoint.restore(folder, like, read=lambda notes: notes["card"])
    except InputError as error:
        raise InputError(f"{folder} cannot be loaded: {error}") from error
    if found is None or found.notes != seal:
        raise InputError(f"{folder} cannot be loaded: its arrays are missing or of another save")
    return Trained(victim, found.state, card)


def _network(
    network: str | Victim, image_shape: Sequence[int], num_classes: int, options: dict[str, Any]
) -> tuple[Victim, str | None]:
    """The network as `load` will make it, and its name, if it has one."""
    if isinstance(network, str):
        kept = _options(json.loads(json.dumps(_plain_options(options))))
        return models.create(network, image_shape, num_classes, **kept), network
    if options:
        raise InputError("options are for a network of models.create; yours has its own")
    return network, None


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON values, a dtype by its name."""
    named = {k: jnp.dtype(v).name if k == "dtype" else v for k, v in options.items()}
    for key, value in named.items():
        if callable(value):
            raise InputError(f"option {key} is a function and cannot be stored; pass the Victim")
    return as_json(named, "options")


def _options(stored: dict[str, Any]) -> dict[str, Any]:
    return {k: jnp.dtype(v) if k == "dtype" else _tuples(v) for k, v in stored.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _checked_shape(
    victim: Victim, image_shape: Sequence[int], num_classes: int
) -> tuple[int, int, int]:
    """The image shape, if the network takes such images and gives that many logits."""
    height, width, channels = check_image_shape(image_shape)
    image = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)

    def logits(key, image):
        return victim.apply(victim.init(key), image, train=False)[0]

    found = jax.eval_shape(logits, jax.random.key(0), image).shape[1]
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


def _read(folder: pathlib.Path) -> tuple[Card, str]:
    """The card of a folder and its seal."""
    path = folder / CARD
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        seal = content.pop("sha256")
        if checkpoint.json_text(checkpoint.sealed(content)) != text:
            raise ValueError("it was damaged or changed")
        if content.pop("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        fields = content | {"options": _options(content["options"])}
        if fields["recipe"] is not None:
            settings = {k: _tuples(v) for k, v in fields["recipe"].items()}
            fields["recipe"] = Recipe(**settings)
        return Card(**fields | {"image_shape": tuple(content["image_shape"])}), seal
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is no saved victim: it has no {CARD}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error


@contextlib.contextmanager
def _placed(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill beside `target`, renamed to it at the end; on failure nothing stays."""
    staging, made = target, []
    try:
        staging, *made = map(pathlib.Path, hosts.first(lambda: _stage(target)))
        yield staging
        hosts.first(lambda: str(staging.rename(target)))
        made = []
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        raise InputError(f"cannot write {target}: {check.one_line(error)}") from error
    finally:
        if hosts.is_first() and staging != target:
            _remove(staging, made)


def _stage(target: pathlib.Path) -> list[str]:
    """Makes the folder to fill and the parents it lacks; their names, innermost first."""
    if os.path.lexists(target):
        raise InputError(f"{target} exists; a saved victim is not overwritten")
    for left in leftovers(target, "new"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    staging = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.new"
    missing = [folder for folder in target.parents if not folder.exists()]
    try:
        staging.mkdir(parents=True)
    except OSError:
        _remove(staging, missing)
        raise
    return [str(staging), *map(str, missing)]


def _remove(staging: pathlib.Path, made: list[pathlib.Path]) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()
