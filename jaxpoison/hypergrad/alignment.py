"""The inner attack of adversarial poisoning: images whose training gradient points somewhere."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from jaxpoison import tree
from jaxpoison.types import Key
from jaxpoison.victims import pgd

__all__ = ["aligned"]

STEP_PER_EPS = 0.4  # 0.1 standard deviations, as published, at the published radius of 16/255


def aligned(
    key: Key,
    gradient: Callable[[Array], Any],
    image: Float[Array, "b h w c"],
    wanted: Any,
    *,
    eps: float | Float[Array, ""],
    steps: int = 5,
) -> Float[Array, "b h w c"]:
    """About argmax of <t, p> / (||t|| ||p||) over delta in the ball, p = gradient(x + delta).

    `victims.pgd` from eps N(0, I), with steps of 0.4 eps. The published code takes them by Adam on
    signs of gradients, which is that with momentum.

    Args:
      key: of the start.
      gradient: images -> the training gradient that they give, a pytree.
      image: x, in [0, 1].
      wanted: t, like it.
      eps: L-infinity radius, pixel units.
      steps: K.

    Returns: delta [B, H, W, C], a constant to every derivative.
    Raises: InputError as `pgd`.
    Cost: about 7 K forward passes of the images.
    Source: Geiping et al. 2021, "What doesn't kill you makes you robust(er)", and released code
      (data-poisoning).
    """

    def alignment(image):
        return tree.cosine(wanted, gradient(image))

    size = STEP_PER_EPS * eps
    return pgd(key, alignment, image, eps=eps, step_size=size, steps=steps, start="normal")
