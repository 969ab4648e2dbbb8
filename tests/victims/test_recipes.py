import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.types import InputError
from jaxpoison.victims import Recipe, recipes

# Numbers marked "PyTorch" were computed once with torch 2.13 in float64.
GRADIENTS = np.array([[1.0, -2.0, 0.5], [0.3, 0.1, -0.2], [-4.0, 3.0, 2.0], [0.0, 0.7, -0.1]])
START = np.array([1.0, -1.0, 2.0])


def rates(recipe, num_train):
    """The learning rate of every update of every epoch [E, steps], from SGD's own updates."""
    plain = dataclasses.replace(
        recipe, optimizer="sgd", momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=None
    )
    tx, steps = plain.optimizer_for(num_train), plain.steps_per_epoch(num_train)
    one = jnp.ones(())

    def update(state, _):
        change, state = tx.update(one, state, one)
        return state, -change

    _, out = jax.lax.scan(update, tx.init(one), length=recipe.epochs * steps)
    return np.asarray(out).reshape(recipe.epochs, steps)


def after(recipe, gradients=GRADIENTS, num_train=1000):
    """Parameters after the given gradients, from `START`."""
    tx = recipe.optimizer_for(num_train)
    params = jnp.asarray(START, jnp.float32)
    state = tx.init(params)
    for gradient in gradients:
        change, state = tx.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = params + change
    return np.asarray(params)


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(40, (14, 24, 35)), (80, (29, 49, 70)), (5, (1, 3, 4))]
)
def test_witches_brew_lowers_the_rate_at_its_milestones(epochs, milestones):
    recipe = recipes.witches_brew(epochs=epochs)
    assert recipe.milestones == milestones
    expected = np.full(epochs, 0.1)
    for epoch in milestones:
        expected[epoch:] /= 10
    np.testing.assert_allclose(
        rates(recipe, 130), np.repeat(expected[:, None], 2, axis=1), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [1e-4]), (2, [1e-2, 1e-4]), (3, [0.1, 1e-3, 1e-4])],  # PyTorch, MultiStepLR
)
def test_milestones_of_a_short_run_count_as_often_as_they_are_named(epochs, expected):
    recipe = recipes.witches_brew(epochs=epochs)
    np.testing.assert_allclose(rates(recipe, 128)[:, 0], expected, rtol=1e-5)


def test_the_cosine_is_stepped_per_epoch():
    recipe = dataclasses.replace(recipes.dvae(epochs=6), batch_size=10)
    expected = [0.1, 0.09330127018922195, 0.075, 0.05, 0.025, 0.006698729810778065]  # PyTorch
    out = rates(recipe, 39)
    assert out.shape == (6, 3)
    np.testing.assert_allclose(out, np.repeat(np.array(expected)[:, None], 3, axis=1), rtol=1e-5)
    whole = rates(recipes.dvae(), 128)[:, 0]
    np.testing.assert_allclose(whole, 0.05 * (1 + np.cos(np.pi * np.arange(60) / 60)), rtol=1e-4)


def test_a_constant_rate_stays():
    np.testing.assert_array_equal(rates(recipes.small(epochs=3), 64), np.float32(0.01))


