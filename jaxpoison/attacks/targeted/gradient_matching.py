"""Gradient matching, "Witches' Brew" (Geiping et al. 2021): clean-label poisons of one target.

min_{|delta_i| <= eps}  1 - cos(t, p),  t = d CE(f(x_t), y_adv) / d params,
                                        p = d CE(f(x_P + delta), y_P) / d params

Threat model: the images of `scenario.index` may change within eps, labels stay (they equal y_adv in
the paper's default); f is trained on clean data beforehand; a victim trains from scratch.
`scenario.goal` holds the targets with the labels that the attacker wants.
"""

from jaxpoison.attacks.crafting import WITCHES_BREW, Crafting, craft
from jaxpoison.hypergrad import matching
from jaxpoison.types import Attack, Victim

__all__ = ["gradient_matching"]


def gradient_matching(victim: Victim, *, eps: float, crafting: Crafting = WITCHES_BREW) -> Attack:
    """Sign-Adam on the cosine between poison gradient and target gradient; run `crafting.steps`.

    Args:
      victim: the surrogate network; its trained `Variables` are `scenario.aux`.
      eps: L-infinity radius, pixel units (8/255).
      crafting: settings of the outer loop.

    Returns: an Attack; `outer_loss` is B above, before the step, in [0, 2].
    Raises: InputError for a bad value, named; at init if `scenario.aux` or `scenario.index` is
      empty.
    Source: Geiping et al. 2021, Algorithm 1.
    """
    return craft(victim, matching, eps=eps, crafting=crafting)
