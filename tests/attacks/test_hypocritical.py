import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from tests import oracles
from tests.attacks import tiny

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)
EPS = 0.15


def scenario():
    """Eight images, some of them at the box; rows 6, 2, 0, 5, 3 may change."""
    data = oracles.tiny_scenario()
    image = data.train.image.at[2, 0].set(0.0).at[5, 1].set(1.0)
    variables = oracles.smooth_victim().init(jax.random.key(7))
    index = jnp.array([6, 2, 0, 5, 3], jnp.int32)
    return jp.Scenario(data.train._replace(image=image), data.goal, index, aux=variables)


def halved(key, image):
    del key
    return 0.5 * image


@pytest.mark.parametrize("augment", [None, halved])
def test_steps_are_the_hand_formula(augment):
    """From 0, d <- clip(clip(d - eps/10 sign g, -eps, eps), -x, 1 - x) to the true label."""
    data = scenario()
    single = jp.attacks.hypocritical(
        oracles.smooth_victim(), eps=EPS, augment=augment, batch_size=2
    )
    state = single.init(KEY, data)
    np.testing.assert_array_equal(state.theta, 0)
    w, v = (np.asarray(data.aux.params[name], np.float64) for name in "wv")
    rows = np.asarray(data.index)
    x = np.asarray(data.train.image, np.float64)[rows]
    y = np.asarray(data.train.label)[rows]
    delta, scale = np.zeros_like(x), 1 if augment is None else 0.5
    for number in range(12):  # beyond the radius
        loss, gradient, _, _ = tiny.losses_and_gradients(w, v, scale * (x + delta), y)
        state, info = jax.jit(single.step)(jax.random.key(number), state, data)
        assert float(info.outer_loss) == pytest.approx(loss.mean(), abs=1e-5)
        stepped = np.clip(delta - EPS / 10 * np.sign(gradient), -EPS, EPS)
        delta = np.clip(stepped, -x, 1 - x)
        np.testing.assert_allclose(state.theta, delta, atol=1e-6)
    np.testing.assert_array_equal(state.phi.params["w"], data.aux.params["w"])


def test_the_augmentation_of_the_paper_is_the_default():
    """A shift by up to an eighth of the image, black outside, and a mirror."""
    parameters = inspect.signature(inspect.unwrap(jp.attacks.hypocritical)).parameters
    image = jax.random.uniform(KEY, (3, 8, 8, 1))
    expected = jp.data.augment.shift_flip(max_pixels=1.0, fill=0.0)(KEY, image)
    np.testing.assert_array_equal(parameters["augment"].default(KEY, image), expected)


def test_bad_values_are_one_line():
    data = scenario()
    for options, message in [
        ({"step_size": 0.0}, "step_size = 0.0; it must be a finite number above 0"),
        ({"batch_size": 0}, "batch_size = 0; it must be at least 1"),
    ]:
        with pytest.raises(jp.InputError, match=message):
            jp.attacks.hypocritical(oracles.smooth_victim(), eps=EPS, **options)
    single = jp.attacks.hypocritical(oracles.smooth_victim(), eps=EPS)
    with pytest.raises(jp.InputError, match="scenario.aux is empty"):
        single.init(KEY, data._replace(aux=()))
    with pytest.raises(jp.InputError, match="scenario.index is empty"):
        single.init(KEY, data._replace(index=data.index[:0]))
