"""Fresh victims of every training set, trained and judged: the entries of a record."""

import time
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxpoison import checkpoint, hosts
from jaxpoison.data import StreamSplit
from jaxpoison.report import record
from jaxpoison.report.arms import Point
from jaxpoison.report.preparation import Robustness
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.report.work import Work
from jaxpoison.types import Dataset, InputError, Key, Split, Streaming, Training, TrainState, Victim
from jaxpoison.victims import (
    Classical,
    Transfer,
    assess,
    assess_robust,
    fit_classical,
    hits,
    interval,
    judge,
    judge_fits,
    judge_streamed,
    score_fits,
)

__all__ = ["Exam", "Judging"]

ATTACKED = 1 << 20  # folded into the key of victims, for the attacks on them


class Exam(NamedTuple):
    """One training set, and what victims that learned from it are judged on.

    Attributes:
      split: the training set, and the clean test set; a StreamSplit where they stay on disk.
      expect: one line for the reader.
      poison: {norm, eps, measured, psnr, ssim}; None for clean data.
      targets: target images with the labels the attacker wants; None where none are.
      probes: further sets on which their accuracy is taken, by name; float images may be noise.
      sweep: the arm's place in a sweep.
    """

    split: Split | StreamSplit
    expect: str
    poison: dict[str, Any] | None = None
    targets: Dataset | None = None
    probes: Mapping[str, Dataset] = types.MappingProxyType({})
    sweep: Point | None = None


class Judging:
    """The victims of one run folder, below `victims/`.

    Args:
      work: the run folder.
      config: `victims` and `seed` are read.

    Attributes:
      arms: the entries of the record so far.
    """

    def __init__(self, work: Work, config: StudyConfig):
        self._work, self._config = work, config
        self.arms: dict[str, dict[str, Any]] = {}

    def retrain(
        self,
        arm: str,
        exam: Exam,
        victim: Victim,
        training: Training | Streaming,
        key: Key,
        *,
        epochs: int,
        network: str = "",
        evaluation: dict[str, Any] | None = None,
        transfer: Transfer | None = None,
        robustness: Robustness | None = None,
    ) -> TrainState:
        """Train fresh victims on one training set and judge them; returns them as they ended.

        Args:
          arm: name of the training set.
          exam: the set, and what they are judged on.
          victim: the network.
          training: `over_restarts` of its training, or a `streamed_training` with seeds; R is the
            number of seeds. Build it once.
          key: of the victims; the same for all arms, so that seeds are paired.
          epochs: to train.
          network: name of the victim where an experiment has several; the entry and its folder are
            then NETWORK/ARM.
          evaluation: how they are judged in memory, `Recipe.evaluation`; None is with running
            statistics.
          transfer: the pretrained network that victims start from; None is from scratch.
          robustness: how their robust accuracy is measured, if it is, with running statistics.

        Raises: InputError for robustness where the test set stays on disk.
        """
        name, clean = record.entry(arm, network), exam.split.test
        if robustness is not None and not isinstance(clean, Dataset):
            raise InputError(
                f"robustness of {name} needs a test set in memory; this one stays on disk"
            )
        sets: Any = exam.split
        data = sets if transfer is None else transfer.data(sets)
        state, info, _ = self._work.run("victims", name, training, key, data, epochs)
        how = evaluation or {}
        if isinstance(training, Streaming):
            judgment = judge_streamed(victim, state, info, *sets, max_bytes=training.max_bytes)
        else:
            judgment = judge(victim, state, info, *sets, **how)
        success = () if exam.targets is None else hits(victim, state, exam.targets, **how)
        probes = {
            probe: assess(victim, state.variables, dataset, **how).accuracy
            for probe, dataset in exam.probes.items()
        }
        if robustness is not None and isinstance(clean, Dataset):
            attacks = jax.random.fold_in(key, ATTACKED)
            found = assess_robust(attacks, victim, state.variables, clean, **robustness._asdict())
            probes[robustness.name] = found.accuracy
        self.arms[name] = record.arm(judgment, *success, probes=probes, **_of(exam, network))
        return state

    def consult(self, arm: str, exam: Exam, victim: Classical, *, network: str) -> None:
        """Judge victims that are no networks; kept in victims/NETWORK/ARM/entry.json.

        Args:
          arm: name of the training set.
          exam: the set, and what they are judged on.
          victim: the classifier; seeds are those of the settings.
          network: name of the victim.
        """
        name = record.entry(arm, network)
        file = f"victims/{name}/entry.json"
        entry = self._work.read(file, {"final_accuracy": dict, "curve": list})
        if entry is None:
            began = time.perf_counter()

            def judged() -> dict[str, Any]:
                seeds = {"num": self._config.victims, "seed": self._config.seed}
                sets: Any = exam.split
                fits = fit_classical(victim, sets.train, **seeds)
                judgment = judge_fits(fits, *sets)
                success = () if exam.targets is None else (score_fits(fits, exam.targets),)
                probes = {name: score_fits(fits, one) for name, one in exam.probes.items()}
                entry = record.arm(judgment, *success, probes=probes, **_of(exam, network))
                path = self._work.folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.write_json(path, entry)
                return entry

            entry = hosts.first(judged)
            self._work.note(f"victims {name}", time.perf_counter() - began)
        self.arms[name] = entry

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
        for name in entries[1:]:
            del self.arms[name]


def _of(exam: Exam, network: str) -> dict[str, Any]:
    """What an entry says of its training set."""
    sweep = None if exam.sweep is None else exam.sweep._asdict()
    return {
        "expect": exam.expect,
        "poison": exam.poison,
        "sweep": sweep,
        "victim": network or None,
    }
