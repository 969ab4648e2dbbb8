"""What was computed before, found by all that determines it, whatever run it was part of."""

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

from jaxpoison import checkpoint
from jaxpoison.types import InputError

__all__ = ["Cache"]


class Cache:
    """Entries and folders below one folder, by the SHA-256 of the facts that determine them.

    Args:
      folder: where it is; made when something is kept. None keeps and finds nothing.
    """

    def __init__(self, folder: pathlib.Path | None):
        self._folder = folder

    def find(self, room: str, facts: dict[str, Any]) -> dict[str, Any] | None:
        """The entry that was kept for these facts, or None.

        Raises: InputError for a file that is damaged, or of other facts.
        """
        path = self._path(room, facts, ".json")
        if path is None or not path.exists():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["facts"] != _plain(facts):
                raise ValueError("its facts are others")
            return value["entry"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}); remove it") from error

    def keep(self, room: str, facts: dict[str, Any], entry: dict[str, Any]) -> None:
        """Keep an entry, JSON values, for these facts; whole or not at all."""
        path = self._path(room, facts, ".json")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(path, {"facts": _plain(facts), "entry": entry})

    def lend(self, room: str, facts: dict[str, Any], to: pathlib.Path) -> bool:
        """Put the folder that was kept for these facts at `to`; whether there was one.

        Files are hard links where the file system has them, else copies.
        """
        path = self._path(room, facts, "")
        if path is None or not path.is_dir():
            return False
        _copy(path, to)
        return True

    def store(self, room: str, facts: dict[str, Any], folder: pathlib.Path) -> None:
        """Keep a finished folder for these facts, as `lend` hands it out; what is there stays."""
        path = self._path(room, facts, "")
        if path is not None and not path.exists():
            _copy(folder, path)

    def _path(self, room: str, facts: dict[str, Any], suffix: str) -> pathlib.Path | None:
        if self._folder is None:
            return None
        text = json.dumps(_plain(facts), sort_keys=True)
        return self._folder / room / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{suffix}"


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(facts))


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """A copy of a folder that appears whole; another process may have been faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=_link)
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(temporary)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
