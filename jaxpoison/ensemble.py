"""One attacker against several followers: the mean of their gradients, members mapped or spread.

Members may differ in their weights (`over_ensemble`) and in their networks too (`over_networks`).
Gradients are summed in the order of the members whatever the chunk and wherever they are computed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxpoison import check, over
from jaxpoison.types import Hypergrad, InputError

__all__ = ["over_ensemble", "over_networks", "per_network"]

PyTree = Any


def over_ensemble(
    hypergrad: Hypergrad,
    num: int,
    *,
    chunk: int | None = 1,
    aux_axis: int | None = None,
    shared: bool = False,
    mesh: Mesh | None = None,
    axis: str = "member",
) -> Hypergrad:
    """One theta against `num` followers: the mean of their gradients and outer losses.

      gradient = (1 / M) sum_m gradient_m,  outer loss = (1 / M) sum_m loss_m

    Papers that sum gradients instead (Geiping et al. 2021) get M times this: a rule that reads
    signs alone sees no difference, one that is linear in the gradient takes steps M times as long;
    `attacks.crafting.update_rule` puts the factor back.

    With a mesh each device computes M / (axis size) members under `jax.shard_map`, then all gather
    the gradients and add them up in the order of the members: the same bits on every number of
    devices. Restarts may be mapped around it (`over_restarts`); under `over_devices` members are
    mapped.

    Args:
      hypergrad: the estimator of one member.
      num: M.
      chunk: as in `over_restarts`; with 1 and no mesh the gradient is summed in the carry of a
        scan, so memory does not grow with M. With a mesh it is that of each device.
      aux_axis: 0 if `scenario.aux` is stacked over members (each sees its own), None if shared.
      shared: whether `estimate` gives every member the same key, so that the same augmentation is
        drawn for all. Else the key is folded with the member's number, as in `init` always.
      mesh: devices to spread members over, `device_mesh(axis="member")`; None for no spreading.
      axis: name of its axis.

    Returns: a Hypergrad whose phi has a leading axis M.
    Raises: InputError for num < 1, chunk < 1, a mesh without the axis, or num not divisible by its
      size; at init if `scenario.aux` is not stacked over M members; on tracing, for a mesh under
      `over_devices`.
    """
    check.one_of((None, 0), aux_axis=aux_axis)
    check.at_least(1, num=num)
    setting = _Setting(chunk, aux_axis == 0, shared, mesh, axis)
    group = _group(hypergrad, range(num), setting)

    def estimate(key, theta, phi, scenario):
        total, phi, losses = group.estimate(key, theta, phi, scenario)
        return jax.tree.map(lambda g: g / num, total), phi, jnp.mean(losses)

    return Hypergrad(group.init, estimate)


def over_networks(
    hypergrads: Sequence[Hypergrad],
    num: int,
    *,
    chunk: int | None = 1,
    shared: bool = False,
    mesh: Mesh | None = None,
    axis: str = "member",
) -> Hypergrad:
    """`over_ensemble` with n different networks: member m of M is of network m mod n.

    `scenario.aux` is a tuple with one entry per network, each stacked over that network's members
    (of 3 members of 2 networks: 2 and 1). The mean is over all M members, each counting once; they
    are added up network after network.

    Args:
      hypergrads: the estimator of one member, for each network.
      num: M, at least n.
      chunk: as in `over_ensemble`.
      shared: as there.
      mesh: as there; every network's members are spread over all devices.
      axis: as there.

    Returns: a Hypergrad whose phi is a tuple over networks, each with a leading axis.
    Raises: InputError as `over_ensemble`, and for fewer members than networks; at init if
      `scenario.aux` has not one entry per network.
    Source: Geiping et al. 2021, heterogeneous ensembles.
    """
    kinds = len(hypergrads)
    check.at_least(1, networks=kinds, num=num)
    if num < kinds:
        raise InputError(f"num = {num} members of {kinds} networks; each needs at least one")
    setting = _Setting(chunk, True, shared, mesh, axis)
    groups = [_group(h, range(i, num, kinds), setting) for i, h in enumerate(hypergrads)]

    def own(scenario):
        """The scenario of each network."""
        return [scenario._replace(aux=one) for one in per_network(scenario.aux, kinds)]

    def init(key, scenario):
        return tuple(g.init(key, one) for g, one in zip(groups, own(scenario), strict=True))

    def estimate(key, theta, phi, scenario):
        total, phis, losses = jax.tree.map(jnp.zeros_like, theta), [], []
        for group, phi_i, one in zip(groups, phi, own(scenario), strict=True):
            gradient, phi_i, loss = group.estimate(key, theta, phi_i, one)
            total = jax.tree.map(jnp.add, total, gradient)
            phis.append(phi_i)
            losses.append(loss)
        mean = jax.tree.map(lambda g: g / num, total)
        return mean, tuple(phis), jnp.mean(jnp.concatenate(losses))

    return Hypergrad(init, estimate)


def per_network(aux: PyTree, kinds: int) -> tuple[PyTree, ...]:
    """What `scenario.aux` of several networks is, one entry per network; else an `InputError`."""
    plain = type(aux) is tuple  # Variables are a tuple too
    if not plain or len(aux) != kinds:
        found = f"{len(aux)} entries" if plain else type(aux).__name__
        raise InputError(
            f"scenario.aux is {found}; it must be a tuple of {kinds} entries, one per network, "
            "each stacked over its members"
        )
    return aux


class _Setting(NamedTuple):
    """What `over_ensemble` was told; `stacked`: each member has its own entry of aux."""

    chunk: int | None
    stacked: bool
    shared: bool
    mesh: Mesh | None
    axis: str


def _group(hypergrad: Hypergrad, numbers: range, setting: _Setting) -> Hypergrad:
    """Members of one network by their numbers in the ensemble; the SUM and all losses [m]."""
    num, each = len(numbers), over.mapper(setting.chunk)
    _check_spread(num, setting)

    def member(scenario, aux):
        return scenario._replace(aux=aux) if setting.stacked else scenario

    def jobs(scenario):
        """What is mapped, and the scenario without it."""
        rows = jnp.asarray(numbers, jnp.int32)
        if not setting.stacked:
            return (rows, ()), scenario
        return (rows, scenario.aux), scenario._replace(aux=())

    def init(key, scenario):
        if setting.stacked:
            _check_stacked(scenario.aux, num)

        def body(mapped, key, scenario):
            def one(job):
                number, aux = job
                return hypergrad.init(jax.random.fold_in(key, number), member(scenario, aux))

            return each(one, mapped)

        mapped, rest = jobs(scenario)
        return _spread(body, setting, P(setting.axis))(mapped, key, rest)

    def estimate(key, theta, phi, scenario):
        def body(mapped, key, theta, scenario):
            def one(job):
                (number, aux), phi_m = job
                own = key if setting.shared else jax.random.fold_in(key, number)
                return hypergrad.estimate(own, theta, phi_m, member(scenario, aux))

            if setting.mesh is None and setting.chunk == 1:
                return _summed(one, mapped, theta)
            grads, phi, losses = each(one, mapped)
            if setting.mesh is not None:
                grads, losses = lax.all_gather((grads, losses), setting.axis, tiled=True)
            return _summed(lambda grad: (grad, (), ()), grads, theta)[0], phi, losses

        mapped, rest = jobs(scenario)
        spread = _spread(body, setting, (P(), P(setting.axis), P()))
        return spread((mapped, phi), key, theta, rest)

    return Hypergrad(init, estimate)


def _summed(one, xs, like):
    """`one` of each x in turn: (the sum of its gradients, and stacked what else it returns)."""

    def add(total, x):
        grad, *rest = one(x)
        grad = lax.optimization_barrier(grad)  # a product that is fused with the sum rounds once
        return jax.tree.map(jnp.add, total, grad), tuple(rest)

    total, rest = lax.scan(add, jax.tree.map(jnp.zeros_like, like), xs)
    return total, *rest


def _spread(body, setting: _Setting, out_specs):
    """`body(mapped, ...)` on every device of the mesh, its first argument divided among them."""
    if setting.mesh is None:
        return body

    def spread(mapped, *rest):
        if jax.sharding.get_abstract_mesh().manual_axes:
            raise InputError(
                "members over devices inside restarts over devices; spread one and map the other: "
                "over_restarts, or an ensemble without a mesh"
            )
        specs = (P(setting.axis), *(P() for _ in rest))
        return jax.shard_map(
            body, mesh=setting.mesh, in_specs=specs, out_specs=out_specs, check_vma=False
        )(mapped, *rest)

    return spread


def _check_spread(num: int, setting: _Setting) -> None:
    if setting.mesh is None:
        return
    size = over.axis_size(setting.mesh, setting.axis)
    if num % size:
        raise InputError(
            f"{num} members of one network cannot be spread evenly over {size} devices of axis "
            f"{setting.axis!r}"
        )


def _check_stacked(aux: PyTree, num: int) -> None:
    for leaf in jax.tree.leaves(aux):
        shape = jnp.shape(leaf)
        if shape[:1] != (num,):
            raise InputError(
                f"scenario.aux must be stacked over {num} members on a leading axis; it has an "
                f"array of shape {shape}"
            )
