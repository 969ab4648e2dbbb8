"""The training sets of a study: crafted, written, verified, read back; kept in `poison/<arm>/`."""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import hosts, over
from jaxpoison.attacks import save_generator
from jaxpoison.data import poisoned
from jaxpoison.data.manifest import PIXELS
from jaxpoison.data.rounding import to_uint8
from jaxpoison.perturb import Budget
from jaxpoison.report.apply import GENERATOR
from jaxpoison.report.arms import ball
from jaxpoison.report.derived import Derived
from jaxpoison.report.probes import everything
from jaxpoison.report.work import Work
from jaxpoison.types import Attack, Dataset, Generator, InputError, Key, Scenario
from jaxpoison.victims import Similarity, similarity

__all__ = ["Poisons", "verified"]

SHOWN = 8  # images in grid.png: the first rows that may change


class Poisons:
    """The poisoned training sets of one run folder.

    Args:
      work: the run folder.
      settings: of the study, for the manifests.

    Attributes:
      entries: by arm, what the record has of its poison: {norm, eps, measured, psnr, ssim}.
      clean: uint8 images of the first rows that may change, for grid.png; none before there is a
        poison.
      images: by arm, the same rows poisoned.
      rows: by arm, [P] all rows that may differ from the clean set.
    """

    def __init__(self, work: Work, settings: dict[str, Any]):
        self._work, self._settings = work, settings
        self.entries: dict[str, dict[str, Any]] = {}
        self.clean = np.zeros(0)
        self.images: dict[str, np.ndarray] = {}
        self.rows: dict[str, np.ndarray] = {}
        self._shown = np.zeros(0, int)
        self._paths: dict[str, pathlib.Path] = {}

    def craft(
        self,
        arm: str,
        attack: Attack,
        key: Key,
        scenario: Scenario,
        *,
        num_steps: int,
        budget: Budget | None,
        source: dict[str, Any],
        settings: dict[str, Any] | None = None,
        network: Generator | None = None,
        rounding: str = "nearest",
    ) -> Dataset:
        """Run an attack, write its poison folder, verify it, and read it back.

        A trained generator is kept too, in `craft/<arm>/generator`; it is there before the poison.

        Args:
          arm: name of the arm and its folders.
          attack: an attack, or restarts of one (the best is taken).
          key: of the attack.
          scenario: what it knows.
          num_steps: steps to run.
          budget: what the folder promises; None for no more than images.
          source: where the training set came from: {name, split, data_dir}, as `data.load` takes.
          settings: the attack's settings, for the manifest.
          network: the generator's, of an attack that trains one (`Attack.generator`).
          rounding: as in `poisoned.write`, or "none": float images.

        Returns: the stored training set (uint8, or float32 if not rounded), as victims will see it.
        Raises: InputError if the stored poison breaks its budget, or the network is not the one
          that the attack trained.
        """
        path, kept = self._work.folder / "poison" / arm, self.generator(arm)
        norm, eps = ball(budget)
        settings = self._settings | {"num_steps": num_steps} | (settings or {})
        if not hosts.first(lambda: path.exists() and (network is None or kept.exists())):
            attack, state, seconds = self._run(arm, attack, key, scenario, num_steps)
            began = time.perf_counter()
            if network is not None and attack.generator and not hosts.first(kept.exists):
                save_generator(
                    kept,
                    attack.generator(state),
                    network=network,
                    eps=eps,
                    attack=arm,
                    settings=settings,
                    key=key,
                    scenario=scenario,
                    source=source,
                )

            def write() -> None:
                if path.exists():
                    return
                poisoned.write(
                    path,
                    poisoned=jax.device_get(_poison(attack, state, scenario)),
                    clean=scenario.train,
                    index=scenario.index,
                    attack=arm,
                    settings=settings,
                    norm=norm,
                    eps=eps,
                    source=source,
                    key=key,
                    wall_time_s=seconds.compile + seconds.steps,
                    domain="float" if rounding == "none" else "uint8",
                    rounding="nearest" if rounding == "none" else rounding,
                )

            hosts.first(write)
            self._work.note(f"write {arm}", time.perf_counter() - began)
        return self.adopt(arm, path, scenario)

    def generator(self, arm: str) -> pathlib.Path:
        """Where the trained generator of an arm is kept, for `attacks.load_generator`."""
        return self._work.folder / "craft" / arm / GENERATOR

    def derive(
        self,
        arm: str,
        one: Derived,
        of: str,
        key: Key,
        scenario: Scenario,
        *,
        source: dict[str, Any],
    ) -> Dataset:
        """Write the poison folder of an arm that is made of another one's; then as `craft`.

        Args:
          arm: name of the arm.
          one: how it is made.
          of: the arm of this run whose stored images it is made of.
          key: of its rows.
          scenario: as in `craft`.
          source: as in `craft`.
        """
        path = self._work.folder / "poison" / arm

        def write() -> None:
            parent = poisoned.read(self._paths[of])
            image, rows = one.derive(
                key,
                np.asarray(scenario.train.image),
                np.asarray(parent.dataset.image),
                np.flatnonzero(parent.mask),
            )
            label = np.array(scenario.train.label)
            label[rows] = np.asarray(parent.dataset.label)[rows]
            poisoned.write(
                path,
                poisoned=Dataset(jnp.asarray(image), jnp.asarray(label)),
                clean=scenario.train,
                index=rows,
                attack=arm,
                settings=self._settings | one.settings,
                norm=parent.manifest.norm,
                eps=parent.manifest.eps,
                source=source,
                key=key,
                extra={"poison": parent.manifest.files},
                labels_changed=parent.manifest.labels_changed,
            )

        if not hosts.first(path.exists):
            began = time.perf_counter()
            hosts.first(write)
            self._work.note(f"write {arm}", time.perf_counter() - began)
        return self.adopt(arm, path, scenario)

    def held_out(
        self,
        arm: str,
        attack: Attack,
        key: Key,
        scenario: Scenario,
        clean: Dataset,
        *,
        num_steps: int,
        budget: Budget | None,
        rounding: str = "nearest",
    ) -> Dataset:
        """Images that a generator attack never saw, poisoned by what it trained.

        Args:
          arm: as in `craft`, like all that is not named here; a finished attack is loaded.
          attack: one with a `generator`, or restarts of one.
          key: as there.
          scenario: as there.
          clean: [N, H, W, C] of the same image shape.
          num_steps: as there.
          budget: as there.
          rounding: as there.

        Returns: all N rows as a release of them would be stored: grey levels; of a float set, or
          not rounded, the floats.
        """
        attack, state, _ = self._run(arm, attack, key, scenario, num_steps)
        image = np.asarray(jax.device_get(_poison(attack, state, everything(clean)).image))
        if clean.image.dtype == np.uint8 and rounding != "none":
            norm, eps = ball(budget)
            image = to_uint8(image, np.asarray(clean.image), norm=norm, eps=eps, rounding=rounding)
        return Dataset(jnp.asarray(image), clean.label)

    def adopt(self, arm: str, path: pathlib.Path, scenario: Scenario) -> Dataset:
        """The training set of a poison folder that keeps its promises; notes how close it is.

        Args:
          arm: name of the arm.
          path: the folder, of this run or written elsewhere.
          scenario: as in `craft`.

        Raises: InputError if it does not verify.
        """
        stored = self.check(arm, path, scenario.train)
        self.rows[arm] = np.flatnonzero(stored.mask)
        if not self.images:
            self._shown = np.asarray(scenario.index)[:SHOWN]
            self.clean = np.asarray(scenario.train.image[self._shown])
        shown = np.asarray(stored.dataset.image[self._shown])
        self.images[arm] = shown if shown.dtype == np.uint8 else 255 * shown
        return stored.dataset

    def check(self, arm: str, path: pathlib.Path, clean: Dataset) -> poisoned.Poisoned:
        """A poison folder that keeps its promises; notes how close it is, and how long it took.

        Args:
          arm: name of the arm.
          path: the folder, of any rows.
          clean: the whole source set.

        Raises: InputError if it does not verify.
        """
        began = time.perf_counter()
        self._paths[arm] = path
        stored, self.entries[arm] = verified(path, clean)
        self._work.note(f"verify {arm}", time.perf_counter() - began)
        return stored

    def _run(self, arm, attack, key, scenario, num_steps):
        """(attack, state, seconds) at the end of its steps; of restarts the best one."""
        state, info, seconds = self._work.run("craft", arm, attack, key, scenario, num_steps)
        if attack.single is not None:
            attack, state = over.best_of(attack, state, info, scenario)
        return attack, state, seconds

    def forget_picture(self, arm: str) -> None:
        """Leave an arm out of grid.png."""
        self.images.pop(arm, None)

    def check_files(self) -> None:
        """An InputError for poison that is not as it was written."""
        for place in ("poison/[!.]*", "setups/*/poison/[!.]*"):
            for path in sorted(self._work.folder.glob(place)):
                poisoned.check_files(path)


