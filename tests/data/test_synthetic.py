"""Data from a key: sound, reproducible, learnable; and rows chosen from any set."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from jaxpoison import data
from jaxpoison.types import InputError


def _flat(dataset):
    return np.asarray(dataset.image, np.float32).reshape(len(dataset.label), -1) / 255


def test_blobs_are_sound_balanced_and_separable():
    blobs = data.synthetic.blobs(jax.random.key(0), 303, 4, (5, 6, 3))
    assert blobs.image.shape == (303, 5, 6, 3) and blobs.image.dtype == np.uint8
    data.check_dataset(blobs, num_classes=4)
    assert set(np.bincount(blobs.label)) == {75, 76}
    x, y = _flat(blobs), np.asarray(blobs.label)
    assert NearestCentroid().fit(x[:200], y[:200]).score(x[200:], y[200:]) > 0.98  # chance 0.25
    assert LogisticRegression().fit(x[:200], y[:200]).score(x[200:], y[200:]) > 0.98


def test_blobs_follow_the_key_and_the_noise():
    one, same, other = (data.synthetic.blobs(jax.random.key(k), 40) for k in (1, 1, 2))
    np.testing.assert_array_equal(one.image, same.image)
    assert not np.array_equal(one.image, other.image)
    still = data.synthetic.blobs(jax.random.key(1), 40, noise=0.0)
    assert len(np.unique(_flat(still), axis=0)) == 3


def test_toy_shapes_are_ten_classes_in_a_stroke():
    shapes = data.synthetic.toy_shapes(jax.random.key(0), 600)
    assert shapes.image.shape == (600, 32, 32, 3) and shapes.image.dtype == np.uint8
    data.check_dataset(shapes, num_classes=10)
    np.testing.assert_array_equal(np.bincount(shapes.label), np.full(10, 60))
    y = np.asarray(shapes.label)
    grey = _flat(shapes).reshape(-1, 32, 32, 3).mean(-1)
    # Striped shapes change more from row to row than from column to column; solid ones do not.
    rows, columns = (np.abs(np.diff(grey, axis=a)).mean((1, 2)) for a in (1, 2))
    assert ((rows > 1.15 * columns) == (y % 2 == 1)).mean() > 0.85
    # Color says nothing of the class: means over the image do not predict it.
    means = _flat(shapes).reshape(600, -1, 3).mean(1)
    score = LogisticRegression().fit(means[:400], y[:400]).score(means[400:], y[400:])
    assert score < 0.2  # chance 0.1, standard deviation 0.02


def test_split_validation_parts_the_rows():
    digits = data.digits()
    train, held = data.split_validation(jax.random.key(0), digits, 0.1)
    assert len(held.label) == 140 and len(train.label) == 1260
    rows = [x.tobytes() for x in np.asarray(digits.image)]
    where = {row: i for i, row in enumerate(rows)}
    assert len(where) == len(rows)
    parts = [[where[x.tobytes()] for x in np.asarray(part.image)] for part in (train, held)]
    assert parts[0] == sorted(parts[0]) and parts[1] == sorted(parts[1])
    assert sorted(parts[0] + parts[1]) == list(range(1400))
    np.testing.assert_array_equal(held.label, np.asarray(digits.label)[parts[1]])
    again = data.split_validation(jax.random.key(0), digits, 0.1)[1]
    other = data.split_validation(jax.random.key(1), digits, 0.1)[1]
    np.testing.assert_array_equal(again.image, held.image)
    assert not np.array_equal(other.image, held.image)


def test_first_per_class_keeps_the_order():
    digits = data.digits("test")
    few = data.first_per_class(digits, 3)
    label = np.asarray(digits.label)
    want = [i for i in range(len(label)) if (label[:i] == label[i]).sum() < 3]
    np.testing.assert_array_equal(few.image, np.asarray(digits.image)[want])
    np.testing.assert_array_equal(few.label, label[want])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: data.split_validation(jax.random.key(0), d, 1.0), "fraction = 1.0"),
        (lambda d: data.split_validation(jax.random.key(0), d, 0.0), "fraction = 0.0"),
        (lambda d: data.split_validation(jax.random.key(0), d, 1e-3), "empty"),
        (lambda d: data.first_per_class(d, 11), "class 0 has 10 images; 11 are asked for"),
        (lambda d: data.first_per_class(d, 2, num_classes=4), "class 3 has 0 images"),
        (lambda d: data.first_per_class(d, 0), "num = 0"),
        (lambda d: data.synthetic.blobs(jax.random.key(0), 0), "num = 0"),
        (lambda d: data.synthetic.blobs(jax.random.key(0), 5, 0), "num_classes = 0"),
        (lambda d: data.synthetic.toy_shapes(jax.random.key(0), -1), "num = -1"),
    ],
)
def test_bad_requests_name_the_value(call, words):
    with pytest.raises(InputError) as error:
        call(data.synthetic.blobs(jax.random.key(0), 30))
    assert words in str(error.value)
