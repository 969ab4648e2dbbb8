"""What can be said of a poison folder by reading it again, and what cannot."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpoison.data.folder import check_arrays, read_array, rows_of
from jaxpoison.data.manifest import MANIFEST, PIXELS, Manifest, array_sha256, read_manifest
from jaxpoison.data.rounding import blocks, change_size, check_norm
from jaxpoison.types import Dataset, InputError, as_float

__all__ = ["Check", "Report", "verify"]

_COMPARED = ("source", "labels", "untouched rows", "budget")


class Check(NamedTuple):
    """One statement about a folder.

    Attributes:
      name: what was looked at.
      passed: True, False, or None where it could not be checked.
      detail: what was found, one line.
    """

    name: str
    passed: bool | None
    detail: str


class Report(NamedTuple):
    """All checks of one folder, in order, and its manifest."""

    checks: tuple[Check, ...]
    manifest: Manifest

    @property
    def passed(self) -> bool:
        """Whether no check failed; those not made do not count."""
        return all(check.passed is not False for check in self.checks)


def verify(
    path: str | os.PathLike[str],
    clean: Dataset | None = None,
    *,
    reason: str = "the source data set was not given",
) -> Report:
    """Reads a folder again: hashes, labels, untouched rows, and the budget on the stored images.

    Args:
      path: the folder.
      clean: the whole source set, as `data.load` returns it; None leaves the comparisons open.
      reason: what the report says where `clean` is None.

    Returns:
      The report; a damaged file is a failed check, not an error.

    Errors:
      InputError: there is no manifest to check against, or it cannot be read.
    """
    folder = pathlib.Path(path)
    manifest, intact = read_manifest(folder)
    detail = "as written" if intact else "was changed after it was written"
    checks = [Check(MANIFEST, intact, detail)]
    arrays: dict[str, np.ndarray] = {}
    for name, digest in manifest.files.items():
        try:
            arrays[name] = read_array(folder, name, digest)
            checks.append(Check(name, True, "SHA-256 as in the manifest"))
        except InputError as error:
            checks.append(Check(name, False, str(error)))
    if len(arrays) < len(manifest.files):
        return _closed(checks, manifest, "a file is missing or damaged")
    try:
        check_arrays(arrays, manifest, folder)
        checks.append(Check("shapes", True, f"{manifest.shape}, {manifest.num_changed} may differ"))
    except InputError as error:
        checks.append(Check("shapes", False, str(error)))
        return _closed(checks, manifest, "the files do not fit together")
    checks.append(_check_values(arrays["images.npy"], manifest.domain))
    if clean is None:
        return _closed(checks, manifest, reason)
    if manifest.domain == "features" and list(clean.image.shape[1:]) != manifest.shape[1:]:
        return _closed(checks, manifest, f"the set at hand has rows of {clean.image.shape[1:]}, "
                       "not the features that this folder was made of")  # fmt: skip
    checks.append(_check_source(clean, manifest))
    if checks[-1].passed is False:
        return _closed(checks, manifest, "the data set at hand is not the source")
    checks += _compare(arrays, clean, manifest)
    return Report(tuple(checks), manifest)


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Number of rows and SHA-256 of the arrays, labels as int32."""
    return {
        "num_rows": len(dataset.label),
        "image_sha256": array_sha256(np.asarray(dataset.image)),
        "label_sha256": array_sha256(np.asarray(dataset.label, np.int32)),
    }


def floats(image: np.ndarray) -> np.ndarray:
    """Images or features as the library computes with them, float32."""
    return np.asarray(as_float(jnp.asarray(image)), np.float32)


def source_images(clean: np.ndarray, origin: np.ndarray, domain: str) -> np.ndarray:
    """Each row's source row, zeros for added rows; uint8, or float32 where those are stored."""
    if len(origin) != len(clean) or not np.array_equal(origin, np.arange(len(clean))):
        picked = clean[np.maximum(origin, 0)]
        picked[origin < 0] = 0
        clean = picked
    return clean if domain == "uint8" else floats(clean)


