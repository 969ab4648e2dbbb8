"""The crafting benchmark: its baselines compute our numbers, its record fills its tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, bench_matching, matching_problems, parts, problems, tables
from jaxpoison.data import augment
from jaxpoison.types import InputError


@pytest.fixture(scope="module")
def matching():
    pytest.importorskip("torch", reason="the baselines need torch: pip install jaxpoison[bench]")
    from benchmarks.torch_baselines import matching

    return matching


def test_the_crafting_step_is_that_of_torch(matching, quick_compile):
    from benchmarks.torch_baselines import steps

    problem = problems.small_cnn("max", (8, 8, 1), 4, (2, 3))
    attack = matching_problems.attack(problem, shifts=False)
    scenario = matching_problems.scenario(problem)
    state = jax.jit(attack.init)(jax.random.key(0), scenario)
    baselines = [
        matching.gradient_matching(problem, scenario, state.theta, how, shifts=False)
        for how in (steps.PUBLISHED, steps.TUNED)
    ]
    step = jax.jit(attack.step)
    for _ in range(3):
        state, info = step(jax.random.key(0), state, scenario)
        for baseline in baselines:
            assert float(baseline.step()) == pytest.approx(float(info.outer_loss), rel=1e-4)
    for baseline in baselines:
        delta = baseline.delta().permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(delta, state.theta, atol=1e-6)


def test_the_shifts_of_torch_are_ours(matching):
    import torch

    random = np.random.RandomState(0)
    image, u = random.rand(5, 6, 6, 2).astype("f"), random.rand(3, 5).astype("f")
    wanted = augment.shift_flip_at(jnp.asarray(image), *map(jnp.asarray, u), fill=0.5)
    found = matching.shift_flip(torch.tensor(image).permute(0, 3, 1, 2), *torch.tensor(u))
    np.testing.assert_allclose(found.permute(0, 2, 3, 1), wanted, atol=1e-5)


def test_the_record_and_its_tables(quick_compile, monkeypatch):
    monkeypatch.setattr(bench_matching.bench_step, "has_torch", lambda: False)
    content = bench_matching.measure(1, smoke=True, only="small")
    works = [row["work"] for row in content["rows"]]
    assert works == ["crafting step", "full brew", "restarts", "ensemble"]
    restarts = content["rows"][2]["cost"]
    assert restarts["2"]["gflop"] == pytest.approx(2 * restarts["1"]["gflop"], rel=1e-3)
    content["devices"] = bench_matching.devices(smoke=True, only="small")
    (entry,) = content["devices"]
    work = {n: cost["gflop"] for n, cost in entry["per_device"].items()}
    assert work["1"] == pytest.approx(4 * work["4"], rel=1e-3) == pytest.approx(2 * work["2"])
    assert all(cost["messages"] == 0 for cost in entry["per_device"].values())
    content["versions"] |= {"torch": None}
    text = "\n".join(tables.markdown(content))
    assert "full brew, 2 steps, 2 restarts" in text and "| 4 | 1 |" in text


def test_a_problem_that_is_not_there():
    with pytest.raises(InputError, match="no problem's name contains 'vgg'"):
        bench_matching.measure(1, only="vgg")


def test_the_benchmark_part_asks_for_its_setups_before_it_runs(tmp_path):
    options = parts.Options(data_dir=tmp_path)
    with pytest.raises(InputError, match="needs cifar10_from_scratch.npz in --data-dir"):
        accelerator.PARTS["cifar10_poisoning_benchmark"].run(options)
