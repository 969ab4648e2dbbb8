import hashlib
import importlib.metadata
import json
import os
import pathlib
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxpoison
from jaxpoison.data import poisoned as folder
from jaxpoison.types import Dataset, InputError
from tests.data.test_rounding import float_poison, radii

SOURCE = {"name": "toy.npz", "split": "train"}


def _sets(seed=0, norm="linf", eps=8 / 255):
    image, clean = float_poison(seed, norm, eps)
    label = np.arange(5, dtype=np.int32) % 3
    mask = np.array([True, False, True, True, False])
    image = np.where(mask.reshape(5, 1, 1, 1), image, clean / np.float32(255))
    return Dataset(image, label), Dataset(clean, label), mask


def _write(path, norm="linf", eps=8 / 255, seed=0, **changes):
    dirty, clean, mask = _sets(seed, norm, eps) if norm else _sets(seed)
    options = dict(
        poisoned=dirty,
        clean=clean,
        index=mask,
        attack="toy",
        settings={"eps": eps, "steps": 3},
        norm=norm,
        eps=eps,
        source=SOURCE,
        key=jax.random.key(seed),
        wall_time_s=0.5,
    )
    return folder.write(path, **{**options, **changes})


def _verdicts(report):
    return {check.name: check.passed for check in report.checks}


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
@settings(max_examples=10, deadline=None, derandomize=True)
@given(draws=st.data(), seed=st.integers(0, 10**6))
def test_what_is_written_is_read_and_passes_every_check(tmp_path_factory, norm, draws, seed):
    eps = draws.draw(radii(norm))
    path = tmp_path_factory.mktemp("poison") / "poison"
    manifest = _write(path, norm, eps, seed)
    dirty, clean, mask = _sets(seed, norm, eps)
    back = folder.read(path)
    assert back.manifest == manifest
    np.testing.assert_array_equal(back.mask, mask)
    np.testing.assert_array_equal(back.dataset.label, clean.label)
    np.testing.assert_array_equal(back.source_rows, np.arange(5))
    np.testing.assert_array_equal(np.asarray(back.dataset.image)[~mask], clean.image[~mask])
    expected = dirty.image[mask] - clean.image[mask] / np.float32(255)
    np.testing.assert_allclose(back.delta, expected, atol=1e-7)
    assert np.abs(255 * dirty.image - back.dataset.image).max() <= 1.001
    report = folder.verify(path, clean)
    assert report.passed
    assert set(_verdicts(report).values()) == {True}
    assert manifest.measured["norm_max"] <= eps * (1 + 1e-6)
    assert manifest.num_changed == 3


def test_the_manifest_says_everything_about_the_poison(tmp_path):
    extra = {"note": "x", "where": pathlib.Path("a/b"), "key": jax.random.key(1)}
    settings_ = {
        "loss": _sets,
        "rate": np.float32(0.5),
        "list": (1, None, True),
        "f": [np.arange(2)],
    }
    _write(tmp_path / "p", settings=settings_, extra=extra, key=7)
    content = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert content["schema"] == 1
    assert "POISONED" in content["statement"]
    assert content["settings"] == {
        "loss": f"{__name__}._sets",
        "rate": 0.5,
        "list": [1, None, True],
        "f": [[0, 1]],
    }
    assert content["extra"]["where"] == "a/b"
    assert content["extra"]["key"] == {"impl": "threefry2x32", "data": [0, 1]}
    assert (content["key"], content["norm"], content["eps"]) == (7, "linf", 8 / 255)
    assert content["source"]["name"] == "toy.npz"
    assert len(content["source"]["image_sha256"]) == 64
    assert {"python", "jax", "numpy", "jaxpoison"} <= set(content["versions"])
    for name, digest in content["files"].items():
        assert hashlib.sha256((tmp_path / "p" / name).read_bytes()).hexdigest() == digest
    assert sorted(os.listdir(tmp_path / "p")) == sorted([*content["files"], "manifest.json"])


