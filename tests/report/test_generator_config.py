"""Settings of generator attacks: which arms and victims they name, without running any."""

import jax
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.data import synthetic
from jaxpoison.perturb import Budget
from jaxpoison.report import DeepConfuseConfig, GUEConfig
from jaxpoison.types import Split


@pytest.fixture(scope="module")
def split():
    image, label = synthetic.blobs(jax.random.key(0), 100, 10, (16, 16, 1))
    return Split(jp.Dataset(image, label), jp.Dataset(image, label))


def small(config, **options):
    return config.smoke(**{"batch_size": 20, "networks": ("mlp", "lenet_small")} | options)


def test_every_setting_of_sets_is_an_arm(split):
    sets = {"epsilons": (0.1, 0.2), "fractions": (0.5,), "shares": (0.8,), "permuted": True}
    config = small(DeepConfuseConfig, label_specific=True, eps=0.3, **sets)
    arms = config.poisons(split, 10, "low", "high")
    assert list(arms) == [
        "random-noise",
        "deepconfuse",
        "deepconfuse@0.8",
        "deepconfuse-permuted",
        "deepconfuse eps=0.1",
        "random-noise eps=0.1",
        "deepconfuse eps=0.2",
        "random-noise eps=0.2",
        "deepconfuse generator_train_fraction=0.5",
        "deepconfuse-next",
    ]
    assert arms["deepconfuse eps=0.1"].budget == Budget("linf", 0.1)
    part = arms["deepconfuse generator_train_fraction=0.5"]
    assert part.settings["generator_train_fraction"] == 0.5
    assert part.num_steps == arms["deepconfuse"].num_steps  # as many steps on fewer images
    assert arms["deepconfuse-next"].label_map == (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)
    assert arms["deepconfuse-next"].expect == "high" and arms["deepconfuse"].expect == "low"


@pytest.mark.parametrize(
    ("options", "steps", "every"),
    [
        ({"trials": 5, "passes": 2, "select_every": 2}, 3 * (2 * 2 * 5 + 2), 2),
        ({"trials": 4, "share": 0.5}, 4 * (2 + 1), 1),  # 50 rows: two batches of 20 a pass
    ],
)
def test_deepconfuse_runs_whole_rounds_of_trials(split, options, steps, every):
    one = small(DeepConfuseConfig, **options).poisons(split, 10, "")["deepconfuse"]
    assert one.num_steps == steps and one.settings["select_every"] == every


def test_gue_counts_in_passes(split):
    config = small(GUEConfig, passes=12, select_passes=5, select_epochs=3)
    one = config.poisons(split, 10, "")["gue"]
    assert one.num_steps == 3 * (25 + 3) and one.settings["select_every"] == 25
    one = config.poisons(split, 10, "", jp.attacks.gue_adv, decay_passes=(2, 4))["gue-adv"]
    assert one.settings["decay_steps"] == [10, 20]


def test_the_first_network_is_also_trained_adversarially(split):
    config = small(GUEConfig, robust=(4 / 255, 0.05), classical=("random_forest",))
    victims = config.judges(split, 10)
    assert list(victims) == [
        "mlp",
        "lenet_small",
        "mlp-pgd4",
        "mlp-pgd12.8",
        "sklearn.random_forest",
    ]
    assert victims["mlp"].recipe.adversarial == "none"
    recipe = victims["mlp-pgd4"].recipe
    assert recipe.adversarial == "pgd" and np.isclose(recipe.adversarial_eps, 4 / 255)
    assert recipe.adversarial_steps == 10


@pytest.mark.parametrize(
    ("name", "count"), [("lenet_small", 109_885), ("lenet_large", 1_714_450), ("vgg11_b2", None)]
)
def test_variants_are_the_networks_of_the_released_code(split, name, count):
    shape = (28, 28, 1) if count else (32, 32, 3)
    some = jp.Dataset(np.zeros((1, *shape), np.uint8), np.zeros(1, int))
    victim = small(DeepConfuseConfig).create(name, Split(some, some), 10)
    assert jp.models.num_params(victim) == (count or 9_227_040)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (DeepConfuseConfig, {"trials": 0}, "trials = 0"),
        (GUEConfig, {"select_epochs": 0}, "select_epochs = 0"),
        (GUEConfig, {"width": 0}, "width = 0"),
        (GUEConfig, {"classical": ("lda",)}, "classical = 'lda'"),
        (GUEConfig, {"batch_size": 60, "share": 0.5}, "batch_size = 60; only 50 rows may change"),
        (GUEConfig, {"width": 4}, "mlp_generator has no option 'width'"),
        (GUEConfig, {"robust": (8,)}, "^robust = 8"),
        (GUEConfig, {"fractions": (0.0,)}, "^fractions = 0"),
    ],
)
def test_a_bad_setting_is_named(split, config, options, message):
    with pytest.raises(jp.InputError, match=message):
        one = small(config, **options)
        one.judges(split, 10)
        one.poisons(split, 10, "")