COMMON = {
    "batch_size": 128,
    "learning_rate": 0.1,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "clip_norm": None,
    "drop_last": False,
    "augmentation": "crop_flip",
    "mean": None,
    "std": None,
    "warmup": 0,
    "adversarial": "none",
    "statistics": "running",
}
ROUNDED = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
BREW = COMMON | {
    "nesterov": True,
    "augmentation": "shift_flip",
    "mean": (0.4914672, 0.4822617, 0.4467701),
    "std": (0.2470322, 0.2434851, 0.2615879),
}
PLAIN = COMMON | {"momentum": 0.0, "weight_decay": 0.0, "augmentation": "none"}
ADAM = PLAIN | {"optimizer": "adam", "momentum": 0.9}
GREY = {"mean": (0.1306638,), "std": (0.3081078,)}
PRESETS = [  # name, arguments, epochs, fields, rate at epochs as a multiple of the first one's
    ("dvae", {}, 60, COMMON | {"clip_norm": 5.0, "drop_last": True}, "cosine"),
    ("dvae", {"epochs": 100}, 100, COMMON | {"clip_norm": 5.0, "drop_last": True}, "cosine"),
    (
        "dvae_adversarial",
        {},
        100,
        COMMON
        | {"adversarial": "pgd", "adversarial_eps": 8 / 255, "adversarial_steps": 10}
        | {"adversarial_start": "step_normal", "adversarial_norm": "linf"},
        {75: 0.1, 90: 0.01},
    ),
    ("iss", {}, 60, COMMON, "cosine"),
    (
        "iss_adversarial",
        {},
        100,
        COMMON
        | {"adversarial": "pgd", "adversarial_eps": 0.031, "adversarial_step": 0.007}
        | {"adversarial_steps": 10},
        "cosine",
    ),
    (
        "ueraser",
        {},
        200,
        COMMON | {"learning_rate": 0.01, "drop_last": True},
        {100: 0.1, 150: 0.01},
    ),
    ("bridgepure", {}, 120, COMMON, {80: 0.1, 100: 0.01}),
    (
        "bridgepure_adversarial",
        {},
        120,
        COMMON | {"adversarial": "pgd", "adversarial_eps": 8 / 255, "adversarial_steps": 10},
        {80: 0.1, 100: 0.01},
    ),
    ("apbench", {}, 200, COMMON | {"batch_size": 256}, {100: 0.5}),
    ("apbench", {"epochs": 300}, 300, COMMON | {"batch_size": 256}, {100: 0.5, 200: 0.25}),
    ("apbench", {"epochs": 50}, 50, COMMON | {"batch_size": 256}, {}),
    ("cuda", {}, 100, COMMON | {"batch_size": 512}, {40: 0.1, 80: 0.01}),
    ("ops", {}, 200, COMMON, {100: 0.1, 150: 0.01}),
    (
        "orthogonal_projection",
        {},
        50,
        COMMON | ROUNDED | {"weight_decay": 1e-4, "augmentation": "strong"},
        {25: 0.1, 37: 0.01},
    ),
    ("tap_victim", {}, 200, COMMON | ROUNDED, "cosine"),
    ("ar", {}, 100, COMMON | ROUNDED, {50: 0.1}),
    ("lsp", {}, 100, COMMON, {50: 0.1, 75: 0.01}),
    ("gue", {}, 100, COMMON | {"learning_rate": 0.01, "batch_size": 256}, {75: 0.1, 90: 0.01}),
    (
        "gue_adversarial",
        {"eps": 4 / 255},
        100,
        COMMON
        | {"learning_rate": 0.01, "batch_size": 256, "adversarial": "pgd"}
        | {"adversarial_eps": 4 / 255, "adversarial_steps": 10, "adversarial_step": None},
        {75: 0.1, 90: 0.01},
    ),
    (
        "gue_monitor",
        {},
        5,
        PLAIN | {"learning_rate": 0.01, "batch_size": 256, "momentum": 0.9, "weight_decay": 5e-4},
        {},
    ),
    (
        "gue_adversarial_monitor",
        {},
        5,
        PLAIN
        | {"learning_rate": 0.01, "batch_size": 256, "momentum": 0.9, "weight_decay": 5e-4}
        | {"adversarial": "pgd", "adversarial_eps": 4 / 255, "adversarial_steps": 10},
        {},
    ),
    (
        "hypocritical",
        {},
        100,
        COMMON | {"adversarial": "pgd", "adversarial_eps": 8 / 255, "adversarial_steps": 10},
        {75: 0.1, 90: 0.01},
    ),
    (
        "rem",
        {},
        102,
        COMMON
        | {"mean": (0.5,) * 3, "std": (1.0,) * 3, "adversarial": "pgd", "adversarial_eps": 4 / 255}
        | {"adversarial_step": 4 / 255 / 5, "adversarial_steps": 10},
        {40: 0.1, 81: 0.01},
    ),
    (
        "hypocritical_surrogate",
        {},
        10,
        COMMON | {"adversarial": "pgd", "adversarial_eps": 2 / 255, "adversarial_steps": 10},
        {},
    ),
    (
        "deepconfuse_monitor",
        {"epochs": 20, "batch_size": 256},
        20,
        PLAIN | {"learning_rate": 0.01, "batch_size": 256},
        {},
    ),
    ("deepconfuse_mnist", {}, 2, ADAM | {"learning_rate": 0.01, "batch_size": 64}, {}),
    (
        "deepconfuse_mnist",
        {"statistics": "batch"},
        2,
        ADAM
        | {"learning_rate": 0.01, "batch_size": 64}
        | {"statistics": "batch", "evaluation_batch": 1000},
        {},
    ),
    (
        "deepconfuse_cifar10",
        {},
        30,
        ADAM | {"learning_rate": 1e-4, "batch_size": 256, "augmentation": "flip"},
        {},
    ),
    (
        "deepconfuse_imagenet",
        {},
        5,
        PLAIN | {"batch_size": 16, "evaluation_batch": 64},
        {},
    ),
    ("witches_brew", {}, 40, BREW, {14: 0.1, 24: 0.01, 35: 0.001}),
    (
        "witches_brew",
        {"network": "MobileNetV2"},
        40,
        BREW | {"learning_rate": 0.01},
        {14: 0.1, 24: 0.01, 35: 0.001},
    ),
    ("tap_surrogate", {}, 40, BREW, {14: 0.1, 24: 0.01, 35: 0.001}),
    (
        "witches_brew_memory_saving",
        {},
        40,
        BREW | {"batch_size": 64, "learning_rate": 0.05},
        {14: 0.1, 24: 0.01, 35: 0.001},
    ),
    (
        "witches_brew_fast",
        {},
        40,
        BREW | {"batch_size": 512, "learning_rate": 0.4, "weight_decay": 2e-3},
        {14: 0.1, 24: 0.01, 35: 0.001},
    ),
    (
        "tgda",
        {},
        100,
        {
            "batch_size": 1000,
            "learning_rate": 0.1,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "augmentation": "none",
            "mean": (0.5,),
            "std": (0.5,),
        },
        {},
    ),
    ("metapoison", {}, 200, PLAIN | {"batch_size": 125, "warmup": 5}, "rising"),
    ("mnist_canceling", {}, 100, PLAIN | GREY | {"batch_size": 10_000}, {}),
    ("mnist_canceling_cnn", {}, 100, PLAIN | GREY | {"batch_size": 1000}, {}),
    (
        "witches_brew_basic",
        {},
        80,
        PLAIN | {"mean": BREW["mean"], "std": BREW["std"]},
        {},
    ),
    (
        "witches_brew_fine_tuning",
        {"network": "vgg16"},
        40,
        BREW | {"learning_rate": 1e-5},
        {14: 0.1, 24: 0.01, 35: 0.001},
    ),
    (
        "poisoning_benchmark",
        {},
        200,
        COMMON | ROUNDED | {"weight_decay": 2e-4},
        {100: 0.1, 150: 0.01},
    ),
    (
        "poisoning_benchmark_transfer",
        {},
        40,
        COMMON | ROUNDED | {"weight_decay": 2e-4, "learning_rate": 0.01},
        {30: 0.1},
    ),
]


