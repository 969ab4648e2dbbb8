"""A victim that is poisoned as it trains: the generator runs on every batch, after augmentation."""

from typing import Any

from jaxtyping import Array, Float

from jaxpoison.perturb import Budget, generated
from jaxpoison.types import Generator, Variables, Victim

__all__ = ["poisoned_online"]


def poisoned_online(
    victim: Victim, network: Generator, variables: Variables, *, eps: float | Float[Array, ""]
) -> Victim:
    """`victim`, whose training batches first go through a trained generator; it is judged clean.

    train mode: z = f(clip(x + eps g(x), 0, 1));  eval mode and features: z = f(x).

    Trained on the *clean* set, it sees poison made anew of each augmented image, with g in eval
    mode and fixed. That makes an attack look stronger than the released data set would be, which
    is poisoned once and then augmented; it exists for parity with the released CIFAR-10 evaluation
    of DeepConfuse. Its train accuracy, in eval mode, is that on clean images.

    The generator's arrays stand in the victim's `stats` ({"victim": ..., "generator": ...}), so
    that training steps take them as arguments; only `init` holds them as constants.

    Args:
      victim: the network.
      network: the generator g.
      variables: its trained variables.
      eps: L-infinity radius, pixel units.

    Returns: a Victim for every learner and recipe; all rows it trains on are poisoned.
    Raises: InputError if `eps` is no radius.
    Source: Feng et al. 2019, released code, CIFAR/test_cifar.py.
    """
    radius = Budget("linf", eps).eps

    def init(key):
        own = victim.init(key)
        fixed = {"params": variables.params, "stats": variables.stats}
        return Variables(own.params, {"victim": own.stats, "generator": fixed})

    def apply(state, image, *, train, key=None):
        fixed = state.stats["generator"]
        if train:
            image, _ = generated(network, Variables(**fixed), image, eps=radius, train=False)
        logits, stats = victim.apply(_own(state), image, train=train, key=key)
        return logits, {"victim": stats, "generator": fixed}

    def features(state, image):
        return victim.features(_own(state), image)

    return Victim(init, apply, features)


def _own(state: Any) -> Variables:
    return Variables(state.params, state.stats["victim"])
