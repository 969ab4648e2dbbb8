"""The benchmark of unlearnable noise runs, and its baselines make what the library makes."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bench_step, bench_unlearnable, problems, tables
from jaxpoison.attacks.autoregression import ar_responses
from jaxpoison.attacks.autoregression_table import TEN_CLASSES

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_rows_and_table():
    record = bench_unlearnable.measure(1, smoke=True)
    ar, rem, sem = record["rows"]
    assert ar["images"] == 20 and ar["looped_images"] == 2
    (name,) = ar["ratio"]
    assert "extrapolated from 2 images" in name and set(ar["times"]) == {"jaxpoison", name}
    assert (rem["passes"], sem["passes"]) == (15, 5)
    text = "\n".join(tables.markdown(record))
    assert f"{name} | 1 / " in text and "SEM step, 5 passes" in text


def test_the_loop_is_of_the_same_process():
    (first, _) = bench_unlearnable.looped("numpy")
    image = jnp.asarray(np.moveaxis(first, 0, -1)[None], jnp.float32)
    table = jnp.asarray(TEN_CLASSES, jnp.float32)
    assert ar_responses(image, table)[0, 0] < 1e-3


@pytest.mark.parametrize("inner", ["pgd", "random"])
def test_the_robust_step_is_that_of_torch(inner, monkeypatch):
    """At radii so small that the random draws hardly matter, and without augmentation.

    Noise that has to leave its random start by one large step has the sign of the gradient.
    """
    pytest.importorskip("torch", reason="the baselines need torch")
    monkeypatch.setattr(problems, "EPS", 1 / 255)
    problem = problems.small_cnn("avg", (8, 8, 1), 6, (3, 4))
    climbs = 1 if inner == "pgd" else 0
    work = bench_unlearnable.Robust(
        "step", inner, climbs=climbs, near=1e-4, rate=1.0, padding=0, noise_steps=1
    )
    (precision,) = bench_step.ON_CPU
    ours, baseline = bench_unlearnable.robust_step(problem, work, precision)
    loss = float(ours["step"]())
    for how in precision.baselines:
        assert float(baseline(how)()) == pytest.approx(loss, rel=2e-3)


def test_torch_moves_images_as_the_library_does():
    """A window of the padded image, mirrored or not: every view is one of those that there are."""
    torch = pytest.importorskip("torch", reason="the baselines need torch")
    from benchmarks.torch_baselines import robust

    image = np.random.RandomState(0).rand(5, 4, 4).astype(np.float32)
    found = robust.augmented(torch.tensor(image.repeat(40, 0)[:, None]), 1)[:, 0].numpy()
    wide = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    seen = set()
    for n, view in enumerate(found):
        windows = {
            (i, j, m): wide[n // 40, i : i + 4, j : j + 4][:, :: 1 - 2 * m]
            for i, j, m in np.ndindex(3, 3, 2)
        }
        (place,) = [k for k, w in windows.items() if np.array_equal(w, view)]
        seen.add(place)
    assert len(seen) == 18
