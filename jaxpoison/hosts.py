"""The start of jax, on one host or many, and what one process does for all of them.

In a distributed run every process executes the same script. What is spread over a mesh (see
`over.spread`) is computed once; all else is computed by each process alike. Process 0 writes the
files, draws and prints, inside `first`, where the others wait for what it found. An error there is
raised on all. Of one process none of this costs anything.
"""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge  # the public API cannot ask whether a backend has started
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from jaxpoison import check
from jaxpoison.types import InputError

__all__ = [
    "any_of",
    "check_same",
    "check_started",
    "fetch",
    "first",
    "gather",
    "is_deterministic",
    "is_first",
    "leave",
    "parse_distributed",
    "put",
    "start",
]

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_HEADER = 1024  # bytes of an answer that travel at once; a longer one follows


def start(*, distributed: str | None = None, deterministic: bool = False) -> None:
    """Prepare jax; call it before the first computation, in every process alike.

    Args:
      distributed: None for one process; "auto" where jax finds the others itself (SLURM, Open MPI,
        Kubernetes, TPU pods); "HOST:PORT,NUM,ID" by hand: where process 0 listens, how many
        processes there are, and which of them this is, from 0.
      deterministic: of equal programs, equal bits on GPUs too: XLA then takes no kernel whose sums
        depend on timing, and no kernel chosen by timing, which is slower. CPUs and TPUs are so
        anyway.

    Raises: InputError if jax has started already, a setting is not understood, or the processes do
      not find each other.
    """
    if deterministic:
        _make_deterministic()
    if distributed is not None:
        _connect(*parse_distributed(distributed))


def parse_distributed(text: str) -> tuple[str | None, int | None, int | None]:
    """(address, number of processes, own number) of a setting; all None for "auto"."""
    if text == "auto":
        return None, None, None
    address, *numbers = text.split(",")
    host, _, port = address.rpartition(":")
    digits = [word.isdecimal() for word in (port, *numbers)]
    if not (host and len(numbers) == 2 and all(digits) and 0 < int(port) < 2**16):
        raise InputError(
            f"distributed = {text!r}; allowed are 'auto' and HOST:PORT,NUM,ID, as in "
            "10.0.0.1:1234,2,0"
        )
    num, own = map(int, numbers)
    if own >= num:
        raise InputError(f"distributed = {text!r}; ID must be from 0 to {num - 1}")
    return address, num, own


def check_started(*, distributed: bool, deterministic: bool) -> None:
    """An InputError if jax was started without what a run asks for."""
    if distributed and not jax.distributed.is_initialized():
        raise InputError("distributed is set, but jax was started alone; call hosts.start first")
    if deterministic and not is_deterministic():
        raise InputError(
            "deterministic = True, but jax was started without; call hosts.start first, or set "
            f"XLA_FLAGS={DETERMINISTIC}"
        )


def is_deterministic() -> bool:
    """Whether equal programs give equal bits here: not on a GPU, or XLA was told so."""
    return jax.default_backend() != "gpu" or DETERMINISTIC in os.environ.get("XLA_FLAGS", "")


def is_first() -> bool:
    """Whether this is the process that writes and prints; of one process it is."""
    return jax.process_index() == 0


def first(function: Callable[[], Any]) -> Any:
    """`function()` of process 0, on every process; the others wait for it.

    Args:
      function: called by process 0 alone; what it returns must be JSON.

    Raises: on every process what it raised: InputError and OSError in kind, others as RuntimeError.
    """
    if jax.process_count() == 1:
        return function()
    value: Any = None
    raised: Exception | None = None
    if is_first():
        try:
            value = function()
        except Exception as error:  # for the others; it is raised again below
            raised = error
    kind = {True: "input", False: "other"}[isinstance(raised, InputError)]
    kind = "system" if isinstance(raised, OSError) else kind
    answer = {"value": value} if raised is None else {"kind": kind, "why": check.one_line(raised)}
    answer = _told(answer)
    if raised is not None:
        raise raised
    if "value" in answer:
        return answer["value"]
    error = {"input": InputError, "system": OSError}.get(answer["kind"], RuntimeError)
    raise error(answer["why"])


