"""The settings that every experiment has."""

import dataclasses
import json
import pathlib
from typing import Any

from jaxpoison import check, hosts
from jaxpoison.report.probes import PROBES, Probe
from jaxpoison.types import InputError

__all__ = ["StudyConfig"]

# Settings that do not bind a run folder; data are known by their hashes.
WHERE = ("name", "runs", "overwrite", "data_dir", "distributed")


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
    probes: tuple[Probe, ...] = ()
    """Further sets that the victims of a poison are judged on, with true labels: the noise alone of
    its training images, the noise alone that a trained generator adds to the test images, and these
    test images poisoned (the last two of generator attacks only)."""
    deterministic: bool = False
    """Same bits from every run on a GPU too, by slower kernels; CPUs give the same bits anyway."""
    distributed: str | None = None
    """One run on several hosts, the same command on each: 'auto' (SLURM, Open MPI, Kubernetes, TPU)
    or HOST:PORT,NUM,ID with the address of process 0, the number of processes and this one's."""

    def __post_init__(self):
        object.__setattr__(self, "runs", pathlib.Path(self.runs))
        check.at_least(1, victims=self.victims, craft_seeds=self.craft_seeds)
        check.number(above=0, most=1, share=self.share)
        object.__setattr__(self, "probes", tuple(self.probes))
        for probe in self.probes:
            check.one_of(PROBES, probes=probe)
        if not 0 <= self.seed < 2**32:  # a key keeps 32 bits: others would repeat these
            raise InputError(f"seed = {self.seed}; it must be from 0 to {2**32 - 1}")
        if self.name in ("", "..") or pathlib.Path(self.name).name != self.name:
            raise InputError(f"name = {self.name!r}; a plain folder name is needed")
        if self.distributed is not None:
            hosts.parse_distributed(self.distributed)

    def settings(self) -> dict[str, Any]:
        """What determines the result, ready for JSON: all fields but those that say where."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in WHERE}
        if not self.probes:
            del fields["probes"]  # as in the records from before there were any
        return json.loads(json.dumps(fields, default=str))
