"""Gradient canceling: its gradient against reverse mode, and clean rows that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp


def problem(dtype, num=12, added=5):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(num, 1, 1, 4)), dtype)
    train = jp.Dataset(image, jnp.asarray(rng.integers(0, 3, num), jnp.int32))
    victim = jp.models.logistic_regression((1, 1, 4), 3, dtype=dtype)
    target = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), victim.init(jax.random.key(0))
    )
    index = jnp.arange(added, dtype=jnp.int32)
    return victim, jp.Scenario(train, train, index, aux=target)


def test_gradient_is_reverse_mode_of_the_objective(x64):
    victim, scenario = problem(jnp.float64)
    space = jp.perturb.free_points(labels="random", num_classes=3)
    rule = jp.hypergrad.canceling(victim, space, batch_size=2)
    theta = space.init(jax.random.key(1), scenario)
    phi = rule.init(jax.random.key(2), scenario)

    def objective(value):
        def loss(params, image, label):
            logits, _ = victim.apply(jp.Variables(params, {}), image, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return losses.sum() / scenario.train.label.shape[0]

        params, label = scenario.aux.params, theta.label.astype(jnp.int32)
        clean = jax.grad(loss)(params, scenario.train.image, scenario.train.label)
        added = jax.grad(loss)(params, value, label)
        total = jax.tree.map(jnp.add, clean, added)
        return 0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(total))

    want, slope = jax.value_and_grad(objective)(theta.value)
    got, _, loss = rule.estimate(jax.random.key(3), theta, phi, scenario)
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(got.value, slope, rtol=1e-10, atol=1e-14)
    assert not np.any(got.label)


def test_added_points_are_rows_n_and_on(x64):
    victim, scenario = problem(jnp.float64)
    space = jp.perturb.free_points(labels="random", num_classes=3)
    theta = space.init(jax.random.key(1), scenario)
    theta = theta._replace(value=theta.value + 1)
    looked_up = space.apply(theta, scenario, jnp.arange(12, 17))
    jax.tree.map(np.testing.assert_array_equal, space.added(theta, scenario), looked_up)
    with pytest.raises(jp.InputError, match="a space of added points"):
        jp.hypergrad.canceling(victim, jp.perturb.per_sample(jp.perturb.Budget("linf", 0.1)))


def test_attack_adds_rows_and_lowers_the_residual():
    victim, scenario = problem(jnp.float32)
    attack = jp.attacks.gradient_canceling(victim, labels="random", num_classes=3, steps=40)
    state, info = jp.run(attack, jax.random.key(0), scenario, num_steps=attack.num_steps)
    assert info.outer_loss[-1] < 0.5 * info.outer_loss[0]
    poisoned = attack.poison(state, scenario)
    assert poisoned.image.shape == (17, 1, 1, 4)
    np.testing.assert_array_equal(poisoned.image[:12], scenario.train.image)
    np.testing.assert_array_equal(poisoned.label[:12], scenario.train.label)


def test_the_target_is_made_by_parameter_corruption():
    victim, scenario = problem(jnp.float32)
    corruption = jp.attacks.Corruption(radius=0.8, batch_size=5, scale=0.5)
    attack = jp.attacks.gradient_canceling(victim, corruption=corruption, steps=2)
    target = attack.init(jax.random.key(0), scenario).phi.target
    again = jax.tree.map(lambda new, old: 2 * new - old, target.params, scenario.aux.params)
    assert 0.5 < jp.tree.norm(again) <= 0.8 + 1e-5
