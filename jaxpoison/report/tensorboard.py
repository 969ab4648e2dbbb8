"""TensorBoard event files of a run, made of its metrics.jsonl on request; no TensorFlow needed."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxpoison import check
from jaxpoison.data.folder import staged
from jaxpoison.types import InputError

__all__ = ["write_events"]

FILE = "events.out.tfevents.jaxpoison"


def write_events(run: pathlib.Path, out: pathlib.Path | None = None) -> pathlib.Path:
    """One event file for each part of a run: `<out>/craft/<arm>/` and `<out>/victims/<arm>/`.

    Every column of metrics.jsonl becomes a scalar of that name at its step; the mean over victims
    (or restarts) where there are several, NaN where a value was not finite. A run need not be
    finished. Files of an earlier call are replaced. TensorBoard shows them with --logdir OUT.

    Args:
      run: the run folder.
      out: the folder to make; None: `tensorboard` in the run folder.

    Returns: the folder.

    Raises:
      InputError: TensorBoard is not installed, there is no such run, metrics.jsonl is damaged, or
        the folder holds other files or cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # pyrefly: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyrefly: ignore
        from tensorboard.summary.writer.record_writer import RecordWriter  # pyrefly: ignore
    except ImportError as error:
        raise InputError(
            "TensorBoard is not installed; run: pip install 'jaxpoison[tensorboard]'"
        ) from error
    files = _metrics(run)
    parts = {part: list(_scalars(file)) for part, file in files.items()}
    out = run / "tensorboard" if out is None else out
    _check_ours(out)
    with staged(out, "the event files", replace=True) as staging:
        for part, scalars in parts.items():
            (staging / part).mkdir(parents=True)
            time = files[part].stat().st_mtime
            with (staging / part / FILE).open("wb") as stream:
                writer = RecordWriter(stream)
                writer.write(
                    Event(wall_time=time, file_version="brain.Event:2").SerializeToString()
                )
                for step, values in scalars:
                    pairs = [Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
                    event = Event(wall_time=time, step=step, summary=Summary(value=pairs))
                    writer.write(event.SerializeToString())
                writer.flush()
    return out


def _metrics(run: pathlib.Path) -> dict[str, pathlib.Path]:
    """The metrics.jsonl of each part, "craft/<arm>" or "victims/<arm>"."""
    try:
        if not (run / "config.json").is_file():
            raise InputError(f"{run} is no run folder: it has no config.json")
        names = [p for room in ("craft", "victims") for p in (run / room).rglob("metrics.jsonl")]
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"no run {ascii(str(run))}: {check.one_line(error)}") from error
    if not names:
        raise InputError(f"{run} has no metrics.jsonl yet")
    return {p.parent.relative_to(run).as_posix(): p for p in sorted(names)}


def _scalars(path: pathlib.Path) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, column -> value) of each line; a last line that is still being written is left out."""
    try:
        text = path.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            row = json.loads(line)
            yield int(row.pop("step")), {name: _mean(value) for name, value in row.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged: {check.one_line(error)}") from error


def _mean(value: Any) -> float:
    if isinstance(value, list):
        return sum(map(_mean, value)) / len(value) if value else float("nan")
    return float("nan") if value is None else float(value)


def _check_ours(out: pathlib.Path) -> None:
    """An error if `out` is anything but a folder of event files of ours."""
    try:
        if not (out.exists() or out.is_symlink()):
            return
        files = [p for p in out.rglob("*") if not p.is_dir()]
        if out.is_symlink() or not out.is_dir() or any(p.name != FILE for p in files):
            raise InputError(
                f"{out} holds other files than event files of ours; choose another --out"
            )
    except OSError as error:
        raise InputError(f"cannot write to {out}: {check.one_line(error)}") from error
