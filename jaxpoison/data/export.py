"""A poison folder in the formats of others: PNG tree, npz, TFDS, the public benchmark's arrays.

Every export is one folder: the data, README.md (that they are poisoned, and how to read them) and
a copy of the manifest.
"""

import os
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxpoison import check
from jaxpoison.data.folder import staged
from jaxpoison.data.manifest import MANIFEST, PIXELS, Manifest
from jaxpoison.data.poisoned import read
from jaxpoison.data.sources import class_names, load, some_classes
from jaxpoison.data.tfds import some_of
from jaxpoison.data.tfds_write import png, write_tfds
from jaxpoison.types import InputError

__all__ = ["FORMATS", "export"]


class _Poison(NamedTuple):
    """What is exported: arrays of N rows, and where they come from."""

    name: str
    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    source_rows: np.ndarray
    manifest: Manifest
    classes: list[str]
    target: tuple[np.ndarray, int] | None


def export(
    path: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str] | None = None,
    *,
    target: int | None = None,
    target_split: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Write the data of a poison folder, as the victim sees them, in another format.

    - "png": `<out>/<class>/<row>.png`, lossless, as torchvision's ImageFolder reads it. Class
      folders begin with the label, filled up with zeros, so that their alphabetical order is the
      order of the labels; rows.csv has label, mask and source row of each file.
    - "npz": `<out>/<name>-train.npz` with image, label, mask, source_rows; `from_npz` reads it
      unless its values are unbounded or features.
    - "tfds": a set `poison_<name>` as array_record, without TensorFlow, for
      `tfds.data_source("poison_<name>", split="train", data_dir=out)`.
    - "benchmark": what the public poisoning benchmark (Schwarzschild et al. 2021) keeps in three
      pickles, as arrays: poisons.npz (image, label of the changed rows), base_indices.npy (their
      rows in the clean training set), target.npz (image and true label of the target). The rows are
      in the order that the manifest gives under extra["poison_rows"] (`Setup.extra`), without it
      ascending. One target a folder. README.md has the lines that make the pickles.

    Delta and rows alone need no export: they are delta.npy and mask.npy of the poison folder.

    Args:
      path: the poison folder; a damaged one is refused.
      to: one of `FORMATS`.
      out: the folder to make. None: `<name>-<to>` in the current directory, with the poison
        folder's name.
      target: "benchmark" only: row of the target image in `target_split` of the source. None: as
        the manifest says under extra["target"] = {"split": ..., "row": ...}; a poison with several
        targets needs the choice of one.
      target_split: "benchmark" only: the split of `target`; None is "test".
      data_dir: "benchmark" only: folder of the source data set; None is as in the manifest.

    Returns:
      The folder that was made.

    Raises:
      InputError, one line: an unknown format, data the format cannot hold, a path that is taken,
      a full disk. Then nothing is left behind.
    """
    check.one_of(FORMATS, to=to)
    unread = {"target": target, "target_split": target_split, "data_dir": data_dir}
    for option, value in unread.items():
        if to != "benchmark" and value is not None:
            raise InputError(f"{option} = {value} is for the format benchmark alone, not for {to}")
    if target_split is not None and target is None:
        raise InputError(
            f"target_split = {target_split} is the split of a target: name its row too"
        )
    folder = pathlib.Path(path)
    stored = read(folder)
    name = folder.resolve().name
    place = pathlib.Path(f"{name}-{to}" if out is None else out)
    _check_free(place)
    image, label = np.asarray(stored.dataset.image), np.asarray(stored.dataset.label)
    domain = stored.manifest.domain
    if domain != "uint8" and to != "npz":
        raise InputError(f"{folder} holds {domain} values; {to} cannot hold them without loss")
    if to in ("png", "tfds") and image.shape[3] not in (1, 3, 4):
        raise InputError(f"images have {image.shape[3]} channels; {to} holds 1, 3 or 4")
    aim = None
    if to == "benchmark":
        aim = _target(stored.manifest, target, target_split or "test", data_dir)
    classes = _classes(stored.manifest, label)
    rows = stored.source_rows
    poison = _Poison(name, image, label, stored.mask, rows, stored.manifest, classes, aim)
    with staged(place, f"the {to} export", replace=False) as staging:
        how = FORMATS[to](poison, staging)
        shutil.copyfile(folder / MANIFEST, staging / "poison_manifest.json")
        (staging / "README.md").write_text(_readme(poison, how), encoding="utf-8")
    return place


def _check_free(place: pathlib.Path) -> None:
    try:
        taken = os.path.lexists(place)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write to {ascii(str(place))}: {check.one_line(error)}") from error
    if taken:
        raise InputError(f"{place} exists; nothing was touched, choose another --out")
    if place.suffix in (".npz", ".npy", ".png"):
        raise InputError(f"{place}: an export is a folder; its name may not end in {place.suffix}")


def _classes(manifest: Manifest, label: np.ndarray) -> list[str]:
    """The source's class names; numbers where it has none or too few."""
    num = int(label.max(initial=0)) + 1
    names = class_names(str(manifest.source["name"]), manifest.source.get("data_dir")) or ()
    return list(names) if len(names) >= num else [str(i) for i in range(num)]


