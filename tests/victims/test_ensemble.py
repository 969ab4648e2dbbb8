"""Staggered ensembles: who stops when, and that until then each is an ordinary seed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.types import Info, InputError, TrainState
from jaxpoison.victims import stagger_epochs, staggered

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("kind", "num", "epochs", "expected"),
    [
        ("firstn", 4, 40, [0, 1, 2, 3]),
        ("full", 4, 40, [0, 13, 26, 40]),
        ("full", 5, 40, [0, 10, 20, 30, 40]),
        ("inbetween", 4, 40, [8, 16, 24, 32]),
        ("inbetween", 1, 40, [20]),
    ],
)
def test_members_stop_where_the_published_code_stops_them(kind, num, epochs, expected):
    assert stagger_epochs(kind, num, epochs) == expected


def draw(key):
    return jax.random.bits(key).astype(jnp.float32) * 2.0**-32


def walk():
    """A training whose epoch adds a draw to its one parameter; cheap to compile."""

    def init(key, split):
        return TrainState(draw(key) + split, (), jnp.int32(0))

    def step(key, phi, split):
        params = phi.params + draw(key) * split
        return TrainState(params, (), phi.opt_state + 1), Info(params, params, params < 100)

    return jp.Training(init, step)


@pytest.mark.parametrize("devices", [None, 2])
def test_a_member_is_an_ordinary_seed_until_it_stops(devices):
    mesh = devices and jp.device_mesh(devices, axis="member")
    epochs, split = [0, 3, 1, 2], jnp.float32(2)
    state, info = jp.run(staggered(walk(), epochs, mesh=mesh), KEY, split, num_steps=3)
    init_key, steps_key = jax.random.split(KEY)
    for m, stop in enumerate(epochs):
        value, losses = float(draw(jax.random.fold_in(init_key, m))) + 2, [np.nan] * 3
        for t in range(3):
            if t < stop:
                key = jax.random.fold_in(jax.random.fold_in(steps_key, t), m)
                value += 2 * float(draw(key))
            losses[t] = value if stop else np.nan
        np.testing.assert_allclose(info.outer_loss[:, m], losses, rtol=1e-6)
        np.testing.assert_allclose(state.variables.params[m], value, rtol=1e-6)
    np.testing.assert_array_equal(state.phi.opt_state, epochs)
    assert not state.left.any() and info.finite.all()


def test_a_stop_is_the_recipes_training_cut_short():
    victim = jp.models.mlp((4, 4, 1), 2, hidden=(2,))
    recipe = jp.victims.Recipe(epochs=4, batch_size=4, learning_rate=0.1, schedule="cosine")
    training = staggered(jp.victims.victim_training(victim, recipe, 8), [1, 4])
    data = jp.Dataset(jnp.zeros((8, 4, 4, 1)), jnp.zeros(8, jnp.int32))
    split = jp.Split(data, data)
    state = jax.eval_shape(training.init, KEY, split)
    after, info = jax.eval_shape(training.step, KEY, state, split)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert info.test_accuracy.shape == (2,)
    chex.assert_trees_all_equal_shapes(
        after.variables, jax.eval_shape(jax.vmap(victim.init), jax.random.split(KEY, 2))
    )


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: stagger_epochs("half", 2, 4),
            "kind = 'half'; allowed are firstn, full, inbetween",
        ),
        (lambda: stagger_epochs("full", 0, 4), "num = 0; it must be at least 1"),
        (
            lambda: stagger_epochs("firstn", 6, 4),
            "num = 6 members, of which the last would stop after 5 epochs; the recipe has 4",
        ),
        (lambda: staggered(walk(), []), "epochs is empty; it must have one number per member"),
        (lambda: staggered(walk(), [1, -1]), "epochs = -1; it must be at least 0"),
    ],
)
def test_each_wrong_value_is_one_line(make, line):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
