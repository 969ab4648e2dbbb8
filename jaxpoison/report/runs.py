"""Finished runs as they lie on disk: the record, the pictures, the names of the classes."""

import itertools
import json
import pathlib
from typing import Any, NamedTuple

from jaxpoison import check, data
from jaxpoison.data.manifest import MANIFEST, read_manifest
from jaxpoison.hypergrad import InversionError
from jaxpoison.report import record
from jaxpoison.types import InputError

__all__ = ["Run", "read_run", "read_runs"]

COMPARED = ("success_rate", "intended_probability", "true_probability")
RATES = ("final_accuracy", "peak_accuracy", "train_accuracy")


class Run(NamedTuple):
    """One finished run.

    Attributes:
      label: what it is called beside others: `<experiment>/<name>`, or the name of its file.
      path: its folder, or the file of a record that stands alone.
      record: result.json, as `report/record.py` describes it; checked.
      grid: the bytes of grid.png, or None.
      class_names: of the data set, in label order, or None where nothing names them.
    """

    label: str
    path: pathlib.Path
    record: dict[str, Any]
    grid: bytes | None
    class_names: tuple[str, ...] | None


def read_run(path: str | pathlib.Path) -> Run:
    """A finished run.

    Args:
      path: its folder, or the JSON file of a record.

    Raises:
      InputError: there is no such run, it is not finished, or its record is damaged.
    """
    path = pathlib.Path(path)
    folder, file = _places(path)
    value = _record(file)
    if folder is None:
        return Run(file.stem, file, value, None, None)
    label = f"{value['experiment']}/{folder.resolve().name}"
    try:
        grid = (folder / "grid.png").read_bytes()
    except OSError:
        grid = None
    return Run(label, folder, value, grid, _class_names(folder))


def read_runs(paths: list[pathlib.Path]) -> list[Run]:
    """Several runs with labels that tell them apart.

    Raises:
      InputError: as `read_run`, or a run is named twice.
    """
    runs: list[Run] = []
    for path in paths:
        run = read_run(path)
        if any(run.path.resolve() == other.path.resolve() for other in runs):
            raise InputError(f"{path} is named twice; name each run once")
        runs.append(run)
    labels = [run.label for run in runs]
    return [r._replace(label=str(r.path)) if labels.count(r.label) > 1 else r for r in runs]


def _places(path: pathlib.Path) -> tuple[pathlib.Path | None, pathlib.Path]:
    """(run folder or None, file of the record)."""
    try:
        if path.is_file():
            home = path.name == "result.json" and (path.parent / "config.json").is_file()
            return (path.parent if home else None), path
        if not path.is_dir():
            raise InputError(f"no run {path}; a run folder or a record is needed")
        if (path / "result.json").is_file():
            return path, path / "result.json"
        if (path / "config.json").is_file():
            raise InputError(
                f"{path} is not finished: it has no result.json; its command goes on with it"
            )
        inside = sorted(p.parent for p in path.glob("*/result.json"))
        inside += sorted(p.parent for p in path.glob("*/*/result.json"))
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"no run {ascii(str(path))}: {check.one_line(error)}") from error
    hint = f"; did you mean {inside[0]}?" if inside else ""
    raise InputError(f"{path} is no run folder: it has no result.json{hint}")


def _record(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        _check(value)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is no record of a run, or damaged: {check.one_line(error)}"
        ) from error
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check(value: Any) -> None:
    """A ValueError naming the first entry that a record cannot have."""
    _need(isinstance(value, dict), "the record")
    for name, kind in record.FIELDS.items():
        _need(isinstance(value.get(name), kind), name)
    _need(all(map(_number, value["seconds"].values())), "seconds")
    _need("total" in value["seconds"] and "compile" in value["seconds"], "seconds")
    for name, kind in (("platform", str), ("kind", str), ("host", str), ("count", int)):
        _need(isinstance(value["device"].get(name), kind), f"device.{name}")
    for row in value["published"]:
        texts = isinstance(row, dict) and all(
            isinstance(row.get(k), str) for k in ("what", "source")
        )
        _need(texts and _number(row.get("value")), "published")
    for name, entry in value["arms"].items():
        _check_arm(f"arms.{name}", entry)
    if "comparisons" in value:
        _check_targeted(value)