@pytest.mark.parametrize(("name", "arguments", "epochs", "fields", "schedule"), PRESETS)
def test_a_preset_says_what_its_source_says(name, arguments, epochs, fields, schedule):
    recipe = getattr(recipes, name)(**arguments)
    found = {field: getattr(recipe, field) for field in fields}
    rate = found.pop("learning_rate")
    assert rate == pytest.approx(fields["learning_rate"], rel=1e-12)
    assert found == {k: v for k, v in fields.items() if k != "learning_rate"}
    assert recipe.epochs == epochs and recipe.source
    at = np.arange(epochs)
    if schedule == "cosine":
        expected = (1 + np.cos(np.pi * at / epochs)) / 2
    elif schedule == "rising":
        expected = np.interp(at, [0, 5], [0, 1]) * 0.1 ** np.searchsorted([100, 150], at, "right")
    else:
        expected = np.ones(epochs)
        for epoch, factor in schedule.items():
            expected[epoch:] = factor
    np.testing.assert_allclose(rates(recipe, 2)[:, 0], rate * expected, rtol=1e-5, atol=1e-8)


def test_every_preset_is_in_the_table():
    listed = {name for name, *_ in PRESETS} | {
        "NORMALIZATION", "small", "sep_surrogate", "witches_brew_small",
    }  # fmt: skip
    assert listed == set(recipes.__all__)


