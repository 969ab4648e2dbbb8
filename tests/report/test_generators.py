"""What a study keeps of an attack that trains a generator, and what it makes of it later."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import attacks, data, perturb
from jaxpoison.data.rounding import to_uint8
from jaxpoison.report import Study, StudyConfig, arm
from jaxpoison.types import InputError, Scenario
from tests.attacks import tiny_generator
from tests.report import small_job

EPS, SHAPE = small_job.EPS, small_job.SHAPE
POISON = "poison/drawn"
BUDGET = perturb.Budget("linf", EPS)


def crafted(runs, one):
    """(run folder, stored training set) of an arm that may change half of the rows."""
    study = Study("tiny", StudyConfig(runs=runs))
    train = small_job.split().train
    stored = study.poisons.craft(
        "drawn",
        one.attack,
        jax.random.key(5),
        Scenario(train, train, jnp.arange(0, 48, 2)),
        num_steps=one.num_steps,
        budget=one.budget,
        source={"name": "blobs"},
        settings=one.settings,
        network=one.network,
    )
    return study.folder, stored


def check_again(folder, stored):
    """The kept generator makes the stored poison again, bit for bit; returns it."""
    network, train = tiny_generator.network(SHAPE), small_job.split().train
    trained = attacks.load_generator(folder / "craft" / "drawn" / "generator", network=network)
    again = attacks.poison_dataset(trained, train, index=np.arange(0, 48, 2))
    image = to_uint8(again.image, np.asarray(train.image), norm="linf", eps=EPS)
    np.testing.assert_array_equal(image, stored.image)
    assert (image != train.image).any(axis=(1, 2, 3)).sum() == 24
    return trained


def test_the_kept_generator_makes_the_stored_poison_again(tmp_path):
    folder, stored = crafted(tmp_path, small_job.untrained_generator())
    card, manifest = check_again(folder, stored).card, data.poisoned.read(folder / POISON).manifest
    assert (card.attack, card.eps, card.key) == ("drawn", EPS, manifest.key)
    assert card.settings == manifest.settings and card.settings["attack"] == "untrained"
    assert card.train["num_changed"] == 24 and card.source == {"name": "blobs"}
    assert card.train["image_sha256"] == manifest.source["image_sha256"]


def test_a_generator_that_is_gone_comes_back_from_the_checkpoint(tmp_path):
    folder, stored = crafted(tmp_path, small_job.untrained_generator())
    before = check_again(folder, stored).variables
    written = (folder / POISON / "manifest.json").read_bytes()
    shutil.rmtree(folder / "craft" / "drawn" / "generator")
    crafted(tmp_path, small_job.untrained_generator())
    chex.assert_trees_all_equal(before, check_again(folder, stored).variables)
    assert (folder / POISON / "manifest.json").read_bytes() == written


def test_of_restarts_the_best_one_is_kept(tmp_path):
    network = tiny_generator.network(SHAPE)
    one = arm(tiny_generator.untrained, network, eps=EPS, restarts=2, budget=BUDGET, expect="")
    assert one.network is network and one.attack.single is not None
    check_again(*crafted(tmp_path, one))


def test_an_arm_knows_the_one_network_that_its_attack_trains():
    network = tiny_generator.network(SHAPE)

    def two(first, second, *, eps):
        return tiny_generator.untrained(first, eps=eps)

    def none(*, eps):
        return tiny_generator.untrained(network, eps=eps)

    def noise(network, *, eps):
        return attacks.closed_form(perturb.generator(network, eps=eps))

    assert arm(noise, network, eps=EPS, budget=BUDGET, expect="").network is None
    for factory, parts, budget, message in [
        (two, (network, network), BUDGET, "^the attack has 2 Generators as arguments; it must"),
        (none, (), BUDGET, "^the attack has 0 Generators as arguments; it must have 1$"),
        (tiny_generator.untrained, (network,), perturb.Budget("linf", 0.2), "^the budget is linf"),
        (tiny_generator.untrained, (network,), perturb.Budget("l2", EPS), "^the budget is l2 0.1;"),
    ]:
        with pytest.raises(InputError, match=message):
            arm(factory, *parts, eps=EPS, budget=budget, expect="")
