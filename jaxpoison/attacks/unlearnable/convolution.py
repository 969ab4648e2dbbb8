"""CUDA, convolution-based unlearnable data (Sadasivan et al. 2023): each class has a filter.

x' = (x * w_y) / max(x * w_y),  w_c ~ U(0, b)^(k x k) with one random entry set to 1

Threat model: training images change without any bound in norm, labels stay; no model is needed.
Differs: an image that is black everywhere stays black (there it has no maximum to divide by).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.attacks.bilevel import closed_form, of_classes
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, InputError, Key, as_float

__all__ = ["class_filters", "convolution", "convolve", "released_filters"]

BATCH = 512  # images whose taps are summed at a time


def convolution(
    *,
    num_classes: int,
    kernel_size: int = 3,
    blur: float = 0.3,
    draw: Literal["key", "released"] = "key",
    shared: bool = False,
) -> Attack:
    """Every image through the filter of its class, then divided by its own maximum.

    The change has no norm to state: a poison folder of it says norm none, and PSNR says how far it
    is. Which images are changed is `scenario.index`. The paper's code stores floor(255 x'):
    `rounding="truncate"` of `poisoned.write`.

    Args:
      num_classes: L.
      kernel_size: k, odd: 3 for CIFAR, 9 for 224 pixels.
      blur: b, largest of the small entries: 0.3 with k = 3, 0.06 with k = 9.
      draw: where the filters come from: "key", the attack's key; "released", the draw of the
        paper's code, whatever the key.
      shared: every class has the filter of class 0: the paper's control, which does little harm.

    Returns: an Attack without steps; theta is x' - x.
    Raises: InputError for a bad value.
    Source: Sadasivan et al. 2023, algorithm 1, and released code.
    """
    _check_filters(num_classes, kernel_size, blur)
    check.one_of(("key", "released"), draw=draw)
    sizes = {"num_classes": num_classes, "kernel_size": kernel_size, "blur": blur}
    space = per_sample(Budget("linf", 1.0))  # the image box is the only bound

    def init(key, scenario):
        clean = as_float(scenario.train.image[scenario.index])
        label = scenario.train.label[scenario.index]
        released = draw == "released"
        filters = (
            jnp.asarray(released_filters(**sizes)) if released else class_filters(key, **sizes)
        )
        which = jnp.zeros_like(label) if shared else label
        return convolve(clean, which, filters.astype(clean.dtype)) - clean

    return closed_form(space._replace(init=init))._replace(check=of_classes(num_classes))


def class_filters(
    key: Key, *, num_classes: int, kernel_size: int = 3, blur: float | Float[Array, ""] = 0.3
) -> Float[Array, "l k k"]:
    """w_c ~ U(0, b)^(k x k), one entry of each, drawn uniformly, set to 1; for all channels.

    Args:
      key: of all classes.
      num_classes: L.
      kernel_size: k.
      blur: b.

    Returns: [L, k, k] float32.
    Raises: InputError as in `convolution`.
    """
    _check_filters(num_classes, kernel_size, blur)
    value_key, place_key = jax.random.split(key)
    num = kernel_size**2
    small = blur * jax.random.uniform(value_key, (num_classes, num))
    place = jax.random.randint(place_key, (num_classes,), 0, num)
    filters = small.at[jnp.arange(num_classes), place].set(1.0)
    return filters.reshape(num_classes, kernel_size, kernel_size)


def released_filters(
    *, num_classes: int, kernel_size: int = 3, blur: float = 0.3
) -> Float[np.ndarray, "l k k"]:
    """The filters of the paper's code: NumPy's generator seeded with 0, class after class.

    Each class draws a kernel for three channels, of which the first is used for all, then row and
    column of its 1. That code goes on drawing a number for each image of a partial poison; here the
    scenario says which rows may change.

    Args:
      num_classes: L; the first classes of more are the same.
      kernel_size: k.
      blur: b.

    Returns: [L, k, k] float32.
    Raises: InputError as in `convolution`.
    Source: released code.
    """
    _check_filters(num_classes, kernel_size, blur)
    rng, filters = np.random.RandomState(0), []
    for _ in range(num_classes):
        kernel = rng.uniform(0, blur, (3, kernel_size, kernel_size))[0]
        row, column = rng.randint(kernel_size), rng.randint(kernel_size)
        kernel[row, column] = 1
        filters.append(kernel)
    return np.stack(filters).astype(np.float32)


def convolve(
    image: Float[Array, "n h w c"], which: Int[Array, " n"], filters: Float[Array, "l k k"]
) -> Float[Array, "n h w c"]:
    """Cross-correlation of every channel with one filter, zeros around, over its maximum.

    y_ij = sum_ab w_ab x_(i+a-r, j+b-r), r = (k - 1) / 2;  x' = y / max(y) over pixels and channels

    Args:
      image: [N, H, W, C] in [0, 1].
      which: [N], the filter of each image.
      filters: [L, k, k], nonnegative.

    Returns: [N, H, W, C] in [0, 1]; zeros where y is zero.
    Cost: k^2 products per entry, in blocks of images.
    """
    size = filters.shape[-1]
    pad = size // 2

    def one(image_and_which):
        image, which = image_and_which
        kernel = filters[which]
        height, width, _ = image.shape
        wide = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        taps = [
            kernel[a, b] * wide[a : a + height, b : b + width]
            for a in range(size)
            for b in range(size)
        ]
        total = sum(taps[1:], taps[0])
        largest = jnp.max(total)
        return total / jnp.where(largest > 0, largest, 1)

    return jax.lax.map(one, (image, which), batch_size=min(BATCH, max(1, image.shape[0])))


def _check_filters(num_classes, kernel_size, blur) -> None:
    check.at_least(1, num_classes=num_classes, kernel_size=kernel_size)
    check.fraction(blur=blur)
    if kernel_size % 2 == 0:
        raise InputError(f"kernel_size = {kernel_size}; it must be odd")
