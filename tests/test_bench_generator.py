"""The benchmarks of generator attacks: the same numbers as PyTorch, records, time to effect."""

import json

import jax
import numpy as np
import pytest

from benchmarks import (
    accelerator,
    bench_generator,
    bench_step,
    effect,
    flops,
    game_problems,
    jobs,
    parts,
    tables,
)
from jaxpoison import attacks, models
from jaxpoison.types import Dataset, InputError, Split
from jaxpoison.victims import Recipe


@pytest.fixture(scope="module")
def baselines():
    pytest.importorskip("torch", reason="the baselines need torch: pip install jaxpoison[bench]")
    from benchmarks.torch_baselines import games, generators, networks, steps

    return games, generators, networks, steps


GENERATORS = {"mlp_generator": {"hidden": (3,)}, "mnist_autoencoder": {}, "unet": {"width": 2}}
SURROGATES = ("mlp", "lenet", "cnn5")


@pytest.mark.parametrize("name", [*GENERATORS, *SURROGATES])
def test_networks_are_those_of_torch(name, baselines, quick_compile):
    _, generators, networks, _ = baselines
    shape = (28, 28, 1) if name in ("mnist_autoencoder", "lenet") else (32, 32, 3)
    image = np.random.default_rng(0).random((6, *shape), np.float32)
    if name in GENERATORS:
        options = GENERATORS[name]
        ours, theirs = (
            models.create_generator(name, shape, **options),
            generators.generator(name, shape, **options),
        )
    else:
        ours, theirs = models.create(name, shape, 10), networks.network(name, shape, 10)
    variables = jax.jit(ours.init)(jax.random.key(0))
    wanted, _ = jax.jit(lambda v, x: ours.apply(v, x, train=True))(variables, image)
    found = networks.images(networks.load(theirs, variables).train(), image)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    assert np.abs(wanted).mean() > 0.1


@pytest.mark.parametrize("problem", game_problems.steps(smoke=True), ids=lambda p: p.method)
def test_a_step_is_that_of_torch(problem, baselines, quick_compile):
    games, generators, networks, steps = baselines
    victim, network = game_problems.networks(problem)
    phi, theta = victim.init(jax.random.key(1)), network.init(jax.random.key(2))
    victim = victim._replace(init=lambda key: phi)
    network = network._replace(init=lambda key: theta)
    attack, scenario = game_problems.attack(problem, victim, network)
    surrogate, attacker = games.networks(problem)
    networks.load(surrogate, phi)
    networks.load(attacker, theta)
    method = getattr(games, problem.method)
    running = [
        method(problem, attacker, surrogate, scenario.train, how)
        for how in (steps.PUBLISHED, steps.TUNED)
    ]
    step, state = jax.jit(attack.step), attack.init(jax.random.key(0), scenario)
    for t in range(3):  # each loss reads what the step before did to both networks
        state, info = step(jax.random.key(t), state, scenario)
        for theirs in running:
            assert float(theirs.step()) == pytest.approx(float(info.outer_loss), rel=1e-5)
    before, after = (networks.flat(v.params) for v in (theta, attack.generator(state)))
    for theirs in running:
        found = networks.parameters(theirs.model)
        for name, value in after.items():
            if name.startswith("Dense") and name.endswith("bias"):
                continue  # BatchNorm takes it away: its gradient is rounding, which Adam enlarges
            moved = np.abs(value - before[name]).max()
            assert moved > 1e-4
            np.testing.assert_allclose(found[name], value, atol=0.02 * moved, err_msg=name)


def test_bench_generator_leaves_its_record(quick_compile, monkeypatch):
    monkeypatch.setattr(bench_step, "has_torch", lambda: False)
    content = bench_generator.measure(2, smoke=True, only="gue", part="steps")
    assert json.loads(json.dumps(content)) == content
    (row,) = content["rows"]
    assert (row["work"], row["batch"], row["inner_steps"]) == ("GUE mini-batch", 8, 2)
    rate = row["steps_per_s"]["jaxpoison"]
    assert row["images_per_s"]["jaxpoison"] == pytest.approx(8 * rate, rel=1e-4)
    assert row["cost"]["jaxpoison"]["temp_mib"] is not None and row["ratio"] == {}
    assert len(tables.markdown(content)) == 5
    with pytest.raises(InputError, match="no problem's name contains 'vgg'; there are: DeepConfu"):
        bench_generator.measure(1, smoke=True, only="vgg")


def test_operations_of_an_inner_step_are_those_of_one_training_step():
    """MLP 16-128-128-10: forward, dW and dx; that of the first layer is traced, and left to XLA."""
    _, gue = game_problems.steps(smoke=True)

    def gflop(depth):
        problem = gue._replace(inner_steps=depth)
        attack, scenario = game_problems.attack(problem, *game_problems.networks(problem))
        key = jax.random.key(0)
        state = jax.eval_shape(attack.init, key, scenario)
        return flops.gflop(attack.step, key, state, scenario)

    layers = (16 * 128, 128 * 128, 128 * 10)
    assert gflop(3) - gflop(1) == pytest.approx(2 * 3 * 2 * 8 * sum(layers) / 1e9)


