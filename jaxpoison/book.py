"""The files of one run, as `loops.run_chunks` keeps them: a line a step, and checkpoints."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpoison import check, checkpoint, hosts
from jaxpoison.lock import Lock
from jaxpoison.types import InputError

__all__ = ["Book", "Seconds"]


class Seconds(NamedTuple):
    """Wall time of a run, over all its resumptions: compiling, and taking steps."""

    compile: float
    steps: float


class Book:
    """The files of one run: metrics.jsonl and checkpoints/, or memory alone without a folder.

    Entered as a context it makes the folder, and holds it against other runs until it is left.

    Args:
      directory: the run's folder, or None.
      key: the run's key; a folder made with another one is refused.
      process: what runs; its info's fields become the columns of metrics.jsonl.
      state: its state after init.
      data: its Scenario or Split.
    """

    def __init__(self, directory, key, process, state, data):
        self.folder: Any = None if directory is None else pathlib.Path(directory)
        self.key = np.asarray(jax.random.key_data(key)).tolist()
        info = jax.eval_shape(process.step, key, state, data)[1]
        self.kind, self.dtypes = type(info), [x.dtype for x in info]
        self.lines: list[dict[str, Any]] = []
        self._lock: Lock | None = None

    def __enter__(self):
        if self.folder is not None:
            hosts.first(self._hold)
        return self

    def __exit__(self, *error):
        if self._lock is not None:
            self._lock.release()

    def resume(self, state, num_steps):
        """(state, step, seconds) of the newest checkpoint; metrics after it are dropped."""
        fresh = state, 0, Seconds(0.0, 0.0)
        if self.folder is None:
            return fresh
        found = checkpoint.restore(self.folder / "checkpoints", state, read=_key_and_seconds)
        if found is None:
            hosts.first(lambda: self._write_metrics([]))
            return fresh
        key, seconds = found.notes
        if key != self.key:
            raise InputError(f"{self.folder} was made with another key (seed); use another folder")
        if found.step > num_steps:
            raise InputError(
                f"{self.folder} has {found.step} steps done, more than num_steps = {num_steps}"
            )
        self.lines = hosts.first(lambda: self._metrics_until(found.step))
        return found.state, found.step, seconds

    def record(self, start, rows):
        """Append the info of steps start, start + 1, ... to metrics.jsonl."""
        new = [
            {"step": start + i} | {f: _plain(x[i]) for f, x in zip(rows._fields, rows, strict=True)}
            for i in range(len(rows.outer_loss))
        ]
        self.lines += new
        if self.folder is not None:
            hosts.first(lambda: self._append(new))

    def save(self, step, state, seconds):
        """Checkpoint the state after `step` steps."""
        if self.folder is not None:
            notes = {"key": self.key, "seconds": seconds._asdict()}
            checkpoint.save(self.folder / "checkpoints", step, state, notes=notes)

    def info(self):
        """The info of every step so far, leaves [T, ...], as numpy arrays."""
        columns = ([row[f] for row in self.lines] for f in self.kind._fields)
        return self.kind(
            *(np.array(_unplain(c), d) for c, d in zip(columns, self.dtypes, strict=True))
        )

    @property
    def _metrics(self):
        return self.folder / "metrics.jsonl"

    def _hold(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder)
            self._metrics.open("a").close()
        except OSError as error:
            self.__exit__()
            raise InputError(f"{self.folder} cannot be written: {error.strerror}") from error

    def _append(self, rows):
        try:
            with self._metrics.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise OSError(f"{self._metrics} cannot be written: {error.strerror}") from error

    def _metrics_until(self, step):
        """The rows of the first `step` steps; the file then holds no others."""
        lines, rows = [], []
        try:
            lines = self._metrics.read_text().splitlines()
            rows = [json.loads(line) for line in lines[:step]]
            whole = [row["step"] for row in rows] == list(range(step))
            whole = whole and all(row.keys() >= set(self.kind._fields) for row in rows)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise InputError(
                f"{self._metrics} is damaged: it lacks steps below {step}; "
                f"remove {self.folder} to start again"
            )
        if len(lines) != step:
            self._write_metrics(rows)
        return rows

    def _write_metrics(self, rows):
        with checkpoint.replacing(self._metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _key_and_seconds(notes: dict[str, Any]) -> tuple[Any, Seconds]:
    """What `Book.save` noted."""
    seconds = Seconds(**notes["seconds"])
    check.number(least=0, **seconds._asdict())
    return notes["key"], seconds


def _plain(x: Any) -> Any:
    """Numbers for JSON; NaN and infinities, which JSON lacks, become null."""
    if isinstance(x, np.ndarray):
        return [_plain(v) for v in x]
    value = x.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _unplain(x: Any) -> Any:
    if isinstance(x, list):
        return [_unplain(v) for v in x]
    return np.nan if x is None else x
