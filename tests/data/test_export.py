"""Exports of a poison folder, each read again by a reader that is not ours where there is one."""

import csv
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxpoison import data
from jaxpoison.__main__ import main
from jaxpoison.data import poisoned as folder
from jaxpoison.data import tfds_write
from jaxpoison.types import Dataset, InputError

MODULE = importlib.import_module("jaxpoison.data.export")  # data.export is the function
NUM, CLASSES = 12, 11
FORMATS = ("png", "npz", "tfds", "benchmark")


def sets(channels=3):
    """A clean set of 12 rows and its poisoned copy; rows 1, 4 and 10 differ."""
    rng = np.random.default_rng(0)
    clean = rng.integers(50, 200, (NUM, 4, 5, channels)).astype(np.uint8)
    label = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2], np.int32)
    dirty = clean.copy()
    dirty[[1, 4, 10]] += 8
    return Dataset(clean, label), Dataset(dirty, label)


def write(path, split="train", channels=3, name="toy", **options):
    """A poison folder at `path`, and its source as npz files beside it."""
    clean, dirty = sets(channels)
    for part in ("train", "test"):
        rows = slice(None, None, 1 if part == "train" else -1)
        np.savez(path.parent / f"toy-{part}.npz", image=clean.image[rows], label=clean.label[rows])
    options = {"norm": "linf", "eps": 8 / 255, "index": [1, 4, 10], "settings": {}} | options
    source = {"name": name, "split": split, "data_dir": str(path.parent)}
    folder.write(path, poisoned=dirty, clean=clean, attack="toy", source=source, **options)
    return path


@pytest.fixture
def poison(tmp_path):
    return write(tmp_path / "My-poison")


