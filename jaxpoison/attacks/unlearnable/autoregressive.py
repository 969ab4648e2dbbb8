"""AR, autoregressive perturbations (Sandoval-Segura et al. 2022): a process per class makes noise.

delta = eps s / ||s||,  s_ij = sum over the eight entries before (i, j) of b_y s,  x' = x + delta

Threat model: training images change by at most eps in L2 (or L-inf), labels stay; no model is
needed. The noise of every image is new, what its pixels predict of one another is of the class.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.attacks.autoregression import ar_signals
from jaxpoison.attacks.autoregression_table import TEN_CLASSES
from jaxpoison.attacks.bilevel import closed_form, of_classes
from jaxpoison.data.sources import UNREADABLE
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, InputError, Key, as_float

__all__ = ["ar_noise", "autoregressive", "load_ar_coefficients"]

BLOCK = 512  # images whose pixels are made side by side
USUAL = {"l2": 1.0, "linf": 8 / 255}


def autoregressive(
    *,
    num_classes: int,
    coefficients: Any = None,
    eps: float | Float[Array, ""] | None = None,
    norm: Literal["l2", "linf"] = "l2",
    crop: int = 4,
) -> Attack:
    """Noise that one convolution reads without error, and that hides the images from a network.

    Args:
      num_classes: L.
      coefficients: b [>= L, C, 3, 3], entries [2, 2] zero: `ar_coefficients(key, num_classes=L)`,
        or a file by `load_ar_coefficients`. None is a set of this library for up to 10 classes and
        3 channels, found by `ar_coefficients(jax.random.key(0), num_classes=10)`; the paper's own
        is in its repository. Images of fewer channels get its first ones.
      eps: norm of the noise of each image, pixel units: in the paper L2 of 1.0 at 32 pixels and of
        3.0 at 96; L-inf of 8/255 in a variant of it. None is 1.0, or 8/255 for "linf".
      norm: "l2" or "linf".
      crop: first rows and columns of the process that are dropped, at least 2: 4 at 32 and 96
        pixels, 2 at 224. The default set, like the search, is judged at 32 pixels: at 96 and more
        about half of its processes grow until most of their norm stands in one corner.

    Returns: an Attack without steps; theta is the noise after the image box.
    Raises: InputError for a bad value, coefficients of another form, or too few of them; at init if
      they are of other channels than the images.
    Source: Sandoval-Segura et al. 2022 and released code.
    """
    check.one_of(("l2", "linf"), norm=norm)
    budget = Budget(norm, USUAL[norm] if eps is None else eps)
    check.at_least(1, num_classes=num_classes)
    check.at_least(2, crop=crop)
    default = coefficients is None
    table = np.asarray(TEN_CLASSES, np.float32) if default else _checked(coefficients)
    if len(table) < num_classes:
        hint = "; `ar_coefficients` finds some for more" if default else ""
        raise InputError(
            f"num_classes = {num_classes}; there are coefficients of {len(table)} classes{hint}"
        )
    space = per_sample(budget)

    def init(key, scenario):
        clean = as_float(scenario.train.image[scenario.index])
        label = scenario.train.label[scenario.index]
        own = table[:, : clean.shape[-1]] if default else table
        noise = ar_noise(
            key,
            scenario.index,
            label,
            coefficients=jnp.asarray(own, clean.dtype),
            image_shape=clean.shape[1:],
            eps=budget.eps,
            norm=norm,
            crop=crop,
        )
        return jnp.clip(clean + noise, 0, 1) - clean

    return closed_form(space._replace(init=init))._replace(check=of_classes(num_classes))


def ar_noise(
    key: Key,
    rows: Int[Array, " n"],
    label: Int[Array, " n"],
    *,
    coefficients: Float[Array, "l c 3 3"],
    image_shape: tuple[int, ...],
    eps: float | Float[Array, ""] | None = None,
    norm: Literal["l2", "linf"] = "l2",
    crop: int = 4,
) -> Float[Array, "n h w c"]:
    """The noise before it meets the image box: its norm is eps exactly.

    Args:
      key: with a row the start of its noise, whatever other rows there are.
      rows: [N], number of each image in the training set.
      label: [N].
      coefficients: b of each class.
      image_shape: (H, W, C).
      eps: as in `autoregressive`.
      norm: as there.
      crop: as there.

    Returns: [N, H, W, C].
    Raises: InputError for coefficients of another number of channels.
    """
    height, width, channels = image_shape
    radius = USUAL[norm] if eps is None else eps
    if coefficients.shape[1] != channels:
        raise InputError(
            f"the coefficients are of {coefficients.shape[1]} channels; the images have {channels}"
        )

    def block(rows_and_labels):
        rows, label = rows_and_labels
        own = coefficients[label]
        signal = ar_signals(key, own, rows, height=height, width=width, crop=crop)
        axes = {"axis": (1, 2, 3), "keepdims": True}
        if norm == "linf":
            return radius * signal / jnp.max(jnp.abs(signal), **axes)
        return radius * signal / jnp.sqrt(jnp.sum(signal**2, **axes))

    num = rows.shape[0]
    if num <= BLOCK:
        return block((rows, label))
    num_blocks = -(-num // BLOCK)
    place = jnp.minimum(jnp.arange(num_blocks * BLOCK), num - 1).reshape(num_blocks, BLOCK)
    noise = lax.map(block, (rows[place], label[place]))
    return noise.reshape(-1, *image_shape)[:num]


def load_ar_coefficients(path: str | os.PathLike[str]) -> Float[np.ndarray, "l c 3 3"]:
    """Coefficients from a file: one array [L, C, 3, 3] as .npy, or the only one of an .npz.

    Args:
      path: the file; the published lists are first to be stored so.

    Returns: [L, C, 3, 3] float32.
    Raises: InputError for a file that is missing or holds something else.
    """
    file = pathlib.Path(path)
    try:
        with open(file, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, Mapping):
                if len(loaded) != 1:
                    found = ", ".join(ascii(name)[1:-1] for name in loaded) or "nothing"
                    raise InputError(f"{file} holds {found}; it must hold one array")
                (loaded,) = loaded.values()
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no file {file}") from error
    except UNREADABLE as error:
        raise InputError(f"{file} cannot be read: {check.one_line(error)}") from error
    return _checked(loaded, f"the coefficients in {file}")


def _checked(coefficients: Any, name: str = "coefficients") -> np.ndarray:
    """Float32, if it is a set of processes."""
    table = np.asarray(coefficients)
    if table.ndim != 4 or table.shape[2:] != (3, 3) or table.dtype.kind not in "fi":
        raise InputError(
            f"{name} are {table.dtype} of shape {table.shape}; they must be numbers [L, C, 3, 3]"
        )
    if not np.isfinite(table).all():
        raise InputError(f"{name} are not all finite")
    if table[..., 2, 2].any():
        raise InputError(f"{name} have entries [2, 2] other than 0, which a process has not")
    return table.astype(np.float32)