def test_the_crafting_run_of_sep_rises_in_its_first_epoch():
    recipe = recipes.sep_surrogate()
    out = rates(recipe, 512)  # four updates an epoch
    np.testing.assert_allclose(out[0], 0.001 + 0.099 * np.arange(4) / 4, rtol=1e-5)
    for epoch, rate in [(1, 0.1), (74, 0.1), (75, 0.01), (89, 0.01), (90, 0.001), (119, 0.001)]:
        np.testing.assert_allclose(out[epoch], rate, rtol=1e-5)
    assert {f: getattr(recipe, f) for f in COMMON} == COMMON | {"warmup": 1}


@pytest.mark.parametrize("network", ["convnet", "VGG11", "mobilenet_v2", "AlexNet"])
def test_brittle_networks_learn_at_a_tenth_of_the_rate(network):
    assert recipes.witches_brew(network=network).learning_rate == pytest.approx(0.01)
    assert recipes.witches_brew_fast(network=network).learning_rate == pytest.approx(0.04)
    assert recipes.witches_brew(network="densenet121").learning_rate == 0.1


def test_witches_brew_at_small_size():
    plain = {"learning_rate": 0.05, "batch_size": 32, "augmentation": "none"}
    named = plain | {"source": "jaxpoison, Witches' Brew at small size"}
    assert recipes.witches_brew_small(epochs=20) == dataclasses.replace(
        recipes.witches_brew(epochs=20), **named
    )
    assert recipes.witches_brew_small(epochs=20).milestones == (7, 12, 17)
    assert recipes.witches_brew_small(network="metapoison_convnet").learning_rate == 0.02


def test_the_brew_pads_with_the_mean_color_and_hands_over_its_normalization():
    brew = recipes.witches_brew(data="mnist")
    assert brew.fill == (0.1306638,)
    assert brew.normalization == {"mean": (0.1306638,), "std": (0.3081078,)}
    net = jp.models.create("mlp", (8, 8, 1), 3, hidden=(4,), **brew.normalization)
    assert jp.models.num_params(net) > 0
    plain = recipes.witches_brew(data=None)
    assert plain.fill == (0.0,) and plain.normalization == {"mean": None, "std": None}
    with pytest.raises(InputError, match="^data = 'cifar'; allowed are cifar10, cifar100, mnist"):
        recipes.witches_brew(data="cifar")


def test_milestones_keep_their_share_of_the_epochs():
    assert recipes.bridgepure(epochs=12).milestones == (8, 10)
    assert recipes.ops(epochs=8).milestones == (4, 6)
    assert recipes.poisoning_benchmark_transfer(epochs=4).milestones == (3,)
    assert recipes.iss().steps_per_epoch(50_000) == 391
    assert recipes.dvae().steps_per_epoch(50_000) == 390


