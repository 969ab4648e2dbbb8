"""Surrogates whose training stops early, each after its own epochs: staggered ensembles."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxpoison import check, over
from jaxpoison.types import InputError, Training, TrainState, Variables

__all__ = ["Staggered", "stagger_epochs", "staggered"]

STAGGERS = ("firstn", "full", "inbetween")


def stagger_epochs(kind: str, num: int, epochs: int) -> list[int]:
    """The epochs after which the members of an ensemble stop training on clean data.

      "firstn"     0, 1, ..., K - 1
      "full"       K points spread evenly from 0 to E, both included, rounded down
      "inbetween"  the inner K of K + 2 such points

    Args:
      kind: which of them.
      num: K members.
      epochs: E, of the whole recipe.

    Returns: K numbers in [0, E], in ascending order.
    Raises: InputError for another kind, num or epochs < 1, or "firstn" members beyond E.
    Source: Geiping et al. 2021 and the authors' later code, option stagger. ("full" is also how
      their distributed mode spreads its members.)
    """
    check.one_of(STAGGERS, kind=kind)
    check.at_least(1, num=num, epochs=epochs)
    if kind == "firstn":
        if num - 1 > epochs:
            raise InputError(
                f"num = {num} members, of which the last would stop after {num - 1} epochs; the "
                f"recipe has {epochs}"
            )
        return list(range(num))
    points = np.linspace(0, epochs, num) if kind == "full" else np.linspace(0, epochs, num + 2)
    return [int(point) for point in (points if kind == "full" else points[1:-1])]


class Staggered(NamedTuple):
    """Members on their way.

    Attributes:
      phi: their training states, leaves [M, ...].
      left: [M] epochs each has yet to go.
      info: [M] of the last epoch that each took; NaN before there is one.
    """

    phi: TrainState
    left: Int[Array, "..."]
    info: Any

    @property
    def variables(self) -> Variables:
        """The networks alone, stacked: `Scenario.aux` of an ensemble."""
        return self.phi.variables


def staggered(
    training: Training,
    epochs: Sequence[int],
    *,
    chunk: int | None = 1,
    mesh: Mesh | None = None,
    axis: str = "member",
) -> Training:
    """Members trained side by side, of which member m stops after its epochs[m].

    Run it for max(epochs) steps. Member m draws the keys of seed m of `over_restarts(training, M)`,
    so up to its stop it is that seed. A member that has stopped costs nothing with chunk = 1, with
    a mesh its device waits for the others.

    Args:
      training: of one member; its schedule is that of the whole recipe.
      epochs: of each member, see `stagger_epochs`; 0 is a fresh network.
      chunk: as in `over_restarts`.
      mesh: devices to spread members over; None for no spreading.
      axis: name of its axis.

    Returns: a Training whose state is `Staggered` and whose info is that of `training`, [M].
    Raises: InputError for no members, epochs below 0, or as `over_restarts` and `over_devices`.
    """
    if not epochs:
        raise InputError("epochs is empty; it must have one number per member")
    for number in epochs:
        check.at_least(0, epochs=number)

    def init(key, split) -> Any:
        phi = training.init(key, split)
        info = jax.eval_shape(training.step, key, phi, split)[1]
        return Staggered(phi, jnp.int32(0), jax.tree.map(_none_yet, info))

    def step(key, state, split):
        def train():
            phi, info = training.step(key, state.phi, split)
            return Staggered(phi, state.left - 1, info)

        state = lax.cond(state.left > 0, train, lambda: state)
        return state, state.info

    one = Training(init, step)
    if mesh is None:
        many = over.over_restarts(one, len(epochs), chunk=chunk)
    else:
        many = over.over_devices(one, mesh, len(epochs), axis=axis, chunk=chunk)

    def init_all(key, split) -> Any:
        state: Any = many.init(key, split)
        return state._replace(left=jnp.asarray(epochs, jnp.int32))

    return Training(init_all, many.step)


def _none_yet(x):
    """NaN for what was not measured; a flag (`finite`) does not stop the run."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.full(x.shape, jnp.nan, x.dtype) if floating else jnp.ones(x.shape, x.dtype)
