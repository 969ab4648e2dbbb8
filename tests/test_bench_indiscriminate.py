"""The benchmark of added points: its baselines compute our numbers, its record fills its tables."""

import jax
import numpy as np
import pytest

from benchmarks import bench_indiscriminate, problems, tables
from benchmarks import indiscriminate_problems as settings
from jaxpoison.types import InputError


@pytest.fixture(scope="module")
def torch_side():
    pytest.importorskip("torch", reason="the baselines need torch: pip install jaxpoison[bench]")
    from benchmarks.torch_baselines import indiscriminate, steps

    return indiscriminate, (steps.PUBLISHED, steps.TUNED)


@pytest.mark.parametrize(
    "problem",
    [
        settings.head(7, 5),
        settings.mlp((4, 4, 1), 5, (3,)),
        problems.small_cnn("max", (8, 8, 1), 4, (2, 3)),
    ],
    ids=lambda problem: problem.name,
)
def test_the_canceling_step_is_that_of_torch(problem, torch_side, quick_compile):
    indiscriminate, forms = torch_side
    attack, scenario = settings.attack(problem), settings.scenario(problem)
    state = jax.jit(attack.init)(jax.random.key(0), scenario)
    baselines = [indiscriminate.gradient_canceling(problem, scenario, how) for how in forms]
    step = jax.jit(attack.step)
    for _ in range(3):
        state, info = step(jax.random.key(0), state, scenario)
        for baseline in baselines:
            assert float(baseline.step()) == pytest.approx(float(info.outer_loss), rel=1e-4)
    moved = np.abs(state.theta.value - scenario.train.image).max()
    assert moved > 2 * settings.RATE
    for baseline in baselines:
        value = baseline.value().permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(value, state.theta.value, atol=1e-2 * settings.RATE)


def test_a_matching_step_is_that_of_torch(torch_side, quick_compile):
    indiscriminate, forms = torch_side
    problem = problems.small_cnn("avg", (4, 4, 1), 4, (2,))
    attack, scenario = settings.matching(settings.Inversion(problem, 1))
    key, step = jax.random.key(0), jax.jit(attack.step)
    state, _ = step(key, jax.jit(attack.init)(key, scenario), scenario)
    wanted = np.asarray(state.feature.theta.value).reshape(4, -1)
    baselines = [indiscriminate.feature_matching(problem, scenario, wanted, how) for how in forms]
    for _ in range(3):
        state, info = step(key, state, scenario)
        for baseline in baselines:
            assert float(baseline.step()) == pytest.approx(float(info.outer_loss), rel=1e-4)
    assert np.abs(state.image - scenario.train.image).max() > 2 * settings.RATE
    for baseline in baselines:
        value = baseline.value().permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(value, state.image, atol=1e-2 * settings.RATE)


def test_noise_for_a_head_is_that_of_torch(torch_side, quick_compile):
    from benchmarks.torch_baselines import steps

    problem = problems.small_cnn("avg", (4, 4, 1), 4, (2,))
    attack, scenario = settings.frozen_noise(problem)
    state = jax.jit(attack.init)(jax.random.key(0), scenario)
    start = settings.with_head(state)
    baselines = [
        steps.error_minimizing(problem, start, scenario, how, frozen=True) for how in torch_side[1]
    ]
    step = jax.jit(attack.step)
    for _ in range(3):
        state, info = step(jax.random.key(0), state, scenario)
        for baseline in baselines:
            loss, error = baseline.step().tolist()
            assert loss == pytest.approx(float(info.outer_loss), rel=1e-4)
            assert error == pytest.approx(float(info.error))
    for baseline in baselines:
        delta = baseline.delta().permute(0, 2, 3, 1).numpy()
        assert np.abs(delta).max() > problems.STEP_SIZE
        np.testing.assert_allclose(delta, state.theta, atol=1e-4 * problems.STEP_SIZE + 1e-7)


@pytest.mark.parametrize("method", ["Hessian products", "cg", "normal_cg"])
def test_a_solve_is_that_of_torch(method, torch_side, quick_compile):
    indiscriminate, forms = torch_side
    damping = 0.0 if method == "Hessian products" else 0.1
    work = settings.Solving(settings.mlp((3, 3, 1), 40, ()), method, 4, damping)
    scenario = settings.scenario(work.problem)
    found = float(jax.jit(settings.solve(work))(scenario))
    for how in forms:
        run = indiscriminate.solving(work.problem, scenario, work, how)
        assert float(run()) == pytest.approx(found, rel=1e-3)


def test_the_record_and_its_tables(quick_compile, monkeypatch):
    monkeypatch.setattr(bench_indiscriminate.bench_step, "has_torch", lambda: False)
    found = [bench_indiscriminate.measure(1, smoke=True, part=p) for p in ("canceling", "sweep")]
    rows = [row for content in found for row in content["rows"]]
    assert [row["work"] for row in rows] == 4 * ["canceling step"]
    content = found[0] | {"rows": rows}
    content["versions"] |= {"torch": None}
    text = "\n".join(tables.markdown(content))
    assert "| head on 5 features, 6, float32 | canceling step | - |" in text
    assert "| 8 | 5 | float32 |" in text
    each = [row["cost"]["jaxpoison"]["gflop"] for row in rows[2:]]
    assert each[1] == pytest.approx(2 * each[0])  # linear in the points


def test_a_part_that_is_not_there():
    with pytest.raises(InputError, match="part = 'crafting'"):
        bench_indiscriminate.measure(1, part="crafting")
