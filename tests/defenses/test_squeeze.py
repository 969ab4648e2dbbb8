"""Grayscale against pillow's "L", bit depth against pillow's posterize; what they refuse."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

import jaxpoison as jp

KEY = jax.random.key(0)


def pictures(channels=3, dtype=np.uint8):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 5, channels))
    return jp.Dataset(image.astype(dtype), np.arange(7, dtype=np.int32) % 3)


def purified(purifier, dataset):
    result, info = jp.defenses.fit_purify(purifier, KEY, dataset)
    assert info == () and result.image.dtype == np.uint8
    np.testing.assert_array_equal(result.label, dataset.label)
    return np.asarray(result.image)


def test_grayscale_is_pillows():
    dataset = pictures()
    expected = [np.asarray(Image.fromarray(x).convert("L")) for x in dataset.image]
    found = purified(jp.defenses.grayscale(), dataset)
    np.testing.assert_array_equal(found, np.repeat(np.stack(expected)[..., None], 3, axis=3))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bit_depth_is_pillows(bits):
    dataset = pictures()
    expected = [np.asarray(ImageOps.posterize(Image.fromarray(x), bits)) for x in dataset.image]
    found = purified(jp.defenses.bit_depth(bits=bits), dataset)
    np.testing.assert_array_equal(found, np.stack(expected))
    assert len(np.unique(found)) <= 2**bits
    again = purified(jp.defenses.bit_depth(bits=bits), dataset._replace(image=found))
    np.testing.assert_array_equal(again, found)


def test_one_channel_is_gray_already():
    dataset = pictures(channels=1)
    np.testing.assert_array_equal(purified(jp.defenses.grayscale(), dataset), dataset.image)


def test_what_is_refused():
    for bits in (0, 9):
        with pytest.raises(jp.InputError, match="^bits = "):
            jp.defenses.bit_depth(bits=bits)
    with pytest.raises(jp.InputError, match="^images have 4 channels; grayscale takes 1 or 3"):
        jp.defenses.fit_purify(jp.defenses.grayscale(), KEY, pictures(channels=4))
    with pytest.raises(jp.InputError, match="^images are float32; this purifier takes uint8"):
        jp.defenses.fit_purify(jp.defenses.grayscale(), KEY, pictures(dtype=np.float32))
    with pytest.raises(jp.InputError, match="^rows = 0"):
        empty = jax.tree.map(lambda x: x[:0], pictures())
        jp.defenses.fit_purify(jp.defenses.grayscale(), KEY, empty)
