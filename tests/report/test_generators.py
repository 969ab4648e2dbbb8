"""What a study keeps of an attack that trains a generator, and what it makes of it later."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import attacks, data, perturb
from jaxpoison.data.rounding import to_uint8
from jaxpoison.report import Study, StudyConfig, arm, shares
from jaxpoison.report.probes import noise
from jaxpoison.types import Dataset, InputError, Scenario
from tests.attacks import tiny_generator
from tests.report import small_job

pytestmark = pytest.mark.usefixtures("quick_module")
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


def test_floats_and_a_cast_are_trained_on_and_judged_as_they_are_stored(tmp_path):
    network, split = tiny_generator.network(SHAPE), small_job.split()

    def stored_as(rounding):
        one = {"eps": EPS, "budget": BUDGET, "expect": "", "rounding": rounding}
        return arm(tiny_generator.untrained, network, **one)

    arms = {"floats": stored_as("none"), "cast": stored_as("cast")}
    made = arms | shares("cast", (0.5,), expect="")
    probes = ("train-noise", "poisoned-test")
    record = small_job.run(tmp_path, arms=made, probes=probes, victims=1)
    folder = tmp_path / "small" / "default"
    exact, cast, half = (data.poisoned.read(folder / "poison" / name) for name in made)
    assert exact.manifest.domain == "float" and exact.manifest.rounding is None
    trained = attacks.load_generator(folder / "craft" / "floats" / "generator", network=network)
    rows = np.flatnonzero(exact.mask)
    by_hand = attacks.poison_dataset(trained, split.train, index=rows).image
    np.testing.assert_array_equal(exact.dataset.image, by_hand)
    levels = np.floor(np.float32(255) * by_hand)[rows]
    other = np.asarray(cast.dataset.image)[rows] != levels
    assert cast.manifest.rounding == "cast" and other.mean() < 0.01  # pixels without any noise
    grey = (split.train.image[rows] == cast.dataset.image[rows])[other]
    assert grey.all() and half.manifest.eps == cast.manifest.eps == EPS + 1 / 255
    assert record["arms"]["cast"]["poison"]["eps"] == EPS + 1 / 255
    assert record["arms"]["floats"]["poison"]["eps"] == EPS
    for name in made:
        assert set(record["arms"][name]["probes"]) == set(probes)
    with pytest.raises(InputError, match="^arm 'floats@0.5' needs grey levels; 'floats' has round"):
        small_job.run(tmp_path, name="other", arms=arms | shares("floats", (0.5,), expect=""))
    assert not (tmp_path / "small" / "other").exists()
    for rounding, message in [
        ("up", "^rounding = 'up'; allowed are nearest, truncate, cast, none$"),
        ("cast", "^rounding = 'cast' keeps no l2 budget"),
    ]:
        l2 = perturb.Budget("l2", EPS)
        with pytest.raises(InputError, match=message):
            arm(attacks.random_noise, norm="l2", eps=EPS, budget=l2, expect="", rounding=rounding)


def test_noise_of_floats_is_that_of_their_levels():
    grey = Dataset(jnp.full((2, 8, 8, 1), 51, jnp.uint8), jnp.zeros(2, jnp.int32))
    moved = Dataset(jnp.full((2, 8, 8, 1), 0.3, jnp.float32), grey.label)
    np.testing.assert_allclose(noise(moved, grey, np.array([1])).image, 0.1, atol=1e-6)
