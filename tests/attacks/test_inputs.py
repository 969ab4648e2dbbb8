import inspect

import jax
import jax.numpy as jnp
import pytest

import jaxpoison as jp
from jaxpoison.attacks import (
    convolution,
    deepconfuse,
    error_maximizing,
    error_minimizing,
    lsp,
    one_pixel,
    random_noise,
)
from jaxpoison.attacks.selection import monitor
from jaxpoison.report import arm
from jaxpoison.victims import Recipe
from tests import oracles

KEY = jax.random.key(0)


def em(**options):
    """Without the suite's type checker, which would speak first of a wrong literal."""
    settings = {"eps": 0.1, "num_classes": 3, **options}
    return inspect.unwrap(error_minimizing)(oracles.smooth_victim(), **settings)


def tap(**options):
    settings = {"eps": 0.1, "num_classes": 3, **options}
    return inspect.unwrap(error_maximizing)(oracles.smooth_victim(), **settings)


def confuse(**options):
    networks = oracles.smooth_victim(), oracles.smooth_generator()
    return inspect.unwrap(deepconfuse)(*networks, **{"eps": 0.1, "trial_steps": 2, **options})


def cuda(**options):
    return inspect.unwrap(convolution)(num_classes=3, **options)


def ops(**options):
    return inspect.unwrap(one_pixel)(num_classes=3, **options)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (em, {"eps": -0.1}, "eps = -0.1; it must be a finite number at least 0"),
        (tap, {"eps": 8}, "eps = 8 looks like grey levels; write 8/255"),
        (tap, {"eps": 300}, "eps = 300 is too large; pixels are in [0, 1]"),
        (random_noise, {"eps": 1.5}, "eps = 1.5 looks like grey levels; write 1.5/255"),
        (
            random_noise,
            {"eps": 0.1, "norm": "l1"},
            "norm = 'l1'; allowed are linf, l2, l0",
        ),
        (em, {"num_classes": 1}, "num_classes = 1; it must be at least 2"),
        (em, {"noise": "both"}, "noise = 'both'; allowed are sample, class"),
        (em, {"portion": 0.0}, "portion = 0.0; it must be a number above 0 and at most 1"),
        (em, {"portion": 1.1}, "portion = 1.1; it must be a number above 0 and at most 1"),
        (
            em,
            {"stop_error": -0.01},
            "stop_error = -0.01; it must be a number at least 0 and at most 1",
        ),
        (em, {"step_size": 0.0}, "step_size = 0.0; it must be a finite number above 0"),
        (em, {"train_steps": 0}, "train_steps = 0; it must be at least 1"),
        (em, {"sweep_steps": 0}, "sweep_steps = 0; it must be at least 1"),
        (em, {"batch_size": 0}, "batch_size = 0; it must be at least 1"),
        (tap, {"num_classes": 1}, "num_classes = 1; it must be at least 2"),
        (tap, {"goal": "both"}, "goal = 'both'; allowed are targeted, untargeted"),
        (tap, {"step_size": -0.1}, "step_size = -0.1; it must be a finite number above 0"),
        (tap, {"step_size": float("nan")}, "step_size = nan; it must be a finite number above 0"),
        (tap, {"batch_size": 0}, "batch_size = 0; it must be at least 1"),
        (
            lsp,
            {"num_classes": 3, "eps": -1.0},
            "eps = -1.0; it must be a finite number at least 0",
        ),
        (lsp, {"num_classes": 1}, "num_classes = 1; it must be at least 2"),
        (lsp, {"num_classes": 3, "patch": 0}, "patch = 0; it must be at least 1"),
        (one_pixel, {"num_classes": 0}, "num_classes = 0; it must be at least 2"),
        (confuse, {"eps": 8}, "eps = 8 looks like grey levels; write 8/255"),
        (confuse, {"trial_steps": 0}, "trial_steps = 0; it must be at least 1"),
        (confuse, {"batch_size": 0}, "batch_size = 0; it must be at least 1"),
        (
            confuse,
            {"learning_rate": 0.0},
            "learning_rate = 0.0; it must be a finite number above 0",
        ),
        (
            confuse,
            {"generator_train_fraction": 1.5},
            "generator_train_fraction = 1.5; it must be a number above 0 and at most 1",
        ),
        (confuse, {"select_every": -1}, "select_every = -1; it must be at least 0"),
        (confuse, {"select_epochs": 0}, "select_epochs = 0; it must be at least 1"),
        (confuse, {"holdout": 1.0}, "holdout = 1.0; it must be a number above 0 and below 1"),
        (confuse, {"form": "both"}, "form = 'both'; allowed are memory, trajectory"),
        (confuse, {"label_map": (1, 3, 0)}, "label_map[1] = 3; it must be a number at most 2"),
        (confuse, {"label_map": (1, -1, 0)}, "label_map[1] = -1; it must be at least 0"),
        (confuse, {"label_map": (1, 2.5, 0)}, "label_map[1] = 2.5; it must be a whole number"),
        (convolution, {"num_classes": 0}, "num_classes = 0; it must be at least 1"),
        (convolution, {"num_classes": 3, "kernel_size": 4}, "kernel_size = 4; it must be odd"),
        (
            convolution,
            {"num_classes": 3, "blur": 1.1},
            "blur = 1.1; it must be a number at least 0 and at most 1",
        ),
        (cuda, {"draw": "seed"}, "draw = 'seed'; allowed are key, released"),
        (ops, {"objective": "both"}, "objective = 'both'; allowed are code, paper"),
        (one_pixel, {"num_classes": 3, "num_pixels": 0}, "num_pixels = 0; it must be at least 1"),
    ],
)
def test_a_bad_setting_is_one_line(make, options, message):
    with pytest.raises(jp.InputError) as caught:
        make(**options)
    assert str(caught.value) == message