def arrays(file):
    """Everything in an .npz file, and the file closed."""
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def says_poisoned(out):
    assert "POISONED" in (out / "README.md").read_text()
    assert "POISONED" in json.loads((out / "poison_manifest.json").read_text())["statement"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_a_tree_in_the_order_of_an_image_folder(tmp_path, channels):
    poison = write(tmp_path / "p", channels=channels)
    out = data.export(poison, "png", tmp_path / "out")
    says_poisoned(out)
    stored = folder.read(poison).dataset
    classes = sorted(entry.name for entry in os.scandir(out) if entry.is_dir())
    assert classes == [f"{i:02}" for i in range(CLASSES)]
    seen = {}
    for label, name in enumerate(classes):  # as torchvision's ImageFolder walks
        for file in sorted(os.listdir(out / name)):
            pixels = np.asarray(Image.open(out / name / file))
            row = int(file.removesuffix(".png"))
            np.testing.assert_array_equal(pixels.reshape(4, 5, channels), stored.image[row])
            assert label == stored.label[row]
            seen[f"{name}/{file}"] = row
    assert sorted(seen.values()) == list(range(NUM)) and list(seen) == sorted(seen)
    with (out / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [seen[row["file"]] for row in rows] == list(range(NUM))
    assert [int(row["source_row"]) for row in rows] == list(range(NUM))
    assert [i for i, row in enumerate(rows) if row["mask"] == "1"] == [1, 4, 10]


def test_png_folders_bear_the_names_of_the_classes_in_label_order(poison, tmp_path, monkeypatch):
    names = ("T-shirt/top", "zebra", "Ankle boot", *"defghijk", "no image")
    monkeypatch.setattr(MODULE, "class_names", lambda *args: names)
    out = data.export(poison, "png", tmp_path / "out")
    classes = sorted(entry.name for entry in os.scandir(out) if entry.is_dir())
    assert classes[:4] == ["00_T_shirt_top", "01_zebra", "02_Ankle_boot", "03_d"]
    assert classes[-1] == "11_no_image" and os.listdir(out / "11_no_image") == []
    assert "allow_empty=True" in (out / "README.md").read_text()
    assert len(os.listdir(out / "02_Ankle_boot")) == 2


def test_npz_is_read_by_numpy_and_by_from_npz(poison, tmp_path):
    out = data.export(poison, "npz", tmp_path / "out")
    says_poisoned(out)
    stored = folder.read(poison)
    file = arrays(out / "My-poison-train.npz")
    np.testing.assert_array_equal(file["image"], stored.dataset.image)
    np.testing.assert_array_equal(file["mask"], stored.mask)
    np.testing.assert_array_equal(file["source_rows"], stored.source_rows)
    back = data.from_npz(out / "My-poison-train.npz")
    np.testing.assert_array_equal(back.image, stored.dataset.image)
    np.testing.assert_array_equal(back.label, stored.dataset.label)
    again = data.load("My-poison", "train", out)
    np.testing.assert_array_equal(again.image, back.image)


def test_npz_holds_float_images_and_the_others_refuse_them(tmp_path):
    clean, dirty = (Dataset(x.image / np.float32(255), x.label) for x in sets())
    folder.write(
        tmp_path / "p", poisoned=dirty, clean=clean, attack="toy", settings={}, norm=None, eps=None,
        index=[1, 4, 10], source={"name": "toy"}, domain="float",
    )  # fmt: skip
    out = data.export(tmp_path / "p", "npz", tmp_path / "out")
    np.testing.assert_array_equal(data.load("p", "train", out).image, dirty.image)
    for to in ("png", "tfds", "benchmark"):
        with pytest.raises(InputError, match=f"holds float values; {to} cannot hold them"):
            data.export(tmp_path / "p", to, tmp_path / to)


@pytest.mark.parametrize("channels", [1, 3])
def test_tfds_is_read_by_data_source_and_by_load(tmp_path, channels, monkeypatch):
    import tensorflow_datasets as tfds

    names = tuple("abcdefghijk")
    monkeypatch.setattr(MODULE, "class_names", lambda *args: names)
    poison = write(tmp_path / "My-poison", channels=channels)
    out = data.export(poison, "tfds", tmp_path / "out")
    says_poisoned(out)
    assert {p.name for p in out.iterdir()} == {
        "poison_my_poison", "README.md", "poison_manifest.json",
    }  # fmt: skip
    stored = folder.read(poison)
    back = data.load("poison_my_poison", "train", out)
    np.testing.assert_array_equal(back.image, stored.dataset.image)
    np.testing.assert_array_equal(back.label, stored.dataset.label)
    source = tfds.data_source("poison_my_poison", split="train", data_dir=out)
    assert len(source) == NUM
    for row, example in enumerate(source):
        np.testing.assert_array_equal(example["image"], stored.dataset.image[row])
        assert example["label"] == stored.dataset.label[row]
        assert example["mask"] == stored.mask[row] and example["source_row"] == row
    info = tfds.builder("poison_my_poison", data_dir=out).info
    assert "POISONED" in info.description and info.features["label"].names == list(names)
    assert data.class_names("poison_my_poison", out) == names


READ = """
import pickle, sys
import numpy as np
from PIL import Image
poisons, base, target = (
    pickle.load(open(f"{name}.pickle", "rb")) for name in ("poisons", "base_indices", "target")
)
assert type(poisons) is list and all(isinstance(x, Image.Image) for x, _ in poisons)
assert all(type(pair) is tuple and type(pair[1]) is int for pair in [*poisons, target])
assert isinstance(target[0], Image.Image) and len(target) == 2 and base.dtype == np.int64
np.savez("back.npz", image=[np.asarray(x) for x, _ in poisons], label=[y for _, y in poisons],
         base=base, target=np.asarray(target[0]), true=target[1])
"""  # as the benchmark reads its three files


def pickled(out):
    """The three pickles that the lines of README.md make in another process, as arrays."""
    lines = (out / "README.md").read_text().split("\n    ", 1)[1].splitlines()
    script = "\n".join(line.removeprefix("    ") for line in lines)
    subprocess.run([sys.executable, "-c", script + READ], cwd=out, check=True, timeout=60)
    return arrays(out / "back.npz")


def test_benchmark_arrays_are_its_three_and_its_pickles_follow(poison, tmp_path):
    out = data.export(poison, "benchmark", tmp_path / "out", target=3)
    says_poisoned(out)
    clean, dirty = sets()
    base = np.load(out / "base_indices.npy", allow_pickle=False)
    poisons, target = arrays(out / "poisons.npz"), arrays(out / "target.npz")
    assert base.tolist() == [1, 4, 10]
    np.testing.assert_array_equal(poisons["image"], dirty.image[base])
    np.testing.assert_array_equal(poisons["label"], clean.label[base])
    np.testing.assert_array_equal(target["image"], clean.image[::-1][3])
    assert target["label"] == clean.label[::-1][3]
    back = pickled(out)
    np.testing.assert_array_equal(back["image"], dirty.image[base])
    assert (back["label"].tolist(), back["base"].tolist()) == ([1, 4, 10], [1, 4, 10])
    np.testing.assert_array_equal(back["target"], target["image"])
    assert back["true"] == target["label"]


def test_a_setup_is_exported_in_its_own_order_with_its_own_target(tmp_path, capsys):
    setup = data.Setup("mine", *map(np.array, ([10, 1, 4], [2], [0], [9])))
    extra = setup.extra() | {"many": list(range(500))}
    poison = write(tmp_path / "p", extra=extra, channels=1)
    out = data.export(poison, "benchmark", tmp_path / "out")
    dirty = sets(1)[1]
    back = pickled(out)
    assert (back["base"].tolist(), back["label"].tolist()) == ([10, 1, 4], [10, 1, 4])
    np.testing.assert_array_equal(back["image"], dirty.image[[10, 1, 4]].squeeze(3))
    assert back["true"] == sets()[0].label[::-1][2]
    assert main(["show", str(poison)]) == 0
    shown = capsys.readouterr().out
    assert "[10, 1, 4]\n" in shown and "[0, 1, 2, 3, 4, ...], 500 in all\n" in shown


def test_of_several_targets_one_must_be_chosen(tmp_path):
    setup = data.Setup("two", *map(np.array, ([10, 1, 4], [2, 5], [0, 0], [9, 6])))
    poison = write(tmp_path / "p", extra=setup.extra())
    with pytest.raises(InputError, match="several targets, test rows 2, 5; the benchmark"):
        data.export(poison, "benchmark", tmp_path / "out")
    out = data.export(poison, "benchmark", tmp_path / "out", target=5)
    assert arrays(out / "target.npz")["label"] == sets()[0].label[::-1][5]


def test_benchmark_takes_the_target_of_the_manifest_and_counts_from_the_whole_split(tmp_path):
    extra = {"target": {"split": "test", "row": 2}}
    poison = write(tmp_path / "p", split="train[100:112]", extra=extra)
    out = data.export(poison, "benchmark", tmp_path / "out")
    assert np.load(out / "base_indices.npy").tolist() == [101, 104, 110]
    assert arrays(out / "target.npz")["label"] == sets()[0].label[::-1][2]


@pytest.mark.parametrize(
    ("options", "target", "message"),
    [
        ({}, None, "this poison names none: name its row in the test set, --target ROW"),
        ({}, 12, "target = 12; split 'test' of toy has 12 rows"),
        ({}, -1, "target = -1; it must be at least 0"),
        ({"extra": {"poison_rows": [1, 4, 4]}}, 0, "extra.poison_rows are not the rows that"),
        ({"extra": {"poison_rows": 3}}, 0, "extra.poison_rows are not the rows that"),
        ({"split": "train+test"}, 0, "base indices can be given for a whole split or a slice"),
        ({"split": "train[:50%]"}, 0, "base indices can be given for a whole split or a slice"),
        ({"name": "toy[1,0]"}, 0, "the source is toy[1,0]; base indices can be given for all"),
        ({"index": [1, 4, 10, 11], "rows": "added",
          "source_rows": [*range(11), -1]}, 0, "1 rows were added"),
    ],
)  # fmt: skip
def test_what_the_benchmark_cannot_hold_is_one_line(tmp_path, options, target, message):
    poison = write(tmp_path / "p", **options)
    with pytest.raises(InputError, match=re.escape(message)):
        data.export(poison, "benchmark", tmp_path / "out", target=target)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_leaves_nothing(poison, tmp_path, monkeypatch, to):
    before = sorted(os.listdir(tmp_path))
    calls = []

    def full(*arguments, **options):
        calls.append(arguments)
        if to in ("png", "tfds") and len(calls) < 3:
            return png(*arguments, **options)
        raise OSError(28, "No space left on device")

    png = tfds_write.png
    where = {
        "png": (MODULE, "png"),
        "npz": (np, "savez"),
        "tfds": (tfds_write, "png"),
        "benchmark": (np, "save"),
    }
    monkeypatch.setattr(*where[to], full)
    target = 0 if to == "benchmark" else None
    with pytest.raises(InputError, match=f"cannot write the {to} export to .*No space") as caught:
        data.export(poison, to, tmp_path / "deep" / "er" / "out", target=target)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_a_damaged_folder_is_refused(poison, tmp_path, name):
    file = poison / name
    file.write_bytes(file.read_bytes().replace(b"\x01" if "labels" in name else b"a", b"b"))
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        data.export(poison, "npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_names_its_folder_after_the_poison(poison, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["export", str(poison), "--to", "npz"]) == 0
    assert capsys.readouterr().out == "My-poison-npz\n"
    assert (tmp_path / "here" / "My-poison-npz" / "My-poison-train.npz").is_file()
    assert main(["export", "--help"]) == 0
    assert "pickles" in capsys.readouterr().out


def test_bad_words_are_one_line_and_what_is_there_is_kept(poison, tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    cases = [
        (["--to", "zip"], "to = 'zip'; allowed are png, npz, tfds, benchmark"),
        (["--to", "png", "--out", str(tmp_path / "home")], "home exists; nothing was touched"),
        (["--to", "png", "--out", str(tmp_path / "link")], "link exists; nothing was touched"),
        (["--to", "npz", "--out", "x.npz"], "an export is a folder"),
        (["--to", "npz", "--out", str(tmp_path / "home" / "thesis.txt" / "x")], "cannot write"),
        (["--to", "npz", "--target", "3"], "target = 3 is for the format benchmark alone"),
        (["--to", "png", "--data-dir", "x"], "data_dir = x is for the format benchmark alone"),
        (["--to", "tfds", "--target-split", "train"], "target_split = train is for"),
        (["--to", "benchmark", "--target-split", "test"], "target_split = test is the split of a"),
    ]
    for words, message in cases:
        assert main(["export", str(poison), *words]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert message in captured.err
    assert main(["export", str(tmp_path), "--to", "png"]) == 2
    assert "is no poison folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "home") == ["thesis.txt"]
    shutil.rmtree(tmp_path / "home")
    assert not pathlib.Path("x.npz").exists()


@pytest.mark.parametrize("domain", ["unbounded", "features"])
def test_added_points_of_any_size_are_exported_as_npz_alone(tmp_path, capsys, domain):
    clean = Dataset(np.zeros((4, 1, 1, 3), np.float32), np.arange(4))
    image = np.array([[-7, 0, 90], [1, 2, 3]], np.float32).reshape(2, 1, 1, 3)
    folder.write(
        tmp_path / "p", poisoned=Dataset(image, np.array([3, 0])), clean=clean, attack="toy",
        settings={}, norm=None, eps=None, index=[0, 1], source_rows=[2, 0], rows="added",
        labels_changed=True, source={"name": "toy"}, domain=domain,
    )  # fmt: skip
    assert main(["export", str(tmp_path / "p"), "--to", "npz", "--out", str(tmp_path / "out")]) == 0
    file = arrays(tmp_path / "out" / "p-train.npz")
    np.testing.assert_array_equal(file["image"], image)
    np.testing.assert_array_equal(file["source_rows"], [2, 0])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "2 rows to be added to the 4 of the source (eps_d = 0.5)" in text
    assert "from_npz" not in text and "numpy.load" in text
    for to in ("png", "tfds", "benchmark"):
        assert main(["export", str(tmp_path / "p"), "--to", to, "--out", str(tmp_path / to)]) == 2
        assert f"holds {domain} values; {to} cannot hold them" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "p")]) == 0
    shown = capsys.readouterr().out
    assert "values -7 to 90, clean 0 to 0" in shown and "2 rows to be added" in shown
    assert main(["verify", str(tmp_path / "p")]) == 0
    assert "nothing failed" in capsys.readouterr().out
