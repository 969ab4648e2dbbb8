"""The benchmarks run, their baselines compute the same numbers, their pages hold the records."""

import contextlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    accelerator,
    bench_conv,
    bench_defenses,
    bench_mapping,
    bench_step,
    bench_unroll,
    flops,
    harness,
    parts,
    problems,
    tables,
)
from jaxpoison.models.conv import conv_general_dilated
from jaxpoison.types import InputError


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


@pytest.mark.parametrize("network", ["max", "avg", pytest.param("resnet", marks=pytest.mark.slow)])
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


def test_bench_mapping_measures_seeds_arms_and_devices(quick_compile):
    content = bench_mapping.measure(1, smoke=True, only="mlp")
    seeds, arms = content["rows"]
    assert set(seeds["ratio"]) == {"chunks of 2", "vmap"} and seeds["against"] == "map"
    assert set(arms["ratio"]) == {"one program, map", "one program, vmap"}
    (spread,) = bench_mapping.devices(smoke=True, only="mlp")
    assert {n: c["members"] for n, c in spread["per_device"].items()} == {"1": 4, "4": 1}
    assert all(c["messages"] == 0 for c in spread["per_device"].values())


def test_bench_defenses_compares_every_form_with_the_plain_step(quick_compile, monkeypatch):
    kept = {f: bench_defenses.FORMS[f] for f in ("plain", "mixup")}
    monkeypatch.setattr(bench_defenses, "FORMS", kept)
    content = bench_defenses.measure(1, smoke=True, only="small")
    (row,) = content["rows"]
    assert row["against"] == "plain" and set(row["ratio"]) == set(row["times"]) - {"plain"}
    assert any("| mixup |" in line for line in tables.markdown(content))
    with pytest.raises(InputError, match="no problem's name contains 'vgg'"):
        bench_defenses.measure(1, only="vgg")


def test_bench_unroll_shows_what_remat_saves_and_costs(quick_compile):
    (row,) = bench_unroll.measure(smoke=True)["rows"]
    assert row["steps"] == 2
    assert row["cost"]["remat"]["gflop"] > row["cost"]["no remat"]["gflop"] > 0
    assert row["cost"]["remat"]["temp_mib"] is not None


def test_bench_conv_compares_its_forms(quick_compile):
    weights, second, pool = bench_conv.measure(1, smoke=True)["rows"]
    assert set(weights["ratio"]) >= set(bench_conv.FORMS) - {"library"}
    assert set(second["ratio"]) == set(bench_conv.SECOND_FORMS) - {"library"}
    assert set(pool["ratio"]) >= set(bench_conv.POOL_FORMS) - {"library"}


def test_operations_are_counted_by_hand():
    def f(x, w):
        def step(x, _):
            y = conv_general_dilated(x, w, (1, 1), "SAME")
            return jax.lax.cond(True, lambda: y, lambda: y @ jnp.ones((3, 3))), None

        return jax.lax.scan(jax.checkpoint(step), x, None, length=5)[0]

    x, w = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 3))
    assert flops.gflop(f, x, w) == 5 * (2 * 2 * 16 * 3 * 27 + 2 * 2 * 16 * 3 * 3) / 1e9
    strided = jax.grad(lambda x: conv_general_dilated(x, w, (2, 2), "SAME").sum())
    value = 2 * 2 * 16 * 3 * 27
    assert flops.gflop(strided, jnp.ones((2, 8, 8, 3))) == (value + value) / 1e9  # 4x4 out
    # 2x2 out: fewer than the kernel has, so the gradient takes the kernel for the image.
    assert flops.gflop(strided, x) == (value / 4 + 2 * 2 * 16 * 3 * (4 * 3)) / 1e9


