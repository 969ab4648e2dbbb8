"""Two-dimensional autoregressive processes, their filters, and the search for a process per class.

s_ij = sum over (a, b) != (2, 2) of  b_ab s_(i-2+a, j-2+b),  a, b = 0, 1, 2: no innovation noise

What they are for: `attacks.autoregressive` (Sandoval-Segura et al. 2022).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxpoison import check
from jaxpoison.types import InputError, Key

__all__ = ["ar_coefficients", "ar_responses", "ar_signals", "autoregress", "matching_filters"]

SIZE, CROP = 32, 4  # of the signals that the search judges, as published: 36 rows, 4 dropped
TRIALS = 3  # signals of one candidate
POOL = 4096  # channel kernels that are drawn at a time
SHARE = 0.125  # of them, how many make up candidates at most; about 0.23 are stable


def ar_signals(
    key: Key,
    coefficients: Float[Array, "n c 3 3"],
    rows: Int[Array, " n"],
    *,
    height: int,
    width: int,
    crop: int = 4,
) -> Float[Array, "n h w c"]:
    """One signal of each process, from a start of its own, before any scaling.

    The first two rows and columns of [H + crop, W + crop] are N(0, 1), the rest follows row by row;
    then the first `crop` rows and columns are dropped.

    Args:
      key: with `rows` the source of the starts: fold_in(key, row).
      coefficients: b of each signal and channel; entry [2, 2] is not read.
      rows: a number per signal.
      height: H.
      width: W.
      crop: at least 2.

    Returns: [N, H, W, C].
    Raises: InputError for a smaller crop.
    Source: Sandoval-Segura et al. 2022 and released code (there the start fills the whole array, of
      which only these entries are read).
    """
    check.at_least(2, crop=crop)
    num, channels = coefficients.shape[:2]
    tall, wide = height + crop, width + crop

    def draw(row):
        own = jax.random.fold_in(key, row)
        return jax.random.normal(own, (2 * wide + 2 * (tall - 2), channels), coefficients.dtype)

    start = jax.vmap(draw, out_axes=1)(rows).reshape(-1, num * channels)
    top = start[: 2 * wide].reshape(2, wide, -1)
    left = start[2 * wide :].reshape(tall - 2, 2, -1)
    kernel = jnp.moveaxis(coefficients.reshape(-1, 3, 3), 0, -1)
    signal = autoregress(kernel, top, left)[crop - 2 :, crop - 2 :]
    return jnp.moveaxis(signal.reshape(height, width, num, channels), 2, 0)


def autoregress(
    kernel: Float[Array, "3 3 m"], top: Float[Array, "2 w m"], left: Float[Array, "r 2 m"]
) -> Float[Array, "r v m"]:
    """All rows below `top` but their first two entries, which are `left`; v = w - 2.

    A scan over rows; in it what a row gets from those above is one sum of shifted rows, and what it
    gets from itself a scan along its columns, m signals wide.
    """
    width = top.shape[1] - 2

    def row(above, left):
        before, last = above
        given = sum(
            kernel[0, b][None] * before[b : b + width] + kernel[1, b][None] * last[b : b + width]
            for b in range(3)
        )

        def entry(two, given):
            new = given + kernel[2, 0] * two[0] + kernel[2, 1] * two[1]
            return (two[1], new), new

        _, new = lax.scan(entry, (left[0], left[1]), given)
        return (last, jnp.concatenate([left, new])), new

    return lax.scan(row, (top[0], top[1]), left)[1]


def matching_filters(coefficients: Float[Array, "l c 3 3"]) -> Float[Array, "l c 3 3"]:
    """The filter that a process annihilates: its coefficients, with -1 as the last entry."""
    return coefficients.at[..., 2, 2].set(-1.0)


def ar_responses(
    image: Float[Array, "n h w c"], coefficients: Float[Array, "l c 3 3"]
) -> Float[Array, "n l"]:
    """How strongly each matching filter answers: 0 where the process made the image.

    R_c = sum over places of ReLU(sum over channels and taps of F_c x), no padding

    Its argmin over c is the perfect classifier of the noise: one convolution and no training.

    Args:
      image: signals or noise [N, H, W, C].
      coefficients: b of each process.

    Returns: [N, L].
    """
    height, width = (size - 2 for size in image.shape[1:3])
    taps = [image[:, a : a + height, b : b + width] for a in range(3) for b in range(3)]
    filters = jnp.moveaxis(matching_filters(coefficients), 1, -1)  # [L, 3, 3, C]
    answer = jnp.einsum(
        "nhwk,lk->nhwl",
        jnp.concatenate(taps, axis=-1),
        filters.reshape(filters.shape[0], -1),
        precision=lax.Precision.HIGHEST,
    )
    return jnp.sum(jax.nn.relu(answer), axis=(1, 2))


class _Search(NamedTuple):
    """Rounds that were made, processes found [L, C, 3, 3], and how many."""

    rounds: Int[Array, ""]
    found: Float[Array, "l c 3 3"]
    count: Int[Array, ""]


def ar_coefficients(
    key: Key,
    *,
    num_classes: int,
    channels: int = 3,
    min_response: float | None = None,
    max_norm: float = 50.0,
    max_rounds: int = 1000,
) -> Float[Array, "l c 3 3"]:
    """Searches greedily for a process per class that the filters of the others answer to.

    A kernel of one channel is 8 draws of N(0, 1) over their sum. Those whose three signals are of
    L2 norm at most `max_norm` are stable; C of them in a row are a candidate. It is taken if its
    three signals have together a norm of at most `max_norm` and, scaled to norm 1, a response
    (`ar_responses`) of at least `min_response` to the filter of every process taken before.

    Args:
      key: the whole search follows from it.
      num_classes: L.
      channels: C.
      min_response: r; None is 10 for up to 10 classes, else 3, as published.
      max_norm: of signals of 32 x 32 pixels per candidate.
      max_rounds: of 4096 kernels each, when to give up. Of whole candidates drawn at once, as in
        the paper, 1000 rounds are worth some 25 million.

    Returns: [L, C, 3, 3] float32, entries [2, 2] zero.
    Raises: InputError for a bad value, or where fewer were found.
    Source: Sandoval-Segura et al. 2022 and released code. Differs: the norm is judged channel by
      channel first, which keeps 20 times as many candidates of the same law.
    """
    check.at_least(1, num_classes=num_classes, channels=channels, max_rounds=max_rounds)
    if min_response is None:
        min_response = 10.0 if num_classes <= 10 else 3.0
    check.number(least=0, min_response=min_response)
    check.positive(max_norm=max_norm)
    limits = jnp.float32(min_response), jnp.float32(max_norm)
    search = _search(key, limits, num_classes, channels, max_rounds)
    if (count := int(search.count)) < num_classes:
        raise InputError(
            f"only {count} of {num_classes} processes were found in {max_rounds} rounds at "
            f"min_response = {min_response:g}; lower it, or allow more rounds"
        )
    return search.found


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _search(key: Key, limits, num_classes: int, channels: int, max_rounds: int) -> _Search:
    least, largest = limits

    def unfinished(search):
        return (search.rounds < max_rounds) & (search.count < num_classes)

    def more(search):
        own = jax.random.fold_in(key, search.rounds)
        kernels, signals, valid = _candidates(own, channels, largest)

        def against(kernels):
            answers = ar_responses(signals.reshape(-1, *signals.shape[2:]), kernels)
            return jnp.min(answers.reshape(*signals.shape[:2], -1), axis=1)  # [Q, L]

        taken = jnp.arange(num_classes) < search.count
        apart = jnp.where(taken[None], against(search.found), jnp.inf)
        lowest = jnp.where(valid, jnp.min(apart, axis=1), -jnp.inf)

        def passes(carry):
            lowest, _, count = carry
            return jnp.any(lowest >= least) & (count < num_classes)

        def take(carry):
            lowest, found, count = carry
            first = jnp.argmax(lowest >= least)
            kernel = kernels[first]
            lowest = jnp.minimum(lowest, against(kernel[None])[:, 0]).at[first].set(-jnp.inf)
            return lowest, found.at[count].set(kernel), count + 1

        _, found, count = lax.while_loop(passes, take, (lowest, search.found, search.count))
        return _Search(search.rounds + 1, found, count)

    none = jnp.zeros((num_classes, channels, 3, 3))
    zero = jnp.zeros((), jnp.int32)
    return lax.while_loop(unfinished, more, _Search(zero, none, zero))


def _candidates(
    key: Key, channels: int, largest: Float[Array, ""]
) -> tuple[Float[Array, "q c 3 3"], Float[Array, "q t h w c"], Bool[Array, " q"]]:
    """(kernels, their signals at norm 1, which of them are candidates) of one pool of draws."""
    kernel_key, start_key = jax.random.split(key)
    free = jax.random.normal(kernel_key, (POOL, 8))
    kernels = jnp.pad(free / jnp.sum(free, axis=1, keepdims=True), ((0, 0), (0, 1)))
    kernels = kernels.reshape(POOL, 1, 3, 3)
    signals = ar_signals(
        start_key,
        jnp.repeat(kernels, TRIALS, axis=0),
        jnp.arange(POOL * TRIALS),
        height=SIZE,
        width=SIZE,
        crop=CROP,
    ).reshape(POOL, TRIALS, SIZE, SIZE)
    norm = jnp.sqrt(jnp.sum(signals**2, axis=(2, 3)))
    stable = jnp.all(norm <= largest, axis=1)  # not of NaN
    num = int(SHARE * POOL) // channels
    first = jnp.argsort(~stable, stable=True)[: num * channels].reshape(num, channels)
    together = jnp.sqrt(jnp.sum(norm[first] ** 2, axis=1))
    valid = jnp.all(stable[first], axis=1) & jnp.all(together <= largest, axis=1)
    chosen = jnp.moveaxis(signals[first], 1, -1)  # [Q, T, H, W, C]
    chosen = jnp.where(valid[:, None, None, None, None], chosen, 0)
    scale = jnp.where(valid[:, None], together, 1)[:, :, None, None, None]
    return kernels[first, 0], chosen / scale, valid
