"""The benchmark of purifiers: competitors' numbers are ours, and it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bench_purify, bench_step, fixed_purifiers, tables
from jaxpoison import defenses
from jaxpoison.types import InputError, as_float


@pytest.mark.usefixtures("quick_compile")
def test_the_baseline_is_the_same_network_and_loss():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_baselines import dvae, steps

    (problem,) = bench_purify.problems(smoke=True)
    network, dataset = bench_purify._start(problem, bench_step.ON_CPU[0])
    variables = jax.jit(network.init)(jax.random.key(0))
    image = as_float(dataset.image)
    noise = np.random.default_rng(1).normal(size=(8, *network.latent_shape)).astype(np.float32)

    def loss(params):
        own = variables._replace(params=params)
        made, _ = network.apply(own, image, dataset.label, jnp.asarray(noise), train=True)
        return defenses.disentangling_loss(made, image, target=1.0, weight=0.01).loss

    value, gradient = jax.jit(jax.value_and_grad(loss))(variables.params)
    for how in (steps.PUBLISHED, steps.TUNED):
        theirs = dvae.Network(variables, how)
        leaves = theirs.leaves()
        label = torch.tensor(np.asarray(dataset.label)).long()
        own = dvae.loss(theirs, theirs.images(image), label, theirs.images(noise))
        own.backward()
        assert float(own.detach()) == pytest.approx(float(value), rel=1e-5)
        norm = float(torch.sqrt(sum((x.grad**2).sum() for x in leaves)))
        square = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(gradient))
        assert norm == pytest.approx(square**0.5, rel=1e-3)


@pytest.mark.parametrize("name", fixed_purifiers.NAMES)
def test_competitors_make_the_same_images(name):
    """`row` compares them before it times them."""
    pytest.importorskip("torch")
    found = fixed_purifiers.row(name, 1, smoke=True)
    assert len(found["ratio"]) == 1 and set(found["ratio"]) < set(found["times"])
    rates = bench_purify.with_rates(found)["images_per_s"]
    assert rates["jaxpoison"] == pytest.approx(
        20e3 / found["times"]["jaxpoison"]["wall_ms"]["median"], rel=1e-4
    )
    assert tables._purify({"rows": [bench_purify.with_rates(found)]})[-1].endswith("| - | - |")


def test_an_unknown_problem_and_the_table():
    with pytest.raises(InputError, match="no problem's name contains 'xy'; there are: D-VAE, tiny"):
        bench_purify.measure(1, smoke=True, only="xy")
    timing = {"wall_ms": {"median": 10.0}}
    spread = {"median": 0.5, "low": 0.4, "high": 0.6}
    row = {
        "problem": "D-VAE", "batch": 4, "precision": "float32", "work": "Fit",
        "ratio": {"torch": spread}, "cpu_ratio": {"torch": spread}, "times": {"jaxpoison": timing},
        "cost": {"jaxpoison": {"compile_s": 1.0, "temp_mib": 2.0}},
        "images_per_s": {"jaxpoison": 400.0, "torch": 200.0},
    }  # fmt: skip
    lines = tables._purify({"rows": [row]})
    assert lines[-1].startswith("| D-VAE, 4, float32 | Fit | torch | 0.50 [0.40, 0.60] |")
    assert "| 400 | 200 | 1.0 | 2 |" in lines[-1]
