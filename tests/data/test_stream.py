"""Rows on disk: the ones that `load` reads, at random, and what has no random access."""

import jax
import numpy as np
import pytest

from jaxpoison import data
from jaxpoison.data import poisoned
from jaxpoison.types import InputError

RNG = np.random.RandomState(0)
IMAGE = RNG.randint(0, 256, (12, 5, 4, 3), np.uint8)
LABEL = RNG.randint(0, 3, 12).astype(np.int32)


@pytest.fixture
def folder(tmp_path):
    np.savez(tmp_path / "set-train.npz", label=LABEL, image=IMAGE)
    return tmp_path


def test_rows_of_an_npz_are_those_of_load(folder):
    rows = data.stream("set", "train", folder)
    assert len(rows) == 12 and rows.image_shape == (5, 4, 3) and rows.row_bytes == 60
    assert rows.dtype == np.uint8 and rows.label.dtype == np.int32
    index = np.array([7, 0, 11, 7])
    np.testing.assert_array_equal(rows.read(index), IMAGE[index])
    np.testing.assert_array_equal(rows.label, LABEL)
    np.testing.assert_array_equal(
        data.stream(str(folder / "set-train.npz")).read(index), IMAGE[index]
    )
    part = data.stream("set", "train[3:9]", folder)
    np.testing.assert_array_equal(part.read(np.array([5, 0])), IMAGE[[8, 3]])
    np.testing.assert_array_equal(part.label, LABEL[3:9])


def test_an_npz_is_mapped_and_not_read(folder):
    base = data.stream("set", "train", folder).fetch.__closure__[0].cell_contents
    assert isinstance(base, np.memmap) and not base.flags.writeable


def test_floats_and_columns_first(tmp_path):
    image = np.asfortranarray(IMAGE.astype(np.float32) / 255)
    np.savez(tmp_path / "f.npz", image=image, label=LABEL)
    rows = data.stream(str(tmp_path / "f.npz"))
    np.testing.assert_array_equal(rows.read(np.array([3, 1])), image[[3, 1]])
    image[4, 0, 0, 0] = np.nan
    np.savez(tmp_path / "g.npz", image=image, label=LABEL)
    rows = data.stream(str(tmp_path / "g.npz"))
    rows.read(np.array([3, 5]))
    with pytest.raises(InputError, match="g.npz: image 1 holds nan; float pixels must be finite"):
        rows.read(np.array([3, 4]))


def test_rows_are_one_static_value_to_jax():
    rows = data.hold(data.digits("test"))
    assert jax.tree.leaves(rows) == [] and hash(rows) == hash(rows)
    whole = data.digits("test")
    np.testing.assert_array_equal(rows.read(np.arange(397)), whole.image)
    np.testing.assert_array_equal(
        data.stream("digits", "test[:7]").read(np.array([6])), whole.image[6:7]
    )


def test_a_poison_folder_is_read_in_place(tmp_path):
    clean = data.check_dataset(data.poisoned.Dataset(IMAGE, LABEL))
    changed = clean._replace(image=IMAGE.astype(np.float32) / 255)
    poisoned.write(
        tmp_path / "p", poisoned=changed, clean=clean, index=np.arange(12, dtype=np.int32),
        attack="none", settings={}, norm="linf", eps=0.1, source={"name": "set"},
        key=jax.random.key(0),
    )  # fmt: skip
    rows = data.stream(str(tmp_path / "p"))
    np.testing.assert_array_equal(rows.read(np.array([2, 1])), IMAGE[[2, 1]])
    np.testing.assert_array_equal(rows.label, LABEL)
    path = tmp_path / "p" / "images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(InputError, match="images.npy was damaged or changed"):
        data.stream(str(tmp_path / "p"))


def test_what_cannot_be_streamed_is_one_line(folder, tmp_path):
    np.savez_compressed(tmp_path / "small.npz", image=IMAGE, label=LABEL)
    np.savez(tmp_path / "lacks.npz", image=IMAGE)
    np.savez(tmp_path / "wide.npz", image=IMAGE.astype(np.int64), label=LABEL)
    np.savez(tmp_path / "short.npz", image=IMAGE, label=LABEL[:5])
    (tmp_path / "no.npz").write_bytes(b"PK no zip")
    for name, words in {
        "small": "is compressed, so its rows cannot be read one by one",
        "lacks": "lacks the array 'label'; it holds image",
        "wide": "images are int64; allowed are uint8 and float32",
        "short": "12 images but 5 labels; allowed is one label each",
        "no": "cannot be read as .npz",
        "absent": "no file",
    }.items():
        with pytest.raises(InputError, match=words) as error:
            data.stream(str(tmp_path / f"{name}.npz"))
        assert f"{name}.npz" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InputError, match="set has no split 'val'; there are: train"):
        data.stream("set", "val", folder)
    with pytest.raises(InputError, match="asks for rows beyond the 12 of train"):
        data.stream("set", "train[:13]", folder)
    with pytest.raises(InputError, match="holds no rows"):
        data.stream("set", "train[4:4]", folder)
