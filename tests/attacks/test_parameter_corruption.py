"""Parameter corruption: closed forms of a linear loss, the loop in numpy, a network."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.attacks import Corruption, parameter_corruption, scale_target

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(0)
SLOPE = {"a": np.array([3.0, -1.0, 0.5]), "b": np.array([[-2.0, 0.25]])}
FLAT = np.array([3.0, -1.0, 0.5, -2.0, 0.25])


def linear_loss():
    """CE = log(1 + exp(50 + <slope, w>)) = 50 + <slope, w> to the last bit of float64.

    In train mode the slope has the other sign, and statistics would change.
    """

    def apply(variables, image, *, train, key=None):
        del key
        score = 50 + (-1 if train else 1) * sum(
            jnp.sum(SLOPE[k] * variables.params[k]) for k in SLOPE
        )
        scores = jnp.stack([jnp.zeros_like(score), score])
        return jnp.broadcast_to(scores, (image.shape[0], 2)), jnp.ones(1)

    start = {"a": jnp.ones(3), "b": jnp.full((1, 2), -1.0)}
    return jp.types.Victim(
        lambda key: jp.Variables(start, jnp.zeros(1)), apply, lambda v, image: image
    )


def rows(num):
    return jp.Dataset(jnp.zeros((num, 1, 1, 1)), jnp.zeros(num, jnp.int32))


def moved(corruption, num=4):
    """The corruption of the linear loss as a vector."""
    victim = linear_loss()
    before = victim.init(KEY)
    after = parameter_corruption(KEY, victim, before, rows(num), corruption)
    assert after.stats == 0
    change = jax.tree.map(jnp.subtract, after.params, before.params)
    return np.concatenate([np.ravel(change["a"]), np.ravel(change["b"])])


@pytest.mark.parametrize("num", [None, 3, 1])
@pytest.mark.parametrize("norm", ["l2", "linf", 1.5, 4.0])
def test_one_long_step_is_the_closed_form(x64, norm, num):
    p = {"l2": 2.0, "linf": math.inf}.get(norm, norm)
    h = FLAT.copy()
    if num is not None:
        h[np.argsort(np.abs(h))[: len(h) - num]] = 0
    want = np.sign(h) if p == math.inf else np.sign(h) * np.abs(h) ** (1 / (p - 1))
    want *= 0.3 / np.linalg.norm(want, p)
    got = moved(Corruption(radius=0.3, norm=norm, num=num, step_size=5.0, batch_size=4))
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-14)
    q = 1.0 if p == math.inf else p / (p - 1)
    assert np.isclose(got @ FLAT, 0.3 * np.linalg.norm(h, q))  # no allowed change raises it more


def test_steps_add_up_until_the_ball_ends_them(x64):
    unit = FLAT / np.linalg.norm(FLAT)
    short = Corruption(radius=10.0, step_size=0.1, batch_size=2)
    np.testing.assert_allclose(moved(short, num=5), 0.3 * unit, rtol=1e-10)  # 2 + 2 + 1 rows
    twice = Corruption(radius=10.0, step_size=0.1, batch_size=2, passes=2)
    np.testing.assert_allclose(moved(twice, num=5), 0.6 * unit, rtol=1e-10)
    ended = Corruption(radius=0.25, step_size=0.1, batch_size=2)
    np.testing.assert_allclose(moved(ended, num=5), 0.25 * unit, rtol=1e-10)


def logistic():
    rng = np.random.default_rng(0)
    image, label = rng.normal(size=(11, 1, 1, 4)), rng.integers(0, 3, 11)
    victim = jp.models.logistic_regression((1, 1, 4), 3, bias=False, dtype=jnp.float64)
    weight = rng.normal(size=(4, 3))
    variables = jax.tree.map(lambda _: jnp.asarray(weight), jax.eval_shape(victim.init, KEY))
    return victim, variables, image, label, weight


def by_hand(weight, image, label, order, *, radius, step, size, num):
    """The loop in numpy: mini-batches in order, the norm over everything, the n largest kept."""
    change = np.zeros_like(weight)
    for at in range(0, len(order), size):
        x, y = image[order[at : at + size]].reshape(-1, 4), label[order[at : at + size]]
        z = x @ (weight + change)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        gradient = x.T @ p / len(y)
        change += step * gradient / np.linalg.norm(gradient)
        change[np.abs(change) < np.sort(np.abs(change).ravel())[-num]] = 0
        change *= min(1, radius / np.linalg.norm(change))
    return weight + change


def test_a_pass_is_the_loop_in_numpy(x64):
    victim, variables, image, label, weight = logistic()
    order = np.random.default_rng(1).permutation(11)
    want = by_hand(weight, image, label, order, radius=0.7, step=0.4, size=4, num=5)
    train = jp.Dataset(jnp.asarray(image), jnp.asarray(label, jnp.int32))
    got = parameter_corruption(
        KEY, victim, variables, train,
        Corruption(radius=0.7, num=5, step_size=0.4, batch_size=4, scale=0.5),
        order=jnp.asarray(order),
    )  # fmt: skip
    (got,) = jax.tree.leaves(got.params)
    np.testing.assert_allclose(got, 0.5 * want, rtol=1e-12)


def test_train_mode_is_read_and_statistics_stay(x64):
    eval_mode = Corruption(radius=0.3, step_size=5.0, batch_size=4)
    train_mode = Corruption(radius=0.3, step_size=5.0, batch_size=4, train=True)
    np.testing.assert_allclose(moved(train_mode), -moved(eval_mode), rtol=1e-12)


def test_a_network_gets_worse_within_the_radius():
    data = jp.data.synthetic.blobs(KEY, 24, num_classes=3, image_shape=(2, 2, 1))
    victim = jp.models.mlp((2, 2, 1), 3, hidden=(6,), batch_norm=False)
    before = victim.init(KEY)
    corruption = Corruption(radius=0.5, batch_size=8, step_size=0.4)
    after = jax.jit(parameter_corruption, static_argnums=(1, 4))(
        KEY, victim, before, data, corruption
    )

    def loss(variables):
        scores = jax.nn.log_softmax(victim.apply(variables, data.image / 255, train=False)[0])
        return -jnp.mean(scores[jnp.arange(24), data.label])

    change = jp.tree.norm(jax.tree.map(jnp.subtract, after.params, before.params))
    assert 0.45 < change <= 0.5 + 1e-5
    assert loss(after) > loss(before) + 0.1


def test_a_scaled_head_predicts_the_same():
    linear = jp.models.logistic_regression((2, 2, 1), 3)
    own = jax.tree.map(lambda x: x + 0.1, linear.init(KEY))
    image = jax.random.uniform(KEY, (5, 2, 2, 1))
    scores, small = (linear.apply(v, image, train=False)[0] for v in (own, scale_target(own, 0.25)))
    np.testing.assert_allclose(small, 0.25 * scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.0}, "radius = 0.0; it must be a finite number above 0"),
        ({"norm": "l1"}, "norm = 'l1'; allowed are l2, linf, a number above 1"),
        ({"norm": 1.0}, "norm = 1.0; it must be a finite number above 1"),
        ({"num": 0}, "num = 0; it must be at least 1"),
        ({"scale": 1.5}, "scale = 1.5; it must be a number above 0 and at most 1"),
        ({"passes": 0}, "passes = 0; it must be at least 1"),
    ],
)
def test_a_setting_that_cannot_be_used(options, message):
    with pytest.raises(jp.InputError, match=message.replace("(", "\\(")):
        inspect.unwrap(Corruption)(**options)


def test_an_order_of_another_length():
    victim = linear_loss()
    with pytest.raises(jp.InputError, match=r"order has shape \(3,\); the data set has 5 rows"):
        parameter_corruption(
            KEY, victim, victim.init(KEY), rows(5), Corruption(), order=jnp.arange(3)
        )


def test_arrays_of_another_network():
    victim = linear_loss()
    stacked = jax.tree.map(lambda x: x[None], victim.init(KEY))
    with pytest.raises(jp.InputError, match="the network to corrupt has an array of shape"):
        parameter_corruption(KEY, victim, stacked, rows(5), Corruption())
