"""One cell of a job of added points: an arm at a share and an attack key, crafted and stored."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpoison import hosts, hypergrad
from jaxpoison.attacks import FeatureTargetedState
from jaxpoison.data import poisoned
from jaxpoison.data.manifest import tree_sha256
from jaxpoison.report.added_arms import AddedArm
from jaxpoison.report.added_checks import known
from jaxpoison.report.added_reach import reachable
from jaxpoison.report.added_sides import Side
from jaxpoison.report.study import Study
from jaxpoison.types import Dataset, InputError, Key, Scenario, Variables, Victim
from jaxpoison.victims import Extractor, assess, interval, split_head

__all__ = ["Crafted", "craft", "gathered", "label_of", "progress"]

POINTS = 33
"""Of a curve in the record, its ends included."""


class Crafted(NamedTuple):
    """What an attack left.

    Attributes:
      poison: the stored points, verified.
      target: the network that they shall make a place of rest, of an attack that aims at one.
      facts: what the record says of them, see `report.record`.
      reach: by follower, whether the target can be reached at this share; see there.
    """

    poison: poisoned.Poisoned
    target: Variables | None
    facts: dict[str, Any]
    reach: dict[str, Any]


def label_of(player: str, name: str, share: float, s: int) -> str:
    """The folder of a cell, and its name in the run."""
    arm = f"{player}-{name}" if player else name
    return f"{arm} share={share:g}" + (f".{s}" if s else "")


def craft(
    study: Study,
    side: Side,
    name: str,
    one: AddedArm,
    index: jax.Array,
    key: Key,
    *,
    label: str,
    source: dict[str, Any],
) -> Crafted:
    """Run the attack of a cell, store the added points, verify them.

    Args:
      study: the run.
      side: the player it attacks.
      name: of the arm.
      one: the arm.
      index: [P] base rows.
      key: of the attack.
      label: of the cell.
      source: as `data.load` takes it.

    Raises: InputError if the attack changes clean rows, or its points break their constraint.
    """
    clean = side.train[one.space]
    scenario = Scenario(clean, clean, index, known(one, side.player, side.reference))
    state, info, seconds = study.work.run("craft", label, one.attack, key, scenario, one.num_steps)
    path = study.work.folder / "poison" / label
    settings = study.config.settings() | one.facts() | {"share": len(index) / len(clean.label)}

    def write() -> None:
        added, moved = jax.device_get(_added(one.attack, state, scenario))
        if moved > 1e-5:
            raise InputError(f"arm {name!r} changes clean rows, by up to {moved:.3g}; it may only "
                             "add some")  # fmt: skip
        base = np.asarray(clean.label)[np.asarray(index)]
        poisoned.write(
            path,
            poisoned=Dataset(jnp.asarray(added.image), jnp.asarray(added.label)),
            clean=clean,
            index=np.arange(len(index)),
            source_rows=np.asarray(index),
            attack=name,
            settings=settings,
            norm=None if one.eps is None else "linf",
            eps=one.eps,
            source=source,
            key=key,
            wall_time_s=seconds.compile + seconds.steps,
            domain=one.domain,
            rows="added",
            labels_changed=bool((np.asarray(added.label) != base).any()),
            extra=_extractor(side, one),
        )

    if not hosts.first(path.exists):
        began = time.perf_counter()
        hosts.first(write)
        study.work.note(f"write {label}", time.perf_counter() - began)
    stored = study.poisons.check(label, path, clean)
    target = None if one.attack.target is None else one.attack.target(state)
    reach: dict[str, Any] = {}
    facts = {
        "arm": name,
        "player": one.player,
        "share": len(index) / len(clean.label),
        "num_added": len(index),
        "space": one.space,
        "constraint": None if one.constraint is None else one.settings["constraint"],
        "labels_changed": stored.manifest.labels_changed,
        "values": _values(stored.manifest.measured),
        **progress(info, target is not None),
    }
    if isinstance(state, FeatureTargetedState) and (frozen := side.player.extractor):
        facts["inversion"] = _inversion(frozen, side, one, state, stored, scenario)
    if target is not None:
        victim, own, space = _head_of(side, one, target)
        if victim is not None:
            facts["target_accuracy"] = assess(victim, own, side.test[space]).accuracy.mean
            seen = scenario._replace(train=side.train[space])
            for follower, how in side.player.followers.items():
                reach[follower] = reachable(one, victim, own, seen, how, space=space)
    return Crafted(stored, target, facts, reach)


def _extractor(side: Side, one: AddedArm) -> dict[str, Any] | None:
    """Whose features are stored, for the manifest; None of points that are no features."""
    extractor = side.player.extractor
    if one.domain != "features" or extractor is None:
        return None
    facts = {"variables_sha256": tree_sha256(extractor.variables), "player": side.name}
    facts |= {"features": side.train["features"].image.shape[-1]}
    return {"extractor": facts | {"image_shape": list(side.train["input"].image.shape[1:])}}


@jax.jit(static_argnums=0)
def _added(attack, state, scenario):
    """(the added rows, the largest change of a clean one)."""
    whole = attack.poison(state, scenario)
    num = scenario.train.label.shape[0]
    clean = scenario.train.image
    scale = 255 if clean.dtype == jnp.uint8 else 1
    change = jnp.max(jnp.abs(whole.image[:num] - clean.astype(whole.image.dtype) / scale))
    return Dataset(whole.image[num:], whole.label[num:]), change


def _head_of(side: Side, one: AddedArm, target: Variables) -> tuple[Victim | None, Variables, str]:
    """(network, its arrays, space that it sees) of a target.

    Behind an extractor the target is a head, of whatever space the points are.
    """
    if side.player.extractor is None:
        return one.victim, target, one.space
    joined = isinstance(target.stats, dict) and "extractor" in target.stats
    return side.player.victim, split_head(target)[1] if joined else target, "features"


def _inversion(
    extractor: Extractor,
    side: Side,
    one: AddedArm,
    state: FeatureTargetedState,
    stored: poisoned.Poisoned,
    scenario: Scenario,
) -> dict[str, float]:
    """The third stage of a feature-targeted attack, judged on the images of the poison folder."""
    found = _judged(
        extractor.victim,
        side.player.victim,
        one.settings["weight"],
        one.settings["batch_size"],
        extractor.variables,
        state.feature,
        jnp.asarray(stored.dataset.image),
        scenario,
    )
    return {name: float(value) for name, value in found._asdict().items()}


@jax.jit(static_argnums=(0, 1, 2, 3))
def _judged(victim, head, weight, batch_size, variables, feature, image, scenario):
    """`hypergrad.inversion_error`, compiled once for all attack keys."""
    seen = Extractor(victim, variables)
    return hypergrad.inversion_error(
        seen, head, feature.phi, feature.theta, image, scenario, weight=weight,
        batch_size=batch_size,
    )  # fmt: skip


def _values(measured: dict[str, Any]) -> dict[str, float] | None:
    names = ("value_low", "value_high", "clean_low", "clean_high")
    found = {name: measured[name] for name in names if name in measured}
    return found or None


def progress(info: Any, cancels: bool) -> dict[str, Any]:
    """Of an attack of several steps: {first, last, and of the residual the curve}.

    `residual` is of the gradient that an attack cancels, `solve` of TGDA's linear systems.
    """
    loss = np.asarray(info.outer_loss, np.float64)
    if len(loss) < 2:
        return {}
    found: dict[str, Any] = {"outer_loss": {"first": float(loss[0]), "last": float(loss[-1])}}
    if cancels:
        residual = getattr(info, "residual", None)
        size = np.sqrt(2 * loss) if residual is None else np.asarray(residual, np.float64)
        found["residual"] = _curve(size)
    if not cancels and hasattr(info, "iterations"):
        found["solve"] = {
            "residual": _curve(np.asarray(info.residual, np.float64)),
            "iterations": float(np.mean(info.iterations)),
        }
    if hasattr(info, "feature_error"):
        found["feature_error"] = _curve(np.asarray(info.feature_error, np.float64))
    return found


def gathered(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Where an attack came under several attack keys: intervals over them of what all of them have.

    Args:
      found: by attack key, the `added` entries of one follower.

    Returns: {target_accuracy, residual and feature_error at the last step, those of `inversion`
      (`inversion_feature_error` ...), distance (mean over victims)}, those that there are.
    """
    take = {
        "target_accuracy": lambda one: one.get("target_accuracy"),
        "residual": lambda one: (one.get("residual") or {}).get("last"),
        "feature_error": lambda one: (one.get("feature_error") or {}).get("last"),
        "distance": lambda one: (one.get("distance") or {}).get("mean"),
    }
    for name in hypergrad.InversionError._fields:
        take[f"inversion_{name}"] = lambda one, name=name: one.get("inversion", {}).get(name)
    values = {
        name: [value for entry in found if (value := one(entry)) is not None]
        for name, one in take.items()
    }
    whole = {name: own for name, own in values.items() if len(own) == len(found)}
    return {name: interval(own)._asdict() for name, own in whole.items()}


def _curve(values: np.ndarray) -> dict[str, Any]:
    """First and last value, and the curve at about 33 steps, to six digits."""
    steps = np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).astype(int))
    return {
        "first": float(values[0]),
        "last": float(values[-1]),
        "steps": (steps + 1).tolist(),
        "curve": [float(f"{value:.6g}") for value in values[steps]],
    }
