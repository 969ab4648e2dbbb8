"""Where the networks of a targeted run start: fresh, or from pretrained ones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxpoison.report.preparation import Trainee
from jaxpoison.report.surrogates import member
from jaxpoison.report.work import Work
from jaxpoison.types import InputError, Key, Split, Training

__all__ = ["check_starts", "warm"]


def check_starts(
    victims: Mapping[str, Trainee],
    surrogates: Sequence[Trainee],
    training: Callable[[Trainee], Training],
    split: Split,
    *,
    fresh_surrogates: bool,
) -> None:
    """Every network's first moves without computing.

    Raises: InputError for pretrained arrays of another network; for victims that are fine-tuned
      where every setup has surrogates of its own, as they start from one network.
    """
    for one in [*victims.values(), *surrogates]:
        jax.eval_shape(training(one).init, jax.random.key(0), one.data(split))
    if fresh_surrogates and "fine_tuning" in [one.mode for one in victims.values()]:
        raise InputError(
            "fresh_surrogates is set; victims that are fine-tuned start from one clean network, "
            "the same for all setups"
        )


def warm(
    work: Work,
    victims: Mapping[str, Trainee],
    surrogates: Sequence[Trainee],
    aux: Any,
    training: Callable[[Trainee], Training],
    key: Key,
    split: Split,
) -> dict[str, Trainee]:
    """The victims, those that are fine-tuned with the network that they fine-tune as their start.

    That is the pretrained network after fine-tuning on clean data, its new last layer included: in
    the white box (a surrogate has the same network and pretrained arrays) the first such surrogate
    itself, else a network of the victim's own, below `warm/`.

    Args:
      work: where.
      victims: by name.
      surrogates: members.
      aux: the trained surrogates, as `train_surrogates` returned them.
      training: of the network before: with a new last layer.
      key: of all.
      split: clean training set, and what they are judged on while they learn.
    """
    found = dict(victims)
    for number, (name, one) in enumerate(victims.items()):
        how = one.transfer
        if how is None or one.mode != "fine_tuning":
            continue
        own = [k for k, s in enumerate(surrogates) if (s.victim, s.transfer) == (one.victim, how)]
        if own:
            start = member(surrogates, aux, own[0])
        else:
            state, _, _ = work.run(
                "warm",
                name or "victim",
                training(one),
                jax.random.fold_in(key, number),
                one.data(split),
                one.recipe.epochs,
            )
            start = state.variables
        found[name] = one._replace(transfer=dataclasses.replace(how, start=start))
    return found
