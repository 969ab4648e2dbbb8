"""Gradient canceling as an attack: floors and thresholds of linear heads, update rules, digits."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw

import jaxpoison as jp
from jaxpoison.attacks import CANCELINGS, gradient_canceling

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(0)


def linear(num, features, classes, dtype, *, bias=False, seed=0, scale=0.5):
    """A random problem of a linear head, its target as `scenario.aux`, two points a base row."""
    rng = np.random.default_rng(seed)
    shape = (1, 1, features)
    victim = jp.models.logistic_regression(shape, classes, bias=bias, dtype=dtype)
    target = jax.tree.map(
        lambda x: jnp.asarray(scale * rng.normal(size=x.shape), dtype),
        jax.eval_shape(victim.init, KEY),
    )
    image = jnp.asarray(rng.normal(size=(num, *shape)), dtype)
    train = jp.Dataset(image, jnp.asarray(rng.integers(0, classes, num), jnp.int32))
    return victim, jp.Scenario(train, train, jnp.arange(num, dtype=jnp.int32), aux=target)


def final(victim, scenario, steps=300, **options):
    attack = gradient_canceling(victim, optimizer="lbfgs", steps=steps, **options)
    state, info = jp.run(attack, KEY, scenario, num_steps=steps)
    return state, info.residual[-1]


@pytest.mark.parametrize(("share", "ends"), [(0.9, 1.0), (1.1, 0.0)])
def test_residual_ends_at_the_floor_below_the_threshold_and_at_zero_above(x64, share, ends):
    victim, scenario = linear(30, 5, 2, jnp.float64, scale=1.0)
    scenario = scenario._replace(index=scenario.index[:3])
    (gradient,) = jax.tree.leaves(jp.victims.mean_gradient(victim, scenario.aux, scenario.train))
    (target,) = jax.tree.leaves(scenario.aux.params)
    omega = lambertw(1 / np.e).real
    product = float(jnp.sum(gradient * target))
    tau = product / omega
    assert tau > 0.1
    centered = target - target.mean(axis=1, keepdims=True)
    floor = (product - 0.9 * tau * omega) / jnp.linalg.norm(centered)
    residual = final(victim, scenario, weight=share * tau)[1]
    np.testing.assert_allclose(residual, ends * floor, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["gd", "momentum", "adam"])
def test_steps_are_those_of_normalized_pixels(x64, optimizer):
    """Against the same attack on a network that is given (x - mean) / std from outside."""
    victim, scenario = linear(6, 4, 3, jnp.float64)
    std, mean = 0.25, 0.4
    inside = jp.models.logistic_regression(
        (1, 1, 4), 3, bias=False, dtype=jnp.float64, mean=(mean,) * 4, std=(std,) * 4
    )
    train = scenario.train._replace(image=mean + std * scenario.train.image)
    raw = scenario._replace(train=train)
    options = {"optimizer": optimizer, "learning_rate": 0.5, "steps": 3, "schedule": "constant"}
    plain, of_raw = (
        jp.run(gradient_canceling(network, **options, **more), KEY, data, num_steps=3)[0]
        for network, data, more in ((victim, scenario, {}), (inside, raw, {"std": (std,)}))
    )
    moved = plain.theta.value - scenario.train.image
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose((of_raw.theta.value - mean) / std, plain.theta.value, rtol=1e-6)


def test_points_rest_once_the_residual_is_within_the_tolerance():
    victim, scenario = linear(8, 4, 3, jnp.float32, scale=0.1)
    attack = gradient_canceling(
        victim, tolerance=0.05, steps=60, schedule="constant", labels="random", num_classes=3
    )
    state, info = jp.run(attack, KEY, scenario, num_steps=60)
    assert info.stopped[-1] and not info.stopped[0]
    first = int(np.argmax(info.stopped))
    assert np.all(info.residual[:first] > 0.05) and np.all(info.residual[first:] <= 0.05)
    assert np.all(info.residual[first:] == info.residual[first])
    np.testing.assert_allclose(info.residual, jnp.sqrt(2 * info.outer_loss), rtol=1e-6)
    assert info.largest[-1] == jnp.abs(state.theta.value).max()


def test_schedules():
    from jaxpoison.attacks.indiscriminate.gradient_canceling import SCHEDULES

    rates = {name: make(2.0, 10) for name, make in SCHEDULES.items()}
    assert [float(rates["cosine"](t)) for t in (0, 5, 10)] == pytest.approx([2, 1, 0], abs=1e-6)
    assert rates["constant"](7) == 2 and rates["rising"](5000) == 3


@pytest.mark.parametrize("name", CANCELINGS)
def test_every_published_variant_is_an_attack(name):
    victim, scenario = linear(6, 4, 3, jnp.float32)
    attack = gradient_canceling(victim, **CANCELINGS[name])
    state = jax.eval_shape(attack.init, KEY, scenario)
    again, _ = jax.eval_shape(attack.step, KEY, state, scenario)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), again) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert attack.num_steps == CANCELINGS[name]["steps"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer = 'sgd'; allowed are adam, gd, momentum, lbfgs"),
        ({"schedule": "step"}, "schedule = 'step'; allowed are cosine, constant, rising"),
        ({"labels": "free"}, "num_classes = None; it must be a whole number"),
        ({"tolerance": -1.0}, "tolerance = -1.0; it must be a finite number at least 0"),
        ({"std": (0.3, 0.0)}, "std[1] = 0.0; it must be a finite number above 0"),
        ({"optimizer": "lbfgs", "objective": "l2"}, "optimizer 'lbfgs' needs objective 'sq'"),
        ({"optimizer": "lbfgs", "constraint": jp.perturb.Constraint("box")},
         "optimizer 'lbfgs' does not clip: constraint 'box' needs sigmoid=True"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_used(options, message):
    victim, _ = linear(6, 4, 3, jnp.float32)
    with pytest.raises(jp.InputError) as error:
        inspect.unwrap(gradient_canceling)(victim, **options)
    assert message in str(error.value)
