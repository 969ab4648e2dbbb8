"""The training sets of an experiment: attacks to run, poisons that are stored already, controls."""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from jaxpoison import attacks, check, over
from jaxpoison.data import poisoned
from jaxpoison.data.rounding import ROUNDINGS, promised
from jaxpoison.data.verification import array_sha256
from jaxpoison.perturb import Budget
from jaxpoison.types import Attack, Generator, InputError

__all__ = ["Arm", "Point", "Stored", "arm", "ball", "built", "control", "settings_of", "stored"]

_PLAIN = str | int | float
FEW = 128  # numbers of an array that settings spell out
HARMLESS = "within 3 of clean: change alone does little"


class Point(NamedTuple):
    """Where an arm stands in a sweep, see `report.sweep`: one option of one attack is varied.

    Attributes:
      of: name of what is varied.
      option: the option.
      value: of this arm.
    """

    of: str
    option: str
    value: float


class Arm(NamedTuple):
    """One poisoned training set of an experiment.

    Attributes:
      attack: the attack, or restarts of one, one after another (the best is taken).
      num_steps: steps it runs.
      budget: what its stored images keep; None for an attack that only the image box bounds.
      expect: one line for the reader.
      settings: of the attack, for the manifest.
      label_map: of a label-specific attack: victims shall read clean images of class y as
        label_map[y].
      network: the network of an attack that trains a generator.
      sweep: its place in a sweep.
      rounding: how its images are stored: to grey levels as in `poisoned.write`, or "none".
      restarts: how many.
      has_mesh: whether the attack spreads its own work over devices (`Crafting.mesh`).
    """

    attack: Attack
    num_steps: int
    budget: Budget | None
    expect: str
    settings: dict[str, Any]
    label_map: tuple[int, ...] | None = None
    network: Generator | None = None
    sweep: Point | None = None
    rounding: str = "nearest"
    restarts: int = 1
    has_mesh: bool = False

    def spread(self) -> Attack:
        """The attack, its restarts shared out over the devices of all hosts; the same results.

        Where the devices are taken by the attack itself, or hosts cannot share the restarts evenly,
        it is `attack` as it stands.
        """
        if self.restarts == 1 or self.has_mesh or self.restarts % jax.process_count():
            return self.attack
        return _spread(self.attack.single, self.restarts)

    @property
    def trains_generator(self) -> bool:
        """Whether the attack has a generator, which poisons images it never saw."""
        return (self.attack.single or self.attack).generator is not None

    def facts(self) -> dict[str, Any]:
        """What a run folder is bound to."""
        return self.settings | {"num_steps": self.num_steps}


class Stored(NamedTuple):
    """One poisoned training set that was written before, by whatever experiment.

    Attributes:
      path: its poison folder.
      index: [P] rows that may differ from the clean set.
      budget: what the folder promises.
      expect: one line for the reader.
      settings: attack and hashes, which bind a run folder to this very poison.
      label_map: as in `Arm`, from the manifest.
      sweep: its place in a sweep.
    """

    path: pathlib.Path
    index: Int[np.ndarray, " p"]
    budget: Budget
    expect: str
    settings: dict[str, Any]
    label_map: tuple[int, ...] | None = None
    sweep: Point | None = None

    def facts(self) -> dict[str, Any]:
        """What a run folder is bound to."""
        return self.settings


def arm(
    factory: Callable[..., Attack],
    *parts: Any,
    num_steps: int | None = None,
    budget: Budget | None,
    expect: str,
    restarts: int = 1,
    rounding: str = "nearest",
    **options: Any,
) -> Arm:
    """The arm of `factory(*parts, **options)`; its settings are all options, defaults included.

    Functions among the options are kept by name, sequences as lists, dataclasses (`Crafting`) field
    by field, large arrays by dtype, shape and a hash of their content. An option `label_map` says
    what the attacker wants victims to read, and a `Generator` among the arguments is the network
    that the attack trains: both are noted, and kept with what is judged.

    Args:
      factory: an attack of `jaxpoison.attacks`.
      *parts: its positional arguments, such as the victim.
      num_steps: steps to run; None is what the attack's schedule is laid out over
        (`crafting.steps`), or one, which is enough where there is nothing to optimize.
      budget: what the stored images keep; None for an attack that only the image box bounds.
      expect: one line for the reader.
      restarts: independent runs, of which the one of the lowest loss is stored.
      rounding: how images are stored: to grey levels as in `poisoned.write`, or "none": floats, as
        some papers train on; "cast" goes beyond the budget by one level, as published code does.
      **options: its keyword arguments.

    Raises: InputError for an attack that trains a generator, and has not one network for it or
      another `eps` than the budget: it could not be applied later as it was trained; for other
      `num_steps` than those of a schedule, or than whole rounds of an attack that selects.
    """
    attack, num_steps, arguments, settings = built(factory, parts, options, num_steps)
    network = None if attack.generator is None else _network(arguments, budget)
    check.at_least(1, restarts=restarts)
    check.one_of((*ROUNDINGS, "none"), rounding=rounding)
    if rounding != "nearest":
        if rounding != "none":
            promised(*ball(budget), rounding)
        settings |= {"rounding": rounding}
    if restarts > 1:
        attack, settings = over.over_restarts(attack, restarts), settings | {"restarts": restarts}
    wanted = arguments.get("label_map")
    label_map = None if wanted is None else tuple(int(label) for label in wanted)
    crafting = arguments.get("crafting")
    return Arm(
        attack,
        num_steps,
        budget,
        expect,
        settings,
        label_map,
        network,
        rounding=rounding,
        restarts=restarts,
        has_mesh=getattr(crafting, "mesh", None) is not None,
    )


