"""Gradients of convolutions and pools on CPU: the forms tried, against what the library has.

    python -m benchmarks.bench_conv [--repeats 12] [--smoke] [--out DIR]

Shapes are those of the early and late layers of the small CNN (batch 128) and ResNet-18 (batch 32).
`library` is the primitive of models/conv.py, which adds up long sums in groups of images; `one sum`
the same without groups, as XLA's own `lax.conv` gradient does. A second derivative, the gradient in
the images of a weight gradient, has a kernel as large as the image in XLA's form; the primitive
exchanges the two. torch, if installed, is measured in channels_last.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import harness
from jaxpoison.models import conv
from jaxpoison.models.layers import max_pool

__all__ = ["main", "measure"]

SHAPES = (  # batch, height and width, channels in, channels out, stride
    (128, 28, 1, 32, 1),
    (128, 14, 32, 64, 1),
    (128, 7, 64, 128, 1),
    (32, 32, 3, 64, 1),
    (32, 32, 64, 64, 1),
    (32, 32, 64, 128, 2),
    (32, 16, 128, 128, 1),
    (32, 8, 256, 256, 1),
    (32, 4, 512, 512, 1),
)
SECOND = ((128, 14, 32, 64, 1), (32, 32, 64, 64, 1), (32, 16, 128, 128, 1))
POOLS = ((128, 28, 28, 32), (128, 14, 14, 64), (128, 7, 7, 128))
TORCH = "torch, channels_last"


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = harness.parser(__doc__).parse_args(arguments)
    with harness.command(options):
        harness.write(options.out, "conv", measure(options.repeats, smoke=options.smoke))


def measure(repeats: int, *, smoke: bool = False) -> dict[str, Any]:
    """The record: weight gradients, second derivatives, then pools with their gradient."""
    shapes = ((4, 6, 2, 20, 1),) if smoke else SHAPES
    pools = ((4, 6, 6, 2),) if smoke else POOLS
    rows = [_weight_gradient(shape, repeats) for shape in shapes]
    rows += [_second(shape, repeats) for shape in (shapes if smoke else SECOND)]
    rows += [_pool(shape, repeats) for shape in pools]
    return harness.record("conv", {"repeats": repeats}, rows, smoke=smoke)


def _weight_gradient(shape: tuple[int, ...], repeats: int) -> dict[str, Any]:
    arrays = _arrays(shape)
    runs, cost = _compared(FORMS, arrays, shape[-1])
    if _has_torch():
        runs[TORCH] = _torch_weight_gradient(*arrays, shape[-1])
    return _row(_name("weight gradient", shape), runs, cost, repeats)


def _second(shape: tuple[int, ...], repeats: int) -> dict[str, Any]:
    runs, cost = _compared(SECOND_FORMS, _arrays(shape), shape[-1])
    return _row(_name("gradient in the images of a weight gradient", shape), runs, cost, repeats)


def _arrays(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Images, cotangent of the outputs, and a kernel (or a cotangent of it)."""
    n, size, inputs, outputs, stride = shape
    random, out = np.random.default_rng(0), -(-size // stride)
    shapes = ((n, size, size, inputs), (n, out, out, outputs), (3, 3, inputs, outputs))
    x, ct, w = (jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes)
    return x, ct, w


def _name(what: str, shape: tuple[int, ...]) -> str:
    n, size, inputs, outputs, stride = shape
    return f"{what} {n}x{size}x{size}, {inputs} -> {outputs}, stride {stride}"


def _compared(forms: dict[str, Callable[..., Any]], arrays: Any, stride: int) -> tuple[Any, Any]:
    """What to run and what it costs, once all forms agree."""
    runs, cost, wanted = {}, {}, None
    for name, form in forms.items():
        program = harness.compiled(functools.partial(form, stride=stride), *arrays)
        found = program.call(*arrays)
        wanted = found if wanted is None else wanted
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(jnp.abs(wanted).max()))
        runs[name], cost[name] = functools.partial(program.call, *arrays), program.cost
    return runs, cost


def _row(what: str, runs: dict[str, Any], cost: dict[str, Any], repeats: int) -> dict[str, Any]:
    times = harness.alternate(runs, repeats=repeats)
    others = [name for name in runs if name != "library"]
    return {
        "work": what,
        "ratio": {n: harness.ratio(times["library"], times[n]) for n in others},
        "cpu_ratio": {n: harness.ratio(times["library"], times[n], "cpu_ms") for n in others},
        "times": times,
        "cost": cost,
    }


# --- weight gradients: (x, ct, w; stride) -> like w -----------------------------------------------


def _library(x, ct, w, *, stride):
    def f(w):
        return conv.conv_general_dilated(x, w, (stride, stride), [(1, 1), (1, 1)])

    return jax.vjp(f, w)[1](ct)[0]


