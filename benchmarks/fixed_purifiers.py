"""JPEG, a median and orthogonal projection, each with its competitor; see `bench_purify`."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageFilter

from benchmarks import bench_step, harness
from jaxpoison import defenses
from jaxpoison.types import Dataset, Purifier

__all__ = ["NAMES", "Fixed", "fixed", "row"]

CLASSES = 10
LOOP, TORCH = "a loop with pillow", "torch"
NAMES = ("JPEG, quality 10", "median of 3 x 3", "orthogonal projection")


class Fixed(NamedTuple):
    """A purifier on grey levels, after its fit.

    Attributes:
      name: as the table calls it, one of `NAMES`.
      purifier: ours.
      state: of its fit.
      others: competitors by name: grey levels [N, H, W, C] -> what the purifier makes of them.
    """

    name: str
    purifier: Purifier
    state: Any
    others: dict[str, Callable[[np.ndarray], np.ndarray]]


def fixed(name: str, dataset: Dataset) -> Fixed:
    """One of `NAMES`, fitted to `dataset`."""
    jpeg, median, _ = NAMES
    if name == jpeg:
        return Fixed(name, defenses.jpeg(quality=10), (), {LOOP: _jpegs})
    if name == median:
        return Fixed(name, defenses.median(size=3), (), {LOOP: _medians})
    purifier = defenses.orthogonal_projection(num_classes=CLASSES)
    state = jax.jit(purifier.init)(jax.random.key(0), dataset)
    return Fixed(
        name, purifier, state, {TORCH: _projection(state)} if bench_step.has_torch() else {}
    )


def row(name: str, repeats: int, *, smoke: bool = False) -> dict[str, Any]:
    """One line of the record; ours and the competitor's images are compared first."""
    num = 20 if smoke else 1000
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (num, 8, 8, 3), np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    label = jnp.asarray(rng.integers(0, CLASSES, num), jnp.int32)
    dataset = Dataset(jnp.asarray(image), label)
    work = fixed(name, dataset)

    def ours():
        return work.purifier.apply(jax.random.key(0), work.state, dataset).image

    runs = {"jaxpoison": ours}
    for other, change in work.others.items():
        np.testing.assert_allclose(ours(), change(image), atol=1e-4, err_msg=other)
        runs[other] = lambda change=change: change(image)
    times = harness.alternate(runs, repeats=repeats)
    return {
        "problem": name,
        "work": "Purification",
        "batch": num,
        "precision": str(ours().dtype),
        "ratio": {n: harness.ratio(times["jaxpoison"], times[n]) for n in work.others},
        "cpu_ratio": {
            n: harness.ratio(times["jaxpoison"], times[n], "cpu_ms") for n in work.others
        },
        "times": times,
    }


def _jpegs(image: np.ndarray) -> np.ndarray:
    """The codec as published transforms call it, image by image."""
    result = []
    for one in image:
        file = io.BytesIO()
        Image.fromarray(one).save(file, format="JPEG", quality=10)
        file.seek(0)
        result.append(np.array(Image.open(file).convert("RGB")))
    return np.stack(result)


def _medians(image: np.ndarray) -> np.ndarray:
    window = ImageFilter.MedianFilter(3)
    return np.stack([np.array(Image.fromarray(one).filter(window)) for one in image])


def _projection(state: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Rows less Q Q^T x, the basis made in every call, as ours does."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (kernel,) = (
        torch.tensor(np.array(x), device=device) for x in jax.tree.leaves(state.variables.params)
    )

    def project(image):
        basis, _ = torch.linalg.qr(torch.nn.functional.normalize(kernel, dim=0))
        x = torch.from_numpy(image).to(device).float().div(255).flatten(1)
        return (x - x @ basis @ basis.T).view(image.shape).cpu().numpy()

    return project
