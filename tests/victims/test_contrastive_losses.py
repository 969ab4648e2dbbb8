"""NT-Xent and InfoNCE against plain loops and central differences; the momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.victims import info_nce, nt_xent
from jaxpoison.victims.contrastive_losses import cosine_momentum

pytestmark = pytest.mark.usefixtures("quick_module")
T = 0.3


def pair(num=5, width=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, width)), 3 * rng.normal(size=(num, width))


def by_loops(first, second):
    """Chen et al. 2020, algorithm 1, as it is printed."""
    num, z = len(first), []
    for k in range(num):
        z += [first[k], second[k]]
    s = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in z] for a in z]

    def loss(i, j):
        rest = sum(np.exp(s[i][k] / T) for k in range(2 * num) if k != i)
        return -np.log(np.exp(s[i][j] / T) / rest)

    return [(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k)) / 2 for k in range(num)]


def info_nce_by_loops(query, key):
    """MoCo-v3's loss of one direction, Chen et al. 2021, algorithm 1, row by row."""
    losses = []
    for k, q in enumerate(query):
        cosines = [q @ x / np.sqrt((q @ q) * (x @ x)) for x in key]
        losses.append(-2 * T * np.log(np.exp(cosines[k] / T) / sum(np.exp(c / T) for c in cosines)))
    return np.array(losses)


def with_gradient(loss):
    """(losses, gradient of their mean in the first argument), compiled."""

    def mean(first, second):
        losses = loss(first, second, temperature=T)
        return losses.mean(), losses

    def both(first, second):
        slope, losses = jax.grad(mean, has_aux=True)(first, second)
        return losses, slope

    return jax.jit(both)


def differences(f, x, step=1e-6):
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        slope[i] = (f(up) - f(down)) / (2 * step)
    return slope


@pytest.mark.usefixtures("x64")
def test_nt_xent_is_the_double_loop_and_its_gradient_the_differences():
    first, second = pair()
    ours, slope = with_gradient(nt_xent)(first, second)
    np.testing.assert_allclose(ours, by_loops(first, second), rtol=1e-12)
    want = differences(lambda x: np.mean(by_loops(x, second)), first)
    np.testing.assert_allclose(slope, want, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_info_nce_is_the_loop_and_its_gradient_the_differences():
    query, key = pair()
    ours, slope = with_gradient(info_nce)(query, key)
    np.testing.assert_allclose(ours, info_nce_by_loops(query, key), rtol=1e-12)
    want = differences(lambda x: float(info_nce_by_loops(x, key).mean()), query)
    np.testing.assert_allclose(slope, want, rtol=1e-6, atol=1e-9)


def test_an_embedding_of_zeros_has_a_gradient():
    first, second = (jnp.asarray(x, jnp.float32).at[0].set(0) for x in pair())
    slope = with_gradient(nt_xent)(first, second)[1]
    assert np.all(np.isfinite(slope))


def test_the_momentum_rises_by_half_a_cosine():
    found = cosine_momentum(0.9, jnp.asarray([0, 2, 4, 8]), 8)
    want = [0.9, 1 - 0.1 * (1 + np.sqrt(0.5)) / 2, 0.95, 1.0]
    np.testing.assert_allclose(found, want, atol=1e-6)