def verified(path: pathlib.Path, clean: Dataset) -> tuple[poisoned.Poisoned, dict[str, Any]]:
    """A poison folder that keeps its promises, and {norm, eps, measured, psnr, ssim} of it.

    Args:
      path: the folder; of the whole set, or of some of its rows.
      clean: the whole source set.

    Raises: InputError if it does not verify.
    """
    stored = poisoned.read(path)
    report = poisoned.verify(path, clean)
    failed = [check for check in report.checks if check.passed is False]
    if failed:
        raise InputError(f"{path} does not verify: {failed[0].name}: {failed[0].detail}")
    image, manifest = jnp.asarray(clean.image), report.manifest
    close = Similarity(None, None)
    if manifest.domain in PIXELS:  # values of any size have no signal to noise ratio
        whole = manifest.index_map == "identity"
        close = similarity(image if whole else image[stored.source_rows], stored.dataset.image)
    return stored, {
        "norm": manifest.norm,
        "eps": manifest.eps,  # of a cast the budget and a grey level
        "measured": manifest.measured.get("norm_max"),
        "psnr": close.psnr,
        "ssim": close.ssim,
    }


@jax.jit(static_argnums=0)
def _poison(attack: Attack, state: Any, scenario: Scenario) -> Dataset:
    return attack.poison(state, scenario)