def any_of(number: int) -> int:
    """The largest `number` of all processes: 0 if none has one."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def check_same(what: str, value: Any) -> None:
    """Every process has the same `value` (JSON), or all stop with an InputError."""
    if jax.process_count() == 1:
        return
    text = json.dumps(value, sort_keys=True).encode()
    own = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    every = multihost_utils.process_allgather(own)
    if differing := np.flatnonzero((every != every[0]).any(axis=1)).tolist():
        raise InputError(f"process {differing[0]} has other {what} than process 0")


def fetch(values: Any) -> Any:
    """A pytree of arrays as numpy arrays, whole on every process, wherever their parts are."""
    leaves, tree = jax.tree.flatten(values)
    apart = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not _is_whole(x)]
    if apart:
        everywhere = NamedSharding(leaves[apart[0]].sharding.mesh, PartitionSpec())
        whole = jax.jit(_as_they_are, out_shardings=everywhere)([leaves[i] for i in apart])
        for i, x in zip(apart, whole, strict=True):
            leaves[i] = x
    return jax.tree.unflatten(tree, jax.device_get(leaves))


def gather(values: Any) -> Any:
    """A pytree of arrays on this process's own device, the same on all.

    Parts of spread arrays are brought together; of others the first process's count, lest unequal
    machines go on from unequal last bits.
    """
    if jax.process_count() == 1:
        return jax.tree.map(
            lambda x: x if len(x.sharding.device_set) == 1 else jax.device_put(fetch(x)), values
        )
    leaves, tree = jax.tree.flatten(fetch(values))
    text = b"".join(x.tobytes() for x in leaves)
    text = multihost_utils.broadcast_one_to_all(np.frombuffer(text, np.uint8))
    ends = np.cumsum([x.nbytes for x in leaves])
    parts = [np.asarray(text)[end - x.nbytes : end] for x, end in zip(leaves, ends, strict=True)]
    there = [part.view(x.dtype).reshape(x.shape) for x, part in zip(leaves, parts, strict=True)]
    return jax.device_put(jax.tree.unflatten(tree, there))


def put(x: Any, sharding: Any) -> jax.Array:
    """An array that every process has, placed by a sharding that may span other processes."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        raw = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(raw, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


def leave() -> None:
    """Part from the other processes, who do the same; before an end that runs no exit handlers."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def _is_whole(x: jax.Array) -> bool:
    return x.is_fully_addressable or x.is_fully_replicated


def _as_they_are(values: list[jax.Array]) -> list[jax.Array]:
    return values


def _make_deterministic() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if DETERMINISTIC in flags:
        return
    if not xla_bridge.backends_are_initialized():
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    elif not is_deterministic():
        raise InputError(
            "deterministic = True comes too late: jax has started on a GPU already; call "
            f"hosts.start before the first computation, or set XLA_FLAGS={DETERMINISTIC}"
        )


def _connect(address: str | None, num: int | None, own: int | None) -> None:
    # The agreement of `loops` on signals takes the place of jax's, which would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # Short: a process that fails alone waits so long for the others, who wait for it meanwhile.
        jax.distributed.initialize(address, num, own, shutdown_timeout_seconds=20)
    except (RuntimeError, ValueError) as error:
        hint = ""
        if address is None:
            hint = "; 'auto' needs SLURM, Open MPI, Kubernetes or a TPU pod, else HOST:PORT,NUM,ID"
        raise InputError(f"distributed start failed: {check.one_line(error)}{hint}") from error


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    """What process 0 has to say, on every process."""
    text = json.dumps(answer, allow_nan=False).encode() if is_first() else b""
    head = np.zeros(_HEADER + 8, np.uint8)
    head[:8] = np.frombuffer(np.int64(len(text)).tobytes(), np.uint8)
    head[8 : 8 + min(len(text), _HEADER)] = np.frombuffer(text[:_HEADER], np.uint8)
    head = np.asarray(multihost_utils.broadcast_one_to_all(head))
    size = int(np.frombuffer(head[:8].tobytes(), np.int64)[0])
    if size > _HEADER:
        body = np.zeros(1 << (size - 1).bit_length(), np.uint8)  # few lengths, few programs
        body[: len(text)] = np.frombuffer(text, np.uint8)
        body = np.asarray(multihost_utils.broadcast_one_to_all(body))
        return json.loads(body[:size].tobytes())
    return json.loads(head[8 : 8 + size].tobytes())
