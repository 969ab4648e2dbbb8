"""MetaPoison (Huang et al. 2020): poisons that steer networks in the middle of their training.

min_{|delta_i| <= eps}  mean_m  mean_b  mean_{k=1..K}  l(f(x_t; w_k^{m,b}(delta)), y_adv),
l(z, y) = max(max_c z_c [c != y] - z_y, -100)

w_k^{m,b}: surrogate m, as it is before batch b of this epoch, after k SGD steps, the first on batch
b with the poisons in it. Threat model: the images of `scenario.index` may change within eps (and in
color, if wanted), labels stay; no trained model is needed; a victim trains from scratch.
`scenario.goal` holds the targets with the labels that the attacker wants.
Differs from the released code: a short last batch is filled up; the outer warm-up begins with a
step of 1/25 of the rate, not with none; scale of the smoothness term, see `MetaCrafting`.
The form that the paper of Witches' Brew compares to is `metapoison_at_surrogate`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.attacks.bilevel import bilevel
from jaxpoison.ensemble import over_ensemble
from jaxpoison.hypergrad import along_training
from jaxpoison.perturb import Budget, colored, per_sample, roughness
from jaxpoison.types import Attack, Hypergrad, Victim
from jaxpoison.victims import Recipe, recipes

__all__ = ["MetaCrafting", "metapoison"]


@dataclasses.dataclass(frozen=True)
class MetaCrafting:
    """Settings of `metapoison`; build a variant with `dataclasses.replace`.

    Attributes:
      steps: T, of the run; each is an epoch of every surrogate.
      members: M, surrogates.
      stagger: s; member m starts m s epochs old, and whoever is M s epochs old is drawn anew.
      unroll_steps: K; the paper's is 2 (4 for fine-tuning).
      recipe: of the surrogates; its schedule is read at a surrogate's own age.
      learning_rate: r, of Adam, pixel units; far above eps, so that the projection makes signs of
        its steps until the rate has fallen.
      warmup: W; the rate of step t is r min(1, (t + 1) / W)^2, 0 for none.
      milestones: steps from which the rate is 0.1 of what it was.
      init: of the perturbation, as in `perturb.per_sample`.
      color_shift: largest change of a color coordinate (Y, U, V) by the color map, see
        `perturb.colored`; the paper's is 0.04, 0 for no color map. It comes on top of eps: state
        eps + `perturb.color_bound(color_shift)` as the L-infinity radius of what is stored.
      color_cells: n, nodes of the map's grid per axis.
      smoothness: weight of `perturb.roughness`, the sum over poisons of their maps' mean distance
        between the shifts of neighboring nodes; it is added to the sum of l over batches.
      chunk: how many surrogates train side by side, as in `over_restarts`.
      mesh: devices to spread the surrogates over, `device_mesh(axis="member")`; changes no bit.

    Errors:
      InputError: a value that cannot be used; the message says what is allowed.
    Source: Huang et al. 2020 and released code; where the scale of the smoothness term is not
      known, it is ours.
    """

    steps: int = 60
    members: int = 24
    stagger: int = 1
    unroll_steps: int = 2
    recipe: Recipe = dataclasses.field(default_factory=recipes.metapoison)
    learning_rate: float = 200 / 255
    warmup: int = 5
    milestones: tuple[int, ...] = (20, 40)
    init: Any = "uniform"
    color_shift: float = 0.0
    color_cells: int = 10
    smoothness: float = 1.0
    chunk: int | None = 1
    mesh: Mesh | None = None

    def __post_init__(self):
        check.at_least(1, steps=self.steps, members=self.members, stagger=self.stagger)
        check.at_least(1, unroll_steps=self.unroll_steps)
        check.at_least(2, color_cells=self.color_cells)
        check.positive(learning_rate=self.learning_rate)
        check.at_least(0, warmup=self.warmup)
        for milestone in self.milestones:
            check.at_least(1, milestones=milestone)
        check.fraction(color_shift=self.color_shift)
        check.number(least=0, smoothness=self.smoothness)

    @classmethod
    def small(cls) -> "MetaCrafting":
        """For a CPU and a few thousand images: 4 members of 0, 3, 6 and 9 epochs, 20 steps.

        SGD at 0.1 in batches of 125, without the schedule's warm-up; of no paper.
        """
        recipe = dataclasses.replace(recipes.metapoison(), warmup=0)
        return cls(steps=20, members=4, stagger=3, recipe=recipe, warmup=2, milestones=(7, 14))


METAPOISON = MetaCrafting()


def metapoison(victim: Victim, *, eps: float, crafting: MetaCrafting = METAPOISON) -> Attack:
    """Adam on the targets' loss, unrolled from every batch of an epoch of M networks in training.

    Args:
      victim: the surrogates' network; all M are its draws. The paper's is
        `metapoison_convnet(..., batch_norm=True)`.
      eps: L-infinity radius of the additive part, pixel units (8/255).
      crafting: settings; the paper's by default, without the color map.

    Returns: an Attack whose `num_steps` are `crafting.steps`; `outer_loss` is the objective above
      (with the smoothness term), before the step. `scenario.aux` is not read.
    Raises: InputError for a bad value, named; at init for an empty `scenario.index`, a batch larger
      than the training set, a color map on images without three channels.
    Source: Huang et al. 2020, Algorithm 1 and released code.
    Cost: a step is M epochs of training in which a batch with poisons takes at most about 4 (K = 1)
      or 10 (K = 2) times as long as without (measured on a CPU with `metapoison_convnet` and
      rematerialization, which now begins above K = 2). `init` trains M (M - 1) s / 2 epochs, in
      one program. The paper's run of 60 x 24 epochs, 1 % poisons, takes as long as about 50
      victims of 200 epochs; `MetaCrafting.small()` is for CPUs.
    """
    space, penalty = per_sample(Budget("linf", eps), init=crafting.init), None
    if crafting.color_shift:
        space = colored(space, shift=crafting.color_shift, cells=crafting.color_cells)

        def penalty(theta):
            return crafting.smoothness * roughness(theta.grid)

    single = along_training(
        victim,
        space,
        crafting.recipe,
        steps=crafting.unroll_steps,
        target_loss=_margin,
        restart_after=crafting.members * crafting.stagger,
        penalty=penalty,
    )
    members = _staggered(single, crafting)
    attack = bilevel(space, members, optax.adam(_rate(crafting)))
    return attack._replace(num_steps=crafting.steps)


def _margin(logits: Float[Array, "g l"], label: Int[Array, " g"]) -> Float[Array, ""]:
    """Mean of max(max_c z_c [c != y] - z_y, -100); as published, z_y is a 0 in the maximum."""
    own = jnp.arange(logits.shape[1])[None] == label[:, None]
    wanted = jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]
    best = jnp.max(jnp.where(own, 0, logits), axis=1)
    return jnp.mean(jnp.maximum(best - wanted, -100))


def _staggered(single: Hypergrad, crafting: MetaCrafting) -> Hypergrad:
    """M surrogates, member m trained for m s epochs beforehand."""
    ensemble = over_ensemble(
        single, crafting.members, aux_axis=0, chunk=crafting.chunk, mesh=crafting.mesh
    )

    def aged(scenario):
        return scenario._replace(aux=crafting.stagger * jnp.arange(crafting.members))

    def init(key, scenario):
        return ensemble.init(key, aged(scenario))

    def estimate(key, theta, phi, scenario):
        return ensemble.estimate(key, theta, phi, aged(scenario))

    return Hypergrad(init, estimate)


def _rate(crafting: MetaCrafting) -> optax.Schedule:
    """Step -> rate of Adam."""
    drops = optax.piecewise_constant_schedule(
        crafting.learning_rate, dict.fromkeys(crafting.milestones, 0.1)
    )
    if not crafting.warmup:
        return drops
    return lambda step: drops(step) * jnp.minimum(1, (step + 1) / crafting.warmup) ** 2
