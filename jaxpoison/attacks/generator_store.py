"""Trained generators on disk, and what they make of any data set of their image shape.

    <path>/generator.json    network, image shape, eps, attack, settings, training set, versions
    <path>/00000000/         the arrays (orbax) with the SHA-256 of every file

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
from jaxtyping import Array, Int

from jaxpoison import check, models, perturb
from jaxpoison.data import saved
from jaxpoison.data.manifest import key_record, versions
from jaxpoison.data.verification import fingerprint, floats
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.perturb import Budget
from jaxpoison.types import Dataset, Generator, InputError, Scenario, Variables
from jaxpoison.victims.checks import is_stacked

__all__ = [
    "GeneratorCard",
    "TrainedGenerator",
    "load_generator",
    "poison_dataset",
    "read_generator_card",
    "save_generator",
]

KIND = saved.Kind("generator.json", "saved generator")
CHUNK_BYTES = 2**28  # of float32 images on the device at a time


@dataclasses.dataclass(frozen=True)
class GeneratorCard:
    """Everything about a saved generator but its arrays; `generator.json` has the same names.

    Attributes:
      network: its name in `models.create_generator`; None for a network of the user's own.
      options: its keyword arguments there.
      image_shape: (H, W, C).
      eps: L-infinity radius it was trained for, pixel units.
      attack: name of the attack that trained it.
      settings: of that attack, as JSON values.
      key: of that attack: {"impl", "data"}, an integer seed, or None.
      train: num_rows, image_sha256, label_sha256 of the clean training set and num_changed, how
        many of its rows the attack could change; None if not given.
      source: where that set came from: name, split, data_dir; None if not given.
      versions: package -> version at the time of saving.
    """

    network: str | None
    options: dict[str, Any]
    image_shape: tuple[int, int, int]
    eps: float
    attack: str
    settings: dict[str, Any]
    key: dict[str, Any] | int | None
    train: dict[str, Any] | None
    source: dict[str, Any] | None
    versions: dict[str, str]


class TrainedGenerator(NamedTuple):
    """What `load_generator` found.

    Attributes:
      network: the network.
      variables: its arrays, the theta of `perturb.generator(network, eps=card.eps)`.
      card: all else.
    """

    network: Generator
    variables: Variables
    card: GeneratorCard


def save_generator(
    path: str | os.PathLike[str],
    variables: Variables,
    *,
    network: Generator,
    eps: float,
    attack: str,
    settings: Mapping[str, Any] | None = None,
    key: Any = None,
    scenario: Scenario | None = None,
    source: Mapping[str, Any] | None = None,
) -> GeneratorCard:
    """Stores a trained generator, as `Attack.generator` takes it out of the attack's state.

    Args:
      path: the folder to make; its parents are made too.
      variables: of one generator.
      network: whose; one of `models.create_generator` is stored by name, for another one
        `load_generator` asks.
      eps: L-infinity radius, pixel units.
      attack: name of the attack.
      settings: of the attack: JSON values, arrays, functions (stored by name).
      key: of the attack, a typed key or an integer seed.
      scenario: what it was trained on; the hash of its training set is stored.
      source: where that set came from: {name, split, data_dir}.

    Returns: the GeneratorCard.
    Errors: InputError for a network that the arrays are not of, an option that cannot be stored,
      an existing or unwritable path, a full disk; nothing is left behind then.
    """
    shape = network.image_shape
    if not shape and scenario is not None:
        shape = scenario.train.image.shape[1:]
    options = saved.plain_options(dict(network.options) if network.name else {})
    card = GeneratorCard(
        network.name or None,
        options,
        check_image_shape(shape),
        float(Budget("linf", eps).eps),
        attack,
        dict(settings or {}),
        key_record(key),
        None if scenario is None else _training_set(scenario),
        None if source is None else dict(source),
        versions(),
    )
    if network.name:
        network = _named(card)
    _check_images(network, card.image_shape)
    if is_stacked(network, variables):
        raise InputError("the variables are of several generators; choose one, as best_of does")
    saved.write(pathlib.Path(path), KIND, dataclasses.asdict(card), variables)
    return card


def load_generator(
    path: str | os.PathLike[str], *, network: Generator | None = None
) -> TrainedGenerator:
    """A trained generator as `save_generator` left it; the arrays come to the default device.

    Args:
      path: the folder.
      network: the network, where it is one of your own; it replaces one of
        `models.create_generator`, as for another compute dtype.

    Errors: InputError, one line: nothing saved there, a damaged or changed file, a network that
      the arrays are not of, or no network for arrays of your own.
    """
    folder = pathlib.Path(path)
    card, seal = saved.read_card(folder, KIND, _card)
    if network is None:
        if card.network is None:
            raise InputError(f"{folder} holds a network of your own; pass it as network=")
        network = _named(card)
    _check_images(network, card.image_shape)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return TrainedGenerator(network, saved.read_arrays(folder, seal, like), card)


def read_generator_card(path: str | os.PathLike[str]) -> GeneratorCard:
    """The card of a saved generator, without its arrays; errors as of `load_generator`."""
    return saved.read_card(pathlib.Path(path), KIND, _card)[0]


def poison_dataset(
    trained: TrainedGenerator,
    dataset: Dataset,
    *,
    index: Int[Array | np.ndarray, " p"] | None = None,
    eps: float | None = None,
    batch_size: int = 1024,
) -> Dataset:
    """Clip(x + eps g(x; theta), 0, 1) of every image, g in eval mode, before rounding.

    `perturb.poison` of `perturb.generator`, a few blocks of `batch_size` rows at a time, so that
    the device holds no more of the set than CHUNK_BYTES; rows get the bits that one call for all
    of them gives.

    Args:
      trained: the generator.
      dataset: any N images of its shape, uint8 or float in [0, 1].
      index: [P] rows that change; None is all.
      eps: L-infinity radius, pixel units; None is the one it was trained for.
      batch_size: rows per block, as in `perturb.poison`.

    Returns: Dataset in host memory, image [N, H, W, C] float32, labels as they were.
    Errors: InputError for images of another shape, an `eps` that is no radius, batch_size < 1.
    """
    check.at_least(1, batch_size=batch_size)
    radius = float(Budget("linf", trained.card.eps if eps is None else eps).eps)
    shape = tuple(dataset.image.shape)
    if shape[1:] != trained.card.image_shape:
        raise InputError(
            f"images are {shape[1:]}; the generator was trained on {trained.card.image_shape}"
        )
    out: Any = np.empty(shape, np.float32)
    for rows in _chunks(shape, batch_size):
        part = Dataset(jnp.asarray(dataset.image[rows]), jnp.asarray(dataset.label[rows]))
        image = _poisoned(trained.network, radius, batch_size, trained.variables, part)
        out[rows] = np.asarray(image)
    if index is not None:
        rest = np.delete(np.arange(len(out)), np.asarray(index))
        out[rest] = floats(np.asarray(dataset.image[rest]))
    return Dataset(out, dataset.label)


def _chunks(shape: tuple[int, ...], batch_size: int) -> list[np.ndarray]:
    """Rows by rows: all at once if they are few, else equally many, aligned to the blocks.

    Every row keeps its place in its block, and each chunk is a loop over at least two blocks:
    XLA dissolves a loop over one, which moves last bits.
    """
    num, blocks = shape[0], -(-shape[0] // batch_size)
    each = max(2, CHUNK_BYTES // (4 * batch_size * int(np.prod(shape[1:]))))
    if blocks <= each:
        return [np.arange(num)]
    starts = [*range(0, blocks - each, each), blocks - each]
    return [np.minimum(np.arange(s * batch_size, (s + each) * batch_size), num - 1) for s in starts]


@jax.jit(static_argnums=(0, 1, 2))
def _poisoned(network, eps, batch_size, variables, dataset):
    scenario = Scenario(dataset, dataset, jnp.arange(len(dataset.label), dtype=jnp.int32))
    space = perturb.generator(network, eps=eps)
    return perturb.poison(space, variables, scenario, batch_size=batch_size).image


def _named(card: GeneratorCard) -> Generator:
    options = saved.typed_options(card.options)
    return models.create_generator(str(card.network), card.image_shape, **options)


def _check_images(network: Generator, image_shape: Sequence[int]) -> None:
    """An InputError unless the network turns such images into directions of the same shape."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def direction(key, image):
        return network.apply(network.init(key), image, train=False)[0]

    found = jax.eval_shape(direction, jax.random.key(0), image).shape
    if found != image.shape:
        raise InputError(f"the network makes {found} of an image {image.shape}; it must keep that")


def _training_set(scenario: Scenario) -> dict[str, Any]:
    return fingerprint(scenario.train) | {"num_changed": len(scenario.index)}


def _card(content: dict[str, Any]) -> GeneratorCard:
    """The card that has these entries."""
    return GeneratorCard(**content | {"image_shape": tuple(content["image_shape"])})