def differing_rows(stored: np.ndarray, base: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The rows of the mask `among` [N] whose bits differ."""
    rows = np.flatnonzero(among)
    same = [np.array_equal(stored[row], base[row]) for row in rows]
    return rows[~np.array(same, bool)]


def measure(
    stored: np.ndarray, base: np.ndarray, among: np.ndarray, norm: str | None, eps: Any
) -> dict[str, Any]:
    """The largest change of the rows `among` [N]: in the norm, in grey levels, and too large ones.

    Returns:
      norm_max (pixel units or a count; absent without a norm), rows_beyond (how many exceed eps),
      grey_level_max (uint8 only); empty where there is nothing to compare.
    """
    out: dict[str, Any] = {}
    if not among.any():
        return out
    if norm is not None:
        sizes, beyond = change_size(stored[among], base[among], norm=norm, eps=eps)
        out = {"norm_max": float(sizes.max()), "rows_beyond": int(beyond.sum())}
    if stored.dtype == np.uint8:
        levels, _ = change_size(stored[among], base[among], norm="linf", eps=1)
        out["grey_level_max"] = round(float(levels.max()) * 255)
    return out


def extent(stored: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """Where values begin and end: those of added rows, and those of the clean set, as floats."""
    ends = {}
    for name, values in (("value", stored), ("clean", clean)):
        if values.size:
            found = floats(np.array([values.min(), values.max()]))
            ends |= {f"{name}_low": float(found[0]), f"{name}_high": float(found[1])}
    return ends


def _closed(checks: list[Check], manifest: Manifest, reason: str) -> Report:
    """The report when no further check can be made."""
    made = {check.name for check in checks}
    left = [Check(name, None, reason) for name in _COMPARED if name not in made]
    return Report((*checks, *left), manifest)


def _check_values(image: np.ndarray, domain: str) -> Check:
    if domain == "uint8":
        return Check("values", True, "grey levels")
    finite = bool(np.isfinite(image).all())
    if domain not in PIXELS:
        found = f", {image.min():.6g} to {image.max():.6g}" if finite and image.size else ""
        return Check("values", finite, f"all finite{found}" if finite else "not all finite")
    inside = finite and bool(((image >= 0) & (image <= 1)).all())
    return Check("values", inside, "all in [0, 1]" if inside else "not all in [0, 1]")


def _check_source(clean: Dataset, manifest: Manifest) -> Check:
    found = fingerprint(clean)
    for name, value in found.items():
        if manifest.source.get(name) != value:
            return Check("source", False, f"{name} is {value}, not {manifest.source.get(name)}")
    source = manifest.source
    return Check("source", True, f"{source.get('name')} ({source.get('split')}), same SHA-256")


def _compare(arrays: Mapping[str, np.ndarray], clean: Dataset, manifest: Manifest) -> list[Check]:
    stored, mask = arrays["images.npy"], arrays["mask.npy"]
    origin = rows_of(arrays, manifest)
    image = np.asarray(clean.image)
    num = len(image)
    fits = stored.shape[1:] == image.shape[1:] and (
        manifest.domain != "uint8" or image.dtype == np.uint8
    )
    if not fits or (origin >= num).any() or (origin < 0)[~mask].any():
        return [Check("untouched rows", False, "the source rows do not fit the stored ones")]
    base = source_images(image, origin, manifest.domain)
    checks = [_check_labels(arrays["labels.npy"], np.asarray(clean.label), origin, mask, manifest)]
    moved = differing_rows(stored, base, ~mask)
    detail = f"{int((~mask).sum())} rows bit-equal to the source"
    if manifest.rows == "added" and mask.all():
        detail = "none here: all rows were added, the source stays as it is"
    if moved.size:
        detail = f"{moved.size} rows outside the mask differ, the first is {moved[0]}"
    checks.append(Check("untouched rows", not moved.size, detail))
    checks.append(_check_budget(stored, base, origin, manifest, image))
    if "delta.npy" in arrays:
        checks.append(_check_delta(arrays["delta.npy"], stored[mask], base[mask], manifest))
    return checks


def _check_labels(
    label: np.ndarray, source: np.ndarray, origin: np.ndarray, mask: np.ndarray, manifest: Manifest
) -> Check:
    other = (label != source[np.maximum(origin, 0)]) & (origin >= 0)
    if not manifest.labels_changed:
        detail = f"{other.sum()} labels differ" if other.any() else "as in the source"
        return Check("labels", not other.any(), detail)
    loose = other & ~mask
    detail = f"{other.sum()} differ, as the manifest states"
    if loose.any():
        detail = f"{loose.sum()} labels outside the mask differ"
    return Check("labels", not loose.any(), detail)


def _check_budget(
    stored: np.ndarray, base: np.ndarray, origin: np.ndarray, manifest: Manifest, clean: np.ndarray
) -> Check:
    mapped = origin >= 0
    try:
        check_norm(manifest.norm, manifest.eps, pixels=manifest.domain in PIXELS)
    except InputError as error:
        return Check("budget", False, str(error))
    found = measure(stored, base, mapped, manifest.norm, manifest.eps)
    levels = f", {found['grey_level_max']} grey levels" if "grey_level_max" in found else ""
    if manifest.norm is None:
        if manifest.rows == "added" and manifest.domain != "uint8" and stored.size:
            ends = extent(stored, clean)
            levels = "; values from {value_low:.6g} to {value_high:.6g}".format(**ends)
            levels += ", clean ones from {clean_low:.6g} to {clean_high:.6g}".format(**ends)
        return Check("budget", None, f"the manifest states none{levels}")
    if not found:
        return Check("budget", None, "every row was added; there is nothing to compare with")
    added = f"; {int((~mapped).sum())} added rows have no budget" if (~mapped).any() else ""
    cast = manifest.rounding == "cast" and manifest.norm == "linf"
    added += "; 1/255 of the budget is for the cast to 8 bits" if cast else ""
    detail = (
        f"{manifest.norm} at most {found['norm_max']:.6g} of {manifest.eps:.6g}{levels}, "
        f"{found['rows_beyond']} rows beyond{added}"
    )
    return Check("budget", found["rows_beyond"] == 0, detail)


def _check_delta(
    delta: np.ndarray, stored: np.ndarray, base: np.ndarray, manifest: Manifest
) -> Check:
    """Rounding inside the ball moves a pixel by less than two levels; floats are not moved."""
    grey = manifest.domain == "uint8"
    allowed = 2 / 255 if grey else 1e-5 * max(1.0, float(np.abs(base).max(initial=0)))
    gap = 0.0
    for rows in blocks(stored.shape):
        change = floats(stored[rows]) - floats(base[rows])
        # NaN must not pass: np.maximum keeps it.
        gap = float(np.maximum(gap, np.abs(change - delta[rows]).max(initial=0)))
    unit = f"{255 * gap:.3g} grey levels" if grey else f"{gap:.3g}"
    return Check("delta", gap < allowed, f"at most {unit} from the stored change")
