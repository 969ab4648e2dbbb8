"""JPEG against the standard's arithmetic in numpy: planes, tables, DCT, rounding, upsampling."""

import jax
import numpy as np
import pytest

import jaxpoison as jp
from tests.oracles import natural_images, photographs

KEY = jax.random.key(0)
LUMA = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56
          14 17 22 29 51 87 80 62  18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92
          49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMA = """17 18 24 47  18 21 26 66  24 26 56 99  47 66 99 99"""
LUMA_10 = """80 55 50 80 120 200 255 255  60 60 70 95 130 255 255 255  70 65 80 120 200 255 255 255
             70 85 110 145 255 255 255 255  90 110 185 255 255 255 255 255
             120 175 255 255 255 255 255 255  245 255 255 255 255 255 255 255
             255 255 255 255 255 255 255 255"""
CHROMA_10 = "85 90 120 235  90 105 130 255  120 130 255 255  235 255 255 255"


def table(text, fill):
    """Numbers in rows: 8 x 8, or the upper left 4 x 4 of it with all the others alike."""
    numbers = np.array(text.split(), int)
    result = np.full((8, 8), fill)
    side = int(len(numbers) ** 0.5)
    result[:side, :side] = numbers.reshape(side, side)
    return result


def scaled(base, quality):
    s = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((base * s + 50) // 100, 1, 255)


def tables(quality):
    return scaled(table(LUMA, 0), quality), scaled(table(CHROMA, 99), quality)


def rounded(x):
    return np.floor(x + 0.5)


def of_plane(plane, q):
    """Through blocks of 8 x 8 and back, rounded in between as the reference codec does it.

    Sides are padded by their last values.
    """
    height, width = plane.shape
    p = np.pad(plane, ((0, -height % 8), (0, -width % 8)), mode="edge") - 128.0
    n, k = np.arange(8), np.arange(8)[:, None]
    c = np.where(k == 0, 1, 2**0.5 * np.cos((2 * n + 1) * k * np.pi / 16))  # sqrt 8 times the DCT
    blocks = p.reshape(p.shape[0] // 8, 8, -1, 8).swapaxes(1, 2)
    d = rounded(c @ rounded(4 * blocks @ c.T) / 4)  # 8 times the coefficients
    d = np.sign(d) * ((np.abs(d) + 4 * q) // (8 * q)) * q
    back = rounded(rounded(4 * c.T @ d) @ c / 32).swapaxes(1, 2).reshape(p.shape) + 128
    return np.clip(back, 0, 255)[:height, :width]


def halved(plane):
    """Means of 2 x 2, rounded down after a bias of 1, 2, 1, 2, ... along the columns."""
    p = np.pad(plane, ((0, plane.shape[0] % 2), (0, plane.shape[1] % 2)), mode="edge")
    total = p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]
    return (total + 1 + np.arange(total.shape[1]) % 2) // 4


def doubled(plane):
    """The triangle filter: 3/4 of the nearer and 1/4 of the farther neighbor, rows then columns."""
    rows = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
    tall = np.empty((2 * plane.shape[0], plane.shape[1]))
    tall[::2], tall[1::2] = 3 * plane + rows[:-2], 3 * plane + rows[2:]
    columns = np.pad(tall, ((0, 0), (1, 1)), mode="edge")
    wide = np.empty((tall.shape[0], 2 * tall.shape[1]))
    wide[:, ::2] = (3 * tall + columns[:, :-2] + 8) // 16
    wide[:, 1::2] = (3 * tall + columns[:, 2:] + 7) // 16
    return wide


def codec(image, quality, *, sub=True):
    """One RGB image through the whole pipeline."""
    height, width = image.shape[:2]
    r, g, b = np.moveaxis(image.astype(float), 2, 0)
    luma, chroma = tables(quality)
    y = of_plane(np.floor(0.299 * r + 0.587 * g + 0.114 * b + 0.5), luma)
    blue = np.floor(-0.168735892 * r - 0.331264108 * g + 0.5 * b + 128.499999)
    red = np.floor(0.5 * r - 0.418687589 * g - 0.081312411 * b + 128.499999)
    if sub:
        blue, red = (doubled(of_plane(halved(x), chroma))[:height, :width] for x in (blue, red))
    else:
        blue, red = of_plane(blue, chroma), of_plane(red, chroma)
    blue, red = blue - 128, red - 128
    parts = (
        y + np.floor(1.402 * red + 0.5),
        y + np.floor(-0.344136286 * blue - 0.714136286 * red + 0.5),
        y + np.floor(1.772 * blue + 0.5),
    )
    return np.clip(np.stack(parts, axis=2), 0, 255)


def pictures(channels=3):
    image = photographs(50)[..., :channels]
    return jp.Dataset(image, np.arange(50, dtype=np.int32) % 3)


def natural(num):
    return jp.Dataset(natural_images(num), np.arange(num, dtype=np.int32) % 3)


def purified(dataset, **options):
    result, info = jp.defenses.fit_purify(jp.defenses.jpeg(**options), KEY, dataset)
    assert info == ()
    return np.asarray(result.image)


def test_the_tables_of_quality_10():
    luma, chroma = tables(10)
    np.testing.assert_array_equal(luma, table(LUMA_10, 0))
    np.testing.assert_array_equal(chroma, table(CHROMA_10, 255))


@pytest.mark.parametrize(
    ("quality", "sub", "least"),
    [(10, True, 0.99), (50, True, 0.98), (90, True, 0.95), (10, False, 0.99)],  # finer: more ties
)
def test_color_images_are_those_of_the_standard(quality, sub, least):
    dataset = pictures()
    found = purified(dataset, quality=quality, subsampling="4:2:0" if sub else "4:4:4")
    wanted = np.stack([codec(x, quality, sub=sub) for x in dataset.image])
    assert found.dtype == np.uint8
    assert np.mean(found == wanted) >= least and np.mean(np.abs(found - wanted)) <= 0.2


def test_gray_images_are_those_of_the_standard():
    dataset = pictures(channels=1)
    wanted = np.stack([of_plane(x[..., 0], tables(10)[0]) for x in dataset.image])[..., None]
    found = purified(dataset)
    assert np.mean(found == wanted) >= 0.99 and np.mean(np.abs(found - wanted)) <= 0.2


def test_the_defaults_are_those_of_the_paper_and_subsampling_matters():
    dataset = natural(8)
    usual, fine, wide = (
        purified(dataset, **o) for o in ({}, {"subsampling": "4:4:4"}, {"subsampling": "4:2:2"})
    )
    np.testing.assert_array_equal(usual, purified(dataset, quality=10, subsampling="4:2:0"))
    error = [np.mean(np.abs(x.astype(int) - dataset.image)) for x in (fine, wide, usual)]
    assert error[0] < error[1] < error[2]
    assert np.mean(np.abs(fine.astype(int) - usual)) > 0.5


def test_what_is_refused():
    for quality, why in ((0, "at least 1"), (101, "from 1 to 100")):
        with pytest.raises(jp.InputError, match=f"^quality = {quality}; it must be {why}"):
            jp.defenses.jpeg(quality=quality)
    with pytest.raises(jp.InputError, match="^subsampling = '4:1:1'; allowed are 4:2:0, 4:2:2, 4:"):
        jp.defenses.jpeg(subsampling="4:1:1")
    with pytest.raises(jp.InputError, match="^images have 2 channels; jpeg takes 1 or 3"):
        purified(jax.tree.map(lambda x: x[..., :2] if x.ndim == 4 else x, natural(2)))
