"""Block means of grey levels, against pillow's box filter."""

import numpy as np
import pytest
from PIL import Image

import jaxpoison as jp


@pytest.mark.parametrize("channels", (1, 3))
def test_blocks_become_their_means(channels):
    image = np.random.default_rng(0).integers(0, 256, (3, 8, 12, channels)).astype(np.uint8)
    made = jp.data.shrunk(jp.Dataset(image, np.arange(3, dtype=np.int32)), 4)
    assert made.image.shape == (3, 2, 3, channels) and made.image.dtype == np.uint8
    np.testing.assert_array_equal(made.label, np.arange(3))
    for one, want in zip(made.image, image, strict=True):
        for i in range(channels):
            box = Image.fromarray(want[..., i]).resize((3, 2), Image.Resampling.BOX)
            assert np.max(np.abs(one[..., i].astype(int) - np.asarray(box))) <= 1  # its halves
    half = np.array([[0, 1], [1, 0]], np.uint8).reshape(1, 2, 2, 1)
    assert jp.data.shrunk(jp.Dataset(half + 1, np.zeros(1, np.int32)), 2).image.item() == 2


def test_wrong_arguments_are_one_clear_line():
    dataset = jp.Dataset(np.zeros((2, 6, 6, 1), np.uint8), np.zeros(2, np.int32))
    for image, side, line in (
        (dataset.image, 4, "side = 4 does not divide the 6 x 6 image"),
        (dataset.image, 0, "side = 0; it must be at least 1"),
        (dataset.image / 255, 2, r"images are float64 \(2, 6, 6, 1\); uint8"),
    ):
        with pytest.raises(jp.InputError, match=f"^{line}"):
            jp.data.shrunk(dataset._replace(image=image), side)
