"""The command line: `python -m jaxpoison verify|show|export|apply|report|tensorboard`."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, subcommand

import jaxpoison
from jaxpoison import data
from jaxpoison.data import poisoned
from jaxpoison.data.manifest import Manifest, read_manifest
from jaxpoison.types import Dataset, InputError

__all__ = ["main"]

_WORDS = {True: "PASS", False: "FAIL", None: "NOT CHECKED"}


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a poison folder: hashes, labels, untouched rows, budget on the stored images.

    Each check is PASS, FAIL or NOT CHECKED. Exit code 0: nothing failed; 2: a check failed, there
    is no folder to check, or a wrong setting.
    """

    path: Positional[pathlib.Path]
    """The poison folder."""

    data_dir: pathlib.Path | None = None
    """Folder of the source data set: npz files or prepared TFDS sets. None: as in the manifest."""

    source: pathlib.Path | None = None
    """An .npz file with the arrays image and label. None: the source the manifest names."""

    def run(self) -> int:
        """Prints the report; an InputError names the first check that failed."""
        clean, reason = self._clean(read_manifest(self.path)[0])
        report = poisoned.verify(self.path, clean, reason=reason)
        for check in report.checks:
            _print(f"{_WORDS[check.passed]:<12} {check.name:<16} {check.detail}")
        open_checks = sum(check.passed is None for check in report.checks)
        tail = f" ({open_checks} not checked)" if open_checks else ""
        print(f"{self.path}: {'nothing failed' if report.passed else 'FAILED'}{tail}")
        for check in report.checks:
            if check.passed is False:
                raise InputError(f"{self.path} does not verify: {check.name}: {check.detail}")
        return 0

    def _clean(self, manifest: Manifest) -> tuple[Dataset | None, str]:
        """The source set; an error only where the user said where it is."""
        if self.source is not None and self.data_dir is not None:
            raise InputError("--data-dir and --source exclude each other; pass one of them")
        if self.source is not None:
            return data.from_npz(self.source), ""
        name, split = str(manifest.source.get("name")), str(manifest.source.get("split"))
        folder = self.data_dir or manifest.source.get("data_dir")
        try:
            return data.load(name, split, folder), ""
        except InputError as error:
            if self.data_dir is not None:
                raise
            return None, f"the source data set is not at hand: {error}"


@dataclasses.dataclass(frozen=True)
class Show:
    """Print what a poison folder's manifest says, without reading the arrays."""

    path: Positional[pathlib.Path]
    """The poison folder."""

    def run(self) -> int:
        """Prints the manifest, one fact a line."""
        manifest, intact = read_manifest(self.path)
        for name, text in _facts(manifest):
            _print(f"{name:<16} {text}")
        if not intact:
            print(f"{'WARNING':<16} the manifest was changed after it was written")
        return 0


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a poison folder's data, as the victim sees them, in another format, into a new folder.

    png: one PNG an image, by class, for torchvision's ImageFolder. npz: image, label, mask,
    source_rows; the only one for values that are no grey levels. tfds: a set for
    tfds.data_source, without TensorFlow. benchmark: the public poisoning benchmark's poisons, base
    indices and target as plain arrays; its pickles are made of them by the few lines in the
    README.md that every export holds, with the statement that the data are poisoned. Added points
    are exported alone, as they are stored.
    """

    path: Positional[pathlib.Path]
    """The poison folder; a damaged one is refused."""

    to: str
    """png, npz, tfds or benchmark."""

    out: pathlib.Path | None = None
    """Folder to make; it must not exist. None: <name of the poison folder>-<format>, here."""

    target: int | None = None
    """benchmark: row of the target image in the test set. None: as the manifest says."""

    target_split: str | None = None
    """benchmark: the split of that row."""

    data_dir: pathlib.Path | None = None
    """benchmark: folder of the source data set. None: as in the manifest."""

    def run(self) -> int:
        """Writes the export and prints where it is."""
        options = {"target": self.target, "target_split": self.target_split}
        print(data.export(self.path, self.to, self.out, data_dir=self.data_dir, **options))
        return 0


@dataclasses.dataclass(frozen=True)
class Apply:
    """Poison another split, or another data set, with the generator that a run trained.

    Attacks that train a generator (DeepConfuse, GUE) leave it in the run folder, as
    craft/<arm>/generator. It poisons any images of the shape it was trained on, in eval mode, also
    such as it never saw, and writes a poison folder of them, for verify, show and export.
    """

    run_folder: Positional[pathlib.Path]
    """The run folder, or the folder of one generator."""

    dataset: Positional[str]
    """digits, a set of TFDS or of NAME-SPLIT.npz files by its name, or a path that ends in .npz."""

    split: str = "train"
    """Its split; also rows of one, as in train[:1000]. A path names a file, which holds one."""

    data_dir: pathlib.Path | None = None
    """Folder of the data set: npz files or prepared TFDS sets. None: where the run found its own
    training set, if that has the same name; else TFDS' default."""

    arm: str | None = None
    """Whose generator, where the run has several."""

    out: pathlib.Path | None = None
    """Folder to make; it must not exist. None: <arm>-<dataset>-<split>, here."""

    eps: float | None = None
    """Largest change of a pixel, in [0, 1]. None: what the generator was trained for."""

    share: float = 1.0
    """Of the images that change, above 0 up to 1; a seeded choice, the rest stays clean."""

    seed: int = 0
    """Of that choice."""

    rounding: str = "nearest"
    """To grey levels: nearest, truncate (both inside eps), cast (as published code does it, up to
    one level beyond eps, as the manifest then says), or none (float images)."""

    def run(self) -> int:
        """Writes the folder, prints where it is and how much it changes."""
        from jaxpoison.report.apply import apply_generator

        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        run, name = options.pop("run_folder"), options.pop("dataset")
        done = apply_generator(run, name, **options)
        print(done.path)
        _print(_change(done.manifest, done.similarity.psnr))
        return 0