def _one_sum(x, ct, w, *, stride):
    def f(w):
        numbers = ("NHWC", "HWIO", "NHWC")
        window = (stride, stride)
        return lax.conv_general_dilated(x, w, window, [(1, 1)] * 2, dimension_numbers=numbers)

    return jax.vjp(f, w)[1](ct)[0]


def _shifts(x, ct, w, stride):
    """The part of x that meets each tap of the kernel, [N, Y, Y, I] nine times."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    n, rows, columns, _ = ct.shape
    for i, j in np.ndindex(*w.shape[:2]):
        end = (n, i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1, x.shape[3])
        yield lax.slice(x, (0, i, j, 0), end, (1, stride, stride, 1))


def _im2col(x, ct, w, *, stride):
    columns = jnp.concatenate(list(_shifts(x, ct, w, stride)), -1)
    columns = columns.reshape(-1, w.shape[0] * w.shape[1] * w.shape[2])
    return (columns.T @ ct.reshape(-1, ct.shape[-1])).reshape(w.shape)


def _nine_products(x, ct, w, *, stride):
    flat = ct.reshape(-1, ct.shape[-1])
    parts = [t.reshape(-1, w.shape[2]).T @ flat for t in _shifts(x, ct, w, stride)]
    return jnp.stack(parts).reshape(w.shape)


def _scanned_im2col(x, ct, w, *, stride):
    """`_im2col` in a loop over groups of an eighth of the batch."""
    groups = [a.reshape(min(8, len(a)), -1, *a.shape[1:]) for a in (x, ct)]

    def add(total, part):
        return total + _im2col(*part, w, stride=stride), None

    return lax.scan(add, jnp.zeros_like(w), tuple(groups))[0]


FORMS: dict[str, Callable[..., Any]] = {
    "library": _library,
    "one sum": _one_sum,
    "im2col, one product": _im2col,
    "nine products": _nine_products,
    "im2col in 8 groups": _scanned_im2col,
}


def _second_by(weight_gradient):
    """(x, ct, v; stride) -> d <v, weight gradient> / dx."""

    def form(x, ct, v, *, stride):
        return jax.vjp(lambda x: weight_gradient(x, ct, v, stride=stride), x)[1](v)[0]

    return form


SECOND_FORMS = {
    "library": _second_by(_library),
    "image and kernel as they stand": _second_by(_one_sum),
}


def _torch_weight_gradient(x, ct, w, stride):
    import torch

    def tensor(a, axes):
        a = torch.tensor(np.asarray(a)).permute(*axes)
        return a.contiguous(memory_format=torch.channels_last)

    image, kernel, back = (0, 3, 1, 2), (3, 2, 0, 1), torch.ops.aten.convolution_backward
    x, ct, w = tensor(x, image), tensor(ct, image), tensor(w, kernel)
    settings = (None, (stride,) * 2, (1, 1), (1, 1), False, (0, 0), 1, (False, True, False))
    return lambda: back(ct, x, w, *settings)[1].shape[0]


# --- pools, value and gradient --------------------------------------------------------------------


def _pool(shape: tuple[int, ...], repeats: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=shape).astype(np.float32))
    n, rows, columns, channels = shape
    ct = jnp.ones((n, rows // 2, columns // 2, channels), jnp.float32)
    runs, cost = {}, {}
    for name, pool in POOL_FORMS.items():

        def both(x, ct, pool=pool):
            value, back = jax.vjp(lambda x: pool(jax.nn.relu(x)), x)
            return value, back(ct)[0]

        program = harness.compiled(both, x, ct)
        runs[name], cost[name] = functools.partial(program.call, x, ct), program.cost
    if _has_torch():
        runs[TORCH] = _torch_pool(x, ct)
    return _row(f"ReLU and max-pool 2, {n}x{rows}x{columns}x{channels}", runs, cost, repeats)


def _windowed(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _nested_maxima(x):
    n, h, w, c = x.shape
    ends = [(h - 2) // 2 * 2 + 1, (w - 2) // 2 * 2 + 1]
    parts = [
        lax.slice(x, (0, i, j, 0), (n, i + ends[0], j + ends[1], c), (1, 2, 2, 1))
        for i, j in np.ndindex(2, 2)
    ]
    return functools.reduce(jnp.maximum, parts)


def _blocks(x):
    n, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


POOL_FORMS = {
    "library": functools.partial(max_pool, window=2),
    "windowed reduction": _windowed,
    "nested maxima of slices": _nested_maxima,
    "maximum over a reshape": _blocks,
}


def _torch_pool(x, ct):
    import torch
    import torch.nn.functional as F

    x = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).requires_grad_()
    ct = torch.tensor(np.asarray(ct)).permute(0, 3, 1, 2)
    return lambda: torch.autograd.grad(F.max_pool2d(F.relu(x), 2), [x], ct)[0].shape[0]


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


if __name__ == "__main__":
    main()
