"""The folder of one study: bound to its settings, held against other runs, read with care."""

import json
import pathlib
import shutil
import weakref
from typing import Any

from jaxpoison import checkpoint, hosts
from jaxpoison.lock import NAME, Lock
from jaxpoison.report import record
from jaxpoison.types import InputError

__all__ = ["RunFolder"]

_HELD: weakref.WeakValueDictionary[pathlib.Path, Lock] = weakref.WeakValueDictionary()


class RunFolder:
    """A folder that holds one run and nothing else, locked while this object lives.

    Of many processes the first one reads and writes it, for all.

    A finished run is only read, so it is not locked. A second study of the same process takes the
    lock over: the first one ended in an error, which in a notebook keeps it alive.

    Args:
      path: the folder; made if it is not there.
      plan: what determines the result, JSON values; kept in config.json.
      overwrite: whether an earlier run is removed.

    Raises:
      InputError: the folder cannot be written, holds other files or a run with other settings, or
        is in use by another process; or the processes of this run differ in their plan.
    """

    def __init__(self, path: pathlib.Path, plan: dict[str, Any], *, overwrite: bool):
        self.path = path
        hosts.check_same("settings or data", plan)
        hosts.first(lambda: self._take(plan, overwrite))

    def read(self, name: str, fields: dict[str, type]) -> dict[str, Any] | None:
        """A JSON object that has `fields`, or None where there is no such file."""
        return hosts.first(lambda: self._read(name, fields))

    def release(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            self._lock.release()

    _lock: Lock | None = None

    def _take(self, plan: dict[str, Any], overwrite: bool) -> None:
        try:
            self._is_ours()
            self.path.mkdir(parents=True, exist_ok=True)
            if overwrite or not (self.path / "result.json").is_file():
                self._hold()
            if self._is_ours() and overwrite:
                self._empty()
            self._claim(plan)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot write run folder {self.path}: {reason}") from error

    def _is_ours(self) -> bool:
        """Whether a run stands here already; other files are none."""
        there = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()
        there -= {NAME, ".config.json.new"}  # of a run that was killed as it began
        if there and not (self.path / "config.json").is_file():
            raise InputError(f"{self.path} holds other files than a run; choose a --name")
        return bool(there)

    def _hold(self) -> None:
        place = self.path.resolve()
        earlier = _HELD.pop(place, None)
        if earlier is not None:
            earlier.release()
        self._lock = _HELD[place] = Lock(self.path, " (--name)")

    def _empty(self) -> None:
        """Removes all but the lock: first what says finished, last what says that it is a run."""
        if self.path.is_symlink():
            raise OSError("it is a symbolic link, which --overwrite does not follow")
        order = {"result.json": -1, "config.json": 1}
        for entry in sorted(self.path.iterdir(), key=lambda p: order.get(p.name, 0)):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != NAME:
                entry.unlink()

    def _claim(self, plan: dict[str, Any]) -> None:
        there = self._read("config.json", {})
        if there is None:
            checkpoint.write_json(self.path / "config.json", plan)
            return
        now, there = record.flat(plan), record.flat(there)
        for name in sorted({*now, *there}):
            if now.get(name) != there.get(name):
                raise InputError(
                    f"run folder {self.path} was made with {name} = {there.get(name)!r}, now it "
                    f"is {now.get(name)!r}; choose another --name, or --overwrite"
                )

    def _read(self, name: str, fields: dict[str, type]) -> dict[str, Any] | None:
        path = self.path / name
        if not path.exists():
            return None
        try:
            value = json.loads(path.read_text())
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
            for field, kind in fields.items():
                if not isinstance(value.get(field), kind):
                    raise ValueError(f"no {field}")
            return value
        except ValueError as error:
            raise InputError(
                f"{path} is damaged ({error}); remove it or use --overwrite"
            ) from error