@pytest.mark.parametrize("name", ["epoch_resnet18", "parity_bf16"])
def test_a_part_writes_its_record(name, tmp_path, quick_compile, monkeypatch):
    monkeypatch.setattr(bench_step, "ON_ACCELERATOR", bench_step.ON_ACCELERATOR[-1:])
    options = parts.Options(smoke=True, repeats=1)
    content = accelerator.run_part(name, tmp_path, options)
    assert json.loads((tmp_path / f"accelerator_{name}.json").read_text()) == content
    result = content["result"]
    assert result.get("data", "noise") == "noise"
    if name == "epoch_resnet18":
        epoch = result["precisions"]["bfloat16"]
        assert epoch["mfu"] >= 0 and epoch["images"] == 40 and epoch["seconds"]["median"] > 0
    else:
        exact, narrow = result["rows"][2:]
        assert exact["mode"] == "TF32" and exact["gradient_error"] < 1e-5  # a CPU has no TF32
        assert narrow["updates"] == 2 and 1e-4 < narrow["gradient_error"] < 0.1
        assert narrow["matching"]["cosine"] > 0.99 and narrow["image"]["strong_signs"] > 0.9


def test_parts_that_are_done_are_skipped_and_unknown_ones_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "command", contextlib.nullcontext)
    (tmp_path / "accelerator_bench_step.json").write_text("{}")
    accelerator.main(["bench_step", "--out", str(tmp_path)])
    assert "bench_step: done" in capsys.readouterr().out
    accelerator.main(["--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(accelerator.PARTS)
    with pytest.raises(InputError, match="no part 'bench_stepp'; did you mean 'bench_step'"):
        accelerator.main(["bench_stepp"])
    with pytest.raises(InputError, match="needs --data-dir"):
        parts.experiment("cifar10_lsp")(parts.Options())
    lacking = accelerator.Part(None, 1, "", {"no_such_module": "no-such-wheel"})
    monkeypatch.setitem(accelerator.PARTS, "lacking", lacking)
    with pytest.raises(InputError, match="lacking needs no_such_module: carry the wheel of no-su"):
        accelerator.run_part("lacking", tmp_path, parts.Options())


def test_a_part_past_its_limit_is_stopped_and_not_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(harness, "command", contextlib.nullcontext)
    command = ["parity_bf16", "--smoke", "--minutes", "0.001", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="not done: parity_bf16"):
        accelerator.main(command)
    assert "stopped after 0.001 minutes" in capsys.readouterr().out


def test_nothing_is_imported_that_a_plain_jax_machine_lacks():
    code = """if True:
        import sys

        class Absent:  # no None in sys.modules: scipy.stats looks there for torch
            def find_spec(self, name, path=None, target=None):
                if name in ("tyro", "dm_pix", "tensorflow_datasets", "array_record", "torch"):
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, Absent())
        import benchmarks.accelerator, experiments.fashion_mnist_tap
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_holds_the_tables_of_the_committed_records_and_nothing_else():
    text = tables.PAGE.read_text()
    assert tables.filled(text, harness.RESULTS) == text, "run python -m benchmarks.tables"
    marks = {name for name in tables.TABLES if f"<!-- {name} -->" in text}
    assert marks == set(tables.TABLES)
    for path in harness.RESULTS.glob("*.json"):
        record = json.loads(path.read_text())
        assert not record["smoke"] and record["benchmark"] == path.stem
        assert {"date", "versions", "device", "environment", "settings"} <= set(record)


def test_a_smoke_run_does_not_replace_a_record(capsys):
    with pytest.raises(SystemExit, match="--smoke measures nothing"):
        bench_unroll.main(["--smoke"])


@pytest.mark.parametrize("main", [bench_unroll.main, bench_conv.main, accelerator.main])
def test_an_out_that_cannot_be_made_is_refused_before_anything_runs(main, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("x")

    def never(*args, **kwargs):
        raise AssertionError("it began")

    for module, name in ((bench_unroll, "measure"), (bench_conv, "measure")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(accelerator, "_run_apart", never)
    with pytest.raises(SystemExit, match="error: cannot write to --out .*thesis.txt is no folder"):
        main(["--smoke", "--out", str(tmp_path / "thesis.txt" / "deep" / "er")])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]


def test_commands_take_only_options_that_do_something(tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    page.write_text("<!-- step -->\nold\n<!-- end -->")
    monkeypatch.setattr(tables, "PAGE", page)
    for main, words in (
        (tables.main, ["--help"]),
        (tables.main, ["--nosuch"]),
        (bench_unroll.main, ["--repeats", "3"]),
    ):
        with pytest.raises(SystemExit):
            main(words)
    assert "unrecognized arguments: --repeats 3" in capsys.readouterr().err
    assert "old" in page.read_text()
