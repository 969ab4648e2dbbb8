import jax
import numpy as np
import pytest

from jaxpoison.data import poison_rows, synthetic
from jaxpoison.types import InputError

KEY = jax.random.key(0)
BLOBS = synthetic.blobs(jax.random.key(1), 50, num_classes=3)


@pytest.mark.parametrize(("share", "num"), [(1.0, 50), (0.5, 25), (0.29, 14), (0.02, 1)])
def test_poison_rows_are_a_seeded_uniform_choice(share, num):
    rows = np.asarray(poison_rows(KEY, BLOBS, share=share))
    assert rows.dtype == np.int32 and len(rows) == num
    assert np.all(np.diff(rows) > 0) and rows.min() >= 0 and rows.max() < 50
    np.testing.assert_array_equal(rows, poison_rows(KEY, BLOBS, share=share))
    others = [poison_rows(jax.random.key(k), BLOBS, share=share) for k in range(1, 5)]
    assert share == 1 or any(not np.array_equal(rows, o) for o in others)


def test_poison_rows_of_one_class():
    rows = np.asarray(poison_rows(KEY, BLOBS, share=0.1, label=2))
    assert len(rows) == 5 and set(np.asarray(BLOBS.label)[rows]) == {2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "share = 0.0; it must be a number above 0 and at most 1"),
        ({"share": 1.5}, "share = 1.5; it must be a number above 0 and at most 1"),
        ({"share": 0.01}, "less than one"),
        ({"share": 0.9, "label": 1}, "is 45, but class 1 has only"),
        ({"share": 0.1, "label": 7}, "class 7 has only 0"),
    ],
)
def test_a_budget_that_does_not_fit_is_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        poison_rows(KEY, BLOBS, **options)
    assert "\n" not in str(error.value)
