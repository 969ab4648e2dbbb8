import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_the_presets_say_what_their_sources_say():
    brew = recipes.witches_brew()
    assert (brew.batch_size, brew.momentum, brew.nesterov, brew.weight_decay) == (128, 0.9, 1, 5e-4)
    assert not brew.drop_last and brew.clip_norm is None and brew.optimizer == "sgd"
    assert brew.augmentation == "shift_flip" and brew.steps_per_epoch(50_000) == 391
    dvae = recipes.dvae()
    assert (dvae.epochs, dvae.batch_size, dvae.learning_rate) == (60, 128, 0.1)
    assert (dvae.momentum, dvae.nesterov, dvae.weight_decay) == (0.9, False, 5e-4)
    assert dvae.clip_norm == 5.0 and dvae.drop_last and dvae.steps_per_epoch(50_000) == 390
    assert dvae.augmentation == "crop_flip" and dvae.schedule == "cosine"
    assert recipes.tap().milestones == brew.milestones and recipes.tap().source != brew.source


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


@pytest.mark.parametrize("name", ["none", "crop", "crop_flip", "shift_flip"])
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
            "schedule = 'linear'; allowed are constant, cosine, step",
        ),
        ({"optimizer": "lion"}, "optimizer = 'lion'; allowed are sgd, adam"),
        (
            {"augmentation": "mixup"},
            "augmentation = 'mixup'; allowed are none, crop, crop_flip, shift_flip",
        ),
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
