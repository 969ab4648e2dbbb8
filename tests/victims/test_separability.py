import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.victims import linear_separability

pytestmark = pytest.mark.usefixtures("quick_module")


def test_linear_separability_of_noise():
    """1 where a hyperplane parts the classes, whatever the sizes; XOR is beyond any."""
    rng = np.random.RandomState(0)
    label = rng.randint(0, 2, 400)
    noise = rng.randn(400, 4, 4, 1)
    noise[:, 0, 0, 0] = np.where(label, 3, -3) + 0.1 * rng.randn(400)
    assert linear_separability(noise, label) == 1.0
    size = 10 ** rng.uniform(-6, 6, (400, 1, 1, 1))
    assert linear_separability(size * noise, label) == 1.0
    sides = rng.choice([-1.0, 1.0], (4000, 1, 2, 1))
    assert linear_separability(sides, (sides.prod(axis=(1, 2, 3)) > 0).astype(int)) < 0.8
    chance = linear_separability(rng.randn(4000, 2, 2, 1), rng.randint(0, 10, 4000))
    assert abs(chance - 0.1) < 0.04


def test_linear_separability_of_synthetic_poisons():
    """LSP is what its name says; the noise of AR has no mean and is not."""
    label = jnp.arange(500, dtype=jnp.int32) % 5
    train = jp.Dataset(jnp.full((500, 8, 8, 1), 128, jnp.uint8), label)
    data = jp.Scenario(train, train, jnp.arange(500, dtype=jnp.int32))

    def score(attack):
        noise = np.asarray(jax.jit(attack.init)(jax.random.key(0), data))
        return linear_separability(noise, label, max_iter=100)

    assert score(jp.attacks.lsp(num_classes=5, patch=2)) == 1.0
    assert score(jp.attacks.autoregressive(num_classes=5)) < 0.8


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((3, 4), [0, 1, 0], "delta (3, 4) and label (3,) must be [N, H, W, C] and [N]"),
        ((3, 2, 2, 1), [0, 1], "delta (3, 2, 2, 1) and label (2,) must be [N, H, W, C] and [N]"),
        ((2, 2, 2, 1), [1, 1], "label names a single class; at least two are needed"),
    ],
)
def test_noise_of_another_form_is_one_line(shape, label, message):
    with pytest.raises(jp.InputError) as caught:
        inspect.unwrap(linear_separability)(np.zeros(shape), np.array(label))
    assert str(caught.value) == message