@pytest.mark.parametrize("schedule", ["cosine", "cosine_per_update"])
def test_the_cosine_starts_after_the_warmup(schedule):
    recipe = Recipe(5, 2, 0.4, schedule=schedule, warmup=2, warmup_rate=0.1)
    count = np.arange(15).reshape(5, 3)  # three updates an epoch
    done = (count - 6) / 9 if schedule == "cosine_per_update" else (count // 3 - 2) / 3
    expected = np.where(count < 6, 0.1 + 0.3 * count / 6, 0.2 * (1 + np.cos(np.pi * done)))
    np.testing.assert_allclose(rates(recipe, 6), expected, rtol=1e-5)


def test_the_decay_of_a_step_is_a_setting():
    recipe = Recipe(3, 1, 0.4, schedule="step", milestones=(1, 2), decay=0.5)
    np.testing.assert_allclose(rates(recipe, 2), [[0.4] * 2, [0.2] * 2, [0.1] * 2], rtol=1e-6)


def test_nesterov_with_coupled_decay_is_the_published_update():
    recipe = dataclasses.replace(recipes.witches_brew(), weight_decay=5e-2)
    theta, v = START.copy(), np.zeros(3)
    for gradient in GRADIENTS:
        g = gradient + 5e-2 * theta
        v = 0.9 * v + g
        theta = theta - 0.1 * (g + 0.9 * v)
    np.testing.assert_allclose(after(recipe), theta, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),  # PyTorch: SGD and Adam with weight_decay, clip_grad_norm_ before
    [
        ({"nesterov": True}, [1.5159054850088125, -1.1158406836600627, 1.22894107854075]),
        ({}, [1.292969925625, -0.941711688125, 1.4253207074999998]),
        ({"clip_norm": 1.0}, [0.8670002968628158, -0.8613261303502825, 1.8295788529186288]),
        ({"optimizer": "adam"}, [0.8916129259038117, -0.8886489086775615, 1.714669519015286]),
        (
            {"optimizer": "adam", "clip_norm": 1.0},
            [0.7995292319883773, -0.8495555884051293, 1.733369786280908],
        ),
        (
            {"optimizer": "adamw"},
            [0.878787998375367, -0.8770020689811198, 1.7059440064321973],
        ),
    ],
)
def test_updates_equal_another_library(settings, expected):
    recipe = Recipe(epochs=1, batch_size=1, learning_rate=0.1, weight_decay=5e-2, **settings)
    np.testing.assert_allclose(after(recipe), expected, rtol=1e-5)


def test_dvae_clips_at_five_before_it_decays():
    gradients = np.array([[30.0, -40.0, 0.0], [1.0, 2.0, 2.0]])  # norms 50 and 3
    theta, v = START.copy(), np.zeros(3)
    for gradient, scale in zip(gradients, (0.1, 1.0), strict=True):
        g = scale * gradient + 5e-4 * theta
        v = 0.9 * v + g
        theta = theta - 0.1 * v
    np.testing.assert_allclose(after(recipes.dvae(), gradients), theta, rtol=1e-5)


@pytest.mark.parametrize(
    ("drop_last", "num", "steps"),
    [(False, 10, 3), (True, 10, 2), (False, 8, 2), (True, 8, 2), (True, 3, 1), (False, 3, 1)],
)
def test_steps_per_epoch(drop_last, num, steps):
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.1, drop_last=drop_last)
    assert recipe.steps_per_epoch(num) == steps


@pytest.mark.parametrize("name", ["none", "crop", "flip", "crop_flip", "shift_flip", "strong"])
def test_every_augmentation_keeps_shape_and_box(name):
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.1, augmentation=name)
    image = jax.random.uniform(jax.random.key(0), (16, 8, 8, 1))
    out = recipe.augment()(jax.random.key(1), image)
    assert out.shape == image.shape and out.dtype == jnp.float32
    assert out.min() >= 0 and out.max() <= 1 + 1e-6
    assert np.array_equal(out, image) == (name == "none")