def _png(poison: _Poison, folder: pathlib.Path) -> str:
    width, digits = len(str(len(poison.classes) - 1)), len(str(len(poison.label) - 1))
    places = []
    for i, name in enumerate(poison.classes):
        words = re.sub(r"[^A-Za-z0-9._]+", "_", name).strip("_")
        number = f"{i:0{width}}"
        places.append(number if name == str(i) or not words else f"{number}_{words}")
        (folder / places[-1]).mkdir()
    lines = ["file,label,mask,source_row"]
    columns = zip(poison.image, poison.label, poison.mask, poison.source_rows, strict=True)
    for row, (pixels, label, mask, origin) in enumerate(columns):
        file = f"{places[label]}/{row:0{digits}}.png"
        (folder / file).write_bytes(png(pixels))
        lines.append(f"{file},{label},{int(mask)},{origin}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    empty = len(poison.classes) - len(np.unique(poison.label))
    more = f", allow_empty=True)  # {empty} classes have no image" if empty else ")"
    return (
        "Lossless PNG files, one folder a class, alphabetical order = order of the labels; the "
        "file name is the row. rows.csv: label, whether the row may be changed, row of the clean "
        "set. ImageFolder's own loader turns grey images into RGB.\n\n"
        f"    torchvision.datasets.ImageFolder(FOLDER{more}\n"
    )


def _npz(poison: _Poison, folder: pathlib.Path) -> str:
    file = f"{poison.name}-train.npz"
    reads = poison.manifest.domain in PIXELS  # values of any size are no images to it
    own = f"    jaxpoison.data.from_npz(FOLDER + '/{file}')\n" if reads else ""
    np.savez(
        folder / file,
        image=poison.image,
        label=poison.label,
        mask=poison.mask,
        source_rows=poison.source_rows,
    )
    return (
        f"image {poison.image.shape}, label [N], mask [N] (whether the row may be changed, or was "
        "added), source_rows [N] (row of the clean set; of added rows their base, -1 without one); "
        f"no pickle.\n\n{own}    numpy.load(FOLDER + '/{file}')['image']\n"
    )


def _tfds(poison: _Poison, folder: pathlib.Path) -> str:
    name = f"poison_{re.sub(r'[^a-z0-9]+', '_', poison.name.lower()).strip('_')}"
    columns = {"mask": poison.mask, "source_row": poison.source_rows.astype(np.int64)}
    write_tfds(
        folder,
        name,
        poison.image,
        poison.label,
        class_names=poison.classes,
        columns=columns,
        description=poison.manifest.statement,
    )
    return (
        "A set of TensorFlow Datasets in array_record: image, label, mask (whether the row may be "
        "changed), source_row (row of the clean set, -1 for added rows); rows keep their order; "
        f"no TensorFlow needed.\n\n    tfds.data_source({name!r}, split='train', data_dir=FOLDER)\n"
        f"    jaxpoison.data.load({name!r}, 'train', FOLDER)\n"
    )


def _benchmark(poison: _Poison, folder: pathlib.Path) -> str:
    rows = _poison_rows(poison)
    base = _base_indices(poison, rows)
    np.savez(folder / "poisons.npz", image=poison.image[rows], label=poison.label[rows])
    np.save(folder / "base_indices.npy", base, allow_pickle=False)
    assert poison.target is not None
    image, label = poison.target
    np.savez(folder / "target.npz", image=image, label=np.int64(label))
    return _BENCHMARK.format(norm=poison.manifest.norm, eps=poison.manifest.eps)


_BENCHMARK = """\
poisons.npz: image [P, H, W, C] and label [P] of the changed rows; base_indices.npy: [P], their rows
in the clean training set, in the same order; target.npz: image [H, W, C] and its true label. The
benchmark asks for changes below 9/255 (this poison: {norm} {eps}) and counts rows in torchvision's
order of the data set. Its three pickles, made in FOLDER (numpy and pillow):

    import pickle
    from pathlib import Path
    import numpy as np
    from PIL import Image

    p, t = np.load("poisons.npz"), np.load("target.npz")
    picture = lambda x: Image.fromarray(x.squeeze(2) if x.shape[2] == 1 else x)
    poisons = [(picture(x), int(y)) for x, y in zip(p["image"], p["label"])]
    Path("poisons.pickle").write_bytes(pickle.dumps(poisons))
    Path("base_indices.pickle").write_bytes(pickle.dumps(np.load("base_indices.npy")))
    Path("target.pickle").write_bytes(pickle.dumps((picture(t["image"]), int(t["label"]))))
"""


def _poison_rows(poison: _Poison) -> np.ndarray:
    """The rows that may change, in the order in which they were chosen if the manifest has it."""
    rows = np.flatnonzero(poison.mask)
    stated = poison.manifest.extra.get("poison_rows")
    if stated is None:
        return rows
    ordered = np.asarray(stated) if isinstance(stated, list) else np.zeros(0)
    origin = poison.source_rows[rows]  # where a folder has some rows of the set alone: not `rows`
    if not np.array_equal(np.sort(ordered), np.sort(origin)):
        raise InputError(
            "the manifest's extra.poison_rows are not the rows that mask.npy marks, in any order"
        )
    order = np.argsort(origin)
    return rows[order[np.searchsorted(origin[order], ordered)]]


def _base_indices(poison: _Poison, rows: np.ndarray) -> np.ndarray:
    """Rows of the whole training set, [P] int64."""
    base = poison.source_rows[rows].astype(np.int64)
    alone = poison.manifest.rows == "added" and poison.mask.all()
    if added := len(base) if alone else int((base < 0).sum()):
        raise InputError(
            f"{added} rows were added; the benchmark replaces rows of the training set"
        )
    if not base.size:
        raise InputError("no row may be changed; the benchmark wants poisons")
    source = poison.manifest.source
    split, bounds = some_of(str(source["split"]))
    if some_classes(str(source["name"]))[1]:
        raise InputError(
            f"the source is {source['name']}; base indices can be given for all classes together"
        )
    if str(source["name"]).endswith(".npz"):
        return base
    if "[" in split or "+" in split:
        raise InputError(
            f"the source is split {split!r}; base indices can be given for a whole split or a "
            "slice of it by rows, such as 'train[:1000]'"
        )
    return base + ((bounds or (0, 0))[0] or 0)


def _target(
    manifest: Manifest, row: int | None, split: str, data_dir: str | os.PathLike[str] | None
) -> tuple[np.ndarray, int]:
    """The target image and its true label, from the source data set."""
    stated, targets = (manifest.extra.get(name) for name in ("target", "targets"))
    several = targets.get("rows", []) if isinstance(targets, dict) else []
    if row is None and len(several) > 1:
        raise InputError(
            f"this poison has several targets, test rows {', '.join(map(str, several))}; the "
            "benchmark holds one: name it, --target ROW"
        )
    if row is None and isinstance(stated, dict):
        row, split = stated.get("row"), str(stated.get("split"))
    if row is None:
        raise InputError(
            "the benchmark wants a target image, and this poison names none: name its row in the "
            "test set, --target ROW"
        )
    check.at_least(0, target=row)
    name = str(manifest.source["name"])
    dataset = load(name, split, data_dir or manifest.source.get("data_dir"))
    if row >= len(dataset.label):
        raise InputError(f"target = {row}; split {split!r} of {name} has {len(dataset.label)} rows")
    image = np.asarray(dataset.image[row])
    if list(image.shape) != manifest.shape[1:]:
        raise InputError(f"the target is {image.shape}; the poisons are {manifest.shape[1:]}")
    return image, int(dataset.label[row])


def _readme(poison: _Poison, how: str) -> str:
    manifest = poison.manifest
    budget = "no budget" if manifest.norm is None else f"{manifest.norm} <= {manifest.eps:.6g}"
    changed = manifest.rows_in_words()
    return f"""\
# POISONED DATA: {poison.name}

{manifest.statement}

Attack {manifest.attack}, {budget}; {changed}.
Source: {manifest.source["name"]}, split {manifest.source["split"]}.
All settings, the key and the hashes of the arrays are in poison_manifest.json.

{how}"""


FORMATS: dict[str, Callable[[_Poison, pathlib.Path], str]] = {
    "png": _png,
    "npz": _npz,
    "tfds": _tfds,
    "benchmark": _benchmark,
}
"""Each writes into a folder and says how its files are read."""
