"""A network's arrays on disk: a checkpoint, and beside it a card that says what they are.

    <path>/<card>         JSON, with the SHA-256 of its own text
    <path>/00000000/      the arrays (orbax) with the SHA-256 of every file, and the card's seal

The folder is filled under a temporary name and renamed, so it is whole or absent. No pickle.
"""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp

from jaxpoison import check, checkpoint, hosts
from jaxpoison.data.manifest import as_json, leftovers
from jaxpoison.types import InputError

__all__ = ["Kind", "plain_options", "read_arrays", "read_card", "tuples", "typed_options", "write"]

PyTree = Any
Card = TypeVar("Card")
_DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Kind(NamedTuple):
    """What is saved.

    Attributes:
      card: name of its JSON file.
      what: its name in errors, as in "a saved victim".
      schema: version of the card's entries.
    """

    card: str
    what: str
    schema: int = 1


def write(target: pathlib.Path, kind: Kind, card: Mapping[str, Any], arrays: PyTree) -> None:
    """Stores arrays under their card; of many processes the first writes what each has whole.

    Args:
      target: the folder to make; its parents are made too.
      kind: what is saved.
      card: its entries, values as `manifest.as_json` takes them.
      arrays: pytree.

    Errors:
      InputError for an existing or unwritable path, a full disk; nothing is left behind then.
    """
    content = {"schema": kind.schema} | as_json(card, kind.card)
    with _placed(target, kind) as staging:
        seal = checkpoint.sealed(content)
        hosts.first(lambda: checkpoint.write_json(staging / kind.card, seal))
        checkpoint.save(staging, 0, arrays, notes={"card": seal["sha256"]})


def read_card(
    folder: pathlib.Path, kind: Kind, build: Callable[[dict[str, Any]], Card]
) -> tuple[Card, str]:
    """What `build` makes of the card's entries, and the card's seal.

    Errors:
      InputError, one line: nothing saved there, a damaged or changed card, another schema, or
      entries that `build` cannot use.
    """
    path = folder / kind.card
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        seal = content.pop("sha256")
        if checkpoint.json_text(checkpoint.sealed(content)) != text:
            raise ValueError("it was damaged or changed")
        if content.pop("schema") != kind.schema:
            raise ValueError(f"its schema is not {kind.schema}")
        return build(content), seal
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} is no {kind.what}: it has no {kind.card}") from error
    except _DAMAGED as error:
        raise InputError(f"{path} cannot be read: {check.one_line(error)}") from error


def read_arrays(folder: pathlib.Path, seal: str, like: PyTree) -> PyTree:
    """The arrays that were saved with the card of that seal, on the devices of `like`.

    Errors:
      InputError, one line: damaged or changed files, arrays of other shapes or of another save.
    """
    try:
        found = checkpoint.restore(folder, like, read=lambda notes: notes["card"])
    except InputError as error:
        raise InputError(f"{folder} cannot be loaded: {error}") from error
    if found is None or found.notes != seal:
        raise InputError(f"{folder} cannot be loaded: its arrays are missing or of another save")
    return found.state


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a network as JSON values, a dtype by its name."""
    named = {k: jnp.dtype(v).name if k == "dtype" else v for k, v in options.items()}
    for key, value in named.items():
        if callable(value):
            raise InputError(f"option {key} is a function and cannot be stored; pass the network")
    return as_json(named, "options")


def typed_options(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `plain_options` made `stored` of; lists become tuples."""
    return {k: jnp.dtype(v) if k == "dtype" else tuples(v) for k, v in stored.items()}


def tuples(value: Any) -> Any:
    """Lists in lists as tuples in tuples; all else as it is."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def _placed(target: pathlib.Path, kind: Kind) -> Iterator[pathlib.Path]:
    """A folder to fill beside `target`, renamed to it at the end; on failure nothing stays."""
    staging, made = target, []
    try:
        staging, *made = map(pathlib.Path, hosts.first(lambda: _stage(target, kind)))
        yield staging
        hosts.first(lambda: str(staging.rename(target)))
        made = []
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that cannot be one
        met = error.__cause__ or error  # by the checkpoint; uncut, as the reason stands last
        reason = " ".join(str(met).split()) or type(met).__name__
        raise InputError(f"cannot write {target}: {reason}") from error
    finally:
        if hosts.is_first() and staging != target:
            _remove(staging, made)


def _stage(target: pathlib.Path, kind: Kind) -> list[str]:
    """Makes the folder to fill and the parents it lacks; their names, innermost first."""
    if os.path.lexists(target):
        raise InputError(f"{target} exists; a {kind.what} is not overwritten")
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
