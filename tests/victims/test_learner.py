import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpoison import models, victims
from jaxpoison.types import Batch, TrainState, Variables, Victim
from tests.oracles import smooth_victim

KEY = jax.random.key(0)


def batch(num=6, *, weight=None, dtype=None):
    rng = np.random.RandomState(2)
    image = jnp.asarray(rng.uniform(size=(num, 3, 3, 1)), dtype)
    label = jnp.asarray(rng.randint(0, 3, num), jnp.int32)
    weight = jnp.ones(num) if weight is None else jnp.asarray(weight)
    return Batch(image, label, weight.astype(image.dtype), jnp.arange(num, dtype=jnp.int32))


def by_hand(params, batch):
    """Loss, its gradient and the accuracy of the two-layer tanh net, in numpy."""
    w, v = np.asarray(params["w"]), np.asarray(params["v"])
    x, y = np.asarray(batch.image).reshape(len(batch.label), -1), np.asarray(batch.label)
    share = np.asarray(batch.weight) / np.sum(batch.weight)
    h = np.tanh(x @ w)
    z = h @ v
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = -np.sum(share * np.log(p[rows, y]))
    dz = share[:, None] * (p - np.eye(p.shape[1])[y])
    dh = dz @ v.T * (1 - h**2)
    return loss, {"w": x.T @ dh, "v": h.T @ dz}, np.sum(share * (z.argmax(axis=1) == y))


@pytest.mark.parametrize("weight", [None, [1, 1, 1, 1, 1, 0], [0.5, 2, 0, 1, 3, 0.25]])
def test_a_step_equals_numpy(x64, weight):
    learner = victims.learner(smooth_victim(), optax.sgd(0.3, momentum=0.9))
    first, data = jax.jit(learner.init)(KEY), batch(weight=weight)
    step = jax.jit(learner.step)
    phi, velocity = first, {"w": 0.0, "v": 0.0}
    params = jax.tree.map(np.asarray, first.params)
    for _ in range(3):
        loss, gradient, accuracy = by_hand(params, data)
        phi, info = step(KEY, phi, data)
        np.testing.assert_allclose(info.outer_loss, loss, rtol=1e-10)
        size = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
        np.testing.assert_allclose(info.grad_norm, size, rtol=1e-10)
        np.testing.assert_allclose(info.accuracy, accuracy, rtol=1e-10)
        assert info.finite
        for name in params:
            velocity[name] = 0.9 * velocity[name] + gradient[name]
            params[name] = params[name] - 0.3 * velocity[name]
            np.testing.assert_allclose(phi.params[name], params[name], rtol=1e-10)