def _check_arm(name: str, entry: Any) -> None:
    _need(isinstance(entry, dict), name)
    optional = [k for k in ("success_rate", "intended_probability", "craft_seeds") if k in entry]
    for rate in [*RATES, *optional]:
        _check_rate(f"{name}.{rate}", entry.get(rate))
    probes, sweep = entry.get("probes", {}), entry.get("sweep")
    _need(isinstance(probes, dict), f"{name}.probes")
    for probe, rate in probes.items():
        _check_rate(f"{name}.probes.{probe}", rate)
    if sweep is not None:
        texts = isinstance(sweep, dict) and all(
            isinstance(sweep.get(k), str) for k in ("of", "option")
        )
        _need(texts and _number(sweep.get("value")), f"{name}.sweep")
    curve, classes, counts = (entry.get(k) for k in ("curve", "per_class", "confusion"))
    _need(isinstance(curve, list) and all(map(_number, curve)), f"{name}.curve")
    _need(
        isinstance(classes, list) and all(x is None or _number(x) for x in classes),
        f"{name}.per_class",
    )
    rows = isinstance(counts, list) and len(counts) == len(classes)
    square = rows and all(isinstance(r, list) and len(r) == len(counts) for r in counts)
    _need(square and all(_number(n) and n >= 0 for r in counts for n in r), f"{name}.confusion")
    _need(isinstance(entry.get("expect"), str), f"{name}.expect")
    _need(isinstance(entry.get("victim", ""), str), f"{name}.victim")
    if "added" in entry:
        _check_added(f"{name}.added", entry["added"])
    if "defended" in entry:
        cell = entry["defended"]
        sound = isinstance(cell, dict) and all(
            isinstance(cell.get(k), str) for k in ("attack", "defense")
        )
        _need(sound and isinstance(cell.get("cached"), bool), f"{name}.defended")
    poison = entry.get("poison")
    _need(poison is None or isinstance(poison, dict), f"{name}.poison")
    for key in ("eps", "measured", "psnr", "ssim") if poison else ():
        _need(poison.get(key) is None or _number(poison[key]), f"{name}.poison.{key}")


def _check_added(name: str, value: Any) -> None:
    _need(isinstance(value, dict), name)
    for key in ("arm", "player", "follower", "space"):
        _need(isinstance(value.get(key), str), f"{name}.{key}")
    for key in ("share", "num_added"):
        _need(_number(value.get(key)), f"{name}.{key}")
    _check_rate(f"{name}.drop", value.get("drop"))
    limit, values, found = (value.get(k) for k in ("constraint", "values", "reach"))
    sound = limit is None or (isinstance(limit, dict) and isinstance(limit.get("kind"), str))
    _need(sound and (limit is None or _number(limit["eps"]) or limit["eps"] is None),
          f"{name}.constraint")  # fmt: skip
    ends = ("value_low", "value_high", "clean_low", "clean_high")
    sound = isinstance(values, dict) and all(_number(values.get(k)) for k in ends)
    _need(values is None or sound, f"{name}.values")
    for key in ("residual", "feature_error"):
        curve = value.get(key, {"first": 0, "last": 0, "steps": [], "curve": []})
        sound = isinstance(curve, dict) and _number(curve.get("first"))
        _need(sound and _number(curve.get("last")), f"{name}.{key}")
    if "inversion" in value:
        judged = value["inversion"]
        sound = isinstance(judged, dict) and set(InversionError._fields) <= judged.keys()
        _need(sound and all(map(_number, judged.values())), f"{name}.inversion")
    if found is not None:
        sound = isinstance(found, dict) and found.get("reachable") in (True, False, None)
        _need(sound and (found.get("tau") is None or _number(found["tau"])), f"{name}.reach")
    if value.get("distance") is not None:
        _check_rate(f"{name}.distance", value["distance"])
    target = value.get("target_accuracy")
    _need(target is None or _number(target), f"{name}.target_accuracy")
    over_keys = value.get("craft_seeds", {})
    _need(isinstance(over_keys, dict), f"{name}.craft_seeds")
    for key, one in over_keys.items():
        _check_rate(f"{name}.craft_seeds.{key}", one)
    filters = value.get("filters", {})
    _need(isinstance(filters, dict), f"{name}.filters")
    for key, one in filters.items():
        _need(isinstance(one, dict), f"{name}.filters.{key}")
        rates = [one.get(k, "") for k in ("true_positive_rate", "false_positive_rate", "auc")]
        _need(all(x is None or _number(x) for x in rates), f"{name}.filters.{key}")
        if one.get("final_accuracy") is not None:
            _check_rate(f"{name}.filters.{key}.final_accuracy", one["final_accuracy"])


