"""How much of an image the attacker may change: a norm and a radius."""

import dataclasses
from typing import Any

from jaxpoison import check

__all__ = ["Budget"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The ball {delta : ||delta||_norm <= eps} around every image, pixels in [0, 1].

    Frozen and hashable; a traced `eps` also works inside a closure, so that a sweep is a `vmap`
    over a function that builds the budget (such an instance cannot be hashed).

    Attributes:
      norm: "linf", "l2" (over all H W C entries of one image) or "l0".
      eps: radius. linf: the largest change of one entry, in [0, 1] (8/255, not 8). l2: pixel
        units, >= 0. l0: the number of pixels that may change, a pixel being all its channels.

    Errors:
      InputError: the norm is unknown or `eps` is not a radius in it.
    """

    norm: str
    eps: Any

    def __post_init__(self):
        object.__setattr__(self, "eps", check.radius(self.norm, self.eps))
