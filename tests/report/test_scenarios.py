"""Targeted runs from pretrained networks: linear transfer, fine-tuning, white box and black box."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import checkpoint
from jaxpoison.attacks.crafting import Crafting
from jaxpoison.report import Trainee, arm, control, mean_over_victims
from jaxpoison.types import InputError, TrainState
from jaxpoison.victims import recipes, transfer
from tests.report import small_job, small_targeted

FOLDER = "small/default"
STILL = recipes.small(epochs=1, batch_size=16, learning_rate=1e-12)
MLP = jp.models.mlp(small_job.SHAPE, small_job.CLASSES, hidden=(6,), batch_norm=False)
pytestmark = pytest.mark.usefixtures("quick_compile")


@functools.cache
def pretrained(seed, hidden=6):
    """On seven classes; the data have three."""
    return jp.models.mlp(small_job.SHAPE, 7, hidden=(hidden,), batch_norm=False).init(
        jax.random.key(seed)
    )


def matching(**options):
    return arm(
        jp.attacks.gradient_matching,
        MLP,
        eps=small_targeted.EPS,
        crafting=Crafting(steps=2),
        budget=small_targeted.BUDGET,
        expect="-",
        **options,
    )


def run(runs, mode, recipe, how=None, **options):
    """One setup; victims in the white box and in the black box, pretrained with another seed."""
    shared = transfer(mode, pretrained(8)) if how is None else how
    return small_targeted.run(
        runs,
        setups=[small_targeted.setup(0)],
        victims={
            "white": Trainee(MLP, recipe, shared),
            "black": Trainee(MLP, recipe, transfer(mode, pretrained(9))),
        },
        surrogates=[Trainee(MLP, recipe, shared)],
        keep_checkpoints=True,
        **options,
    )


def variables(folder, recipe, mode, num=None):
    """Of the networks that a part left behind."""
    one = Trainee(MLP, recipe, transfer(mode, pretrained(8)))
    process = one.training(48)
    process = process if num is None else jp.over_restarts(process, num, chunk=None)
    like = jax.eval_shape(process.init, jax.random.key(0), one.data(small_job.split()))
    like = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return TrainState(*checkpoint.restore(folder / "checkpoints", like, read=dict).state).variables


def alike(a, b, *layers, atol=0.0):
    for layer in layers:
        for x, y in zip(jax.tree.leaves(a[layer]), jax.tree.leaves(b[layer]), strict=True):
            np.testing.assert_allclose(x, np.broadcast_to(y, x.shape), rtol=0, atol=atol)


def test_linear_transfer_with_victims_in_the_white_and_in_the_black_box(tmp_path):
    arms = {"gradient-matching": matching(params="head")}
    record = run(tmp_path, "linear", small_targeted.RECIPE, arms=arms)
    folder, entries = tmp_path / FOLDER, record["arms"]
    assert list(entries) == [
        f"{victim}/{name}" for victim in ("white", "black") for name in ("clean", *arms)
    ]
    facts, guide = record["config"]["trainees"], record["config"]["surrogates"][0]
    assert facts["white"]["transfer"] == guide["transfer"] != facts["black"]["transfer"]
    assert guide["transfer"]["mode"] == "linear"
    known = variables(folder / "surrogates/0", small_targeted.RECIPE, "linear", 1)
    alike(known.params, pretrained(8).params, "Dense_0")
    for victim, seed in (("white", 8), ("black", 9)):
        part = folder / "setups/s0/victims" / victim / "gradient-matching"
        found = variables(part, small_targeted.RECIPE, "linear", 2)
        alike(found.params, pretrained(seed).params, "Dense_0")
        kernels = found.params["Dense_1"]["kernel"]
        assert not np.allclose(kernels[0], kernels[1])


def test_victims_are_fine_tuned_from_the_clean_fine_tuned_network(tmp_path):
    """At a rate of nearly zero they stay where they start."""
    arms = control(small_targeted.BUDGET)
    run(tmp_path, "fine_tuning", STILL, arms=arms, main="random-noise")
    folder = tmp_path / FOLDER
    known = variables(folder / "surrogates/0", STILL, "fine_tuning", 1)
    alike(known.params, pretrained(8).params, "Dense_0", atol=1e-8)
    assert [x.name for x in (folder / "warm").iterdir()] == ["black"]
    warm = variables(folder / "warm/black", STILL, "fine_tuning")
    alike(warm.params, pretrained(9).params, "Dense_0", atol=1e-8)
    for victim, start in (("white", known), ("black", warm)):
        for part in (f"victims/{victim}/clean", f"setups/s0/victims/{victim}/random-noise"):
            found = variables(folder / part, STILL, "fine_tuning", 2)
            alike(found.params, start.params, "Dense_0", "Dense_1", atol=1e-8)


def test_what_cannot_start_ends_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="fresh_surrogates is set; victims that are fine-tuned"):
        run(tmp_path, "fine_tuning", STILL, fresh_surrogates=True)
    with pytest.raises(InputError, match=r"before its last layer an array is \(5,\), not \(6,\)"):
        run(tmp_path, "linear", STILL, transfer("linear", pretrained(8, hidden=5)))
    assert not list(tmp_path.iterdir())


def test_the_black_box_score_is_the_mean_of_the_networks_setup_by_setup():
    rates = {"a/x": [0.0, 1.0, 0.5], "b/x": [1.0, 1.0, 0.0], "a/clean": [0.0, 0.0, 0.0]}
    record = {"arms": {k: {"success_rate": {"values": v}} for k, v in rates.items()}}
    score = mean_over_victims(record, "x", ["a", "b"])
    assert score.values == [0.5, 1.0, 0.25]
    assert score.mean == pytest.approx(7 / 12) and score.low < 7 / 12 < score.high
    with pytest.raises(InputError, match="the record has no 'b/clean'; it has a/x, b/x, a/clean"):
        mean_over_victims(record, "clean", ["a", "b"])
    with pytest.raises(InputError, match="there are no victims"):
        mean_over_victims(record, "x", [])
