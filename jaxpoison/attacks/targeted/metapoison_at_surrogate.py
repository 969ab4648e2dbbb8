"""MetaPoison at a trained surrogate, as the code of Witches' Brew has it (Geiping et al. 2021).

min_{|delta_i| <= eps}  CE(f(x_t; w_K), y_adv),
w_k = w_{k-1} - a d CE(f(x_P + delta; w_{k-1}), y_P) / d w,  w_0 trained on clean data

Threat model: the images of `scenario.index` may change within eps, labels stay; f is trained on
clean data beforehand and stands still; a victim trains from scratch. `scenario.goal` holds the
targets with the labels that the attacker wants. Differs from MetaPoison itself, which is
`metapoison`: there many networks go on training while poisons are crafted.
"""

import functools

from jaxpoison import check
from jaxpoison.attacks.crafting import WITCHES_BREW, Crafting, Networks, craft
from jaxpoison.hypergrad import adaptation
from jaxpoison.types import Attack

__all__ = ["metapoison_at_surrogate"]


def metapoison_at_surrogate(
    victim: Networks,
    *,
    eps: float,
    unroll_steps: int = 2,
    learning_rate: float = 1e-4,
    clean_gradient: bool = False,
    crafting: Crafting = WITCHES_BREW,
) -> Attack:
    """Sign-Adam on the targets' loss after a few steps on the poisons; run `crafting.steps`.

    The loop (restarts, rule, augmentation, projection) is that of `gradient_matching`, so that the
    two compare at equal budget.

    Args:
      victim: the surrogate network, or several; their trained `Variables` are `scenario.aux`, in
        the form that `attacks.crafting.craft` says.
      eps: L-infinity radius, pixel units (8/255).
      unroll_steps: K, "nadapt".
      learning_rate: a, the surrogate's at the end of its training; see `hypergrad.adaptation`.
      clean_gradient: the gradient is always taken at delta = 0, only the updates add up; the
        paper's comparison sets it.
      crafting: settings of the outer loop.

    Returns: an Attack; `outer_loss` is the CE above, before the step (at delta = 0 with
      `clean_gradient`).
    Raises: InputError for a bad value, named; at init if `scenario.aux` or `scenario.index` is
      empty.
    Source: Geiping et al. 2021, released code, recipe "metapoison".
    """
    check.at_least(1, unroll_steps=unroll_steps)
    return craft(
        victim,
        functools.partial(adaptation, steps=unroll_steps, learning_rate=learning_rate),
        eps=eps,
        crafting=crafting,
        clean_gradient=clean_gradient,
    )
