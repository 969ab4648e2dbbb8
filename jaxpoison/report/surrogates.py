"""The networks that targeted attacks know: trained on clean data, laid out as `Scenario.aux`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxpoison import over, tree
from jaxpoison.report.preparation import Trainee, abstract
from jaxpoison.report.work import Work
from jaxpoison.types import InputError, Key, Split, Training, Variables, Victim

__all__ = ["abstract_aux", "check_members", "member", "train_surrogates"]


def check_members(surrogates: Sequence[Trainee]) -> tuple[Victim, ...]:
    """The different networks among K members, in order; member k has network k mod n.

    Raises: InputError where they do not take turns.
    """
    networks = tuple(dict.fromkeys(one.victim for one in surrogates))
    for k, one in enumerate(surrogates):
        if one.victim != networks[k % len(networks)]:
            raise InputError(
                f"surrogate {k} has network {networks.index(one.victim)} of {len(networks)}; "
                f"networks take turns, so it must have {k % len(networks)}"
            )
    return networks


def abstract_aux(surrogates: Sequence[Trainee]) -> Any:
    """Shapes and dtypes of what `train_surrogates` returns; nothing is computed."""
    return _layout(surrogates, [abstract(one.victim) for one in surrogates], _abstract_stack)


def train_surrogates(
    work: Work,
    surrogates: Sequence[Trainee],
    training: Callable[[Trainee], Training],
    key: Key,
    split: Split,
    *,
    chunk: int | None,
) -> Any:
    """Train K networks, or load them, below `surrogates/`.

    Members of one network and recipe are trained as one process, spread over devices where they
    share them evenly. A member's key is that of its group and its number in it.

    Args:
      work: where.
      surrogates: members; see `check_members`.
      training: of one of them; the same process for equal ones.
      key: of all.
      split: clean training set, and what they are judged on while they learn.
      chunk: as in `over.over_restarts`.

    Returns: () of none; of one its Variables; of K of one network, stacked on a leading axis; of n
      networks a tuple with one entry for each, stacked over the members k with k mod n its number.
    """
    groups: list[list[int]] = []
    for k, one in enumerate(surrogates):
        alike = [group for group in groups if surrogates[group[0]] == one]
        alike[0].append(k) if alike else groups.append([k])
    members: list[Any] = [None] * len(surrogates)
    for group in groups:
        one = surrogates[group[0]]
        shared = len(group) % jax.process_count() == 0
        repeat = over.spread if shared else over.over_restarts
        process = repeat(training(one), len(group), chunk=chunk)
        own = jax.random.fold_in(key, group[0])
        part = str(group[0])
        data, epochs = one.data(split), one.recipe.epochs
        state, _, _ = work.run("surrogates", part, process, own, data, epochs)
        for i, k in enumerate(group):
            members[k] = tree.take(state.variables, i)
    return _layout(surrogates, members, _stack)


def member(surrogates: Sequence[Trainee], aux: Any, k: int) -> Variables:
    """Network k of what `train_surrogates` returned."""
    if len(surrogates) == 1:
        return aux
    num = len(check_members(surrogates))
    return tree.take(aux[k % num] if num > 1 else aux, k // num)


def _layout(surrogates: Sequence[Trainee], members: Sequence[Variables], stack: Any) -> Any:
    if len(members) < 2:
        return members[0] if members else ()
    num = len(check_members(surrogates))
    stacked = tuple(stack(members[i::num]) for i in range(num))
    return stacked if num > 1 else stacked[0]


def _stack(members: Sequence[Variables]) -> Variables:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def _abstract_stack(members: Sequence[Variables]) -> Any:
    return jax.eval_shape(_stack, members)
