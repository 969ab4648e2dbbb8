"""JPEG inside a training step: pillow's levels but for a few; qualities drawn; its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.data.compression import jpeg
from tests.oracles import photographs

KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("quick_module")


def levels(image, quality):
    found = np.asarray(jpeg(quality)(KEY, jnp.asarray(image, jnp.float32) / 255)) * 255
    np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
    return np.rint(found)


def pillow(image, quality):
    dataset = jp.Dataset(jnp.asarray(image), jnp.zeros(len(image), jnp.int32))
    result, _ = jp.defenses.fit_purify(jp.defenses.jpeg(quality=quality), KEY, dataset)
    return np.asarray(result.image, np.float64)


@pytest.mark.parametrize(("quality", "least"), [(10, 0.99), (50, 0.98), (90, 0.95)])
def test_images_are_those_of_pillow(quality, least):
    image = photographs(50)
    found, wanted = levels(image, quality), pillow(image, quality)
    assert np.mean(found == wanted) >= least and np.mean(np.abs(found - wanted)) <= 0.2


def test_gray_images_and_sides_that_16_does_not_divide():
    image = photographs(50)
    for some in (image[..., 1:2], image[:, :21, :27]):
        found, wanted = levels(some, 10), pillow(some, 10)
        assert np.mean(found == wanted) >= 0.95 and np.mean(np.abs(found - wanted)) <= 0.2


def test_the_quality_is_drawn_for_the_batch_from_all_of_its_range():
    image = jnp.asarray(photographs(4), jnp.float32) / 255
    known = {q: np.asarray(jpeg(q)(KEY, image)) for q in (30, 31, 32)}
    draw, seen = jax.jit(jpeg((30, 32))), set()
    for seed in range(16):
        found = np.asarray(draw(jax.random.key(seed), image))
        near = {q: np.mean(np.abs(found - x) < 1e-3) for q, x in known.items()}
        best = max(near, key=near.get)
        assert near[best] > 0.98 > 0.9 > sorted(near.values())[1]
        seen.add(best)
    assert seen == {30, 31, 32}


def test_the_gradient_passes_straight_through():
    image = jnp.asarray(photographs(2), jnp.float32)[:, :16, :16] / 255
    weight = jnp.asarray(np.random.default_rng(0).normal(size=image.shape), jnp.float32)
    slope = jax.grad(lambda x: jnp.sum(weight * jpeg(10)(KEY, x)))(image)
    np.testing.assert_allclose(slope, weight, rtol=1e-6)


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        (0, "^quality = 0; it must be at least 1"),
        ((10, 101), "^quality = 101; it must be from 1 to 100"),
        (7.5, "^quality = 7.5; it must be a whole number"),
        ((50, 10), r"^quality = \(50, 10\); it must be \(least, largest\)"),
        ((10, 20, 30), r"^quality = \(10, 20, 30\); it must be a whole number or \(least, largest"),
    ],
)
def test_a_bad_quality_is_one_line(quality, message):
    factory = getattr(jpeg, "__wrapped__", jpeg)
    with pytest.raises(jp.InputError, match=message):
        factory(quality)


def test_other_channels_are_refused():
    with pytest.raises(jp.InputError, match="^images have 2 channels; jpeg takes 1 or 3"):
        jpeg()(KEY, jnp.zeros((1, 8, 8, 2)))
