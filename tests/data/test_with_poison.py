"""A training set put together from the clean one and the rows of a poison folder."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.data import poisoned, with_added, with_poison
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


def added(path, *, label=(2, 0), **options):
    """Two points, made of rows 3 and 1 of the clean set, beside all of it."""
    image = options.pop("image", IMAGE[[3, 1]] + np.uint8(4))
    defaults = {"norm": None, "eps": None, "labels_changed": True}
    poisoned.write(
        path,
        poisoned=Dataset(jnp.asarray(image), jnp.asarray(label, jnp.int32)),
        clean=CLEAN,
        index=np.arange(2),
        source_rows=np.array([3, 1]),
        attack="added",
        settings={},
        rows="added",
        source={"name": "counted"},
        **defaults | options,
    )
    return poisoned.read(path)


def test_added_points_follow_the_clean_set(tmp_path):
    poison = added(tmp_path / "p")
    whole = with_added(CLEAN, poison)
    assert np.array_equal(whole.image, np.concatenate([IMAGE, IMAGE[[3, 1]] + 4]))
    assert whole.image.dtype == np.uint8 and whole.label.dtype == np.int32
    assert np.array_equal(whole.label, [0, 1, 2, 0, 1, 2, 0])
    with pytest.raises(InputError, match="rows to add; they replace none: see with_added"):
        with_poison(CLEAN, poison)
    with pytest.raises(InputError, match="does not consist of added rows alone; see with_poison"):
        with_added(CLEAN, folder(tmp_path / "q", [1]))
    short = Dataset(CLEAN.image[:, :1], CLEAN.label)
    with pytest.raises(InputError, match="the clean set has 2 rows; the poison is of one of 5"):
        with_added(Dataset(CLEAN.image[:2], CLEAN.label[:2]), poison)
    with pytest.raises(InputError, match=r"clean rows are \(1, 2, 1\), added ones \(2, 2, 1\)"):
        with_added(short, poison)


def test_points_of_any_size_make_all_rows_floats_and_state_their_range(tmp_path):
    image = np.linspace(-30, 55, 8, dtype=np.float32).reshape(2, 2, 2, 1)
    poison = added(tmp_path / "p", image=image, domain="unbounded")
    whole = with_added(CLEAN, poison)
    assert whole.image.dtype == np.float32 and np.array_equal(whole.image[5:], image)
    assert np.allclose(whole.image[:5], IMAGE / 255, atol=1e-7)
    high = float(np.float32(190) / np.float32(255))
    ends = {"value_low": -30, "value_high": 55, "clean_low": 0, "clean_high": pytest.approx(high)}
    assert poison.manifest.measured == ends
    checks = {c.name: c for c in poisoned.verify(tmp_path / "p", CLEAN).checks}
    assert checks["values"].detail == "all finite, -30 to 55"
    assert checks["budget"].passed is None and checks["budget"].detail == (
        "the manifest states none; values from -30 to 55, clean ones from 0 to 0.745098"
    )
    assert "every" not in checks["untouched rows"].detail and checks["labels"].passed
    with pytest.raises(InputError, match=r"values run from -30 to 55; allowed is \[0, 1\]"):
        added(tmp_path / "q", image=image, domain="float")
    with pytest.raises(InputError, match="not all finite"):
        added(tmp_path / "q", image=image * np.float32(np.nan), domain="unbounded")


def test_the_ball_around_the_base_rows_is_kept_and_verified(tmp_path):
    image = IMAGE[[3, 1]] / np.float32(255) + np.float32(0.029)  # 7.395 grey levels
    poison = added(tmp_path / "p", image=image, norm="linf", eps=0.029)
    assert np.array_equal(poison.dataset.image, IMAGE[[3, 1]] + 7)
    assert poison.manifest.measured["grey_level_max"] == 7
    budget = poisoned.verify(tmp_path / "p", CLEAN).checks[-1]
    assert budget.passed and "0 rows beyond" in budget.detail
    with pytest.raises(InputError, match="differs by 0.029 in linf; the budget is 0.02"):
        added(tmp_path / "q", image=image, norm="linf", eps=0.02)
    with pytest.raises(InputError, match="say labels_changed=True"):
        added(tmp_path / "q", label=(2, 0), labels_changed=False)


def test_features_are_compared_with_features_alone(tmp_path):
    features = Dataset(jnp.ones((5, 1, 1, 3)), CLEAN.label)
    moved = Dataset(3 * features.image[:2], CLEAN.label[jnp.array([3, 1])])
    poisoned.write(
        tmp_path / "p", poisoned=moved, clean=features, index=[0, 1], source_rows=[3, 1],
        attack="added", settings={}, norm=None, eps=None, domain="features", rows="added",
        source={"name": "counted"},
    )  # fmt: skip
    poison = poisoned.read(tmp_path / "p")
    assert with_added(features, poison).image.shape == (7, 1, 1, 3)
    checks = {c.name: c.passed for c in poisoned.verify(tmp_path / "p", features).checks}
    assert checks["source"] and checks["budget"] is None
    report = poisoned.verify(tmp_path / "p", CLEAN)
    assert report.passed and report.checks[-1].passed is None
    assert "rows of (2, 2, 1), not the features" in report.checks[-1].detail
