"""Sets prepared by TFDS as array_record: the arrays they were made of, and what is refused."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxpoison import data
from jaxpoison.types import InputError

NAME = "eurosat64_subset"
FILES = f"{NAME}/1.0.0"


@pytest.fixture(scope="module")
def prepared(shared_data, tmp_path_factory):
    """(folder of TFDS sets, folder of npz files) of one small set."""
    folder = tmp_path_factory.mktemp("prepared")
    for kind in ("tfds", "npz"):
        command = [sys.executable, shared_data / "prepare.py", f"--{kind}", folder / kind, NAME]
        subprocess.run(command, check=True, capture_output=True)
    return folder / "tfds", folder / "npz"


@pytest.fixture
def copied(prepared, tmp_path):
    return shutil.copytree(prepared[0] / FILES, tmp_path / FILES)


def _says(*words, name=NAME, split="test", data_dir):
    with pytest.raises(InputError) as error:
        data.load(name, split, data_dir=data_dir)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_tfds_and_npz_hold_the_same_rows(prepared):
    tfds, npz = prepared
    for split, num in (("train", 500), ("test", 100)):
        a, b = data.from_tfds(NAME, split, tfds), data.load(NAME, split, data_dir=npz)
        assert a.image.shape == (num, 64, 64, 3)
        assert a.image.dtype == np.uint8 and a.label.dtype == np.int32
        with np.load(npz / f"{NAME}-{split}.npz") as file:
            np.testing.assert_array_equal(a.image, file["image"])
            np.testing.assert_array_equal(a.label, file["label"])
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label, b.label)


def test_chunks_and_slices_keep_the_order(prepared, monkeypatch):
    whole = data.load(NAME, "test", data_dir=prepared[0])
    monkeypatch.setattr("jaxpoison.data.tfds._CHUNK", 17)
    part = data.load(NAME, "test[10:60]", data_dir=prepared[0])
    np.testing.assert_array_equal(part.image, whole.image[10:60])
    np.testing.assert_array_equal(part.label, whole.label[10:60])


def test_unknown_names_splits_and_folders(prepared, tmp_path):
    tfds, npz = prepared
    _says("did you mean 'eurosat64_subset'?", name="eurosat64_subst", data_dir=tfds)
    _says("did you mean 'eurosat64_subset'?", name="eurosat64_subst", data_dir=npz)
    _says("did you mean 'fashion_mnist'?", name="fashion-mnist", data_dir=tmp_path)
    _says("did you mean 'digits'?", name="digit", data_dir=tmp_path)
    _says("holds: 1.0.0", name=f"{NAME}:7.0.0", data_dir=tfds)
    _says("no split 'val'", "train, test", split="val", data_dir=tfds)
    for folder in (tfds, npz):
        beyond = "split 'test[:999]' asks for rows beyond the 100 of test"
        _says(beyond, split="test[:999]", data_dir=folder)
    _says("'train[501:]' asks for rows beyond the 500", split="test+train[501:]", data_dir=tfds)
    _says("no split 'test[:x]'", "train, test", split="test[:x]", data_dir=tfds)
    _says("no split 'val'", "test, train", split="val", data_dir=npz)
    _says("is not a folder", data_dir=tmp_path / "none")
    _says("is not a folder", name="mnist", data_dir=tmp_path / "none")


def test_unprepared_set_comes_with_the_command(tmp_path):
    _says(
        "mnist is not prepared",
        "pip install 'jaxpoison[tensorflow]' && python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder('mnist', data_dir='{tmp_path}')"
        ".download_and_prepare(file_format='array_record')\"",
        name="mnist",
        data_dir=tmp_path,
    )


def test_tfrecord_set_comes_with_the_command(copied, tmp_path):
    info = json.loads((copied / "dataset_info.json").read_text())
    (copied / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    _says(
        "prepared as tfrecord",
        f"tfds.builder('{NAME}', data_dir='{tmp_path}-array_record')"
        ".download_and_prepare(file_format='array_record')",
        data_dir=tmp_path,
    )


@pytest.mark.parametrize("harm", ["records", "short", "gone", "features.json", "dataset_info.json"])
def test_damaged_files_are_named_in_one_line(copied, tmp_path, harm):
    (records,) = copied.glob("*-test.array_record*")
    whole = records.read_bytes()
    if harm == "records":
        records.write_bytes(whole[:1000] + bytes(50) + whole[1050:])
    elif harm == "short":
        records.write_bytes(whole[:100_000])
    elif harm == "gone":
        records.unlink()
    else:
        (copied / harm).write_text('{"')
    _says(NAME, data_dir=tmp_path)


def _prepare(folder, features, examples, keys):
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "own"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=keys,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(examples)

    Builder(data_dir=folder).download_and_prepare(file_format="array_record")


def _png(shape, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return pixels, out.getvalue()


def test_other_keys_unequal_shapes_and_other_features(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(shape=(None, None, 3))
    label = tfds.features.ClassLabel(num_classes=3)
    drawn = [_png((6, 7, 3), i) for i in range(5)]
    rows = [{"photo": png, "kind": i % 3, "id": str(i)} for i, (_, png) in enumerate(drawn)]
    features = {"photo": image, "kind": label, "id": tfds.features.Text()}
    _prepare(tmp_path / "a", features, rows, ("photo", "kind"))
    read = data.from_tfds("own", "train", tmp_path / "a")
    np.testing.assert_array_equal(read.image, np.stack([pixels for pixels, _ in drawn]))
    np.testing.assert_array_equal(read.label, [0, 1, 2, 0, 1])

    _prepare(tmp_path / "b", features, rows, None)
    _says("own", "id, kind, photo", name="own", split="train", data_dir=tmp_path / "b")

    rows[3]["photo"] = _png((6, 8, 3), 3)[1]
    _prepare(tmp_path / "c", features, rows, ("photo", "kind"))
    _says("own: image 3 has shape (6, 8, 3)", name="own", split="train", data_dir=tmp_path / "c")


def test_class_names_are_those_of_the_source():
    assert data.class_names("digits")[9] == "9"
    assert data.class_names("fashion_mnist")[:2] == ("T-shirt/top", "Trouser")
    names = data.class_names("cifar10")
    assert len(names) == 10 and (names[0], names[3], names[9]) == ("airplane", "cat", "truck")
    for name in ("mnist", "no_such_set", "a.npz", "not a name"):
        assert data.class_names(name) is None
