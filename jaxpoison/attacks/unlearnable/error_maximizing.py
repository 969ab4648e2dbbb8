"""TAP, error-maximizing poisons (Fowl et al. 2021): adversarial examples of a clean surrogate.

min_{|delta_i| <= eps}  E_t CE(f(t(x_i + delta_i)), (y_i + 1) mod L)     (targeted)
max_{|delta_i| <= eps}  E_t CE(f(t(x_i + delta_i)), y_i)                 (untargeted)

Threat model: training images may change within eps, labels stay; the surrogate f is trained on
clean data beforehand. Differs from the released code: restarts (`over_restarts`, `best_of`) keep
the best whole run by its loss before the last step, not the best run of each batch of 512 by its
final loss; the start is already inside the box.
"""

from typing import Literal

import optax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.attacks.bilevel import bilevel, of_classes
from jaxpoison.data.augment import Augmentation, shift_flip
from jaxpoison.hypergrad import loss_at_surrogate, rowwise_loss
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, Victim

__all__ = ["error_maximizing"]

STEP_PER_EPS = 0.05  # 0.4 / 255 at eps = 8 / 255, constant; 250 steps
AUGMENT = shift_flip()


def error_maximizing(
    victim: Victim,
    *,
    eps: float | Float[Array, ""],
    num_classes: int,
    goal: Literal["targeted", "untargeted"] = "targeted",
    step_size: float | Float[Array, ""] | None = None,
    augment: Augmentation | None = AUGMENT,
    batch_size: int = 512,
) -> Attack:
    """Sign-gradient descent on a frozen surrogate; run it for 250 steps.

    Start: eps N(0, I), projected. Step: delta <- P(delta - step_size sign(gradient)), surrogate in
    eval mode, one augmentation drawn per image and step.

    Args:
      victim: the surrogate network; its trained `Variables` are `scenario.aux`.
      eps: L-infinity radius, pixel units (8/255).
      num_classes: L.
      goal: "targeted" toward the next class, or "untargeted" away from the label.
      step_size: pixel units; None is 0.05 eps.
      augment: (key, image [B, H, W, C]) -> image, differentiable; None for none. The default is the
        paper's: up to 4 pixels at 32 x 32, black outside, and mirrored; images that have a left and
        a right (digits) want `data.augment.shift()`.
      batch_size: rows of one pass; changes memory only (and which augmentations are drawn).

    Returns: an Attack; `outer_loss` is the mean loss above, before the step.
    Raises: InputError for a bad value, named; before it runs, for a `scenario.aux` that is not one
      network; at init if that or `scenario.index` is empty.
    Source: Fowl et al. 2021, section 3 and released code (crafting settings).
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, batch_size=batch_size)
    check.one_of(("targeted", "untargeted"), goal=goal)
    budget = Budget("linf", eps)
    space = per_sample(budget, init="normal")
    if step_size is None:
        step_size = STEP_PER_EPS * budget.eps
    else:
        check.positive(step_size=step_size)

    def loss(key, variables, image, label):
        image = image if augment is None else augment(key, image)
        logits, _ = victim.apply(variables, image, train=False)
        ce = optax.softmax_cross_entropy_with_integer_labels
        if goal == "targeted":
            return ce(logits, (label + 1) % num_classes)
        return -ce(logits, label)

    outer_loss = rowwise_loss(loss, space, batch_size=batch_size)
    attack = bilevel(space, loss_at_surrogate(outer_loss), optax.sign_sgd(step_size))
    return attack._replace(check=of_classes(num_classes, victim, at_surrogate=True))
