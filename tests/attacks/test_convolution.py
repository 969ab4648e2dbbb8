import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from sklearn.linear_model import RidgeClassifier

import jaxpoison as jp
from jaxpoison.attacks.unlearnable.convolution import class_filters, convolve, released_filters
from jaxpoison.data.rounding import to_uint8

pytestmark = pytest.mark.usefixtures("quick_module")
KEY = jax.random.key(0)


def scenario(image, label, index=None):
    train = jp.Dataset(jnp.asarray(image, jnp.uint8), jnp.asarray(label, jnp.int32))
    index = np.arange(len(label)) if index is None else index
    return jp.Scenario(train, train, jnp.asarray(index, jnp.int32))


def poisoned_by(attack, data):
    state = jax.jit(attack.init)(KEY, data)
    return np.asarray(attack.poison(state, data).image, np.float64)


def expected(image, filters):
    """SciPy's correlation of each [h, w, c] image with its own filter, over its maximum."""
    found = [
        scipy.ndimage.correlate(
            x.astype(np.float64), w[:, :, None].astype(np.float64), mode="constant"
        )
        for x, w in zip(image, filters, strict=True)
    ]
    return np.stack([y / y.max() for y in found])


@pytest.mark.parametrize(("size", "blur", "channels"), [(3, 0.3, 3), (9, 0.06, 1)])
def test_every_image_goes_through_the_filter_of_its_class(size, blur, channels):
    rng = np.random.RandomState(size)
    image, label = rng.randint(0, 256, (9, 11, 12, channels)), np.array([2, 0, 1, 1, 2, 0, 2, 1, 0])
    attack = jp.attacks.convolution(num_classes=3, kernel_size=size, blur=blur)
    filters = np.asarray(class_filters(KEY, num_classes=3, kernel_size=size, blur=blur))
    wanted = image / 255
    wanted[[7, 2, 4]] = expected(wanted[[7, 2, 4]], filters[label[[7, 2, 4]]])
    found = poisoned_by(attack, scenario(image, label, [7, 2, 4]))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    shared = jp.attacks.convolution(num_classes=3, kernel_size=size, blur=blur, shared=True)
    wanted = expected(image / 255, filters[np.zeros(9, int)])
    np.testing.assert_allclose(poisoned_by(shared, scenario(image, label)), wanted, atol=1e-6)


def test_filters_have_one_entry_of_one_and_the_others_below_the_bound():
    filters = np.asarray(class_filters(KEY, num_classes=4000, blur=0.3)).reshape(4000, 9)
    ones = filters == 1
    np.testing.assert_array_equal(ones.sum(axis=1), 1)
    np.testing.assert_allclose(ones.mean(axis=0), 1 / 9, atol=0.02)  # each place as often
    small = filters[~ones]
    assert small.min() >= 0 and small.max() < 0.3
    quarters = np.histogram(small, bins=4, range=(0, 0.3))[0] / len(small)
    np.testing.assert_allclose(quarters, 0.25, atol=0.01)


def test_the_released_draw_is_that_of_numpys_generator():
    """Golden: the first and the tenth class, as `np.random.seed(0)` gives them."""
    golden = {
        0: [
            [0.16464405, 0.21455681, 1.0],
            [0.16346495, 0.12709644, 0.19376823],
            [0.13127616, 0.2675319, 0.28909883],
        ],
        9: [
            [0.16565774, 0.17534283, 0.28858092],
            [0.08764426, 1.0, 0.03008818],
            [0.00492889, 0.27885878, 0.20097497],
        ],
    }
    filters = released_filters(num_classes=10)
    for c, kernel in golden.items():
        np.testing.assert_allclose(filters[c], kernel, atol=1e-7)
    np.testing.assert_array_equal(filters[:4], released_filters(num_classes=4))
    image, label = np.random.RandomState(0).randint(0, 256, (10, 6, 6, 3)), np.arange(10)
    attack = jp.attacks.convolution(num_classes=10, draw="released")
    found = poisoned_by(attack, scenario(image, label))
    np.testing.assert_allclose(found, expected(image / 255, filters), atol=1e-6)


def operator(kernel, height, width):
    """[HW, HW] of the correlation with zeros around."""
    unit = np.eye(height * width).reshape(-1, height, width)
    columns = [scipy.ndimage.correlate(x, kernel, mode="constant").ravel() for x in unit]
    return np.stack(columns, axis=1)


def test_a_known_filter_is_undone():
    """In float64 to its rounding; from stored grey levels within |A^-1| of one of them.

    Rows of |A - 1| sum to 8 b = 0.4 at most where the 1 is in the middle, so |A^-1| <= 1 / 0.6.
    """
    rng = np.random.RandomState(0)
    image, blur = rng.randint(0, 256, (4, 9, 10, 1)).astype(np.uint8), 0.05
    filters = blur * rng.rand(4, 3, 3)
    filters[:, 1, 1] = 1
    clean = image / 255
    with jax.enable_x64(True):
        poisoned = np.asarray(convolve(jnp.asarray(clean), jnp.arange(4), jnp.asarray(filters)))
    stored = to_uint8(poisoned, image, norm=None, eps=None, rounding="truncate")
    for x, exact, grey, kernel in zip(clean, poisoned, stored, filters, strict=True):
        matrix = operator(kernel, 9, 10)
        largest = (matrix @ x.ravel()).max()
        undone = largest * np.linalg.solve(matrix, exact.ravel())
        np.testing.assert_allclose(undone, x.ravel(), atol=1e-12)
        undone = largest * np.linalg.solve(matrix, grey.ravel() / 255)
        assert np.abs(undone - x.ravel()).max() <= largest / 0.6 / 255 + 1e-9


def test_a_black_image_stays_black():
    image = np.zeros((2, 4, 4, 3))
    image[1, 2, 2] = 9
    found = poisoned_by(jp.attacks.convolution(num_classes=2), scenario(image, [0, 1]))
    assert not found[0].any() and found[1].max() == pytest.approx(1.0)


def test_random_labels_leak_into_the_spectrum():
    """A filter multiplies the spectrum: its logarithm is what a linear probe reads (0.97)."""
    label = np.random.RandomState(0).randint(0, 10, 1000)
    image = jp.data.synthetic.toy_shapes(jax.random.key(0), 1000).image
    poisoned = poisoned_by(jp.attacks.convolution(num_classes=10), scenario(image, label))

    def probe(image):
        spectrum = np.log(np.abs(np.fft.rfft2(image, axes=(1, 2))).mean(axis=3) + 1e-3)
        x = spectrum.reshape(1000, -1)
        return RidgeClassifier().fit(x[:500], label[:500]).score(x[500:], label[500:])

    assert abs(probe(np.asarray(image) / 255) - 0.1) < 0.04
    assert probe(poisoned) >= 0.8