def test_a_checkout_that_is_not_installed_still_names_its_version(tmp_path, monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    versions = _write(tmp_path / "p").versions
    assert versions["jaxpoison"] == jaxpoison.__version__ and versions["jax"] == "unknown"
    assert folder.read(tmp_path / "p").manifest.device == "cpu: cpu"


def test_the_same_input_gives_the_same_bytes_but_for_date_and_time(tmp_path):
    for name in ("a", "b"):
        _write(tmp_path / name, wall_time_s=1.0 if name == "a" else 2.0)
    for file in ("images.npy", "labels.npy", "mask.npy", "delta.npy"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    first, second = (json.loads((tmp_path / n / "manifest.json").read_text()) for n in "ab")
    differing = {name for name in first if first[name] != second[name]}
    assert differing <= {"date_utc", "wall_time_s", "sha256"}


FILES = ["images.npy", "labels.npy", "mask.npy", "delta.npy", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found_wherever_it_is(tmp_path, name):
    _write(tmp_path / "p")
    _, clean, _ = _sets()
    file = tmp_path / "p" / name
    intact = file.read_bytes()
    for place in range(0, len(intact), max(1, len(intact) // 40)):
        file.write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        with pytest.raises(InputError, match=name) as caught:
            folder.read(tmp_path / "p")
        assert "\n" not in str(caught.value)
        try:
            report = folder.verify(tmp_path / "p", clean)
        except InputError:
            assert name == "manifest.json"
        else:
            assert not report.passed
            assert _verdicts(report)[name] is False


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["deleted", "truncated", "empty"])
def test_a_missing_or_truncated_file_is_one_line(tmp_path, name, damage):
    _write(tmp_path / "p")
    file = tmp_path / "p" / name
    data = file.read_bytes()
    file.unlink()
    if damage != "deleted":
        file.write_bytes(data[: -len(data) // 3] if damage == "truncated" else b"")
    with pytest.raises(InputError, match=name) as caught:
        folder.read(tmp_path / "p")
    assert "\n" not in str(caught.value)
    if name != "manifest.json":
        verdicts = _verdicts(folder.verify(tmp_path / "p"))
        assert verdicts[name] is False
        assert verdicts["budget"] is None


def _resign(path, **changes):
    """Edits the manifest as a forger would, with a correct hash."""
    content = json.loads((path / "manifest.json").read_text())
    del content["sha256"]
    content |= changes
    text = json.dumps(content, indent=2) + "\n"
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2; this version reads 1"),
        ({"files": {"../../x.npy": "0"}}, "'files' names"),
        ({"files": "x"}, "'files' is a str"),
        ({"shape": []}, "'shape' is"),
        ({"domain": "audio"}, "'domain' is 'audio'"),
        ({"shape": [4, 4, 3, 2]}, "images.npy is uint8"),
        ({"measured": {"norm_max": "x"}}, "'measured.norm_max' is no finite number"),
        ({"measured": {"grey_level_max": True}}, "'measured.grey_level_max' is no finite"),
        ({"eps": 10**400}, "'eps' is no finite number"),
        ({"wall_time_s": False}, "'wall_time_s' is no finite number"),
        ({"source": {"name": "toy", "data_dir": 3}}, "'source.data_dir' is 3; allowed is text"),
        ({"source": {"name": "\0.npz"}}, "'source.name' is "),
        ({"extra": {"a": [float("nan")]}}, "the number NaN is not finite"),
        ({"num_changed": 4}, r"delta.npy is float32 .*asks for float32 \(4"),
    ],
)
def test_a_manifest_that_does_not_fit_is_one_line(tmp_path, changes, message):
    _write(tmp_path / "p")
    _resign(tmp_path / "p", **changes)
    with pytest.raises(InputError, match=message) as caught:
        folder.read(tmp_path / "p")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400"])
def test_a_number_that_is_not_finite_is_one_line_wherever_it_is(tmp_path, number):
    _write(tmp_path / "p", extra={"list": [0.5, {"a": 1}]})
    file = tmp_path / "p" / "manifest.json"
    intact = file.read_text()
    found = list(re.finditer(r"(?<=[ ])-?\d[\d.e+-]*(?=,?\n)", intact))
    assert len(found) > 10
    for place in found:
        file.write_text(intact[: place.start()] + number + intact[place.end() :])
        for function in (folder.read, folder.verify):
            with pytest.raises(InputError, match=f"{number} is not finite") as caught:
                function(tmp_path / "p")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [300, 900, 3000, 100_000])
def test_lists_in_lists_in_lists_are_no_traceback(tmp_path, depth):
    _write(tmp_path / "p", extra={})
    file = tmp_path / "p" / "manifest.json"
    nested = '"extra": {"a": ' + "[" * depth + "]" * depth + "}"
    file.write_text(file.read_text().replace('"extra": {}', nested))
    with pytest.raises(InputError, match="cannot be read|was changed"):
        folder.read(tmp_path / "p")


def test_no_json_another_json_and_a_missing_entry_are_one_line(tmp_path):
    _write(tmp_path / "p")
    file = tmp_path / "p" / "manifest.json"
    content = json.loads(file.read_text())
    del content["norm"]
    for text, message in (
        ("{", "manifest.json cannot be read"),
        ("[1]", "has schema None"),
        ("\xff", "manifest.json cannot be read"),
        (json.dumps(content), "lacks the entry 'norm'"),
    ):
        file.write_text(text, encoding="latin-1")
        for function in (folder.read, folder.verify):
            with pytest.raises(InputError, match=message):
                function(tmp_path / "p")


def test_python_objects_are_not_unpickled_even_if_the_hash_is_right(tmp_path):
    _write(tmp_path / "p")
    np.save(tmp_path / "p" / "mask.npy", np.array([print], object), allow_pickle=True)
    digest = hashlib.sha256((tmp_path / "p" / "mask.npy").read_bytes()).hexdigest()
    files = folder.verify(tmp_path / "p").manifest.files
    _resign(tmp_path / "p", files={**files, "mask.npy": digest})
    with pytest.raises(InputError, match="mask.npy cannot be read: .*allow_pickle=False"):
        folder.read(tmp_path / "p")


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [({"eps": 1 / 255}, "budget"), ({"eps": 9.0}, "budget"), ({"norm": "l9"}, "budget")],
)
def test_a_forged_budget_fails_on_the_stored_images(tmp_path, changes, wrong):
    _write(tmp_path / "p")
    _resign(tmp_path / "p", **changes)
    verdicts = _verdicts(folder.verify(tmp_path / "p", _sets()[1]))
    assert [name for name, passed in verdicts.items() if passed is False] == [wrong]


@pytest.mark.parametrize(
    ("name", "row", "wrong"),
    [("images.npy", 1, "untouched rows"), ("images.npy", 0, "budget"), ("labels.npy", 0, "labels")],
)
def test_a_forged_array_fails_the_comparison_with_the_source(tmp_path, name, row, wrong):
    manifest = _write(tmp_path / "p")
    array = np.load(tmp_path / "p" / name)
    array[row] = array[row] ^ 1 if wrong != "budget" else ~array[row]
    np.save(tmp_path / "p" / name, array)
    digest = hashlib.sha256((tmp_path / "p" / name).read_bytes()).hexdigest()
    _resign(tmp_path / "p", files={**manifest.files, name: digest})
    verdicts = _verdicts(folder.verify(tmp_path / "p", _sets()[1]))
    assert verdicts[wrong] is False
    assert verdicts[name] is True


def test_without_the_source_or_with_another_one_the_report_says_so(tmp_path):
    _write(tmp_path / "p")
    report = folder.verify(tmp_path / "p", reason="not here")
    assert report.passed
    left = {check.name: check.detail for check in report.checks if check.passed is None}
    expected = ["source", "labels", "untouched rows", "budget"]
    assert left == dict.fromkeys(expected, "not here")
    other = folder.verify(tmp_path / "p", _sets(seed=9)[1])
    assert not other.passed
    assert _verdicts(other)["source"] is False
    assert _verdicts(other)["budget"] is None


def test_flipped_labels_need_leave_and_only_in_the_mask(tmp_path):
    dirty, clean, mask = _sets()
    flipped = dirty._replace(label=np.where(mask, 9, dirty.label).astype(np.int32))
    with pytest.raises(InputError, match="row 0 has another label .*say labels_changed=True"):
        _write(tmp_path / "p", poisoned=flipped)
    _write(tmp_path / "p", poisoned=flipped, labels_changed=True)
    report = folder.verify(tmp_path / "p", clean)
    assert report.passed
    assert "3 differ, as the manifest states" in [c.detail for c in report.checks]
    loose = dirty._replace(label=dirty.label + 1)
    with pytest.raises(InputError, match="row 1 has another label .*not in index"):
        _write(tmp_path / "q", poisoned=loose, labels_changed=True)


def test_added_rows_have_no_source_row_and_no_budget(tmp_path):
    dirty, clean, _ = _sets()
    more = Dataset(
        np.concatenate([dirty.image, np.full((2, 4, 3, 2), 0.2, np.float32)]),
        np.concatenate([dirty.label, [7, 8]]).astype(np.int32),
    )
    options = dict(poisoned=more, index=np.array([0, 2, 3, 5, 6]))
    with pytest.raises(InputError, match="2 rows have no source row; say rows='added'"):
        _write(tmp_path / "p", **options)
    with pytest.raises(InputError, match="row 6 has no source row but is not in index"):
        _write(tmp_path / "p", poisoned=more, index=[0, 2, 3, 5], rows="added")
    _write(tmp_path / "p", **options, rows="added")
    back = folder.read(tmp_path / "p")
    np.testing.assert_array_equal(back.source_rows, [0, 1, 2, 3, 4, -1, -1])
    np.testing.assert_array_equal(np.asarray(back.dataset.image)[5:], 51)
    assert back.delta is None
    report = folder.verify(tmp_path / "p", clean)
    assert report.passed
    assert "2 added rows have no budget" in str(report.checks)


def test_added_rows_alone_leave_the_budget_open(tmp_path):
    _, clean, _ = _sets()
    alone = Dataset(np.full((2, 4, 3, 2), 3, np.uint8), np.zeros(2, np.int32))
    _write(
        tmp_path / "p", poisoned=alone, index=[0, 1], rows="added", source_rows=[-1, -1], norm=None,
        eps=None,
    )  # fmt: skip
    verdicts = _verdicts(folder.verify(tmp_path / "p", clean))
    assert verdicts["budget"] is None
    assert verdicts["labels"] is True


def test_a_part_of_the_source_keeps_its_row_numbers(tmp_path):
    dirty, clean, mask = _sets()
    rows = np.array([4, 2, 0])
    part = Dataset(dirty.image[rows], dirty.label[rows])
    _write(tmp_path / "p", poisoned=part, index=mask[rows], source_rows=rows)
    back = folder.read(tmp_path / "p")
    np.testing.assert_array_equal(back.source_rows, rows)
    assert back.manifest.index_map == "source_rows.npy"
    assert folder.verify(tmp_path / "p", clean).passed


@pytest.mark.parametrize("domain", ["float", "features"])
def test_float_images_and_features_are_stored_unrounded(tmp_path, domain):
    rng = np.random.default_rng(0)
    shape = (5, 4, 3, 2) if domain == "float" else (5, 6)
    base = rng.uniform(0.2, 0.8, shape).astype(np.float32)
    base = base if domain == "float" else 40 * base
    mask = np.array([True, False, True, True, False])
    moved = base + np.float32(0.05) * mask.reshape(5, *[1] * (base.ndim - 1))
    label = np.zeros(5, np.int32)
    clean = Dataset(base, label)
    options = dict(poisoned=Dataset(moved, label), clean=clean, index=mask, domain=domain)
    _write(tmp_path / "p", eps=0.05, **options)
    back = folder.read(tmp_path / "p")
    np.testing.assert_array_equal(back.dataset.image, moved)
    assert back.manifest.rounding is None
    assert set(_verdicts(folder.verify(tmp_path / "p", clean)).values()) == {True}
    with pytest.raises(InputError, match="3 rows exceed linf eps = 0.04; the largest change is 0"):
        _write(tmp_path / "q", eps=0.04, **options)
    _write(tmp_path / "r", norm=None, eps=None, **options)
    assert _verdicts(folder.verify(tmp_path / "r", clean))["budget"] is None


def test_float_images_of_grey_levels_keep_the_bits_of_untouched_rows(tmp_path):
    """A jitted poison divides by 255 as a product; the rows that it leaves are still the source."""
    _, clean, mask = _sets()
    image = clean.image.astype(np.float32) * np.float32(1 / 255)
    image = np.where(mask.reshape(5, 1, 1, 1), 0.9 * image, image)
    assert (image[~mask] != clean.image[~mask] / np.float32(255)).any()
    dirty = Dataset(image, clean.label)
    _write(tmp_path / "p", poisoned=dirty, index=mask, domain="float", eps=0.2)
    assert set(_verdicts(folder.verify(tmp_path / "p", clean)).values()) == {True}
    np.testing.assert_array_equal(folder.read(tmp_path / "p").dataset.image[mask], image[mask])


def test_a_cast_says_that_its_budget_is_a_grey_level_larger(tmp_path):
    _, clean, _ = _sets()
    moved = np.clip(clean.image / np.float32(255) - np.float32(8 / 255), 0, 1)
    dirty = Dataset(moved, clean.label)
    manifest = _write(
        tmp_path / "p", poisoned=dirty, index=np.arange(5), eps=8 / 255, rounding="cast"
    )
    assert manifest.rounding == "cast" and manifest.eps == 8 / 255 + 1 / 255
    assert manifest.measured["grey_level_max"] == 9 and manifest.measured["rows_beyond"] == 0
    (budget,) = [c for c in folder.verify(tmp_path / "p", clean).checks if c.name == "budget"]
    assert budget.passed and "of 0.0352941, 9 grey levels" in budget.detail
    assert budget.detail.endswith("; 1/255 of the budget is for the cast to 8 bits")
    kept = _write(
        tmp_path / "q", poisoned=dirty, index=np.arange(5), eps=8 / 255, rounding="truncate"
    )
    assert kept.eps == 8 / 255 and kept.measured["grey_level_max"] == 8


def test_grey_levels_are_stored_as_they_are_and_checked(tmp_path):
    _, clean, mask = _sets()
    levels = np.where(clean.image < 128, clean.image + 8, clean.image - 8).astype(np.uint8)
    dirty = Dataset(np.where(mask.reshape(5, 1, 1, 1), levels, clean.image), clean.label)
    manifest = _write(tmp_path / "p", poisoned=dirty)
    assert manifest.measured == {
        "norm_max": 8 / 255,
        "rows_beyond": 0,
        "grey_level_max": 8,
    }
    assert folder.read(tmp_path / "p").delta is None
    with pytest.raises(InputError, match="3 rows exceed linf eps = 0.027451"):
        _write(tmp_path / "q", poisoned=dirty, eps=7 / 255)


def test_eps_zero_and_an_empty_index_are_the_clean_set(tmp_path):
    _, clean, _ = _sets()
    same = Dataset(clean.image / np.float32(255), clean.label)
    _write(tmp_path / "p", poisoned=same, index=[], eps=0)
    back = folder.read(tmp_path / "p")
    np.testing.assert_array_equal(back.dataset.image, clean.image)
    assert back.delta.shape == (0, 4, 3, 2)
    assert folder.verify(tmp_path / "p", clean).passed
