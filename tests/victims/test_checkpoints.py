"""Checkpoints along one run are that run's networks after those epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.types import Info, InputError, TrainState
from jaxpoison.victims import checkpoint_epochs, checkpoints_along

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("num", "epochs", "expected"),
    [(4, 120, [30, 60, 90, 120]), (3, 10, [3, 6, 10]), (1, 7, [7]), (3, 3, [1, 2, 3])],
)
def test_checkpoints_are_equidistant_and_end_with_the_run(num, epochs, expected):
    assert checkpoint_epochs(num, epochs) == expected


def walk():
    """A training whose epoch adds a draw to its one parameter; cheap to compile."""

    def init(key, split):
        return TrainState(jax.random.uniform(key) + split, jnp.zeros(2), ())

    def step(key, phi, split):
        del split
        params = phi.params + jax.random.uniform(key)
        return TrainState(params, phi.stats + 1, ()), Info(params, params, jnp.array(True))

    return jp.types.Training(init, step)


def test_each_is_the_network_of_the_plain_run_after_its_epochs(quick_compile):
    start = jnp.float32(3)
    state, info = jp.run(checkpoints_along(walk(), 3, 10), KEY, start, num_steps=10)
    plain, after = jp.run(walk(), KEY, start, num_steps=10)
    np.testing.assert_array_equal(info.outer_loss, after.outer_loss)
    np.testing.assert_array_equal(state.variables.params, after.outer_loss[jnp.array([2, 5, 9])])
    np.testing.assert_array_equal(state.variables.stats, np.outer([3, 6, 10], [1, 1]))
    np.testing.assert_array_equal(state.phi.params, plain.params)
    early, _ = jp.run(checkpoints_along(walk(), 3, 10), KEY, start, num_steps=4)
    np.testing.assert_array_equal(early.variables.stats, np.outer([3, 0, 0], [1, 1]))


def test_what_cannot_be_is_one_line():
    with pytest.raises(InputError, match="checkpoints = 4; a run of 3 epochs has at most 3"):
        checkpoints_along(walk(), 4, 3)
    with pytest.raises(InputError, match="checkpoints = 0; it must be at least 1"):
        checkpoints_along(walk(), 0, 3)
    with pytest.raises(InputError, match="checkpoints are of one run"):
        checkpoints_along(jp.over_restarts(walk(), 2), 1, 3)
