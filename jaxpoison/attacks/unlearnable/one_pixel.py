"""OPS, one-pixel shortcut (Wu et al. 2023): one pixel of one color marks each class.

max over pixel (i, j) and color v in {0, 1}^C of  mean(|x_ij - v|) / spread(|x_ij - v|)

Threat model: one pixel (or n) of every training image may change, labels stay; no model is needed.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.attacks.bilevel import closed_form, of_classes
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, InputError, as_float

__all__ = ["one_pixel", "shortcut_scores"]

FLOOR = 1e-6  # standard deviation of a pixel that does not vary, below what stored images can show


def one_pixel(
    *, num_classes: int, num_pixels: int = 1, objective: Literal["code", "paper"] = "code"
) -> Attack:
    """The most consistent loud change of each class, by exhaustive search in closed form.

    Classes choose in order 0..L-1; a (pixel, color) that an earlier class took is not available.
    With num_pixels = n each class takes its n best candidates at different pixels.

    Args:
      num_classes: L; about H W 2^C / n at most.
      num_pixels: n, the L0 budget.
      objective: "code": mean / standard deviation over images and channels jointly (what made the
        published poisons); "paper": mean / variance of the deviation summed over channels.

    Returns: an Attack without steps.
    Raises: InputError for a bad value; at init if there are too few candidates.
    Source: Wu et al. 2023, algorithm 1, and released code.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, num_pixels=num_pixels)
    check.one_of(("code", "paper"), objective=objective)
    space = per_sample(Budget("l0", num_pixels))

    def init(key, scenario):
        del key
        clean = as_float(scenario.train.image[scenario.index])
        label = scenario.train.label[scenario.index]
        _check_candidates(clean.shape[1:], num_classes, num_pixels)
        place, shade = _choices(clean, label, num_classes, num_pixels, objective)
        color = jnp.asarray(_colors(clean.shape[-1]))
        rows = jnp.arange(label.shape[0])[:, None]
        flat = clean.reshape(clean.shape[0], -1, clean.shape[-1])
        painted = flat.at[rows, place[label]].set(color[shade[label]])
        return (painted - flat).reshape(clean.shape)

    return closed_form(space._replace(init=init))._replace(check=of_classes(num_classes))


def _check_candidates(image_shape: tuple[int, ...], num_classes: int, num_pixels: int) -> None:
    """The last class must find n pixels with a free color (a sharp bound for n = 1).

    A pixel is full once 2^C classes took it, so at most (L - 1) n / 2^C are when the last chooses.
    """
    height, width, channels = image_shape
    full = (num_classes - 1) * num_pixels // 2**channels if num_classes > 2**channels else 0
    if height * width - full < num_pixels:
        raise InputError(
            f"{num_classes} classes x {num_pixels} pixels are too many for the "
            f"{height * width} x {2**channels} candidates of {height} x {width} x {channels} images"
        )


def _choices(
    clean: Float[Array, "n h w c"],
    label: Int[Array, " n"],
    num_classes: int,
    num_pixels: int,
    objective: Literal["code", "paper"],
) -> tuple[Int[Array, "l k"], Int[Array, "l k"]]:
    """Pixel (row by row) and color number of the `num_pixels` choices of each class."""
    _, height, width, channels = clean.shape
    pixels, colors = height * width, 2**channels

    def of_class(taken, c):
        member = (label == c).astype(jnp.float32)
        score = shortcut_scores(clean, member, objective=objective).reshape(pixels, colors)

        def pick(carry, _):
            taken, used = carry
            free = ~taken & ~used[:, None]
            best = jnp.argmax(jnp.where(free, score, -1.0))
            place, shade = best // colors, best % colors
            return (taken.at[place, shade].set(True), used.at[place].set(True)), (place, shade)

        start = (taken, jnp.zeros(pixels, bool))
        (taken, _), chosen = lax.scan(pick, start, None, length=num_pixels)
        return taken, chosen

    return lax.scan(of_class, jnp.zeros((pixels, colors), bool), jnp.arange(num_classes))[1]


def shortcut_scores(
    image: Float[Array, "n h w c"],
    member: Float[Array, " n"],
    *,
    objective: Literal["code", "paper"] = "code",
) -> Float[Array, "h w v"]:
    """The objective at every pixel and color, from first and second moments alone.

    d = |x - v| is x for v = 0 and 1 - x for v = 1. code: m / sqrt(E[d^2] - m^2) with m = E[d] over
    images and channels; paper: E[s] / Var[s] with s = sum over channels of d.

    Args:
      image: [N, H, W, C] in [0, 1].
      member: [N], 1 for images of the class, 0 for others.
      objective: see `one_pixel`.

    Returns: [H, W, 2^C], colors in binary order (first channel most significant); 0 for an empty
      class.
    """
    count = jnp.maximum(jnp.sum(member), 1.0)
    white = jnp.asarray(_colors(image.shape[-1]))  # [V, C]
    sign = 1 - 2 * white
    first = _sum("n,nhwc->hwc", member, image) / count
    deviation = white[None, None] + sign[None, None] * first[:, :, None, :]  # E|x - v|
    centered = image - first[None]
    covariance = _sum("n,nhwa,nhwb->hwab", member, centered, centered) / count
    if objective == "paper":
        mean = jnp.sum(deviation, axis=-1)
        spread = jnp.maximum(_sum("va,hwab,vb->hwv", sign, covariance, sign), FLOOR**2)
    else:
        mean = jnp.mean(deviation, axis=-1)
        within = jnp.mean(jnp.diagonal(covariance, axis1=2, axis2=3), axis=-1)
        between = jnp.mean((deviation - mean[..., None]) ** 2, axis=-1)
        spread = jnp.maximum(jnp.sqrt(within[:, :, None] + between), FLOOR)
    return jnp.where(jnp.sum(member) > 0, mean / spread, 0.0)


def _sum(subscripts: str, *factors: Array) -> Array:
    """An einsum in full float32 on every device: scores decide by small differences."""
    return jnp.einsum(subscripts, *factors, precision=lax.Precision.HIGHEST)


def _colors(channels: int) -> np.ndarray:
    """All of {0, 1}^C, [2^C, C], float32, first channel most significant."""
    bits = np.arange(2**channels)[:, None] >> np.arange(channels)[::-1]
    return (bits & 1).astype(np.float32)
