"""Mean, median, Gaussian and bilateral against loops over pixels and closed forms."""

import itertools

import jax
import numpy as np
import pytest

import jaxpoison as jp

KEY = jax.random.key(0)
NUM, SIZE = 3, (7, 6)

pytestmark = pytest.mark.usefixtures("quick_module")


def pictures(channels=3):
    image = np.random.default_rng(0).integers(0, 256, (NUM, *SIZE, channels), np.uint8)
    return jp.Dataset(image, np.arange(NUM, dtype=np.int32))


def purified(purifier, image):
    dataset = jp.Dataset(image, np.zeros(len(image), np.int32))
    result, info = jp.defenses.fit_purify(purifier, KEY, dataset)
    assert info == () and result.image.dtype == np.uint8
    return np.asarray(result.image)


def mirrored(i, n):
    """d c b | a b c d | c b a."""
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


def repeated(i, n):
    return min(max(i, 0), n - 1)


def by_loops(image, size, border, merge):
    """merge(center [C], values [K, C], offsets [K, 2]) at every pixel."""
    result, reach = np.empty(image.shape), range(-(size // 2), size // 2 + 1)
    steps = list(itertools.product(reach, reach))
    for n, i, j in np.ndindex(*image.shape[:3]):
        near = [(border(i + a, SIZE[0]), border(j + b, SIZE[1])) for a, b in steps]
        values = np.array([image[n, a, b] for a, b in near], float)
        result[n, i, j] = merge(image[n, i, j].astype(float), values, np.array(steps))
    return np.rint(result).astype(np.uint8)


def weighted(values, weight):
    return weight @ values / weight.sum()


@pytest.mark.parametrize("size", (3, 5))
@pytest.mark.parametrize("channels", (1, 3))
def test_mean(size, channels):
    image = pictures(channels).image
    wanted = by_loops(image, size, mirrored, lambda c, v, s: v.mean(axis=0))
    np.testing.assert_array_equal(purified(jp.defenses.mean(size=size), image), wanted)


@pytest.mark.parametrize("size", (3, 5))
def test_median(size):
    image = pictures().image
    wanted = by_loops(image, size, repeated, lambda c, v, s: np.median(v, axis=0))
    np.testing.assert_array_equal(purified(jp.defenses.median(size=size), image), wanted)


@pytest.mark.parametrize(("sigma", "size"), [(1.0, 3), (0.8, 5)])
def test_gaussian(sigma, size):
    image = pictures().image

    def merge(center, values, steps):
        return weighted(values, np.exp(-np.sum(steps**2, axis=1) / (2 * sigma**2)))

    wanted = by_loops(image, size, mirrored, merge)
    np.testing.assert_array_equal(
        purified(jp.defenses.gaussian(sigma=sigma, size=size), image), wanted
    )


@pytest.mark.parametrize(
    ("size", "color", "space", "channels"), [(9, 75.0, 75.0, 3), (5, 30.0, 1.5, 1)]
)
def test_bilateral(size, color, space, channels):
    image = pictures(channels).image

    def merge(center, values, steps):
        squared = np.sum(steps**2, axis=1)
        gap = np.abs(values - center).sum(axis=1)
        weight = np.exp(-squared / (2 * space**2) - gap**2 / (2 * color**2))
        return weighted(values, weight * (squared <= (size // 2) ** 2))

    wanted = by_loops(image, size, mirrored, merge)
    purifier = jp.defenses.bilateral(size=size, sigma_color=color, sigma_space=space)
    np.testing.assert_array_equal(purified(purifier, image), wanted)


def test_the_blur_of_iss_changes_nothing():
    image = pictures().image
    np.testing.assert_array_equal(purified(jp.defenses.gaussian_iss(), image), image)


def test_a_single_pixel_is_spread_by_a_mean_and_removed_by_a_median():
    image = np.zeros((1, 9, 9, 3), np.uint8)
    image[0, 4, 4] = 252
    spread = purified(jp.defenses.mean(), image)
    assert np.all(spread[0, 3:6, 3:6] == 28) and spread.sum() == 9 * 3 * 28
    assert not purified(jp.defenses.median(), image).any()
    kernel = np.outer(*2 * [np.exp([-0.5, 0, -0.5])])
    wanted = np.rint(252 * kernel / kernel.sum())
    np.testing.assert_array_equal(purified(jp.defenses.gaussian(), image)[0, 3:6, 3:6, 0], wanted)


def test_an_edge_outlives_the_bilateral_filter_but_not_the_mean():
    image = np.zeros((1, 8, 8, 3), np.uint8)
    image[:, :, 4:] = 240
    kept = purified(jp.defenses.bilateral(sigma_color=20.0), image)
    np.testing.assert_array_equal(kept, image)
    assert len(np.unique(purified(jp.defenses.mean(), image))) > 2


def test_more_images_than_a_block_holds():
    image = np.random.default_rng(1).integers(0, 256, (300, 4, 5, 1), np.uint8)
    for purifier in (jp.defenses.mean(), jp.defenses.median(), jp.defenses.bilateral(size=3)):
        whole = purified(purifier, image)
        np.testing.assert_array_equal(whole[290:], purified(purifier, image[290:]))


def test_what_is_refused():
    for make in (jp.defenses.mean, jp.defenses.median, jp.defenses.gaussian, jp.defenses.bilateral):
        with pytest.raises(jp.InputError, match="^size = 4; it must be odd"):
            make(size=4)
        with pytest.raises(jp.InputError, match="^size = 0; it must be at least 1"):
            make(size=0)
    with pytest.raises(jp.InputError, match="^sigma = 0"):
        jp.defenses.gaussian(sigma=0)
    with pytest.raises(jp.InputError, match="^sigma_space = -1"):
        jp.defenses.bilateral(sigma_space=-1)
