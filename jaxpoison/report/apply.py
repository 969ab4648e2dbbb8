"""A trained generator of a run, put to other data: another split, another set of its shape."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import check, data
from jaxpoison.attacks import GeneratorCard, load_generator, poison_dataset
from jaxpoison.attacks.generator_store import KIND, read_generator_card
from jaxpoison.data import poisoned
from jaxpoison.data.manifest import Manifest
from jaxpoison.data.rounding import ROUNDINGS
from jaxpoison.types import Generator, InputError
from jaxpoison.victims import Similarity, similarity

__all__ = ["Applied", "apply_generator", "find_generator"]

GENERATOR = "generator"
"""Folder of a trained generator, beside the checkpoints of its attack in `craft/<arm>`."""


class Applied(NamedTuple):
    """What `apply_generator` wrote.

    Attributes:
      path: the poison folder.
      manifest: its manifest.
      similarity: how close its changed images are to the clean ones.
    """

    path: pathlib.Path
    manifest: Manifest
    similarity: Similarity


def apply_generator(
    run: pathlib.Path,
    name: str,
    *,
    split: str = "train",
    data_dir: pathlib.Path | None = None,
    arm: str | None = None,
    out: pathlib.Path | None = None,
    eps: float | None = None,
    share: float = 1.0,
    seed: int = 0,
    rounding: str = "nearest",
    network: Generator | None = None,
) -> Applied:
    """Writes the poison folder of a data set that a run's trained generator poisons.

    Args:
      run: a run folder, or the folder of one generator.
      name: of the data set, as `data.load` takes it.
      split: of the data set, as there.
      data_dir: as there; None is where the run found its training set, if that has the same name,
        else TFDS' default.
      arm: whose generator; None is the only one.
      out: folder to make; None is <arm>-<name>-<split>, here.
      eps: L-infinity radius, pixel units; None is the one it was trained for.
      share: of the images that change, above 0 up to 1; a seeded choice.
      seed: of that choice.
      rounding: as in `poisoned.write`, or "none" for float images. A set of floats stays one.
      network: the generator's network, where it is one of your own.

    Returns: the Applied.
    Errors: InputError, one line, nothing written: no generator or several, a network of your own
      that was not passed, no such data set or split, images of another shape, a folder that exists
      or cannot be written.
    """
    check.one_of((*ROUNDINGS, "none"), rounding=rounding)
    folder = find_generator(run, arm)
    card = read_generator_card(folder)
    _check_known(folder, card, network)
    known = card.source or {}
    if data_dir is None and name == known.get("name"):
        data_dir = known.get("data_dir")
    place = None if data_dir is None else str(pathlib.Path(data_dir).absolute())
    path = out or pathlib.Path(_plain(f"{arm or card.attack}-{pathlib.Path(name).stem}-{split}"))
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists; choose another --out")
    clean = data.load(name, split, place)
    index = data.poison_rows(jax.random.key(seed), clean, share=share)
    trained = load_generator(folder, network=network)
    image = poison_dataset(trained, clean, index=index, eps=eps)
    grey = clean.image.dtype == np.uint8 and rounding != "none"
    manifest = poisoned.write(
        path,
        poisoned=image,
        clean=clean,
        index=index,
        attack=card.attack,
        settings=card.settings,
        norm="linf",
        eps=card.eps if eps is None else eps,
        source={"name": _lasting(name), "split": split, "data_dir": place},
        key=_key(card.key),
        domain="uint8" if grey else "float",
        rounding=rounding if grey else "nearest",
        extra={"generator": _origin(folder, card, share=share, seed=seed)},
    )
    stored = poisoned.read(path).dataset.image
    return Applied(path, manifest, similarity(clean.image, stored))


def find_generator(run: pathlib.Path, arm: str | None = None) -> pathlib.Path:
    """The folder of the trained generator of a run, or `run` itself if it is one.

    Errors:
      InputError: there is none, `arm` has none, or there are several and no `arm` is named.
    """
    if (run / KIND.card).is_file():
        if arm is not None:
            raise InputError(f"{run} is one generator; an arm is chosen in a run folder")
        return run
    found = {path.parent.parent.name: path.parent for path in _cards(run, "craft")}
    if not found:
        raise InputError(f"{run} has no trained generator{_hint(run)}")
    there = f"{run} has trained generators of {', '.join(found)}"
    if arm is not None and arm not in found:
        raise InputError(f"arm = {arm!r} has none; {there}{check.nearest(arm, found)}")
    if arm is None and len(found) > 1:
        raise InputError(f"{there}; choose one as arm")
    return found[arm or next(iter(found))]


def _cards(run: pathlib.Path, below: str) -> list[pathlib.Path]:
    try:
        return sorted(run.glob(f"{below}/*/{GENERATOR}/{KIND.card}"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run} cannot be read: {check.one_line(error)}") from error


def _hint(run: pathlib.Path) -> str:
    """The tail of a message: what is at `run` instead."""
    if not run.is_dir():
        return "; there is no such folder"
    near = {str(path.parents[3]) for path in _cards(run, "*/craft")}
    if (run / GENERATOR / KIND.card).is_file():
        near.add(str(run / GENERATOR))
    if near:
        return f"; did you mean {' or '.join(sorted(near))}?"
    arms = sorted(path.name for path in (run / "poison").glob("[!.]*"))
    return f"; none of its arms trains one: {', '.join(arms)}" if arms else "; it is no run folder"


def _check_known(folder: pathlib.Path, card: GeneratorCard, network: Generator | None) -> None:
    if card.network is None and network is None:
        raise InputError(
            f"{folder} holds a network of your own, which the command line does not know; in "
            "Python pass it to report.apply_generator as network="
        )


def _plain(name: str) -> str:
    """A folder's name of letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


def _lasting(name: str) -> str:
    """A file by its whole path, so that it is found from elsewhere."""
    return str(pathlib.Path(name).absolute()) if name.endswith(".npz") else name


def _key(record: Mapping[str, Any] | int | None) -> Any:
    if not isinstance(record, Mapping):
        return record
    words = jnp.asarray(record["data"], jnp.uint32)
    return jax.random.wrap_key_data(words, impl=record["impl"])


def _origin(
    folder: pathlib.Path, card: GeneratorCard, *, share: float, seed: int
) -> dict[str, Any]:
    """What the manifest says of the generator."""
    trained = {"train": card.train, "source": card.source, "eps": card.eps}
    return {"path": str(folder), "trained": trained, "share": share, "seed": seed}
