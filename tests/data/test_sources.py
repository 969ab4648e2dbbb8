"""Loaders against the arrays they should give, and one clear line for everything else."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxpoison import data
from jaxpoison.types import Dataset, InputError


def _sound(num=6):
    image = np.arange(num * 4 * 5 * 3, dtype=np.uint8).reshape(num, 4, 5, 3)
    return Dataset(image, np.arange(num) % 3)


def test_digits_are_the_named_rows():
    train, test = data.digits(), data.digits("test")
    assert train.image.shape == (1400, 8, 8, 1) and test.image.shape == (397, 8, 8, 1)
    assert train.image.dtype == np.uint8 and train.label.dtype == np.int32
    bunch = load_digits()
    order = np.random.RandomState(0).permutation(1797)
    for part, rows in ((train, order[:1400]), (test, order[1400:])):
        np.testing.assert_array_equal(part.label, bunch.target[rows])
        gap = np.asarray(part.image, float)[..., 0] - bunch.images[rows] * 255 / 16
        assert np.abs(gap).max() <= 0.5


def test_npz_round_trip(tmp_path):
    sound = _sound()
    np.savez(tmp_path / "a.npz", image=sound.image, label=sound.label)
    read = data.from_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.image, sound.image)
    np.testing.assert_array_equal(read.label, sound.label)
    assert read.label.dtype == np.int32


def test_check_keeps_values_and_narrows_dtypes():
    image = np.linspace(0, 1, 24).reshape(2, 3, 4, 1)
    out = data.check_dataset(Dataset(image, np.array([1, 0], np.uint8)), num_classes=2)
    assert out.image.dtype == np.float32 and out.label.dtype == np.int32
    np.testing.assert_allclose(out.image, image, atol=1e-7)


def _with(row=None, pixel=None, dtype=np.float32, **change):
    image = np.full((3, 2, 2, 1), 0.5, dtype)
    if row is not None:
        image[row, 0, 1, 0] = pixel
    return Dataset(change.get("image", image), change.get("label", np.array([0, 1, 2])))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (_with(image=np.zeros((3, 2, 2))), "image[..., None]"),
        (_with(image=np.zeros((3, 4))), "(3, 4)"),
        (_with(image=np.zeros((0, 2, 2, 1)), label=np.zeros(0, int)), "no images"),
        (_with(image=np.zeros((3, 2, 2, 0))), "no images"),
        (_with(image=[np.zeros((2, 2, 1)), np.zeros((3, 2, 1)), np.zeros((2, 2, 1))]), "resize"),
        (_with(image=np.zeros((3, 2, 2, 1), np.int64)), "int64"),
        (_with(1, np.nan), "image 1 holds nan"),
        (_with(2, np.inf), "image 2 holds inf"),
        (_with(2, -0.25), "image 2 holds -0.25"),
        (_with(1, 200.0), "grey levels"),
        (_with(1, 1000.0, np.float64), "image 1 holds 1000; float pixels must be in [0, 1]"),
        (_with(label=np.array([0, 1])), "3 images but 2 labels"),
        (_with(label=np.array([[0], [1], [2]])), "(3, 1)"),
        (_with(label=np.array([0.0, 1.0, 2.0])), "float64"),
        (_with(label=np.array([True, False, True])), "bool"),
        (_with(label=np.array([0, -1, 2])), "label -1 of row 1"),
        (_with(label=np.array([0, 1, 3])), "label 3 of row 2 is outside [0, 3)"),
    ],
)
def test_check_says_what_is_wrong_in_one_line(bad, words):
    with pytest.raises(InputError) as error:
        data.check_dataset(bad, num_classes=3)
    assert words in str(error.value) and "\n" not in str(error.value)


def _one_line(words, call, *args, **kwargs):
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    for word in [words] if isinstance(words, str) else words:
        assert word in str(error.value)


def test_npz_errors(tmp_path):
    sound = _sound()
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    np.savez(good, image=sound.image, label=sound.label)
    _one_line("no file", data.from_npz, tmp_path / "none.npz")
    _one_line(str(tmp_path), data.from_npz, tmp_path)
    np.savez(bad, image=sound.image, y=sound.label)
    _one_line(["bad.npz", "'label'", "image, y"], data.from_npz, bad)
    np.savez(bad, image=sound.image, label=sound.label[1:])
    _one_line("bad.npz: 6 images but 5 labels", data.from_npz, bad)
    np.savez(bad, image=sound.image, label=np.array([{}] * 6))
    _one_line("allow_pickle=False", data.from_npz, bad)
    np.save(tmp_path / "bare.npy", sound.image)
    _one_line("bare array", data.from_npz, tmp_path / "bare.npy")
    whole = good.read_bytes()
    for broken in (b"", b"not a zip file", whole[:-40], whole[:60] + b"\xff" * 9 + whole[69:]):
        bad.write_bytes(broken)
        _one_line("bad.npz cannot be read", data.from_npz, bad)


def test_load_finds_digits_npz_and_folders(tmp_path):
    sound = _sound()
    np.savez(tmp_path / "my_set-train.npz", image=sound.image, label=sound.label)
    np.testing.assert_array_equal(data.load("digits", "test").label, data.digits("test").label)
    for read in (
        data.load(str(tmp_path / "my_set-train.npz")),
        data.load("my_set", "train", data_dir=tmp_path),
    ):
        np.testing.assert_array_equal(read.image, sound.image)
    _one_line(["'test'", "there are: train"], data.load, "my_set", "test", tmp_path)
    _one_line(["'val'", "train, test"], data.load, "digits", "val")


def test_load_takes_some_classes_under_new_labels(tmp_path):
    whole = data.digits("train")
    label = np.asarray(whole.label[:200])
    part = data.load("digits[7,0,3]", "train[:200]")
    rows = [i for i in range(200) if label[i] in (7, 0, 3)]
    assert [(7, 0, 3)[y] for y in part.label] == [int(label[i]) for i in rows]
    np.testing.assert_array_equal(part.image, whole.image[:200][np.array(rows)])
    assert data.class_names("digits[7,0,3]") == ("7", "0", "3")
    assert data.class_names(str(tmp_path / "own.npz[1]")) is None
    assert data.class_names("digits[0,10]") is None
    _one_line("digits[3,3] names a class twice", data.load, "digits[3,3]")
    _one_line("digits[3,10]: no image of class 10 is in this split", data.load, "digits[3,10]")
    _one_line("did you mean", data.load, "digit[3]", "train", tmp_path)


def test_load_takes_rows_of_a_split_as_tfds_writes_them(tmp_path):
    whole = data.digits("train")
    part = data.load("digits", "train[10:30]")
    np.testing.assert_array_equal(part.image, whole.image[10:30])
    np.savez(tmp_path / "own-train.npz", image=whole.image, label=whole.label)
    part = data.load("own", "train[:7]", tmp_path)
    np.testing.assert_array_equal(part.label, whole.label[:7])
    with pytest.raises(InputError, match=r"split 'train\[1400:\]' holds no rows; train has 1400"):
        data.load("digits", "train[1400:]")
    assert len(data.load("own", "train[:1400]", tmp_path).label) == 1400
    for name, folder in (("digits", None), ("own", tmp_path)):
        for part in ("[:10000000]", "[3:1401]", "[1401:]", "[1401:1402]"):
            words = f"split 'train{part}' asks for rows beyond the 1400 of train"
            _one_line(words, data.load, name, f"train{part}", folder)
