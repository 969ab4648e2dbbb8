"""The benchmarks run, their baselines compute the same numbers, their pages hold the records."""

import json

import jax
import numpy as np
import pytest

from benchmarks import bench_step, harness, problems
from jaxpoison.types import InputError


@pytest.fixture
def quick_compile():
    """Compilation without optimization: here wiring is tested, not speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_competitors_take_turns_and_each_is_timed_in_every_round():
    calls = []
    times = harness.alternate(
        {name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, warmup=1
    )
    assert calls == list("abababab")
    for timing in times.values():
        assert len(timing["wall_ms"]["values"]) == len(timing["cpu_ms"]["values"]) == 3


def test_a_ratio_is_taken_within_rounds():
    def timing(values):
        return {"wall_ms": harness.spread(values)}

    found = harness.ratio(timing([1.0, 20.0, 3.0]), timing([2.0, 40.0, 12.0]))
    assert found["median"] == 0.5 and found["values"] == [0.5, 0.5, 0.25]
    assert harness.spread([])["median"] is None and harness.spread([3.0])["high"] == 3.0


def test_a_program_tells_its_costs_and_takes_donated_state():
    x = np.ones((64, 64), np.float32)
    program = harness.compiled(lambda x: (x @ x + 1, x.sum()), x, donate=(0,))
    assert program.cost["gflop"] == pytest.approx(2 * 64**3 / 1e9, rel=0.1)
    assert program.cost["compile_s"] > 0 and program.cost["temp_mib"] is not None
    assert program.cost["argument_mib"] == pytest.approx(64 * 64 * 4 / 2**20, abs=0.01)


def tiny_cnn(pool):
    return problems.small_cnn(pool, (8, 8, 1), 4, (2, 3))


@pytest.fixture(scope="module")
def steps():
    pytest.importorskip("torch", reason="the baselines need torch: pip install jaxpoison[bench]")
    from benchmarks.torch_baselines import steps

    return steps


@pytest.mark.parametrize("network", ["max", "avg", "resnet"])
def test_the_training_step_is_that_of_torch(network, steps, quick_compile):
    problem = problems.resnet18((4, 4, 3), 4, 2) if network == "resnet" else tiny_cnn(network)
    learner, batch = problems.training(problem)
    phi = jax.jit(learner.init)(jax.random.key(0))
    baselines = [
        steps.training(problem, phi.variables, batch, how) for how in (steps.PUBLISHED, steps.TUNED)
    ]
    step = jax.jit(learner.step)
    for _ in range(2):
        phi, info = step(jax.random.key(0), phi, batch)
        for baseline in baselines:
            assert float(baseline.step()) == pytest.approx(float(info.outer_loss), rel=1e-4)
    for baseline in baselines:
        same_parameters(baseline.model, phi.params)


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_the_em_step_is_that_of_torch(pool, steps, quick_compile):
    problem = tiny_cnn(pool)
    attack, scenario = problems.error_minimizing(problem)
    state = jax.jit(attack.init)(jax.random.key(0), scenario)
    start = state.phi.variables
    baselines = [
        steps.error_minimizing(problem, start, scenario, how)
        for how in (steps.PUBLISHED, steps.TUNED)
    ]
    step = jax.jit(attack.step)
    for _ in range(2):
        state, info = step(jax.random.key(0), state, scenario)
        for baseline in baselines:
            loss, error = baseline.step().tolist()
            assert loss == pytest.approx(float(info.outer_loss), rel=1e-4)
            assert error == pytest.approx(float(info.error)) and error > 0
    for baseline in baselines:
        same_parameters(baseline.model, state.phi.params)
        delta = baseline.delta().permute(0, 2, 3, 1).numpy()
        assert np.abs(delta).max() > problems.STEP_SIZE / 2
        np.testing.assert_allclose(delta, state.theta, atol=1e-4 * problems.STEP_SIZE + 1e-7)


def same_parameters(model, params):
    from benchmarks.torch_baselines import networks

    wanted = networks.flat(params)
    found = networks.parameters(model)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_bench_step_leaves_its_record(tmp_path, quick_compile, monkeypatch):
    monkeypatch.setattr(bench_step, "has_torch", lambda: False)
    content = bench_step.measure(2, smoke=True, only="avg")
    harness.write(tmp_path, "step", content)
    assert json.loads((tmp_path / "step.json").read_text()) == content
    assert content["smoke"] and {"load_average", "cores"} <= set(content["environment"])
    assert [r["work"] for r in content["rows"]] == ["Training step", "EM step"]
    for row in content["rows"]:
        assert row["ratio"] == {} and len(row["times"]["jaxpoison"]["wall_ms"]["values"]) == 2
        assert row["cost"]["jaxpoison"]["compile_s"] > 0 and row["first_loss"]["jaxpoison"] > 0


def test_bad_input_is_one_line():
    with pytest.raises(InputError, match="repeats = 0"):
        harness.alternate({}, repeats=0)
    with pytest.raises(InputError, match="no problem's name contains 'vgg'"):
        bench_step.measure(1, only="vgg")