TWO = oracles.smooth_victim(num_classes=2)
WRONG = {
    "error_minimizing": lambda: em(num_classes=2),
    "class-wise": lambda: em(num_classes=2, noise="class"),
    "frozen": lambda: jp.attacks.frozen_error_minimizing(
        oracles.smooth_victim(),
        oracles.smooth_victim(size=5),
        eps=0.1,
        num_classes=2,
    ),
    "error_maximizing": lambda: tap(num_classes=2),
    "self_ensemble": lambda: jp.attacks.self_ensemble(oracles.smooth_victim(), num_classes=2),
    "feature_alignment": lambda: jp.attacks.feature_alignment(
        oracles.smooth_victim(), num_classes=2
    ),
    "hypocritical": lambda: jp.attacks.hypocritical(TWO, eps=0.1),
    "robust_error_minimizing": lambda: jp.attacks.robust_error_minimizing(
        TWO, eps=0.1, adversarial_eps=0.05
    ),
    "lsp": lambda: lsp(num_classes=2, patch=2),
    "one_pixel": lambda: one_pixel(num_classes=2),
    "autoregressive": lambda: jp.attacks.autoregressive(num_classes=2),
    "convolution": lambda: convolution(num_classes=2),
    "label_flip": lambda: jp.attacks.label_flip(num_classes=2),
    "selected": lambda: jp.attacks.keep_best(
        tap(num_classes=2), monitor(TWO, Recipe(1, 2, 0.1)), every=1, epochs=1
    ),
    "restarts": lambda: jp.over_restarts(tap(num_classes=2), 2),
    "setups": lambda: jp.over_setups(tap(num_classes=2)),
}


@pytest.mark.parametrize("name", WRONG)
def test_labels_beyond_the_classes_of_an_attack_are_one_line(name):
    """Where one of a class without noise, or a logit, would quietly be wrong."""
    data = oracles.tiny_scenario()
    if name == "setups":
        two = data._replace(
            goal=jax.tree.map(lambda x: jnp.stack([x, x]), data.goal),
            index=jnp.stack([data.index, data.index]),
        )
        data = jp.Sweep(jnp.arange(2), two)
    with pytest.raises(
        jp.InputError, match="labels of the training set run from 0 to 2; num_classes = 2 "
    ):
        jp.run(WRONG[name](), KEY, data, num_steps=2)


@pytest.mark.parametrize("make", [em, tap])
def test_no_rows_to_change_is_one_line(make):
    data = oracles.tiny_scenario()._replace(index=jnp.zeros(0, jnp.int32))
    with pytest.raises(jp.InputError, match="^scenario.index is empty; it must name the rows"):
        jp.run(make(), KEY, data, num_steps=1)


def test_a_missing_surrogate_is_one_line():
    with pytest.raises(jp.InputError, match="^scenario.aux is empty; it must be the trained"):
        jp.run(tap(), KEY, oracles.tiny_scenario(), num_steps=1)


@pytest.mark.parametrize("factory", [error_minimizing, error_maximizing])
def test_a_sweep_over_radii_can_be_mapped(factory):
    """Traced settings pass the checks (and the types); each radius is kept."""

    def largest(eps):
        settings = {"eps": eps, "step_size": 2 * eps, "num_classes": 3, "batch_size": 8}
        attack = factory(oracles.smooth_victim(), **settings)
        data = oracles.tiny_scenario()
        data = data._replace(aux=oracles.smooth_victim().init(KEY))
        state, _ = attack.step(KEY, attack.init(KEY, data), data)
        return jnp.max(jnp.abs(state.theta))

    radii = jnp.array([0.05, 0.1])
    assert jnp.allclose(jax.jit(jax.vmap(largest))(radii), radii, atol=1e-6)


def test_a_victim_in_the_place_of_the_generator_is_one_line():
    with pytest.raises(jp.InputError, match="^network is a Victim; a Generator is needed$"):
        inspect.unwrap(jp.perturb.generator)(oracles.smooth_victim(), eps=0.1)


def test_an_arm_runs_whole_rounds_of_selection():
    networks = oracles.smooth_victim(), oracles.smooth_generator()
    options = {
        "eps": 0.1,
        "trial_steps": 2,
        "budget": jp.perturb.Budget("linf", 0.1),
        "expect": "-",
    }
    message = "num_steps = 2; deepconfuse selects after rounds of 3 steps, so it must be a multiple"
    with pytest.raises(jp.InputError, match=f"^{message} of them$"):
        arm(jp.attacks.deepconfuse, *networks, num_steps=2, **options)
    repeated = arm(jp.attacks.deepconfuse, *networks, num_steps=6, restarts=2, **options)
    assert repeated.attack.round_steps == 3