def built(
    factory: Callable[..., Attack],
    parts: Sequence[Any],
    options: Mapping[str, Any],
    num_steps: int | None,
) -> tuple[Attack, int, dict[str, Any], dict[str, Any]]:
    """(the attack, its steps, all arguments of the factory, those of them that JSON can hold).

    Raises: InputError for other `num_steps` than those of a schedule, or than whole rounds.
    """
    settings, arguments = settings_of(factory, parts, options)
    settings = {"attack": factory.__name__} | settings
    attack = factory(*parts, **options)
    if num_steps is None:
        num_steps = attack.num_steps or 1
    if attack.num_steps not in (None, num_steps):
        raise InputError(
            f"num_steps = {num_steps}; the schedule of {factory.__name__} is laid out over "
            f"{attack.num_steps} steps"
        )
    if num_steps % attack.round_steps:
        raise InputError(
            f"num_steps = {num_steps}; {factory.__name__} selects after rounds of "
            f"{attack.round_steps} steps, so it must be a multiple of them"
        )
    return attack, num_steps, arguments, settings


def settings_of(
    factory: Callable[..., Any], parts: Sequence[Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(those arguments of a factory that JSON can hold, all of them), defaults included."""
    if not callable(factory) or isinstance(factory, Attack):
        raise InputError(
            f"factory = {type(factory).__name__}(...); it must be a function that makes an Attack, "
            "such as jaxpoison.attacks.label_flip"
        )
    signature = inspect.signature(factory)
    try:
        bound = signature.bind(*parts, **options)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise InputError(f"{factory.__name__}: {error}; it takes {names}") from error
    bound.apply_defaults()
    settings = {
        name: setting
        for name, value in bound.arguments.items()
        if (setting := _setting(value)) is not _UNSAID
    }
    return settings, dict(bound.arguments)


def ball(budget: Budget | None) -> tuple[str | None, Any]:
    """Norm and radius as a poison folder states them: (None, None) for no budget."""
    return (None, None) if budget is None else (budget.norm, budget.eps)


def control(
    budget: Budget, expect: str = HARMLESS, *, distribution: str | None = None
) -> dict[str, Arm]:
    """The arm of random noise at the full budget, under the name that the tables look for.

    Args:
      budget: of the noise.
      expect: one line for the reader.
      distribution: as in `attacks.random_noise`; other noise than the norm's usual one is a further
        control, named after it: `control(linf) | control(linf, distribution="uniform")`.
    """
    parts = ["random-noise", "" if budget.norm == "linf" else budget.norm, distribution or ""]
    noise = arm(
        attacks.random_noise,
        eps=budget.eps,
        norm=budget.norm,
        distribution=distribution,
        budget=budget,
        expect=expect,
    )
    return {"-".join(filter(None, parts)): noise}


def stored(path: pathlib.Path, expect: str) -> Stored:
    """The arm of a poison folder.

    Args:
      path: the folder; whether it is a poison of the experiment's own training set is checked when
        the experiment begins.
      expect: one line for the reader.

    Raises: InputError for a folder that is damaged, holds no uint8 images, has added rows or states
      no budget (then there is no noise of the same size to compare with).
    """
    poison = poisoned.read(path)
    manifest = poison.manifest
    if manifest.domain != "uint8" or manifest.rows != "changed":
        raise InputError(
            f"{path} holds {manifest.domain} images with {manifest.rows} rows; uint8 images with "
            "changed rows are needed"
        )
    if manifest.norm is None:
        raise InputError(f"{path} states no budget; there is no random noise of the same size")
    settings = {"attack": manifest.attack, "files": manifest.files}
    budget = Budget(manifest.norm, manifest.eps)
    label_map = manifest.settings.get("label_map")
    wanted = None if label_map is None else tuple(label_map)
    return Stored(path, np.flatnonzero(poison.mask), budget, expect, settings, wanted)


_UNSAID = object()


@functools.cache
def _spread(attack: Attack, restarts: int) -> Attack:
    """Made once, so that it compiles once."""
    return over.spread(attack, restarts)


def _setting(value: Any) -> Any:
    """An argument as JSON has it; `_UNSAID` where it has no name (a network, an optax rule).

    A short row of numbers is a list (a map of labels, say); any other array is known by its
    content: "float32[10,3,3,3] sha256:" and the first 16 digits.
    """
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array) and _is_known(value):
        array = np.asarray(value)
        if array.ndim < 2 and array.size <= FEW:
            return array.tolist()
        shape = ",".join(map(str, array.shape))
        return f"{array.dtype}[{shape}] sha256:{array_sha256(array)[:16]}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _setting(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        return {name: setting for name, setting in fields.items() if setting is not _UNSAID}
    if isinstance(value, Generator):
        return {"name": value.name, "options": {k: _setting(v) for k, v in value.options}}
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    if isinstance(value, Sequence) and not hasattr(value, "_fields"):
        return [_setting(item) for item in value]
    return _UNSAID


def _is_known(value: Any) -> bool:
    """Whether the array has numbers to be read: no tracer, no key."""
    traced = isinstance(value, jax.core.Tracer)
    return not traced and not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _network(arguments: Mapping[str, Any], budget: Budget | None) -> Generator:
    """The one network among the arguments of an attack that trains it under this budget."""
    networks = [value for value in arguments.values() if isinstance(value, Generator)]
    if len(networks) != 1:
        raise InputError(f"the attack has {len(networks)} Generators as arguments; it must have 1")
    if budget is None:
        raise InputError("the budget is None; a generator's is linf")
    eps = arguments.get("eps", budget.eps)
    if (budget.norm, budget.eps) != ("linf", eps):
        raise InputError(
            f"the budget is {budget.norm} {budget.eps:.6g}; the generator's is linf {eps:.6g}"
        )
    return networks[0]
