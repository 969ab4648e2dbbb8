"""Released PyTorch checkpoints of DeepConfuse and GUE as our arrays, and back.

Layouts: a convolution's weight [O, I, K, K] is our kernel [K, K, I, O]; a transposed one's
[I, O, K, K] is ours flipped in space; a linear weight [O, D] is ours transposed, and where images
were flattened PyTorch's D runs over (C, H, W), ours over (H, W, C). BatchNorm's weight, bias,
running_mean and running_var are scale, bias, mean and var. PyTorch's `num_batches_tracked`, a
counter without effect on a network of fixed momentum, has no place in ours: it is passed over on
the way in, and an argument on the way out.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxpoison import check
from jaxpoison.models.published_layers import PUBLISHED
from jaxpoison.types import Generator, InputError, Variables, Victim

__all__ = ["PUBLISHED", "from_pytorch", "to_pytorch"]


def from_pytorch(
    network: Generator | Victim, state: Mapping[str, Any], *, name: str | None = None
) -> Variables:
    """The variables of a network from the `state_dict` of its released PyTorch counterpart.

    Args:
      network: ours, in the sizes of the checkpoint; any width, channels and classes do.
      state: entry name to array or CPU tensor, as `torch.load(file, map_location="cpu",
        weights_only=True)` returns. All names may start with `module.`, which PyTorch's
        DataParallel writes.
      name: a key of PUBLISHED; None for the name of a Generator.

    Returns: float32 Variables.
    Errors: InputError for an unknown name, and for entries that are missing, unknown, of another
      shape or not finite.
    """
    name, entries = _entries(network, name)
    if not isinstance(state, Mapping):
        raise InputError(f"the state is a {type(state).__name__}; a mapping of names is needed")
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    missing = [key for key in entries if key not in state]
    if missing:
        other = f"; it holds {_some(state)}" if len(missing) == len(entries) and state else ""
        raise InputError(
            f"the state lacks {len(missing)} of the {len(entries)} entries of {name}: "
            f"{_some(missing)}{other}"
        )
    unknown = [key for key in state if key not in entries and key not in _counters(entries)]
    if unknown:
        raise InputError(f"{name} has no {len(unknown)} of the state's entries: {_some(unknown)}")
    leaves = {}
    for key, entry in entries.items():
        array = _array(key, state[key])
        if array.shape != entry.theirs:
            raise InputError(f"entry {key} is {array.shape}; this {name} takes {entry.theirs}")
        leaves[entry.path] = jnp.asarray(entry.inward(array), jnp.float32)
    tree = unflatten_dict(leaves)
    return Variables(tree["params"], tree.get("stats", {}))


def to_pytorch(
    network: Generator | Victim,
    variables: Variables,
    *,
    name: str | None = None,
    num_batches_tracked: int = 0,
) -> dict[str, np.ndarray]:
    """The `state_dict` that PyTorch's counterpart of a network loads strictly.

    Args:
      network: ours.
      variables: its arrays.
      name: a key of PUBLISHED; None for the name of a Generator.
      num_batches_tracked: what every BatchNorm says of its training steps.

    Returns: entry name to array; `{k: torch.tensor(v) for k, v in state.items()}` is the state.
    Errors: InputError for an unknown name and for variables of another network.
    """
    check.at_least(0, num_batches_tracked=num_batches_tracked)
    name, entries = _entries(network, name)
    leaves = _flat(variables)
    odd = {entry.path for entry in entries.values()} ^ set(leaves)
    if odd:
        raise InputError(f"the variables are not of this {name}: see {_places(odd)}")
    state = {}
    for key, entry in entries.items():
        array = np.asarray(leaves[entry.path])
        if array.shape != entry.ours:
            where = _places([entry.path])
            raise InputError(f"{where} is {array.shape}; this {name} has {entry.ours}")
        state[key] = np.ascontiguousarray(entry.outward(array))
    return state | {key: np.array(num_batches_tracked) for key in _counters(entries)}


class _Entry(NamedTuple):
    """One array: where it is in Variables, its shape on both sides, and the two maps."""

    path: tuple[str, ...]
    ours: tuple[int, ...]
    theirs: tuple[int, ...]
    inward: Callable[[np.ndarray], np.ndarray]
    outward: Callable[[np.ndarray], np.ndarray]


def _entries(network: Generator | Victim, name: str | None) -> tuple[str, dict[str, _Entry]]:
    """The entries of the published state but its counters, by their names there."""
    known = name or (network.name if isinstance(network, Generator) else "")
    if not known:
        raise InputError(f"this network has no name; pass name=, one of {', '.join(PUBLISHED)}")
    check.one_of(PUBLISHED, name=known)
    shapes = {
        path: a.shape for path, a in _flat(jax.eval_shape(network.init, jax.random.key(0))).items()
    }
    entries = {}
    for layer in PUBLISHED[known]:
        for leaf, path in _NORM if layer.kind == "norm" else _WEIGHTS:
            path = (path[0], *layer.ours, path[1])
            if path not in shapes:
                continue
            inward, outward = _same, _same
            if path[-1] == "kernel":
                flattened = shapes.get(("params", *layer.flattened, "bias"), (1,))
                inward, outward = _maps(layer.kind, *flattened)
            theirs = outward(np.broadcast_to(np.float32(0), shapes[path])).shape
            entry = _Entry(path, shapes[path], theirs, inward, outward)
            entries[f"{layer.theirs}.{leaf}"] = entry
    odd = {entry.path for entry in entries.values()} ^ set(shapes)
    if odd:
        raise InputError(f"the network is not a published {known}: see {_places(odd)}")
    return known, entries


def _flat(variables: Variables) -> dict[tuple[str, ...], Any]:
    return flatten_dict(variables._asdict())


def _maps(kind: str, channels: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Theirs -> our kernel, and back."""
    if kind == "conv":
        return lambda w: w.transpose(2, 3, 1, 0), lambda k: k.transpose(3, 2, 0, 1)
    if kind == "transposed":
        return (
            lambda w: w.transpose(2, 3, 0, 1)[::-1, ::-1],
            lambda k: k[::-1, ::-1].transpose(2, 3, 0, 1),
        )
    return (
        lambda w: w.reshape(len(w), channels, -1).transpose(2, 1, 0).reshape(-1, len(w)),
        lambda k: k.reshape(-1, channels, k.shape[1]).transpose(2, 1, 0).reshape(k.shape[1], -1),
    )


def _same(x: np.ndarray) -> np.ndarray:
    return x


_WEIGHTS = (("weight", ("params", "kernel")), ("bias", ("params", "bias")))
_NORM = (
    ("weight", ("params", "scale")),
    ("bias", ("params", "bias")),
    ("running_mean", ("stats", "mean")),
    ("running_var", ("stats", "var")),
)


def _counters(entries: Iterable[str]) -> list[str]:
    """The counters that PyTorch keeps beside every running mean."""
    means = [key for key in entries if key.endswith(".running_mean")]
    return [key.replace("running_mean", "num_batches_tracked") for key in means]


def _array(key: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"entry {key} is no array on the CPU: {check.one_line(error)}") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"entry {key} is {array.dtype}; it must be an array of numbers")
    if not np.isfinite(array).all():
        raise InputError(f"entry {key} holds values that are not finite")
    return array


def _some(keys: Iterable[str]) -> str:
    names = sorted(map(str, keys))
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _places(paths: Iterable[tuple[str, ...]]) -> str:
    return _some(["/".join(path) for path in paths])