def test_a_sweep_over_the_learning_rate_is_a_vmap():
    def moved(rate):
        tx = Recipe(epochs=1, batch_size=1, learning_rate=rate).optimizer_for(4)
        one = jnp.ones(())
        return tx.update(one, tx.init(one), one)[0]

    out = jax.vmap(moved)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(out, [-0.1, -0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size = 0; it must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0; it must be a finite number above 0"),
        (
            {"learning_rate": float("nan")},
            "learning_rate = nan; it must be a finite number above 0",
        ),
        (
            {"learning_rate": float("inf")},
            "learning_rate = inf; it must be a finite number above 0",
        ),
        ({"momentum": 1.0}, "momentum = 1.0; it must be a number at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0; it must be a finite number at least 0"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0; it must be a finite number above 0"),
        (
            {"schedule": "linear"},
            "schedule = 'linear'; allowed are constant, cosine, cosine_per_update, step",
        ),
        ({"optimizer": "lion"}, "optimizer = 'lion'; allowed are sgd, adam, adamw, lars"),
        (
            {"augmentation": "mixup"},
            "augmentation = 'mixup'; allowed are none, crop, flip, crop_flip, shift_flip, strong",
        ),
        ({"decay": 0.0}, "decay = 0.0; it must be a number above 0 and at most 1"),
        ({"decay": 1.5}, "decay = 1.5; it must be a number above 0 and at most 1"),
        ({"warmup": -1}, "warmup = -1; it must be at least 0"),
        ({"warmup": 8}, "warmup = 8; it must be below epochs = 8"),
        ({"warmup_rate": -0.1}, "warmup_rate = -0.1; it must be a finite number at least 0"),
        ({"adversarial": "fgsm"}, "adversarial = 'fgsm'; allowed are none, pgd, trades"),
        (
            {"adversarial_eps": 8},
            "adversarial_eps = 8; it must be a number at least 0 and at most 1",
        ),
        (
            {"adversarial_step": 0.0},
            "adversarial_step = 0.0; it must be a finite number above 0",
        ),
        (
            {"adversarial_norm": "l2", "adversarial_eps": -0.5},
            "adversarial_eps = -0.5; it must be a finite number at least 0",
        ),
        ({"adversarial_norm": "l1"}, "adversarial_norm = 'l1'; allowed are linf, l2"),
        (
            {"adversarial_start": "corner"},
            "adversarial_start = 'corner'; allowed are None, zero, uniform, normal, step_normal",
        ),
        ({"adversarial_steps": 0}, "adversarial_steps = 0; it must be at least 1"),
        (
            {"adversarial_beta": -1.0},
            "adversarial_beta = -1.0; it must be a finite number at least 0",
        ),
        ({"statistics": "frozen"}, "statistics = 'frozen'; allowed are running, batch"),
        ({"evaluation_batch": 0}, "evaluation_batch = 0; it must be at least 1"),
    ]
    + [
        (
            {"schedule": "step", "milestones": bad},
            f"milestones = {bad}; a step schedule of 8 epochs needs some from 0 to 7, in ascending "
            "order",
        )
        for bad in [(), (3, 2), (8,), (-1,)]
    ],
)
def test_bad_values_are_one_line(settings, message):
    with pytest.raises(InputError) as error:
        Recipe(**({"epochs": 8, "batch_size": 4, "learning_rate": 0.1} | settings))
    assert str(error.value) == message


def test_bad_counts_of_a_preset_or_a_set_are_one_line():
    with pytest.raises(InputError, match="^epochs = 0; it must be at least 1$"):
        recipes.witches_brew(epochs=0)
    with pytest.raises(InputError, match="^num_train = 0; it must be at least 1$"):
        recipes.small().optimizer_for(0)
    with pytest.raises(InputError, match="of 10 epochs needs some from 0 to 9"):
        dataclasses.replace(recipes.witches_brew(), epochs=10)
