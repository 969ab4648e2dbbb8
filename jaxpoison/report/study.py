"""The main job: craft, write, verify, retrain fresh victims, judge, report; resumable throughout.

A study owns one run folder, `runs/<experiment>/<name>/`:

    config.json                 the settings; a folder of other settings is refused
    craft/<arm>/                metrics.jsonl and checkpoints/ of an attack
    craft/<arm>/generator/      the generator it trained, if it trains one; `apply` reads it
    poison/<arm>/               the poison folder, as the victims read it
    setups/<setup>/             of a targeted run: all this for each setup, see `targeted_setup`
    purify/<defense>/<attack>/  the same of a purifier's fit, in a defense matrix
    victims/<arm>/              metrics.jsonl and checkpoints/ of all seeds of one training set
    grid.png, curves.png        pictures; sweep.png where an option was varied, pairs.png of setups,
                                residual.png and reach.png of added points, matrix.png
    result.json                 the record; it marks a finished run
    report.html                 the page made of them
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from rich.console import Console

from jaxpoison import checkpoint, hosts
from jaxpoison.report import (
    added_tables,
    figures,
    matrix_tables,
    page,
    record,
    tables,
    targeted_tables,
)
from jaxpoison.report.judging import Judging
from jaxpoison.report.poisons import Poisons
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.report.work import Work
from jaxpoison.types import InputError, Key, Split, Training, TrainState
from jaxpoison.victims import TransferSplit

__all__ = ["Study"]


class Study:
    """One run of the main job.

    Args:
      experiment: its name, the first level below `config.runs`.
      config: the settings.
      facts: what else determines the result (hashes of the data, recipes, attack settings), JSON
        values; kept with the settings in config.json and in the record.
      console: where the table is printed; progress goes to standard error.

    Attributes:
      folder: the run folder.
      work: its long parts.
      poisons: its training sets.
      judging: its victims.

    Raises:
      InputError: the folder cannot be written, is in use by another process, or holds a run with
        other settings, or other files; `deterministic` or `distributed` is set and jax was started
        without it (see `hosts.start`).
    """

    def __init__(
        self,
        experiment: str,
        config: StudyConfig,
        *,
        facts: dict[str, Any] | None = None,
        console: Console | None = None,
    ):
        hosts.check_started(
            distributed=config.distributed is not None, deterministic=config.deterministic
        )
        if experiment in ("", "..") or pathlib.Path(experiment).name != experiment:
            raise InputError(f"experiment = {experiment!r}; a plain folder name is needed")
        self.experiment, self.config = experiment, config
        self.plan = config.settings() | json.loads(json.dumps(facts or {}))
        self.console = (console or Console()) if hosts.is_first() else Console(quiet=True)
        self.folder = config.runs / experiment / config.name
        self.work = Work(self.folder, self.plan, overwrite=config.overwrite)
        self.poisons = Poisons(self.work, config.settings())
        self.judging = Judging(self.work, config)

    def finished(self) -> dict[str, Any] | None:
        """The record of a finished run, printed; None if there is work to do.

        Raises: InputError, after printing, if a file of its poison folders was damaged or changed.
        """
        result = self.work.read("result.json", record.FIELDS)
        if result is not None:
            self._show(result)
            self._say(f"finished before: {self.folder} (--overwrite computes it again)")
            hosts.first(self._look_after)
        return result

    def train(
        self, part: str, training: Training, key: Key, split: Split | TransferSplit, *, epochs: int
    ) -> tuple[TrainState, Any]:
        """Train (or load) a network under `craft/<part>`, e.g. a surrogate; (state, info)."""
        return self.work.run("craft", part, training, key, split, epochs)[:2]

    def finish(
        self,
        *,
        main: str,
        published: list[dict[str, Any]],
        comparisons: list[dict[str, Any]] | None = None,
        draw: Callable[[dict[str, Any]], None] = lambda record: None,
    ) -> dict[str, Any]:
        """Draw, write result.json and report.html, print the table; returns the record.

        Args:
          main: the arm that the experiment is about; its poison stands at the top of the record.
          published: other people's numbers, see `record.published`.
          comparisons: of a targeted run, see `record.record`.
          draw: makes further pictures of the record, in the folder.
        """
        result = hosts.first(lambda: self._record(main, published, comparisons, draw))
        self._show(result)
        self.work.release()
        self._say(f"run folder: {self.folder}")
        return result

    def _record(self, main, published, comparisons, draw) -> dict[str, Any]:
        """The record, written with all that is drawn of it."""
        if len(self.poisons.clean):
            figures.grid(self.folder / "grid.png", self.poisons.clean, self.poisons.images)
        result = record.record(
            self.experiment,
            self.plan,
            seconds=self.work.seconds(),
            arms=self.judging.arms,
            poison=self.poisons.entries.get(main),
            published=published,
            comparisons=comparisons,
        )
        figures.curves(self.folder / "curves.png", result)
        figures.sweep(self.folder / "sweep.png", result)
        draw(result)
        checkpoint.write_json(self.folder / "result.json", result)
        page.write_run(self.folder)
        return result

    def _look_after(self) -> None:
        """The page where it is missing; an InputError for poison that is not as it was written."""
        if not (self.folder / "report.html").exists():
            page.write_run(self.folder)
        self.poisons.check_files()

    def _show(self, result: dict[str, Any]) -> None:
        kinds = (
            (targeted_tables, targeted_tables.is_targeted),
            (added_tables, added_tables.is_added),
            (matrix_tables, matrix_tables.is_matrix),
        )
        found = next((one for one, is_of in kinds if is_of(result)), tables)
        found.print_record(result, self.console)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
