"""Victims trained to the minimum, by L-BFGS: what an attack on stationary points is judged by.

J(w) = (1 / D) sum_i a_i CE(z_i(w), y_i) + (lambda / 2) ||w||^2 over all rows at once, the network
in eval mode: running statistics stand still, nothing is drawn. For linear heads J is convex, and
unique in its minimum where lambda > 0.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check, tree
from jaxpoison.types import (
    Dataset,
    InputError,
    Training,
    TrainState,
    Variables,
    Victim,
    as_float,
)
from jaxpoison.victims.evaluate import accuracy
from jaxpoison.victims.train import EpochInfo

__all__ = ["Solved", "ToConvergence", "converge", "convergent_training"]

NORMALIZE = ("clean", "all")
STARTS = ("zeros", "draw")


@dataclasses.dataclass(frozen=True)
class ToConvergence:
    """How a victim is trained to the minimum; what `Recipe` is for SGD.

    Attributes:
      weight_decay: lambda, of all parameters, biases included.
      normalize: D. "clean", the number of clean rows: added rows of weight 1 then weigh eps = P / N
        against the clean mean; "all", the sum of all row weights, the mean over what is trained on.
      added_weight: a_i of each row behind the clean ones; one point of weight eps N stands for many
        equal ones. Clean rows have weight 1.
      tolerance: on the L2 norm of the gradient of J, where it stops. What float32 can reach grows
        with the features: of 1,400 digits in [0, 1] 1e-8, with added points 50 times as large 4e-6,
        after 800 steps.
      max_steps: of L-BFGS; separable data without weight decay have no minimum.
      start: "zeros", the same from every key, for linear heads; "draw", the network's own init.
      memory: pairs that L-BFGS keeps.
      batch_size: rows at a time; changes memory, and the last bits.

    Errors: InputError for a value that cannot be used.
    """

    weight_decay: float = 0.0
    normalize: str = "clean"
    added_weight: float = 1.0
    tolerance: float = 1e-5
    max_steps: int = 1000
    start: str = "zeros"
    memory: int = 20
    batch_size: int = 10_000

    def __post_init__(self):
        check.number(least=0, weight_decay=self.weight_decay, added_weight=self.added_weight)
        check.one_of(NORMALIZE, normalize=self.normalize)
        check.positive(tolerance=self.tolerance)
        check.at_least(1, max_steps=self.max_steps, memory=self.memory, batch_size=self.batch_size)
        check.one_of(STARTS, start=self.start)


class Solved(NamedTuple):
    """Where L-BFGS stopped.

    Attributes:
      grad_norm: L2 norm of the gradient of J; above the tolerance it did not converge.
      steps: taken, int32.
      objective: J.
    """

    grad_norm: Float[Array, "..."]
    steps: Array
    objective: Float[Array, "..."]


def converge(
    victim: Victim,
    variables: Variables,
    dataset: Dataset,
    settings: ToConvergence,
    *,
    num_clean: int | Array,
    row_weights: Float[Array, " n"] | None = None,
) -> tuple[Variables, Solved]:
    """The minimum of J that L-BFGS reaches from given variables.

    Args:
      victim: a linear head, a `partial_victim`, `on_features`, or a network without dropout; its
        running statistics are kept.
      variables: where to start; `settings.start` is not read.
      dataset: the clean rows first.
      settings: weight decay, normalization, when to stop.
      num_clean: N, of the clean rows; may be traced.
      row_weights: [rows] a_i; None is 1 for clean rows and `settings.added_weight` for the others.
        Zeros leave rows out.

    Returns: (variables, Solved); parameters in at least float32, in float64 under `jax.enable_x64`
      (where the network computes in it, `dtype=`).
    Errors: InputError for an empty set, num_clean < 1 or beyond its rows, weights of another shape.
    Cost: per step one pass over all rows, and a further one for each further point the line search
      tries (rarely any).
    Source: Liu & Nocedal 1989; the zoom line search of Nocedal & Wright (2006), as optax has both.
    """
    num = dataset.label.shape[0]
    if not num:
        raise InputError("the training set is empty")
    check.at_least(1, num_clean=num_clean)
    if not isinstance(num_clean, jax.core.Tracer) and num_clean > num:
        raise InputError(f"num_clean = {num_clean}; the training set has {num} rows")
    if row_weights is None:
        added = jnp.arange(num) >= num_clean
        row_weights = jnp.where(added, jnp.float32(settings.added_weight), jnp.float32(1))
    if row_weights.shape != (num,):
        raise InputError(f"row_weights has shape {row_weights.shape}; {num} rows ask for ({num},)")
    dataset = Dataset(jnp.asarray(dataset.image), jnp.asarray(dataset.label))
    whole = num_clean if settings.normalize == "clean" else jnp.sum(row_weights)
    job = _Job(dataset, row_weights / whole, settings.weight_decay)
    limits = settings.tolerance, settings.max_steps
    return _solve(victim, settings.memory, settings.batch_size, variables, job, limits)


def convergent_training(victim: Victim, settings: ToConvergence, num_clean: int) -> Training:
    """`converge` as a victim's training: run it for one step, which solves to the end.

    Args:
      victim: as in `converge`.
      settings: with their `start`.
      num_clean: N; the first N rows of a training set are its clean ones.

    Returns: Training over a `Split`, for `over_restarts`, `judge` and the loops; the info is
      `EpochInfo` at the end: J, the norm of its gradient (above `settings.tolerance` the victim did
      not converge), accuracies. A further step goes on for up to `max_steps` more.
    Errors: InputError for num_clean < 1; on tracing, for an empty training set or a smaller one.
    """
    check.kind(Victim, victim=victim)
    check.kind(ToConvergence, settings=settings)
    check.at_least(1, num_clean=num_clean)

    def init(key, split):
        del split
        variables = victim.init(key)
        params = jax.tree.map(_wide, variables.params)
        if settings.start == "zeros":
            params = jax.tree.map(jnp.zeros_like, params)
        return TrainState(params, variables.stats, ())

    def step(key, phi, split):
        del key
        found, solved = converge(victim, phi.variables, split.train, settings, num_clean=num_clean)
        seen = accuracy(victim, found, split.train)
        finite = jnp.isfinite(solved.objective) & jnp.isfinite(solved.grad_norm)
        held_out = accuracy(victim, found, split.test)
        info = EpochInfo(solved.objective, solved.grad_norm, finite, seen, held_out)
        return TrainState(found.params, found.stats, ()), info

    return Training(init, step)


class _Job(NamedTuple):
    """Of J = sum_i share_i CE_i + (decay / 2) ||w||^2: rows [N], share [N], decay."""

    dataset: Dataset
    share: Array
    decay: Any


@jax.jit(static_argnums=(0, 1, 2))
def _solve(victim, memory, batch_size, variables, job, limits):
    tolerance, max_steps = limits
    objective = _objective(victim, variables.stats, job, batch_size)
    rule = optax.lbfgs(memory_size=memory)
    start = jax.tree.map(_wide, variables.params)
    value, slope = jax.value_and_grad(objective)(start)

    def unfinished(carry):
        _, _, value, slope, steps, moved = carry
        size = tree.norm(slope)
        sound = jnp.isfinite(value) & jnp.isfinite(size)
        return sound & moved & (size > tolerance) & (steps < max_steps)

    def advance(carry):
        params, state, value, slope, steps, _ = carry
        updates, state = rule.update(
            slope, state, params, value=value, grad=slope, value_fn=objective
        )
        after = optax.apply_updates(params, updates)
        value, slope = (optax.tree.get(state, name) for name in ("value", "grad"))
        pairs = zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True)
        moved = jnp.any(jnp.stack([jnp.any(new != old) for new, old in pairs]))
        return after, state, value, slope, steps + 1, moved

    first = (start, rule.init(start), value, slope, jnp.int32(0), jnp.array(True))
    params, _, value, slope, steps, _ = lax.while_loop(unfinished, advance, first)
    solved = Solved(tree.norm(slope), steps, value)
    return Variables(params, variables.stats), solved


def _objective(victim, stats, job, batch_size):
    """J as a function of the parameters; value and gradient are summed up in one pass over rows."""
    rows, real = tree.batches((job.dataset, job.share), batch_size)

    def part(params, some, share):
        scores, _ = victim.apply(Variables(params, stats), as_float(some.image), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, some.label)
        return jnp.sum(losses * share.astype(losses.dtype))

    def value_and_slope(params):
        def add(carry, batch):
            (some, share), real = batch
            new = jax.value_and_grad(part)(params, some, share * real.astype(share.dtype))
            return tree.axpy(1.0, new, carry), None

        value = jnp.asarray(job.decay / 2 * tree.dot(params, params))
        decay = jax.tree.map(lambda p: (job.decay * p).astype(p.dtype), params)
        return lax.scan(add, (value, decay), (rows, real))[0]

    @jax.custom_vjp
    def objective(params):
        return value_and_slope(params)[0]

    def pull(slope, cotangent):
        return (jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), slope),)

    objective.defvjp(value_and_slope, pull)
    return objective


def _wide(x: Array) -> Array:
    """In at least the default float dtype: float64 under x64."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.result_type(float)))
