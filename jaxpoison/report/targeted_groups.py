"""Setups of a targeted run at once, each on a device of its own: groups of them, one by one.

groups/<numbers>/craft/<arm>/          metrics.jsonl; checkpoints/ until all poisons are stored
groups/<numbers>/victims/<entry>/      metrics.jsonl; checkpoints/ until all victims are judged

What a group computes is kept with its setups, where `run_setup` finds it.
"""

import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpoison import check, hosts, over, tree
from jaxpoison.data import Setup, poisoned, stack_setups, with_poison
from jaxpoison.data.poisoned import Poisoned
from jaxpoison.data.verification import floats
from jaxpoison.report import record
from jaxpoison.report.preparation import Trainee
from jaxpoison.report.targeted_setup import (
    Field,
    Seen,
    chosen,
    finished,
    forget,
    judge_setup,
    judged,
    run_setup,
    store,
    watch,
)
from jaxpoison.report.work import Work
from jaxpoison.sweep import over_setups
from jaxpoison.types import Dataset, InputError, Key, Replaced, Split, Sweep, Training
from jaxpoison.victims import Watched

__all__ = ["check_at_once", "sweep_groups"]


def check_at_once(at_once: int | None, mesh: Mesh | None, fresh_surrogates: bool) -> Mesh | None:
    """The devices that setups are spread over; None where one comes after the other.

    Raises: InputError for more than there are, or a share of several hosts' devices, or settings
      that do not go together.
    """
    num = jax.device_count() if at_once is None else at_once
    check.at_least(1, at_once=num)
    if num == 1:
        return None
    several = jax.process_count() > 1
    if num > jax.device_count() or (several and num != jax.device_count()):
        allowed = "1 or" if several else "1 to"
        raise InputError(f"at_once = {num} setups; allowed are {allowed} {jax.device_count()}")
    if mesh is not None:
        raise InputError(f"at_once = {num} setups take a device each; a mesh of batches cannot be")
    if fresh_surrogates:
        raise InputError(f"at_once = {num} setups share their surrogates; fresh ones cannot be")
    return over.device_mesh(num, axis="setup")


class _Group(NamedTuple):
    """Setups that are computed at once; as many as there are devices, the last ones repeated."""

    numbers: list[int]
    setups: list[Setup]
    works: list[Work]
    mesh: Mesh

    def wanted(self, places: Sequence[bool]) -> "_Group":
        """Those for which something is still to be computed."""
        kept = [i for i, missing in enumerate(places) if missing]
        parts = ([x[i] for i in kept] for x in (self.numbers, self.setups, self.works))
        return _Group(*parts, self.mesh)  # type: ignore[bad-argument-type]

    @property
    def name(self) -> str:
        """Of its folder."""
        first, last = self.numbers[0], self.numbers[-1]
        name = f"{first:04d}-{last:04d}"
        if self.numbers == list(range(first, last + 1)):
            return name
        return f"{name}-{hashlib.sha256(str(self.numbers).encode()).hexdigest()[:8]}"

    @property
    def filled(self) -> list[int]:
        """Positions in the group, one for each device."""
        num = self.mesh.size
        return list(itertools.islice(itertools.cycle(range(len(self.numbers))), num))


def sweep_groups(
    work: Work,
    setups: Sequence[Setup],
    places: Sequence[Work],
    field: Field,
    aux: Any,
    clean: Mapping[str, Seen],
    mesh: Mesh,
    chunk: int | None,
    keys: Mapping[str, Key],
) -> None:
    """Everything of all setups, a group of one size and shape after the other.

    Args:
      work: of the run.
      setups: all of the run; a setup's number is its place here.
      places: where each has its files; finished ones are passed over.
      field: what all share.
      aux: the trained surrogates.
      clean: as in `run_setup`.
      mesh: one device for each setup of a group.
      chunk: victims of one setup side by side, as in `over_restarts`.
      keys: attack_key and victim_key, as in `run_setup`.
    """
    pending = [n for n, place in enumerate(places) if finished(place) is None]
    if not pending:
        return
    num = len(next(iter(clean.values())).logits)

    @functools.cache
    def swept(process: Training) -> Training:
        assert process.single is not None
        return over_setups(over.over_restarts(process.single, num, chunk=chunk), mesh)

    trainings = {name: swept(one) for name, one in field.trainings.items()}
    attacks = {name: over_setups(one.attack, mesh) for name, one in field.arms.items()}

    def shape(number: int) -> tuple[int, int]:
        return len(setups[number].poison_rows), len(setups[number].target_rows)

    for _, same in itertools.groupby(pending, shape):
        alike = list(same)
        for start in range(0, len(alike), mesh.size):
            numbers = alike[start : start + mesh.size]
            members = [setups[n] for n in numbers]
            group = _Group(numbers, members, [places[n] for n in numbers], mesh)
            for name in field.arms:
                _craft(work, group, name, attacks[name], field, aux, keys["attack_key"])
                _train(work, group, name, trainings, field, keys["victim_key"])
            for number, one, place in zip(group.numbers, members, group.works, strict=True):
                run_setup(place, one, field, aux, clean, number=number, **keys)