def test_the_papers_problems_are_well_formed():
    wanted = {"DeepConfuse, U-Net, CNN5", "GUE, U-Net, ResNet-18"}
    found = game_problems.steps(accelerator=True) + game_problems.scaling(accelerator=True)
    assert {p.name for p in found} == wanted
    assert {p.inner_steps for p in found} == {None, 0, 1, 5, 10, 20}
    for problem in found:
        attack, scenario = game_problems.attack(problem, *game_problems.networks(problem))
        assert attack.generator is not None and len(scenario.index) == problem.batch


def noise_job(limits):
    """Noise instead of an attack, on noise: victims are at chance, about a tenth."""
    attack = attacks.random_noise(eps=8 / 255)
    victim = models.logistic_regression((4, 4, 1), 10)
    judge = effect.Judge(victim, Recipe(1, 8, 0.01), Recipe(2, 8, 0.01))
    return effect.Job(attack, 8 / 255, 5, 3, {"linear": judge}, limits, 60.0)


def noise_split():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (64, 4, 4, 1), dtype=np.uint8)
    noise = Dataset(image, random.integers(0, 10, 64, dtype=np.int32))
    return Split(noise, noise)


def test_crafting_ends_at_the_last_limit_or_after_all_turns(tmp_path):
    split = noise_split()
    soon = effect.measure(noise_job((2.0, 0.9)), split, tmp_path / "soon", seeds=2)
    (check,) = soon["checks"]
    assert check["steps"] == 5 and soon["reached_s"]["0.9"] == check["craft_s"] > 0
    assert len(soon["confirmed"]["linear"]) == 2
    never = effect.measure(noise_job((0.9, -1.0)), split, tmp_path / "never", seeds=1)
    assert [c["steps"] for c in never["checks"]] == [5, 10, 15]
    seconds = [c["craft_s"] for c in never["checks"]]
    assert seconds == sorted(seconds) and never["reached_s"]["-1"] is None
    assert json.loads((tmp_path / "never/checks.json").read_text()) == never["checks"]


def test_a_stopped_job_goes_on_where_it_was(tmp_path, monkeypatch):
    split, job, crafted = noise_split(), noise_job((0.0,)), []
    whole = effect.measure(job, split, tmp_path / "whole", seeds=1)
    judge = effect._judge

    def stops(*args):
        judged = judge(*args)

        def judge_once(sets, folder):
            if folder.name == "2-linear":
                raise KeyboardInterrupt
            return judged(sets, folder)

        return judge_once

    monkeypatch.setattr(effect, "_judge", stops)
    with pytest.raises(KeyboardInterrupt):
        effect.measure(job, split, tmp_path / "parts", seeds=1)
    monkeypatch.setattr(effect, "_judge", judge)
    craft = effect._craft
    monkeypatch.setattr(effect, "_craft", lambda *a: crafted.append(a[-1]) or craft(*a))
    resumed = effect.measure(job, split, tmp_path / "parts", seeds=1)
    assert crafted == [2, 3]
    assert resumed["confirmed"] == whole["confirmed"]
    assert [c["test_accuracy"] for c in resumed["checks"]] == [
        c["test_accuracy"] for c in whole["checks"]
    ]
    crafted.clear()
    assert effect.measure(job, split, tmp_path / "parts", seeds=1) == resumed
    assert crafted == [3]


JOBS = (
    "gue_cifar10",
    "deepconfuse_mnist",
    pytest.param("deepconfuse_cifar10", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_writes_its_record(name, tmp_path, quick_compile):
    options = parts.Options(smoke=True, victims=2, runs=tmp_path / "runs")
    content = accelerator.run_part(name, tmp_path, options)
    assert json.loads((tmp_path / f"accelerator_{name}.json").read_text()) == content
    result = content["result"]
    assert len(result["checks"]) == 2 and result["checks"][-1]["craft_s"] > 0
    assert {"held_out", "best"} <= set(result["checks"][0]["info"])
    assert [len(values) for values in result["confirmed"].values()] == [2]
    lines = tables.markdown(content | {"environment": content["environment"]})
    assert sum("not reached" in line for line in lines) >= 1


def test_jobs_need_data():
    with pytest.raises(InputError, match="--data-dir is needed, with mnist-train.npz"):
        jobs.deepconfuse_mnist(parts.Options())


@pytest.mark.parametrize("part", ["generator_steps", "generator_scaling"])
def test_parts_share_the_rows(part, quick_compile, monkeypatch):
    monkeypatch.setattr(bench_generator, "row", lambda problem, *_: problem.name)
    rows = getattr(parts, part)(parts.Options(smoke=True, repeats=1))["rows"]
    assert len(rows) == {"generator_steps": 2, "generator_scaling": 3}[part]
