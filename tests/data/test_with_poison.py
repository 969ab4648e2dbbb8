"""A training set put together from the clean one and the rows of a poison folder."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.data import poisoned, with_poison
from jaxpoison.types import Dataset, InputError

IMAGE = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 2, 2, 1) * 10
CLEAN = Dataset(jnp.asarray(IMAGE), jnp.arange(5, dtype=jnp.int32) % 3)


def folder(path, rows, *, change=4, **options):
    """Rows of the clean set, in that order, each brighter by some grey levels."""
    rows = np.asarray(rows)
    image = IMAGE[rows] + np.uint8(change)
    if options.get("domain") == "float":
        image = image.astype(np.float32) / 255
    poisoned.write(
        path,
        poisoned=Dataset(jnp.asarray(image), CLEAN.label[rows]),
        clean=CLEAN,
        index=np.arange(len(rows)),
        source_rows=rows,
        attack="brighter",
        settings={},
        norm="linf",
        eps=4 / 255,
        source={"name": "counted"},
        **options,
    )
    return poisoned.read(path)


def test_rows_stand_where_they_came_from(tmp_path):
    whole = with_poison(CLEAN, folder(tmp_path / "p", [3, 1]))
    expected = IMAGE.copy()
    expected[[1, 3]] += 4
    assert np.array_equal(whole.image, expected) and whole.image.dtype == np.uint8
    assert np.array_equal(whole.label, CLEAN.label)
    assert np.array_equal(CLEAN.image, IMAGE)


def test_a_float_poison_makes_all_rows_floats(tmp_path):
    whole = with_poison(CLEAN, folder(tmp_path / "p", [2], domain="float"))
    expected = IMAGE.astype(np.float64)
    expected[2] += 4
    assert whole.image.dtype == np.float32
    assert np.allclose(whole.image, expected / 255, atol=1e-7)


def test_a_folder_of_all_rows_is_the_set_itself(tmp_path):
    poison = folder(tmp_path / "p", np.arange(5))
    whole = with_poison(CLEAN, poison)
    assert np.array_equal(whole.image, poison.dataset.image)


def test_what_is_no_part_of_the_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="a row of the clean set comes twice in the poison"):
        with_poison(CLEAN, folder(tmp_path / "twice", [2, 2]))
    poison = folder(tmp_path / "p", [4])
    with pytest.raises(InputError, match="run from 4 to 4; the clean set has rows 0 to 2"):
        with_poison(Dataset(CLEAN.image[:3], CLEAN.label[:3]), poison)