def _craft(
    work: Work, group: _Group, name: str, attack: Any, field: Field, aux: Any, key: Key
) -> None:
    """The poison folders of one arm that are not there yet."""
    paths = [place.folder / "poison" / name for place in group.works]
    some = group.wanted(hosts.first(lambda: [not path.exists() for path in paths]))
    if not some.numbers:
        return
    one, place = field.arms[name], work.within(f"groups/{some.name}")
    setups = [some.setups[i] for i in some.filled]
    numbers = [some.numbers[i] for i in some.filled]
    sweep = stack_setups(setups, field.split, aux, numbers=numbers)
    state, info, seconds = place.run("craft", name, attack, key, sweep, one.num_steps)
    each = (seconds.compile + seconds.steps) / len(some.numbers)
    for i, (setup, home) in enumerate(zip(some.setups, some.works, strict=True)):
        scenario = setup.scenario(field.split, aux)
        crafted = chosen(one.attack, tree.take(state, i), _of(info, i), scenario, each)
        store(home, name, one, setup, field, crafted, key, number=some.numbers[i])
    forget(place, f"craft/{name}", field)


def _train(
    work: Work,
    group: _Group,
    name: str,
    trainings: Mapping[str, Training],
    field: Field,
    key: Key,
) -> None:
    """The judgments of one arm's victims that are not there yet."""
    for victim, trainee in field.victims.items():
        entry = record.entry(name, victim)
        some = group.wanted([judged(place, entry) is None for place in group.works])
        if not some.numbers:
            continue
        place = work.within(f"groups/{some.name}")
        poisons = [poisoned.read(home.folder / "poison" / name) for home in some.works]
        sets = _swept(trainee, _like(field.split, poisons[0]), poisons, some)
        epochs = trainee.recipe.epochs
        state, info, _ = place.run("victims", entry, trainings[victim], key, sets, epochs)
        for i, (setup, home) in enumerate(zip(some.setups, some.works, strict=True)):
            split = Split(with_poison(field.split.train, poisons[i]), field.split.test)
            own = tree.take(state, i), _of(info, i)
            judge_setup(home, entry, trainee, *own, setup, split)
        forget(place, f"victims/{entry}", field)


def _like(split: Split, poison: Poisoned) -> Split:
    """The clean split in the dtype of a poison."""
    train = split.train
    if poison.manifest.domain == "float":
        train = Dataset(jnp.asarray(floats(np.asarray(train.image))), train.label)
    return split._replace(train=train)


def _swept(trainee: Trainee, split: Split, poisons: Sequence[Poisoned], some: _Group) -> Sweep:
    """What the victims of a group are trained on, and each setup's targets."""
    order = some.filled
    shown = [watch(trainee, split, some.setups[i]) for i in order]
    targets = jax.tree.map(lambda *x: jnp.stack(x), *[one.targets for one in shown])
    rows = jnp.asarray(np.stack([poisons[i].source_rows for i in order]), jnp.int32)
    image = jnp.asarray(np.stack([np.asarray(poisons[i].dataset.image) for i in order]))
    numbers = jnp.asarray([some.numbers[i] for i in order], jnp.int32)
    return Sweep(numbers, Watched(Replaced(trainee.data(split), rows, image), targets))


def _of(info: Any, i: int) -> Any:
    """The info [T, ...] of setup i of a group, of [T, S, ...]."""
    return jax.tree.map(lambda x: x[:, i], info)
