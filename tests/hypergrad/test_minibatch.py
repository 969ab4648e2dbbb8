"""Mini-batches: which rows an estimator sees, in which order, and with which state of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.hypergrad import minibatches
from jaxpoison.types import Dataset, Hypergrad, InputError, Scenario

NUM, INDEX = 12, (11, 2, 5, 7, 3, 8, 0)


def scenario():
    """Image r is full of r and has the label r."""
    rows = jnp.arange(NUM, dtype=jnp.int32)
    image = jnp.broadcast_to(rows[:, None, None, None], (NUM, 2, 2, 1)).astype(jnp.float32)
    return Scenario(Dataset(image, rows), Dataset(image, rows), jnp.array(INDEX, jnp.int32))


def told():
    """Its phi counts its steps, its gradient is the batch's labels; it checks what it is given."""

    def estimate(key, theta, phi, batch):
        np.testing.assert_array_equal(batch.train.image[:, 0, 0, 0], batch.train.label)
        np.testing.assert_array_equal(batch.index, np.arange(len(batch.train.label)))
        return batch.train.label, phi + 1, jax.random.uniform(key)

    return Hypergrad(lambda key, batch: jnp.int32(0), estimate)


def seen(num_steps, **options):
    """(rows [T, B] of the steps, their keys' draws, the last state)."""
    hypergrad, rows, draws = minibatches(told(), **options), [], []
    state = hypergrad.init(jax.random.key(3), scenario())
    for t in range(num_steps):
        some, state, draw = hypergrad.estimate(jax.random.key(t), 0.0, state, scenario())
        rows.append(some.tolist())
        draws.append(float(draw))
    return rows, draws, state


def test_a_pass_sees_rows_once_and_every_pass_has_an_order_of_its_own():
    rows, draws, state = seen(12, batch_size=2)
    passes = [sum(rows[t : t + 3], []) for t in range(0, 12, 3)]
    for one in passes:
        assert len(set(one)) == 6 and set(one) < set(INDEX)
    assert len({tuple(one) for one in passes}) == 4
    assert set(sum(passes, [])) == set(INDEX)  # what one pass leaves out, another has
    assert int(state.phi) == 12 and len(set(draws)) == 12


def test_a_fraction_is_the_same_rows_in_every_pass():
    rows, _, state = seen(8, batch_size=2, train_fraction=0.5)
    passes = [set(rows[t]) | set(rows[t + 1]) for t in range(0, 8, 2)]
    assert state.rows.shape == (4,)  # ceil(0.5 * 7)
    assert all(one == passes[0] and len(one) == 4 for one in passes)
    assert len({tuple(sum(rows[t : t + 2], [])) for t in range(0, 8, 2)}) > 1


def test_too_few_rows_are_one_line():
    with pytest.raises(InputError, match="^batch_size = 5; only 4 rows take part in training"):
        seen(1, batch_size=5, train_fraction=0.5)
