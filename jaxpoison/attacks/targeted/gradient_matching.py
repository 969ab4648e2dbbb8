"""Gradient matching, "Witches' Brew" (Geiping et al. 2021): clean-label poisons of one target.

min_{|delta_i| <= eps}  1 - cos(t, p),  t = d CE(f(x_t), y_adv) / d params,
                                        p = d CE(f(x_P + delta), y_P) / d params

Threat model: the images of `scenario.index` may change within eps, labels stay (they equal y_adv in
the paper's default); f is trained on clean data beforehand; a victim trains from scratch.
`scenario.goal` holds the targets with the labels that the attacker wants.
"""

from jaxpoison import check
from jaxpoison.attacks.crafting import WITCHES_BREW, Crafting, Networks, craft
from jaxpoison.data.mixing import Mixing
from jaxpoison.hypergrad import hidden, matching
from jaxpoison.types import Attack, Objective, Victim

__all__ = ["gradient_matching"]


def gradient_matching(
    victim: Networks,
    *,
    eps: float,
    loss: str = "similarity",
    target_loss: str = "cross_entropy",
    targets: str = "mean",
    params: str = "all",
    centreg: float = 0.0,
    normreg: float = 0.0,
    clip_norm: float | None = None,
    noise: float = 0.0,
    mixing: Mixing | None = None,
    adversarial_eps: float = 0.0,
    adversarial_steps: int = 5,
    clean_rows: int = 128,
    hide: float = 0.0,
    crafting: Crafting = WITCHES_BREW,
) -> Attack:
    """Sign-Adam on the distance between poison gradient and target gradient.

    Run it for `crafting.steps`; repeat it with `over_restarts` and take `best_of`. The defaults are
    the paper's objective; those below `params` answer a defense, and are best joined by a surrogate
    that was trained with that defense.

    Args:
      victim: the surrogate network, or several; their trained `Variables` are `scenario.aux`, in
        the form that `attacks.crafting.craft` says.
      eps: L-infinity radius, pixel units (8/255).
      loss: distance of p from t, by its name in `hypergrad.matching`, like all down to `params`:
        "similarity", "scalar_product", "SE", ...
      target_loss: "cross_entropy", "margin" (Carlini and Wagner) or "untargeted"; with the last the
        goal holds the true labels.
      targets: "mean", one t of all targets, or "each", a sum over targets.
      params: "all", or "head" for linear transfer.
      centreg: weight of the poisons' own loss.
      normreg: weight of ||p||.
      clip_norm: against noisy training: p is clipped to this norm; None for no clip.
      noise: and has N(0, I) of this size, in units of the clip, added; it is drawn at every step.
      mixing: against mixing: the poisons' gradient is taken on a mixed batch, see `data.mixing`.
      adversarial_eps: against adversarial poisoning: the poisons' gradient is taken where the
        victim's own attack of this radius, pixel units, moves them; 0 for none.
      adversarial_steps: of that attack.
      clean_rows: clean images in the mixed batch, or that the victim's attack aims at.
      hide: against filters in feature space: weight of `hypergrad.hidden`; 1 as published.
      crafting: settings of the outer loop.

    Returns: an Attack; `outer_loss` is the objective before the step, B in [0, 2] by default.
    Raises: InputError for a bad value, named; at init if `scenario.aux` or `scenario.index` is
      empty.
    Source: Geiping et al. 2021, Algorithm 1; adaptive variants of the authors' later code.
    """
    check.number(least=0, hide=hide)

    def objective(victim: Victim) -> Objective:
        found = matching(
            victim,
            loss=loss,
            target_loss=target_loss,
            targets=targets,
            params=params,
            centreg=centreg,
            normreg=normreg,
            clip_norm=clip_norm,
            noise=noise,
            mixing=mixing,
            adversarial_eps=adversarial_eps,
            adversarial_steps=adversarial_steps,
            clean_rows=clean_rows,
            augment=crafting.augment,
        )
        if isinstance(hide, float | int) and hide == 0:
            return found
        return hidden(found, victim, weight=hide, augment=crafting.augment)

    return craft(victim, objective, eps=eps, crafting=crafting)
