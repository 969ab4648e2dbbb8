"""Frozen extractors: their features as a data set [N, 1, 1, D], and a head on them as a network."""

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxpoison import check, tree
from jaxpoison.types import Dataset, InputError, Variables, Victim, as_float
from jaxpoison.victims.store import Trained, load
from jaxpoison.victims.transfer import transfer

__all__ = ["Extractor", "extract", "extractor", "join_head", "on_features", "split_head"]


class Extractor(NamedTuple):
    """A pretrained network whose features are what a victim learns from; frozen, eval mode.

    Attributes:
      victim: the network, its last layer unread.
      variables: its arrays.
    """

    victim: Victim
    variables: Variables


def extractor(
    pretrained: Trained | str | os.PathLike[str],
    *,
    victim: Victim | None = None,
    member: int | None = None,
) -> Extractor:
    """The extractor of a saved network; of arrays of your own it is `Extractor(victim, variables)`.

    `models.from_pytorch` makes such arrays of a PyTorch state dict.

    Args:
      pretrained: what `pretrain` or `load` returned, or a folder of `save`.
      victim: the network, of a folder that holds one of your own; see `load`.
      member: which one of a folder of several; None where there is one.

    Errors: InputError as `load`, and for a member that is not there.
    """
    check.kind((Trained, str, os.PathLike), pretrained=pretrained)
    if not isinstance(pretrained, Trained):
        pretrained = load(pretrained, victim=victim)
    return Extractor(pretrained.victim, transfer("linear", pretrained, member=member).start)


def extract(extractor: Extractor, dataset: Dataset, *, batch_size: int = 500) -> Dataset:
    """phi_i = features(x_i) of every row, once; a linear head on it is `logistic_regression`.

    Args:
      extractor: network and arrays; running BatchNorm statistics.
      dataset: [N, H, W, C].
      batch_size: rows at a time; changes memory, and the last bits.

    Returns: image [N, 1, 1, D] float32, labels as they were.
    Errors: InputError for batch_size < 1, and for what is no Extractor or no Dataset.
    """
    check.kind(Extractor, extractor=extractor)
    check.kind(Victim, **{"extractor.victim": extractor.victim})
    check.kind(Variables, **{"extractor.variables": extractor.variables})
    check.kind(Dataset, dataset=dataset)
    check.at_least(1, batch_size=batch_size)
    features = _features(extractor.victim, extractor.variables, jnp.asarray(dataset.image),
                         batch_size)  # fmt: skip
    return Dataset(features[:, None, None, :], dataset.label)


def on_features(extractor: Victim, head: Victim) -> Victim:
    """Z = head(features(x)): a network on images whose parameters are the head's alone.

    Args:
      extractor: its features are read, in eval mode; its last layer is not.
      head: a network on [B, 1, 1, D] features, such as `logistic_regression((1, 1, D))`.

    Returns: a Victim; its Variables are those of `join_head`, the extractor stands in `stats` and
      never changes.
    """
    check.kind(Victim, extractor=extractor, head=head)

    def init(key):
        own, other = jax.random.split(key)
        return join_head(extractor.init(other), head.init(own))

    def look(variables, image):
        found = extractor.features(variables.stats["extractor"], image)
        return found[:, None, None, :]

    def apply(variables, image, *, train, key=None):
        own = split_head(variables)[1]
        scores, stats = head.apply(own, look(variables, image), train=train, key=key)
        return scores, variables.stats | {"stats": stats}

    def features(variables, image):
        own = split_head(variables)[1]
        return head.features(own, look(variables, image))

    return Victim(init, apply, features)


def join_head(extractor: Variables, head: Variables) -> Variables:
    """The arrays of `on_features` from those of its two parts.

    Errors: InputError for what are no Variables.
    """
    check.kind(Variables, extractor=extractor, head=head)
    return Variables(head.params, {"extractor": extractor, "stats": head.stats})


def split_head(variables: Variables) -> tuple[Variables, Variables]:
    """(extractor, head): what `join_head` joined.

    Errors: InputError for Variables of another kind.
    """
    stats = getattr(variables, "stats", None)
    if not isinstance(stats, dict) or not isinstance(stats.get("extractor"), Variables):
        raise InputError("the variables are no extractor with a head: join them by join_head")
    return stats["extractor"], Variables(variables.params, stats["stats"])


@jax.jit(static_argnums=(0, 3))
def _features(victim, variables, image, batch_size):
    batches, _ = tree.batches(image, batch_size)
    found = lax.map(lambda x: victim.features(variables, as_float(x)), batches)
    return found.reshape(-1, found.shape[-1])[: image.shape[0]]