@dataclasses.dataclass(frozen=True)
class Report:
    """Make one HTML page of a finished run, or one that compares several.

    The page needs no network. One run: table, curves, pictures, confusion, settings, published
    values. Several: one table that sorts, curves overlaid, settings that differ marked.
    """

    runs: Positional[tuple[pathlib.Path, ...]]
    """Run folders, or JSON files of records."""

    out: pathlib.Path | None = None
    """File to write; an earlier report is replaced, another file never is. None: report.html, in
    the folder of a single run, else in this folder."""

    def run(self) -> int:
        """Writes the page and prints where it is."""
        # Imported here: matplotlib takes a second, which the other commands need not spend.
        from jaxpoison.report import page, runs

        if not self.runs:
            raise InputError("no run named; name run folders or JSON files of records")
        found = runs.read_runs(list(self.runs))
        single = found[0].path if len(found) == 1 and found[0].path.is_dir() else pathlib.Path()
        print(page.write(self.out or single / "report.html", found))
        return 0


@dataclasses.dataclass(frozen=True)
class Tensorboard:
    """Write TensorBoard event files of a run, finished or not, from its metrics.jsonl.

    One folder for each part, craft/<arm> and victims/<arm>, with a scalar for each column at each
    step: the mean over victims. Needs the extra: pip install 'jaxpoison[tensorboard]'.
    """

    run_folder: Positional[pathlib.Path]
    """The run folder."""

    out: pathlib.Path | None = None
    """Folder to make, or to make anew. None: tensorboard, in the run folder."""

    def run(self) -> int:
        """Writes the files and prints the folder, as --logdir takes it."""
        from jaxpoison.report import tensorboard

        print(tensorboard.write_events(self.run_folder, self.out))
        return 0


Command = (
    Annotated[Verify, subcommand("verify")]
    | Annotated[Show, subcommand("show")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Apply, subcommand("apply")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Tensorboard, subcommand("tensorboard")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the words after the program's name; None takes them from the command line.

    Returns:
      Exit code: 0 fine, 2 bad input or a check that failed (one line on stderr).
    """
    if list(sys.argv[1:] if argv is None else argv) == ["--version"]:
        print(f"jaxpoison {jaxpoison.__version__}")
        return 0
    try:
        command = tyro.cli(
            tyro.conf.OmitSubcommandPrefixes[Command],
            prog="python -m jaxpoison",
            description="Data-poisoning attacks and defenses: work with poison folders and runs. "
            "--version prints the version.",
            args=argv,
        )
        return command.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def _print(line: str) -> None:
    """As print, whatever characters a manifest names."""
    print(line.encode("utf-8", "backslashreplace").decode())


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    source = manifest.source
    facts = [
        ("statement", manifest.statement),
        ("attack", manifest.attack),
        *((f"  {name}", str(value)) for name, value in manifest.settings.items()),
        ("budget", _budget(manifest)),
        ("rows", f"{manifest.rows_in_words()}; each {manifest.shape[1:]}"),
        ("labels", "some changed" if manifest.labels_changed else "as in the source"),
        ("domain", manifest.domain),
        ("source", f"{source.get('name')}, split {source.get('split')}, {manifest.index_map} rows"),
        ("key", str(manifest.key)),
        ("made", f"{manifest.date_utc} on {manifest.device}, {_seconds(manifest.wall_time_s)}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())),
        ("files", ", ".join(manifest.files)),
        *((f"  {name}", _brief(value)) for name, value in manifest.extra.items()),
    ]
    return facts


def _brief(value: Any) -> str:
    """A long list by its head and its length."""
    if not isinstance(value, list) or len(value) <= 10:
        return str(value)
    return f"[{', '.join(map(str, value[:5]))}, ...], {len(value)} in all"


def _budget(manifest: Manifest) -> str:
    largest, levels = manifest.measured.get("norm_max"), manifest.measured.get("grey_level_max")
    found = "" if levels is None else f"; largest change {levels} grey levels"
    if manifest.norm is None or manifest.eps is None:
        ends = manifest.measured
        if {"value_low", "value_high", "clean_low", "clean_high"} <= ends.keys():
            found += "; values {value_low:.6g} to {value_high:.6g}".format(**ends)
            found += ", clean {clean_low:.6g} to {clean_high:.6g}".format(**ends)
        return f"none{found}"
    unit = f" ({255 * manifest.eps:.4g}/255)" if manifest.norm == "linf" else ""
    size = "" if largest is None else f", measured {largest:.6g}"
    cast = manifest.rounding == "cast" and manifest.norm == "linf"
    beyond = ", 1/255 of it for the cast to 8 bits" if cast else ""
    return f"{manifest.norm} eps {manifest.eps:.6g}{unit}{beyond}{size}{found}"


def _change(manifest: Manifest, psnr: float | None) -> str:
    """One line: how many images may differ, by how much, and how close they stay."""
    noise = "" if psnr is None else f", PSNR {psnr:.1f} dB"
    return f"{manifest.num_changed} of {manifest.shape[0]} images: {_budget(manifest)}{noise}"


def _seconds(wall_time: float | int | None) -> str:
    return "wall time not given" if wall_time is None else f"{wall_time:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
