"""Leader networks of TGDA before the game: trained to give back what they are shown."""

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.types import Dataset, Key, Leader, Variables, as_float

__all__ = ["pretrain_leader"]


def pretrain_leader(
    key: Key,
    network: Leader,
    dataset: Dataset,
    *,
    epochs: int = 100,
    batch_size: int = 1000,
    learning_rate: float = 1e-3,
) -> tuple[Variables, Float[Array, " t"]]:
    """Min over theta of mean (g(x_i, y_i; theta) - x_i)^2: added points then start as clean ones.

    Adam, every epoch shuffled, its last partial batch left out. What it gives is the second part of
    `scenario.aux` of `total_gradient` with a leader network.

    Args:
      key: of the first parameters and of the order.
      network: g.
      dataset: N rows, the training set.
      epochs: at least 1; the release has up to 100.
      batch_size: B; at most N rows are taken.
      learning_rate: of Adam.

    Returns: (Variables, mean squared error per pixel of each epoch, in squared pixel units).
    Errors: InputError for a bad argument.
    Source: Lu et al. 2022 (TGDA), released code.
    """
    check.at_least(1, epochs=epochs, batch_size=batch_size)
    check.positive(learning_rate=learning_rate)
    data = Dataset(jnp.asarray(dataset.image), jnp.asarray(dataset.label))
    return _fit(network, epochs, batch_size, key, data, learning_rate)


@jax.jit(static_argnums=(0, 1, 2))
def _fit(network, epochs, batch_size, key, data, learning_rate):
    init_key, order_key = jax.random.split(key)
    num = data.label.shape[0]
    size = min(batch_size, num)
    tx = optax.adam(learning_rate)

    def error(params, image, label):
        return jnp.mean((network.apply(Variables(params, {}), image, label) - image) ** 2)

    def step(carry, rows):
        params, state = carry
        image = as_float(data.image[rows])
        value, slope = jax.value_and_grad(error)(params, image, data.label[rows])
        updates, state = tx.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), value

    def epoch(carry, t):
        order = jax.random.permutation(jax.random.fold_in(order_key, t), num)
        carry, values = lax.scan(step, carry, order[: num // size * size].reshape(-1, size))
        return carry, jnp.mean(values)

    params = network.init(init_key).params
    (params, _), errors = lax.scan(epoch, (params, tx.init(params)), jnp.arange(epochs))
    return Variables(params, {}), errors
