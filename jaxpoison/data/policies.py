"""Automatic augmentation: RandAugment and TrivialAugment, operations drawn at random, in graph."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.data import tones
from jaxpoison.data.affine import matrices, warp
from jaxpoison.data.augment import Augmentation
from jaxpoison.data.colors import luma
from jaxpoison.types import Key

__all__ = ["OPERATIONS", "rand_augment", "rand_augment_at", "trivial_augment"]

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""Of RandAugment, by number."""
BINS = 31


def rand_augment(*, num_ops: int = 2, magnitude: int = 9) -> Augmentation:
    """`num_ops` operations one after the other, each uniform on the 14 of `OPERATIONS`, per image.

    Shears, shifts, rotation, brightness, color, contrast and sharpness have a sign, drawn too.

    Args:
      num_ops: n, at least 1.
      magnitude: m, 0 to 30; see `rand_augment_at`.

    Errors: InputError for a bad value, named; when applied, for images of other than 1 or 3
      channels.
    Source: Cubuk et al. 2020; operations and ranges are torchvision's, and its defaults.
    """
    check.at_least(1, num_ops=num_ops)
    check.at_least(0, magnitude=magnitude)
    check.number(most=BINS - 1, magnitude=magnitude)

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        number_key, sign_key = jax.random.split(key)
        shape = num_ops, len(image)
        numbers = jax.random.randint(number_key, shape, 0, len(OPERATIONS))
        signs = jax.random.rademacher(sign_key, shape, image.dtype)

        def change(image, job):
            return rand_augment_at(image, *job, magnitude=magnitude), None

        return lax.scan(change, image, (numbers, signs))[0]

    return apply


def rand_augment_at(
    image: Float[Array, "b h w c"], number: Array, sign: Float[Array, " b"], *, magnitude: int
) -> Float[Array, "b h w c"]:
    """Operation number_n of image n, with s = sign_n and t = magnitude / 30.

    Shear by 0.3 s t about the corner; shift by floor(150/331 t W) or H pixels, toward s; turn by
    30 s t degrees; `tones.blend` with factor 1 + 0.9 s t; round(4 t) bits less; 1 - x where
    x >= 1 - t; autocontrast, equalize. Moves take the nearest pixel and are zero outside.

    Args:
      image: [B, H, W, C], C 1 or 3.
      number: [B], of `OPERATIONS`.
      sign: [B], -1 or 1.
      magnitude: 0 to 30.
    """
    share, (height, width) = magnitude / (BINS - 1), image.shape[1:3]

    def of(name):
        return (number == OPERATIONS.index(name)).astype(image.dtype)

    def pixels(size):
        return math.floor(150 / 331 * size * share)

    zeros = jnp.zeros_like(sign)
    shear = 0.3 * share * sign[:, None] * jnp.stack([of("shear_x"), of("shear_y")], 1)
    shift = [-of("translate_x") * pixels(width), -of("translate_y") * pixels(height)]
    matrix = matrices(
        height,
        width,
        angle=math.radians(30) * share * sign * of("rotate") + zeros,
        shear=shear,
        shift=sign[:, None] * jnp.stack(shift, 1),
    )
    moved = warp(image, matrix, smooth=False)
    grey = jnp.broadcast_to(luma(image), image.shape)
    others = (jnp.zeros_like(image), grey, tones.mean_luma(image), tones.smoothed(image))
    base, place = OPERATIONS.index("brightness"), number[:, None, None, None]
    other = jnp.select([place == base + k for k in range(4)], others, image)
    blended = tones.blend(image, other, 1 + 0.9 * share * sign)
    bits = jnp.full(number.shape, 8 - round(4 * share))
    changed = {
        "posterize": tones.posterize(image, bits),
        "solarize": jnp.where(image >= 1 - share, 1 - image, image),
        "autocontrast": tones.autocontrast(image),
        "equalize": tones.equalize(image),
    }
    out = jnp.where((place >= base) & (place < base + 4), blended, moved)
    tests = [place == OPERATIONS.index(name) for name in changed]
    return jnp.select(tests, list(changed.values()), out)


def trivial_augment() -> Augmentation:
    """One operation for the whole batch, uniform on twelve; its strength is uniform, per image.

    Autocontrast; equalize; rotation by +-30 degrees; the top 0 to 3 bits; 1 - x where x >= u,
    u ~ U(0, 1); clip(f x, 0, 1), clip(x + f - 1, 0, 1) and sharpness with f ~ U(0.1, 1.9); shear in
    x or in y by +-0.3 about the center; shift in x or in y by up to half of the image. Moves are
    bilinear and zero outside.

    Source: Mueller and Hutter 2021 (one operation, no settings); operations and ranges as in
    kornia, which Qin et al. 2023 (UEraser) use. Differs: kornia takes the shear as degrees, of
    which 0.3 are nothing, and draws strengths of moves without their sign.
    """

    def moved(image, **amount):
        zeros, (height, width) = jnp.zeros((len(image), 2), image.dtype), image.shape[1:3]
        still = {"angle": zeros[:, 0], "shear": zeros, "shift": zeros}
        return warp(image, matrices(height, width, **(still | amount)), smooth=True)

    def sheared(image, amount):
        middle = jnp.asarray([[image.shape[1] / 2, image.shape[2] / 2]], image.dtype)
        return moved(image, shear=amount, shift=-amount * middle)

    def pair(u, axis):
        return jnp.stack([u, jnp.zeros_like(u)][:: 1 - 2 * axis], axis=1)

    def factor(u):
        return 0.1 + 1.8 * u

    def bright(image, u):
        return jnp.clip(image + (factor(u) - 1)[:, None, None, None], 0, 1)

    operations = (
        lambda image, u: tones.autocontrast(image),
        lambda image, u: tones.equalize(image),
        lambda image, u: moved(image, angle=math.radians(30) * (2 * u - 1)),
        lambda image, u: tones.posterize(image, jnp.floor(4 * u).astype(jnp.int32)),
        lambda image, u: jnp.where(image >= u[:, None, None, None], 1 - image, image),
        lambda image, u: tones.blend(image, jnp.zeros_like(image), factor(u)),
        bright,
        lambda image, u: tones.blend(image, tones.smoothed(image), factor(u)),
        lambda image, u: sheared(image, pair(0.6 * u - 0.3, 0)),
        lambda image, u: sheared(image, pair(0.6 * u - 0.3, 1)),
        lambda image, u: moved(image, shift=pair((u - 0.5) * image.shape[2], 0)),
        lambda image, u: moved(image, shift=pair((u - 0.5) * image.shape[1], 1)),
    )

    def apply(key: Key, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        number_key, key = jax.random.split(key)
        number = jax.random.randint(number_key, (), 0, len(operations))
        return lax.switch(
            number, operations, image, jax.random.uniform(key, (len(image),), image.dtype)
        )

    return apply
