"""The long parts of a study: each resumes in a folder of its own, and its seconds are kept."""

import collections
import copy
import pathlib
import time
from typing import Any

from jaxpoison import checkpoint, hosts, loops
from jaxpoison.report.run_folder import RunFolder
from jaxpoison.types import Key

__all__ = ["Work"]


class Work:
    """The run folder of a study that goes on.

    Args:
      folder: the run folder.
      plan: what determines the result, JSON values.
      overwrite: whether an earlier run is removed.

    Attributes:
      folder: as given, or a folder within it.
      parts: seconds of each part, compiling apart, of earlier processes too.

    Raises: InputError as `RunFolder`.
    """

    _place = ""

    def __init__(self, folder: pathlib.Path, plan: dict[str, Any], *, overwrite: bool):
        self.folder = folder
        self._files = RunFolder(folder, plan, overwrite=overwrite)
        saved = self.read("seconds.json", {"parts": dict, "wall": float})
        self.parts, self._wall = (saved["parts"], saved["wall"]) if saved else ({}, 0.0)
        self._began = time.perf_counter()

    def within(self, place: str) -> "Work":
        """The same run, with the files of what it does below `folder/place`."""
        inner = copy.copy(self)
        inner.folder, inner._place = self.folder / place, f"{self._place}{place}/"
        return inner

    def read(self, name: str, fields: dict[str, type]) -> dict[str, Any] | None:
        """A JSON object of the folder that has `fields`, or None where there is no such file."""
        return self._files.read(f"{self._place}{name}", fields)

    def run(
        self, room: str, name: str, process: Any, key: Key, data: Any, num_steps: int
    ) -> tuple[Any, Any, loops.Seconds]:
        """`run_chunks` with its files under `room/name`; what was finished there is loaded."""
        part = f"{room} {name}"
        state, info, seconds = loops.run_chunks(
            process,
            key,
            data,
            num_steps=num_steps,
            directory=self.folder / room / name,
            description=f"{self.folder.name} {part}" if self._place else part,
        )
        self.parts[f"compile {self._named(part)}"] = seconds.compile
        self.note(part, seconds.steps)
        return hosts.gather(state), info, seconds

    def note(self, part: str, seconds: float) -> None:
        """Keep the seconds of a part."""
        self.parts[self._named(part)] = seconds
        kept = {"parts": self.parts, "wall": self.total()}
        hosts.first(lambda: checkpoint.write_json(self._files.path / "seconds.json", kept))

    def seconds(self) -> dict[str, float]:
        """By part, as the record has them: all compiling as one part, and the whole wall time.

        Parts of one name at several places are added up.
        """
        compiling, shown = 0.0, collections.defaultdict(float)
        for part, seconds in self.parts.items():
            if part.startswith("compile "):
                compiling += seconds
            else:
                shown[part.rpartition("//")[2]] += seconds
        return {**shown, "compile": compiling, "total": self.total()}

    def total(self) -> float:
        """Wall time so far, of earlier processes up to what they noted last."""
        return self._wall + time.perf_counter() - self._began

    def _named(self, part: str) -> str:
        """A part with its place; no name of a folder has a slash."""
        return f"{self._place}/{part}" if self._place else part

    def release(self) -> None:
        """Let other processes use the folder."""
        self._files.release()
