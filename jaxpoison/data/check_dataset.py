"""The gate at the edge: what comes from outside is either a sound `Dataset` or one clear line."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxpoison import check
from jaxpoison.types import Dataset, InputError

__all__ = ["check_dataset"]


def check_dataset(dataset: Dataset, *, num_classes: int | None = None, source: str = "") -> Dataset:
    """The same labeled images in the dtypes the library computes with, or an `InputError`.

    Reads every value once, on the host: for loaders and scripts, not inside traced code.

    Args:
      dataset: image [N, H, W, C], uint8 grey levels or float32/float64 in [0, 1]; label [N], any
        integer dtype. numpy or jax arrays (or lists), N, H, W, C >= 1.
      num_classes: L; labels must lie in [0, L). None asks only that none is negative.
      source: what the set is called at the head of the error.

    Returns:
      A `Dataset` of jax arrays: image uint8 or float32, label int32.

    Errors:
      InputError, one line, naming the value and what is allowed, and the first bad row if there
      is one.
    """
    return checked(dataset.image, dataset.label, num_classes=num_classes, source=source)


def checked(
    image: ArrayLike, label: ArrayLike, *, num_classes: int | None = None, source: str = ""
) -> Dataset:
    """`check_dataset` of two arrays; `source` (a file, a set) stands at the head of the error."""
    try:
        image, label = _array("images", image), _array("labels", label)
        check_shapes(image, label)
        check_pixels(image)
        check_labels(label, num_classes)
    except InputError as error:
        raise InputError(f"{source}: {error}" if source else str(error)) from error
    dtype = jnp.uint8 if image.dtype == np.uint8 else jnp.float32
    return Dataset(jnp.asarray(image, dtype), jnp.asarray(label, jnp.int32))


def _array(what: str, value: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{what} of unequal shapes cannot form one array; resize first") from error


def check_shapes(image: np.ndarray, label: np.ndarray) -> None:
    """[N, H, W, C] and [N], not empty."""
    if image.ndim != 4:
        hint = "; add a channel axis with image[..., None]" if image.ndim == 3 else ""
        raise InputError(f"images have shape {image.shape}; allowed is [N, H, W, C]{hint}")
    if label.ndim != 1:
        raise InputError(f"labels have shape {label.shape}; allowed is [N]")
    if len(image) != len(label):
        raise InputError(f"{len(image)} images but {len(label)} labels; allowed is one label each")
    if image.size == 0:
        raise InputError(f"no images (shape {image.shape}); N, H, W and C must be at least 1")


def check_pixels(image: np.ndarray) -> None:
    """Grey levels, or finite floats in [0, 1]."""
    if image.dtype == np.uint8:
        return
    if image.dtype not in (np.float32, np.float64):
        raise InputError(
            f"images are {image.dtype}; allowed are uint8 grey levels, float32 or float64 in [0, 1]"
        )
    rows = image.reshape(len(image), -1)
    low, high = rows.min(1), rows.max(1)  # NaN where a row holds one
    sound = (low >= 0) & (high <= 1)
    if sound.all():
        return
    row = int(np.argmin(sound))
    if np.isfinite(rows[row]).all():
        value = low[row] if low[row] < 0 else high[row]
        grey = low.min() >= 0 and 1 < high.max() <= 255
        hint = "; these look like grey levels, divide by 255 or store uint8" if grey else ""
        raise InputError(f"image {row} holds {value:.6g}; float pixels must be in [0, 1]{hint}")
    value = rows[row][~np.isfinite(rows[row])][0]
    raise InputError(f"image {row} holds {value}; float pixels must be finite and in [0, 1]")


def check_labels(label: np.ndarray, num_classes: int | None) -> None:
    """Integers in [0, L), or none negative."""
    if not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"labels are {label.dtype}; allowed are integers")
    if num_classes is not None:
        check.at_least(1, num_classes=num_classes)
    limit = np.iinfo(np.int32).max if num_classes is None else num_classes
    bad = (label < 0) | (label >= limit)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"label {label[row]} of row {row} is outside [0, {limit})")
