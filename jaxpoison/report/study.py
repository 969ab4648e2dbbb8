"""The main job: craft, write, verify, retrain fresh victims, judge, report; resumable throughout.

A study owns one run folder, `runs/<experiment>/<name>/`:

    config.json                 the settings; a folder of other settings is refused
    craft/<arm>/                metrics.jsonl and checkpoints/ of an attack
    poison/<arm>/               the poison folder, as the victims read it
    victims/<arm>/              metrics.jsonl and checkpoints/ of all seeds of one training set
    grid.png, curves.png        pictures
    result.json                 the record; it marks a finished run
    report.html                 the page made of them
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxpoison import check, checkpoint, hosts, loops, over
from jaxpoison.data import StreamSplit, poisoned
from jaxpoison.perturb import Budget
from jaxpoison.report import figures, page, record, tables
from jaxpoison.report.run_folder import RunFolder
from jaxpoison.types import (
    Attack,
    Dataset,
    InputError,
    Key,
    Scenario,
    Split,
    Streaming,
    Training,
    TrainState,
    Victim,
)
from jaxpoison.victims import (
    Classical,
    hits,
    interval,
    judge,
    judge_classical,
    judge_streamed,
    similarity,
)

__all__ = ["Study", "StudyConfig"]

# Settings that do not bind a run folder; data are known by their hashes.
WHERE = ("name", "runs", "overwrite", "data_dir", "distributed")
SHOWN = 8  # images in grid.png: the first rows that may change


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Settings that every experiment has."""

    name: str = "default"
    """Run folder: RUNS/<experiment>/NAME."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Where run folders are."""
    overwrite: bool = False
    """Remove an earlier run of this name and compute it again."""
    seed: int = 0
    """Of everything random, 0 to 4294967295; the same seed gives the same poison."""
    victims: int = 5
    """Fresh victims per training set (seeds of the interval)."""
    craft_seeds: int = 1
    """Attack keys per arm; above 1 each gets its own victims, and their spread is reported too."""
    share: float = 1.0
    """Of the training rows that may change, above 0 up to 1; a seeded choice, the rest is clean."""
    deterministic: bool = False
    """Same bits from every run on a GPU too, by slower kernels; CPUs give the same bits anyway."""
    distributed: str | None = None
    """One run on several hosts, the same command on each: 'auto' (SLURM, Open MPI, Kubernetes, TPU)
    or HOST:PORT,NUM,ID with the address of process 0, the number of processes and this one's."""

    def __post_init__(self):
        object.__setattr__(self, "runs", pathlib.Path(self.runs))
        check.at_least(1, victims=self.victims, craft_seeds=self.craft_seeds)
        check.number(above=0, most=1, share=self.share)
        if not 0 <= self.seed < 2**32:  # a key keeps 32 bits: others would repeat these
            raise InputError(f"seed = {self.seed}; it must be from 0 to {2**32 - 1}")
        if self.name in ("", "..") or pathlib.Path(self.name).name != self.name:
            raise InputError(f"name = {self.name!r}; a plain folder name is needed")
        if self.distributed is not None:
            hosts.parse_distributed(self.distributed)

    def settings(self) -> dict[str, Any]:
        """What determines the result, ready for JSON: all fields but those that say where."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in WHERE}
        return json.loads(json.dumps(fields, default=str))


class Study:
    """One run of the main job.

    Args:
      experiment: its name, the first level below `config.runs`.
      config: the settings.
      facts: what else determines the result (hashes of the data, recipes, attack settings), JSON
        values; kept with the settings in config.json and in the record.
      console: where the table is printed; progress goes to standard error.

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
        self.experiment, self.config = experiment, config
        self.plan = config.settings() | json.loads(json.dumps(facts or {}))
        self.console = (console or Console()) if hosts.is_first() else Console(quiet=True)
        self.folder = config.runs / experiment / config.name
        self._files = RunFolder(self.folder, self.plan, overwrite=config.overwrite)
        self.arms: dict[str, dict[str, Any]] = {}
        self._poisons: dict[str, dict[str, Any]] = {}
        self._images: dict[str, np.ndarray] = {}
        self._shown, self._clean = np.zeros(0, int), np.zeros(0)
        saved = self._files.read("seconds.json", {"parts": dict, "wall": float})
        self._parts, self._wall = (saved["parts"], saved["wall"]) if saved else ({}, 0.0)
        self._began = time.perf_counter()

    def finished(self) -> dict[str, Any] | None:
        """The record of a finished run, printed; None if there is work to do.

        Raises: InputError, after printing, if a file of its poison folders was damaged or changed.
        """
        result = self._files.read("result.json", record.FIELDS)
        if result is not None:
            tables.print_record(result, self.console)
            self._say(f"finished before: {self.folder} (--overwrite computes it again)")
            hosts.first(self._look_after)
        return result

    def train(
        self, part: str, training: Training, key: Key, split: Split, *, epochs: int
    ) -> tuple[TrainState, Any]:
        """Train (or load) a network under `craft/<part>`, e.g. a surrogate; (state, info)."""
        return self._run("craft", part, training, key, split, epochs)[:2]

    def craft(
        self,
        arm: str,
        attack: Attack,
        key: Key,
        scenario: Scenario,
        *,
        num_steps: int,
        budget: Budget,
        source: dict[str, Any],
        settings: dict[str, Any] | None = None,
    ) -> Dataset:
        """Run an attack, write its poison folder, verify it, and read it back.

        Args:
          arm: name of the arm and its folders.
          attack: an attack, or restarts of one (the best is taken).
          key: of the attack.
          scenario: what it knows.
          num_steps: steps to run.
          budget: what the folder promises.
          source: where the training set came from: {name, split, data_dir}, as `data.load` takes.
          settings: the attack's settings, for the manifest.

        Returns: the stored training set (uint8), as victims will see it.
        Raises: InputError if the stored poison breaks its budget.
        """
        path = self.folder / "poison" / arm
        if not hosts.first(path.exists):
            state, info, seconds = self._run("craft", arm, attack, key, scenario, num_steps)
            if attack.single is not None:
                attack, state = over.best_of(attack, state, info)
            began = time.perf_counter()

            def write() -> None:
                poisoned.write(
                    path,
                    poisoned=jax.device_get(_poison(attack, state, scenario)),
                    clean=scenario.train,
                    index=scenario.index,
                    attack=arm,
                    settings=self.config.settings() | {"num_steps": num_steps} | (settings or {}),
                    norm=budget.norm,
                    eps=budget.eps,
                    source=source,
                    key=key,
                    wall_time_s=seconds.compile + seconds.steps,
                )

            hosts.first(write)
            self._note(f"write {arm}", time.perf_counter() - began)
        return self._verified(arm, path, scenario, budget)

    def retrain(
        self,
        arm: str,
        victim: Victim,
        training: Training | Streaming,
        key: Key,
        split: Split | StreamSplit,
        *,
        epochs: int,
        expect: str,
        targets: Dataset | None = None,
        network: str = "",
    ) -> None:
        """Train fresh victims on one training set and judge them.

        Args:
          arm: name of the training set; "clean" or an arm that was crafted.
          victim: the network.
          training: `over_restarts` of its training, or a `streamed_training` with seeds; R is the
            number of seeds. Build it once.
          key: of the victims; the same for all arms, so that seeds are paired.
          split: the training set, and the clean test set; a StreamSplit where they stay on disk.
          epochs: to train.
          expect: one line for the reader.
          targets: of a targeted attack: target images with the labels the attacker wants.
          network: name of the victim where an experiment has several; the entry and its folder are
            then NETWORK/ARM.
        """
        name = record.entry(arm, network)
        state, info, _ = self._run("victims", name, training, key, split, epochs)
        sets: Any = split
        if isinstance(training, Streaming):
            judgment = judge_streamed(victim, state, info, *sets, max_bytes=training.max_bytes)
        else:
            judgment = judge(victim, state, info, *sets)
        success = () if targets is None else hits(victim, state, targets)
        self.arms[name] = record.arm(
            judgment,
            *success,
            expect=expect,
            poison=self._poisons.get(arm),
            victim=network or None,
        )

    def consult(
        self,
        arm: str,
        victim: Classical,
        *,
        split: Split,
        expect: str,
        network: str,
    ) -> None:
        """Judge victims that are no networks; kept in victims/NETWORK/ARM/entry.json.

        Args:
          arm: name of the training set, as in `retrain`.
          victim: the classifier; seeds are those of the settings.
          split: the training set, and the clean test set.
          expect: one line for the reader.
          network: name of the victim.
        """
        name = record.entry(arm, network)
        file = f"victims/{name}/entry.json"
        entry = self._files.read(file, {"final_accuracy": dict, "curve": list})
        if entry is None:
            began = time.perf_counter()

            def judged() -> dict[str, Any]:
                seeds = {"num": self.config.victims, "seed": self.config.seed}
                judgment = judge_classical(victim, *split, **seeds)
                poison = self._poisons.get(arm)
                entry = record.arm(judgment, expect=expect, poison=poison, victim=network)
                (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
                checkpoint.write_json(self.folder / file, entry)
                return entry

            entry = hosts.first(judged)
            self._note(f"victims {name}", time.perf_counter() - began)
        self.arms[name] = entry

    def adopt(self, arm: str, path: pathlib.Path, scenario: Scenario, budget: Budget) -> Dataset:
        """A poison folder that was written elsewhere, verified; otherwise as `craft`."""
        return self._verified(arm, path, scenario, budget)

    def gather(self, arm: str, repeats: list[str], *, network: str = "") -> None:
        """Fold repeats of an arm, crafted with other keys, into it as `craft_seeds`.

        Args:
          arm: the arm that stays.
          repeats: arms that go; `craft_seeds` is the interval over the mean final accuracies of
            `arm` and all of them.
          network: as in `retrain`.
        """
        entries = [record.entry(name, network) for name in [arm, *repeats]]
        means = [self.arms[name]["final_accuracy"]["mean"] for name in entries]
        self.arms[entries[0]]["craft_seeds"] = interval(means)._asdict()
        for name, entry in zip(repeats, entries[1:], strict=True):
            del self.arms[entry]
            self._images.pop(name, None)  # shared by all victims

    def finish(self, *, main: str, published: list[dict[str, Any]]) -> dict[str, Any]:
        """Draw, write result.json and report.html, print the table; returns the record.

        Args:
          main: the arm that the experiment is about; its poison stands at the top of the record.
          published: other people's numbers, see `record.published`.
        """
        result = hosts.first(lambda: self._record(main, published))
        tables.print_record(result, self.console)
        self._files.release()
        self._say(f"run folder: {self.folder}")
        return result

    def _record(self, main: str, published: list[dict[str, Any]]) -> dict[str, Any]:
        """The record, written with all that is drawn of it."""
        if len(self._clean):
            figures.grid(self.folder / "grid.png", self._clean, self._images)
        compile_seconds = sum(v for k, v in self._parts.items() if k.startswith("compile "))
        shown = {k: v for k, v in self._parts.items() if not k.startswith("compile ")}
        result = record.record(
            self.experiment,
            self.plan,
            seconds=shown | {"compile": compile_seconds, "total": self._total()},
            arms=self.arms,
            poison=self._poisons.get(main),
            published=published,
        )
        figures.curves(self.folder / "curves.png", result)
        checkpoint.write_json(self.folder / "result.json", result)
        page.write_run(self.folder)
        return result

    def _look_after(self) -> None:
        """The page where it is missing; an InputError for poison that is not as it was written."""
        if not (self.folder / "report.html").exists():
            page.write_run(self.folder)
        for path in sorted((self.folder / "poison").glob("[!.]*")):
            poisoned.check_files(path)

    def _verified(
        self, arm: str, path: pathlib.Path, scenario: Scenario, budget: Budget
    ) -> Dataset:
        """The training set of a poison folder that keeps its promises; notes how close it is."""
        began = time.perf_counter()
        stored = poisoned.read(path)
        report = poisoned.verify(path, scenario.train)
        failed = [check for check in report.checks if check.passed is False]
        if failed:
            raise InputError(f"{path} does not verify: {failed[0].name}: {failed[0].detail}")
        close = similarity(scenario.train.image, stored.dataset.image)
        self._poisons[arm] = {
            "norm": budget.norm,
            "eps": budget.eps,
            "measured": report.manifest.measured["norm_max"],
            "psnr": close.psnr,
            "ssim": close.ssim,
        }
        if not self._images:
            self._shown = np.asarray(scenario.index)[:SHOWN]
            self._clean = np.asarray(scenario.train.image[self._shown])
        self._images[arm] = np.asarray(stored.dataset.image[self._shown])
        self._note(f"verify {arm}", time.perf_counter() - began)
        return stored.dataset

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _run(self, room, name, process, key, data, num_steps):
        """`run_chunks` with its files under `room/name` and its seconds noted."""
        part = f"{room} {name}"
        state, info, seconds = loops.run_chunks(
            process,
            key,
            data,
            num_steps=num_steps,
            directory=self.folder / room / name,
            description=part,
        )
        self._parts[f"compile {part}"] = seconds.compile
        self._note(part, seconds.steps)
        return hosts.gather(state), info, seconds

    def _note(self, part: str, seconds: float) -> None:
        self._parts[part] = seconds
        kept = {"parts": self._parts, "wall": self._total()}
        hosts.first(lambda: checkpoint.write_json(self.folder / "seconds.json", kept))

    def _total(self) -> float:
        return self._wall + time.perf_counter() - self._began


@jax.jit(static_argnums=0)
def _poison(attack: Attack, state: Any, scenario: Scenario) -> Dataset:
    return attack.poison(state, scenario)
