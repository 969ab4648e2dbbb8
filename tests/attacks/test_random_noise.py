import jax
import jax.numpy as jnp
import numpy as np

import jaxpoison as jp

KEY = jax.random.key(3)


def delta_of(attack, level, num=40, shape=(6, 5, 3)):
    train = jp.Dataset(jnp.full((num, *shape), level, jnp.uint8), jnp.zeros(num, jnp.int32))
    data = jp.Scenario(train, train, jnp.arange(num, dtype=jnp.int32))
    state, _ = jp.run(attack, KEY, data, num_steps=1)
    return np.asarray(attack.poison(state, data).image, np.float64) - level / 255


def test_linf_noise_is_eps_everywhere():
    delta = delta_of(jp.attacks.random_noise(eps=0.1), 128)
    np.testing.assert_allclose(np.abs(delta), 0.1, atol=1e-6)
    assert abs(np.mean(delta > 0) - 0.5) < 0.04  # 3,600 fair signs: 0.5 +- 0.008
    dark = delta_of(jp.attacks.random_noise(eps=0.1), 0)
    np.testing.assert_allclose(np.unique(dark.round(6)), [0, 0.1])


def test_l2_noise_has_the_norm():
    delta = delta_of(jp.attacks.random_noise(eps=0.5, norm="l2"), 128).reshape(40, -1)
    np.testing.assert_allclose(np.linalg.norm(delta, axis=1), 0.5, rtol=1e-5)
    assert abs(delta.mean()) < 0.005 and len(np.unique(delta.round(6))) > 3000


def test_l0_noise_changes_that_many_pixels_at_random_places():
    delta = delta_of(jp.attacks.random_noise(eps=4, norm="l0"), 128)
    changed = (np.abs(delta) > 1e-6).any(axis=3)
    np.testing.assert_array_equal(changed.sum(axis=(1, 2)), 4)
    assert changed.any(axis=0).mean() > 0.9  # 160 throws at 30 places
    assert np.abs(delta).max() <= 0.51
