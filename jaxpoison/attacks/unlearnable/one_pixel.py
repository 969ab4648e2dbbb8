"""OPS, one-pixel shortcut (Wu et al. 2023): one pixel of one color marks each class.

max over pixel (i, j) and color v in {0, 1}^C of  mean(|x_ij - v|) / spread(|x_ij - v|)

Threat model: one pixel (or n) of every training image may change, labels stay; no model is needed.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxpoison.attacks.bilevel import closed_form
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, InputError, as_float

__all__ = ["one_pixel", "shortcut_scores"]


def one_pixel(
    *, num_classes: int, num_pixels: int = 1, objective: Literal["code", "paper"] = "code"
) -> Attack:
    """The most consistent loud change of each class, by exhaustive search in closed form.

    Classes choose in order 0..L-1; a (pixel, color) that an earlier class took is not available.
    With num_pixels = n each class takes its n best candidates at different pixels.

    Args:
      num_classes: L; at most H W 2^C / n.
      num_pixels: n, the L0 budget.
      objective: "code": mean / standard deviation over images and channels jointly (what made the
        published poisons); "paper": mean / variance of the deviation summed over channels.

    Returns: an Attack without steps.
    Raises: InputError for a bad value; at init if there are too few candidates.
    Source: Wu et al. 2023, algorithm 1, and released code.
    """
    budget = Budget("l0", num_pixels)
    if num_classes < 2:
        raise InputError(f"num_classes = {num_classes}; it must be at least 2")
    if num_pixels < 1:
        raise InputError(f"num_pixels = {num_pixels}; it must be at least 1")
    if objective not in ("code", "paper"):
        raise InputError(f"objective = {objective!r}; allowed are 'code' and 'paper'")
    space = per_sample(budget)

    def init(key, scenario):
        del key
        clean = as_float(scenario.train.image[scenario.index])
        label = scenario.train.label[scenario.index]
        height, width, channels = clean.shape[1:]
        color = jnp.asarray(_colors(channels))
        pixels = height * width
        if num_classes * num_pixels > pixels * len(color) or num_pixels > pixels:
            raise InputError(
                f"{num_classes} classes x {num_pixels} pixels exceed the {pixels * len(color)} "
                f"candidates of {height} x {width} x {channels} images"
            )

        def choose(taken, c):
            member = (label == c).astype(jnp.float32)
            score = shortcut_scores(clean, member, objective=objective)
            score = score.reshape(pixels, len(color))

            def pick(carry, _):
                taken, used = carry
                free = ~taken & ~used[:, None]
                best = jnp.argmax(jnp.where(free, score, -1.0))
                place, shade = best // len(color), best % len(color)
                return (taken.at[place, shade].set(True), used.at[place].set(True)), (place, shade)

            start = (taken, jnp.zeros(pixels, bool))
            (taken, _), chosen = lax.scan(pick, start, None, length=num_pixels)
            return taken, chosen

        taken = jnp.zeros((pixels, len(color)), bool)
        _, (place, shade) = lax.scan(choose, taken, jnp.arange(num_classes))
        rows = jnp.arange(label.shape[0])[:, None]
        flat = clean.reshape(-1, pixels, channels)
        painted = flat.at[rows, place[label]].set(color[shade[label]])
        return (painted - flat).reshape(clean.shape)

    return closed_form(space._replace(init=init))


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
    first = jnp.einsum("n,nhwc->hwc", member, image) / count
    deviation = white[None, None] + sign[None, None] * first[:, :, None, :]  # E|x - v|
    centered = image - first[None]
    covariance = jnp.einsum("n,nhwa,nhwb->hwab", member, centered, centered) / count
    if objective == "paper":
        mean = jnp.sum(deviation, axis=-1)
        spread = jnp.einsum("va,hwab,vb->hwv", sign, covariance, sign)
    else:
        mean = jnp.mean(deviation, axis=-1)
        within = jnp.mean(jnp.diagonal(covariance, axis1=2, axis2=3), axis=-1)
        between = jnp.mean((deviation - mean[..., None]) ** 2, axis=-1)
        spread = jnp.sqrt(within[:, :, None] + between)
    return jnp.where(jnp.sum(member) > 0, mean / jnp.maximum(spread, 1e-6), 0.0)


def _colors(channels: int) -> np.ndarray:
    """All of {0, 1}^C, [2^C, C], float32, first channel most significant."""
    bits = np.arange(2**channels)[:, None] >> np.arange(channels)[::-1]
    return (bits & 1).astype(np.float32)
