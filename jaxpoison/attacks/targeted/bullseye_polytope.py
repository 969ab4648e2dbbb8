"""Bullseye Polytope (Aghakhani et al. 2021): the poisons' mean feature lands on the target's.

min_{|delta_i| <= eps}  ||c - t|| / ||t||,  c = mean_i phi(x_i + delta_i),  t = mean_j phi(x_t^j)

Threat model: the images of `scenario.index` may change within eps, labels stay (the wanted class in
the paper); phi is trained beforehand; the victim trains a last layer on phi or on a relative of it.
`scenario.goal` holds the targets. Differs from the paper: no end-to-end mode, which averages the
loss over the outputs of all blocks (a `Victim` gives the input of its last layer alone), and no
repeated passes with dropout.
"""

import jax.numpy as jnp

from jaxpoison import tree
from jaxpoison.attacks.crafting import WITCHES_BREW, Crafting, Networks, craft
from jaxpoison.hypergrad import feature_objective
from jaxpoison.types import Attack

__all__ = ["bullseye_polytope"]


def bullseye_polytope(
    victim: Networks, *, eps: float, crafting: Crafting = WITCHES_BREW, normalized: bool = True
) -> Attack:
    """The mean of the poisons' features against that of the targets; run it for `crafting.steps`.

    More poisons than `crafting.batch_size` are cut into batches, and each batch has its own mean c.

    Args:
      victim: the surrogate network, or several; their trained `Variables` are `scenario.aux`, in
        the form that `attacks.crafting.craft` says.
      eps: L-infinity radius, pixel units (8/255).
      crafting: settings of the outer loop; those of Witches' Brew, as in its comparison.
      normalized: the published loss above; False for mean over the D features of (c - t)^2, the
        form that Witches' Brew is compared with. A sign rule and one network tell no difference.

    Returns: an Attack; `outer_loss` is the loss before the step.
    Raises: InputError for a bad value, named; at init if `scenario.aux` or `scenario.index` is
      empty.
    Source: Aghakhani et al. 2021, released code (with the mean of several targets); Geiping et al.
      2021, released code (the other form).
    """
    loss = _distance if normalized else _mean_square

    def objective(victim):
        return feature_objective(victim, loss)

    return craft(victim, objective, eps=eps, crafting=crafting)


def _distance(key, poison, target):
    del key
    center = jnp.mean(target, axis=0)
    return tree.norm(jnp.mean(poison, axis=0) - center) / tree.norm(center)


def _mean_square(key, poison, target):
    del key
    return jnp.mean((jnp.mean(poison, axis=0) - jnp.mean(target, axis=0)) ** 2)
