"""Leader networks: sizes of the released ones, and the dense one against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxpoison as jp

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_module")


@pytest.mark.parametrize(
    ("network", "shape", "num"),
    [
        (jp.models.mlp_leader((28, 28, 1)), (28, 28, 1), 785 * 784 + 784 + 2 * (784 * 784 + 784)),
        (jp.models.conv_leader((32, 32, 3)), (32, 32, 3), 47_355),
    ],
    ids=["mlp", "conv"],
)
def test_released_sizes(network, shape, num):
    params = jax.eval_shape(network.init, KEY).params
    assert sum(x.size for x in jax.tree.leaves(params)) == num
    image, label = jax.ShapeDtypeStruct((2, *shape), jnp.float32), jnp.zeros(2, jnp.int32)
    made = jax.eval_shape(network.apply, jp.Variables(params, {}), image, label)
    assert made.shape == (2, *shape) and made.dtype == jnp.float32


def test_mlp_leader_is_its_formula():
    network = jp.models.mlp_leader((2, 3, 1), hidden=(5,))
    variables = network.init(KEY)
    rng = np.random.default_rng(0)
    image, label = rng.uniform(size=(4, 2, 3, 1)).astype(np.float32), np.array([0, 3, 9, 1])
    params = jax.tree.map(np.asarray, variables.params)
    first, last = (params[name] for name in sorted(params))
    x = np.concatenate([label[:, None], 2 * image.reshape(4, -1) - 1], axis=1)
    x = x @ first["kernel"] + first["bias"]
    x = np.where(x > 0, x, 0.2 * x) @ last["kernel"] + last["bias"]
    made = network.apply(variables, jnp.asarray(image), jnp.asarray(label))
    np.testing.assert_allclose(made.reshape(4, -1), (1 + np.tanh(x)) / 2, rtol=1e-5)


def test_points_of_a_network_are_clipped_and_labeled_as_their_bases():
    """The convolutional one has no bound of its own; rows of a slice are those of all points."""
    network = jp.models.conv_leader((8, 8, 1), width=2)
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(size=(5, 8, 8, 1)), jnp.float32)
    train = jp.Dataset(image, jnp.arange(5, dtype=jnp.int32))
    scenario = jp.Scenario(train, train, jnp.array([3, 1, 4], jnp.int32))
    space = jp.perturb.generated_points(network, jp.perturb.Constraint("linf", 0.1))
    theta = space.init(KEY, scenario)
    points = space.added(theta, scenario)
    base = image[scenario.index]
    made = network.apply(theta, base, scenario.index)
    np.testing.assert_allclose(
        points.image, np.clip(made, np.maximum(base - 0.1, 0), np.minimum(base + 0.1, 1)), atol=1e-6
    )
    assert np.abs(made - base).max() > 0.1
    np.testing.assert_array_equal(points.label, [3, 1, 4])
    some = space.apply(theta, scenario, jnp.array([7, 0, 5], jnp.int32))
    np.testing.assert_allclose(
        some.image, np.stack([points.image[2], image[0], points.image[0]]), atol=1e-6
    )
    np.testing.assert_array_equal(some.label, [4, 0, 3])
    whole = space.release(theta, scenario)
    np.testing.assert_allclose(whole.image, np.concatenate([image, points.image]), atol=1e-6)


def test_other_networks_must_keep_the_shape_and_have_no_statistics():
    class Halves(nn.Module):
        @nn.compact
        def __call__(self, image, label):
            return nn.Dense(1)(image[:, :2])

    class Normalizes(nn.Module):
        @nn.compact
        def __call__(self, image, label):
            return nn.BatchNorm(use_running_average=True)(image)

    image, label = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1, jnp.int32)
    halves = jp.models.adapt_leader(Halves(), (4, 4, 1))
    with pytest.raises(jp.InputError, match="returns"):
        halves.apply(halves.init(KEY), image, label)
    with pytest.raises(jp.InputError, match="batch_stats"):
        jp.models.adapt_leader(Normalizes(), (4, 4, 1)).init(KEY)
