"""HYPO, hypocritical perturbations (Tao et al. 2022): images that a robust network reads too well.

min_{|delta_i| <= eps}  E_t CE(f(t(x_i + delta_i)), y_i)

Threat model: training images may change within eps, labels stay; f, slightly adversarially trained
on clean data beforehand, never moves. Its non-robust features, strengthened, hinder adversarial
training above all; a victim that trains plainly loses less. As in the released code, but for noise
and image box, which are projected jointly.
"""

import optax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.attacks.bilevel import bilevel, of_classes
from jaxpoison.data.augment import Augmentation, shift_flip
from jaxpoison.hypergrad import loss_at_surrogate, rowwise_loss
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, Victim

__all__ = ["hypocritical"]

STEP_PER_EPS = 0.1  # 0.8 / 255 at eps = 8 / 255; 100 steps
AUGMENT = shift_flip()


def hypocritical(
    victim: Victim,
    *,
    eps: float | Float[Array, ""],
    step_size: float | Float[Array, ""] | None = None,
    augment: Augmentation | None = AUGMENT,
    batch_size: int = 512,
) -> Attack:
    """Sign-gradient descent to the true label on a frozen robust surrogate; run it for 100 steps.

    Start: delta = 0. Step: delta <- P(delta - step_size sign(gradient)), surrogate in eval mode,
    one augmentation drawn per image and step.

    Args:
      victim: the surrogate network; its trained `Variables` are `scenario.aux`. The paper's is a
        ResNet-18 trained by `victims.recipes.hypocritical_surrogate`.
      eps: L-infinity radius, pixel units (8/255).
      step_size: pixel units; None is eps / 10.
      augment: (key, image [B, H, W, C]) -> image, differentiable; None for none. The default is the
        paper's: up to 4 pixels at 32 x 32, black outside, and mirrored.
      batch_size: rows of one pass; changes memory only (and which augmentations are drawn).

    Returns: an Attack; `outer_loss` is the mean loss above, before the step.
    Raises: InputError for a bad value, named; before it runs, for a `scenario.aux` that is not one
      network; at init if that or `scenario.index` is empty.
    Source: Tao et al. 2022, section 4, and released code (poison.py).
    """
    check.at_least(1, batch_size=batch_size)
    budget = Budget("linf", eps)
    space = per_sample(budget)
    if step_size is None:
        step_size = STEP_PER_EPS * budget.eps
    else:
        check.positive(step_size=step_size)

    def loss(key, variables, image, label):
        image = image if augment is None else augment(key, image)
        logits, _ = victim.apply(variables, image, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    outer_loss = rowwise_loss(loss, space, batch_size=batch_size)
    attack = bilevel(space, loss_at_surrogate(outer_loss), optax.sign_sgd(step_size))
    return attack._replace(check=of_classes(None, victim, at_surrogate=True))