def test_rows_of_weight_zero_move_nothing(strict_dtypes):
    learner = victims.learner(smooth_victim(), optax.sgd(0.3))
    phi, step = jax.jit(learner.init)(KEY), jax.jit(learner.step)
    kept = batch(6, dtype=jnp.float32)
    with_filling = jax.tree.map(lambda x: jnp.concatenate([x, x[:3]]), kept)
    with_filling = with_filling._replace(weight=jnp.array([1.0] * 6 + [0.0] * 3))
    other = with_filling._replace(
        image=with_filling.image.at[6:].set(0.123), label=with_filling.label.at[6:].add(1) % 3
    )
    expected, expected_info = step(KEY, phi, kept)
    state, info = step(KEY, phi, with_filling)
    np.testing.assert_array_equal(state.params["w"], step(KEY, phi, other)[0].params["w"])
    for got, want in zip(info, expected_info, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    for name in ("w", "v"):
        np.testing.assert_allclose(state.params[name], expected.params[name], rtol=1e-5)


def test_a_batch_without_any_weight_stands_still():
    learner = victims.learner(smooth_victim(), optax.sgd(0.3))
    phi = jax.jit(learner.init)(KEY)
    after, info = jax.jit(learner.step)(KEY, phi, batch(weight=np.zeros(6)))
    assert info.outer_loss == 0 and info.grad_norm == 0 and info.accuracy == 0 and info.finite
    np.testing.assert_array_equal(after.params["w"], phi.params["w"])


def test_the_loss_reads_batch_statistics_and_a_nan_is_reported():
    victim = models.mlp((3, 3, 1), 3, hidden=(4,))
    learner = victims.learner(victim, optax.sgd(0.1))
    phi, data = jax.jit(learner.init)(KEY), batch()
    assert isinstance(phi, TrainState)
    loss_fn = jax.jit(learner.loss)
    loss, (logits, stats) = loss_fn(KEY, phi.params, phi.stats, data)
    moved = jax.tree.map(lambda s: s + 5.0, phi.stats)
    again, _ = loss_fn(KEY, phi.params, moved, data)
    assert loss == again  # train mode does not read running statistics
    normal = np.asarray(logits)  # BatchNorm is last, with scale 1 and shift 0
    np.testing.assert_allclose(normal.mean(axis=0), 0, atol=1e-5)
    first = jax.tree.leaves(stats)[0]
    assert not np.array_equal(first, jax.tree.leaves(phi.stats)[0])
    broken = data._replace(image=data.image.at[0, 0, 0, 0].set(jnp.nan))
    _, info = jax.jit(learner.step)(KEY, phi, broken)
    assert not info.finite


@pytest.mark.parametrize("accumulate", [2, 3, 4, 6, 7, 9])
def test_accumulated_steps_equal_numpy(x64, accumulate):
    """Micro-batches of 3 + 3, 2 + 2 + 2, 2 + 2 + 2 (of 4), and single rows; weights unequal."""
    learner = victims.learner(smooth_victim(), optax.sgd(0.3), accumulate=accumulate)
    phi, data = jax.jit(learner.init)(KEY), batch(weight=[0.5, 2, 0, 1, 3, 0.25])
    loss, gradient, accuracy = by_hand(phi.params, data)
    after, info = jax.jit(learner.step)(KEY, phi, data)
    np.testing.assert_allclose(info.outer_loss, loss, rtol=1e-10)
    np.testing.assert_allclose(info.accuracy, accuracy, rtol=1e-10)
    size = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    np.testing.assert_allclose(info.grad_norm, size, rtol=1e-10)
    for name in gradient:
        expected = np.asarray(phi.params[name]) - 0.3 * gradient[name]
        np.testing.assert_allclose(after.params[name], expected, rtol=1e-10)


def test_a_smaller_last_micro_batch_is_seen_whole(x64):
    """Seven rows in three: 3 + 3 + 1. The last row alone has weight, so it makes the gradient."""
    learner = victims.learner(smooth_victim(), optax.sgd(0.3), accumulate=3)
    phi, data = jax.jit(learner.init)(KEY), batch(7, weight=[0.0] * 6 + [2.0])
    _, gradient, _ = by_hand(phi.params, data)
    after, _ = jax.jit(learner.step)(KEY, phi, data)
    for name in gradient:
        expected = np.asarray(phi.params[name]) - 0.3 * gradient[name]
        np.testing.assert_allclose(after.params[name], expected, rtol=1e-10)


def test_batchnorm_moves_once_per_micro_batch():
    victim = models.mlp((3, 3, 1), 3, hidden=(4,))
    learner = victims.learner(victim, optax.sgd(0.0), accumulate=2)
    phi, data = jax.jit(learner.init)(KEY), batch(6, dtype=jnp.float32)
    after, _ = jax.jit(learner.step)(KEY, phi, data)
    dense = jax.tree.map(np.asarray, phi.params)["Dense_0"]
    mean = np.zeros(4)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        hidden = np.asarray(data.image[rows]).reshape(3, -1) @ dense["kernel"] + dense["bias"]
        mean = 0.9 * mean + 0.1 * hidden.mean(axis=0)
    np.testing.assert_allclose(after.stats["BatchNorm_0"]["mean"], mean, atol=1e-6)


def test_dropout_draws_anew_in_each_micro_batch():
    def init(key):
        del key
        return Variables({"w": jnp.zeros((9, 3))}, {"keep": jnp.zeros(9)})

    def apply(variables, image, *, train, key=None):
        keep = jax.random.bernoulli(key, 0.5, (9,)) if train else jnp.ones(9)
        stats = {"keep": 2 * variables.stats["keep"] + keep}
        return (image.reshape(-1, 9) * keep[None]) @ variables.params["w"], stats

    learner = victims.learner(Victim(init, apply, apply), optax.sgd(0.1), accumulate=2)
    after, _ = jax.jit(learner.step)(KEY, learner.init(KEY), batch(dtype=jnp.float32))
    draws = {tuple(divmod(int(x), 2)) for x in after.stats["keep"]}
    assert draws & {(0, 1), (1, 0)}  # some input kept in one of the two and dropped in the other


def test_accumulation_holds_the_activations_of_a_micro_batch():
    victim = models.small_cnn((16, 16, 3), 3, widths=(8, 8))

    def temporary(accumulate):
        learner = victims.learner(victim, optax.sgd(0.1), accumulate=accumulate)
        phi = jax.eval_shape(learner.init, KEY)
        data = jax.eval_shape(lambda: Batch(
            jnp.zeros((64, 16, 16, 3)), jnp.zeros(64, jnp.int32), jnp.ones(64), jnp.arange(64)
        ))  # fmt: skip
        lowered = jax.jit(learner.step).lower(jax.eval_shape(lambda: KEY), phi, data)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 3