def _check_targeted(value: dict[str, Any]) -> None:
    names = []
    for name, entry in value["arms"].items():
        optional = [k for k in ("success_over_epochs",) if k in entry]
        for rate in (*COMPARED, *optional):
            _check_rate(f"arms.{name}.{rate}", entry.get(rate))
        curve = entry.get("intended_curve", [0])
        sound = isinstance(curve, list) and curve and all(map(_number, curve))
        _need(sound, f"arms.{name}.intended_curve")
        count = entry.get("success_count")
        sound = isinstance(count, dict) and all(_number(count.get(k)) for k in ("hits", "trials"))
        _need(sound and count["trials"] > 0, f"arms.{name}.success_count")
        setups = entry.get("setups")
        _need(isinstance(setups, list) and setups, f"arms.{name}.setups")
        for one in setups:
            _need(isinstance(one, dict) and isinstance(one.get("name"), str), f"arms.{name}.setups")
            lists = [one.get(k) for k in ("success", "intended")]
            sound = all(isinstance(x, list) and x and all(map(_number, x)) for x in lists)
            _need(sound and len({len(x) for x in lists}) == 1, f"arms.{name}.setups")
            loss = one.get("outer_loss")
            sound = isinstance(loss, dict) and all(_number(loss.get(k)) for k in ("first", "last"))
            _need(loss is None or sound, f"arms.{name}.setups.outer_loss")
        names.append([one["name"] for one in setups])
        _need(names[0] == names[-1], f"arms.{name}.setups")
    _need(isinstance(value["comparisons"], list), "comparisons")
    for row in value["comparisons"]:
        texts = isinstance(row, dict) and all(
            isinstance(row.get(k), str) for k in ("victim", "a", "b")
        )
        _need(texts and row.get("what") in COMPARED and _number(row.get("n")), "comparisons")
        _check_rate("comparisons.difference", row.get("difference"))
        tests = [row.get(k, "") for k in ("sign_test_p", "wilcoxon_p", "mcnemar_p")]
        _need(all(_number(p) for p in tests[:2]), "comparisons")
        _need(tests[2] is None or _number(tests[2]), "comparisons")


def _check_rate(name: str, rate: Any) -> None:
    _need(isinstance(rate, dict), name)
    values = rate.get("values")
    _need(isinstance(values, list) and values and all(map(_number, values)), name)
    _need(_number(rate.get("mean")) and {"low", "high"} <= rate.keys(), name)
    ends = (rate["low"], rate["high"])
    _need(ends == (None, None) or all(map(_number, ends)), name)


def _need(sound: Any, name: str) -> None:
    if not sound:
        raise ValueError(f"its entry {name} is missing or unsound")


def _number(value: Any) -> bool:
    """Whether it is a number that arithmetic on it keeps finite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= 1e100


def _class_names(folder: pathlib.Path) -> tuple[str, ...] | None:
    """Of the source set that the poison folders of a run name."""
    manifests = [folder.glob(f"{place}poison/*/{MANIFEST}") for place in ("", "setups/*/")]
    for manifest in sorted(itertools.chain(*manifests)):
        try:
            source = read_manifest(manifest.parent)[0].source
        except InputError:
            continue
        return data.class_names(str(source.get("name")), source.get("data_dir"))
    return None
