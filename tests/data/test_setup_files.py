"""The benchmark's files: arrays and pickles give the same setups; hostile pickles run nothing."""

import hashlib
import importlib
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from jaxpoison.data import setups
from jaxpoison.types import InputError

MODULE = importlib.import_module("jaxpoison.data.setup_files")
RNG = np.random.default_rng(0)
ENTRIES = [
    {
        "target class": 7,
        "target index": np.int64(7762),
        "base class": 3,
        "base indices": RNG.permutation(50000)[:6],
    },
    {
        "target class": 4,
        "target index": np.int64(9780),
        "base class": 5,
        "base indices": RNG.permutation(50000)[:6],
    },
]


def expect(found, entries=ENTRIES):
    assert len(found) == len(entries)
    for setup, entry in zip(found, entries, strict=True):
        assert setup.poison_rows.dtype == np.int64
        assert setup.poison_rows.tolist() == list(entry["base indices"])
        assert setup.target_rows.tolist() == [entry["target index"]]
        assert setup.wanted.tolist() == [entry["base class"]]
        assert setup.true.tolist() == [entry["target class"]]


def columns(entries=ENTRIES):
    return {
        name.replace(" ", "_"): np.stack([np.asarray(entry[name]) for entry in entries])
        for name in ENTRIES[0]
    }


def test_arrays(tmp_path):
    np.savez(tmp_path / "my set.npz", **columns())
    found = setups.from_benchmark(tmp_path / "my set.npz")
    expect(found)
    assert [setup.name for setup in found] == ["my_set-000", "my_set-001"]


def test_a_row_named_twice_counts_once_where_it_stands_first(tmp_path):
    entries = [dict(entry, **{"base indices": np.array([9, 4, 9, 2, 4])}) for entry in ENTRIES]
    np.savez(tmp_path / "s.npz", **columns(entries))
    (tmp_path / "p").write_bytes(pickle.dumps(entries))
    for found in (setups.from_benchmark(tmp_path / "s.npz"), setups.from_pickle(tmp_path / "p")):
        assert found[1].poison_rows.tolist() == [9, 4, 2]


FIRST = {
    "cifar10_from_scratch": (500, 7, 3, 7762, [2386, 37215, 23942, 15836, 14070, 41601]),
    "cifar10_transfer_learning": (25, 4, 7, 9139, [30330, 7829, 47673]),
    "tinyimagenet_from_scratch": (250, 89, 50, 5903, [25300, 25264, 25006]),
    "tinyimagenet_transfer_learning": (250, 13, 29, 2584, [14739, 14522]),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_hundred_published_setups(shared_data, name):
    num, true, wanted, target, first = FIRST[name]
    found = setups.from_benchmark(shared_data / "setups" / f"{name}.npz")
    assert [setup.name for setup in found] == [f"{name}-{i:03d}" for i in range(100)]
    twice = {78, 84} if name == "cifar10_transfer_learning" else set()
    assert [len(setup.poison_rows) for setup in found] == [num - (i in twice) for i in range(100)]
    assert found[0].poison_rows[: len(first)].tolist() == first
    assert (found[0].true[0], found[0].wanted[0], found[0].target_rows[0]) == (
        true, wanted, target,
    )  # fmt: skip
    assert all(setup.true[0] != setup.wanted[0] for setup in found)
    if name.startswith("cifar10"):
        with np.load(shared_data / "cifar10" / "labels.npz") as file:
            train, test = file["train_label"], file["test_label"]
        for setup in found:
            setup._check(train, test)
            assert (train[setup.poison_rows] == setup.wanted[0]).all()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path, protocol, monkeypatch):
    content = pickle.dumps(ENTRIES, protocol)
    path = tmp_path / "poison_setups.pickle"
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    found = setups.from_pickle(path)
    expect(found)
    assert [setup.name for setup in found] == [f"unknown-{digest[:8]}-{i:03d}" for i in range(2)]
    monkeypatch.setitem(MODULE.PUBLISHED, digest, "cifar10_from_scratch")
    assert setups.from_pickle(path)[1].name == "cifar10_from_scratch-001"


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_both_names_of_numpy_and_the_memory_of_optimized_pickles(tmp_path, protocol, module):
    content = pickle.dumps(ENTRIES, protocol)
    ours = "numpy._core" if b"numpy._core" in content else "numpy.core"
    if protocol < 4:  # names are lines
        content = content.replace(ours.encode(), module.encode())
    else:  # names have a length; frames would count them too
        content = pickletools.optimize(content)
        content = content.replace(
            struct.pack("<BB", 0x8C, len(ours) + 11) + f"{ours}.multiarray".encode(),
            struct.pack("<BB", 0x8C, len(module) + 11) + f"{module}.multiarray".encode(),
        )
    assert f"{module}.multiarray".encode() in content
    (tmp_path / "p").write_bytes(content)
    expect(setups.from_pickle(tmp_path / "p"))


def test_other_integers_byte_orders_and_lists(tmp_path):
    entries = [
        dict(ENTRIES[0], **{"base indices": ENTRIES[0]["base indices"].astype(">i4")}),
        dict(ENTRIES[0], **{"base indices": ENTRIES[0]["base indices"].astype(np.uint16)}),
        dict(ENTRIES[0], **{"base indices": ENTRIES[0]["base indices"].tolist()}),
        dict(ENTRIES[0], **{"base class": np.int32(3), "target index": 7762}),
    ]
    entries[1]["base indices"] = entries[1]["base indices"] % 60000
    (tmp_path / "p").write_bytes(pickle.dumps(entries, 4))
    expect(setups.from_pickle(tmp_path / "p"), entries)


def test_pickles_of_python_2(tmp_path):
    """Its text and array data are byte strings; written by hand, as no Python 3 writes them."""
    text = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    number = lambda value: b"J" + struct.pack("<i", value)  # noqa: E731
    dtype = b"cnumpy\ndtype\n" + text(b"i8") + b"K\x00K\x01\x87R(K\x03" + text(b"<")
    dtype += b"NNN" + number(-1) * 2 + b"K\x00tb"
    rows = np.array([300, 2, 255], "<i8")
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    array += b"\x87R(K\x01K\x03\x85" + dtype + b"\x89" + text(rows.tobytes()) + b"tb"
    scalar = b"cnumpy.core.multiarray\nscalar\n" + dtype
    scalar += text(np.array([9000], "<i8").tobytes()) + b"\x86R"
    content = b"\x80\x02]}(" + text(b"target class") + number(1) + text(b"base class") + number(2)
    content += text(b"target index") + scalar + text(b"base indices") + array + b"ua."
    theirs = pickle.loads(content, encoding="latin1")
    assert theirs[0]["target index"] == 9000 and theirs[0]["base indices"].tolist() == [300, 2, 255]
    (tmp_path / "p").write_bytes(content)
    expect(setups.from_pickle(tmp_path / "p"), theirs)


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    """Name -> (what stands in the file, a part of the refusal)."""
    made = str(tmp_path / "made")
    knot = []
    knot.append(knot)
    entry = {name: value for name, value in ENTRIES[0].items() if name != "base indices"}
    many = pickle.dumps([dict(entry, **{"base indices": np.arange(2000)})] * 2, 2)[:-1]
    setup = lambda rows: [dict(ENTRIES[0], **{"base indices": rows})]  # noqa: E731
    array = pickle.dumps(np.arange(6), 2)
    huge = array.replace(b"K\x06\x85", b"\x8a\x07" + b"\xff" * 6 + b"\x00\x85")
    assert huge != array
    forms = {
        "system": (Runs(os.system, f"touch {made}"), "it asks for 'posix.system'"),
        "eval": (Runs(eval, f"open({made!r}, 'w')"), "it asks for 'builtins.eval'"),
        "in a list": ([1, [Runs(os.mkdir, made)]], "it asks for 'posix.mkdir'"),
        "in an array": (np.array([Runs(os.mkdir, made)], object), "that are not integers"),
        "objects": (setup(np.array([None, 1], object)), "that are not integers"),
        "floats": (setup(np.array([0.5])), "that are not integers"),
        "fields": (setup(np.zeros(2, [("a", "i4")])), "that are not integers"),
        "numpy's load": (Runs(np.load, made), "it asks for 'numpy.load'"),
        "a set": ({1, 2}, "it uses the opcode EMPTY_SET"),
        "a knot": (knot, "a setup is a dict with the keys"),
        "a number": (3, "it holds no list of setups"),
        "no setups": ([], "it holds no list of setups"),
        "other keys": ([{"target class": 3}], "a setup is a dict with the keys"),
        "number keys": ([{1: 2}], "a dict whose keys are no text"),
        "a truth": ([dict(ENTRIES[0], **{"base class": True})], "is no whole number"),
        "a text": (setup("abc"), "base indices are a list or an array"),
        "none": (setup([]), "base indices are a list or an array"),
        "negative": (setup([-1]), "outside 0 to 2147483647"),
        "beyond": ([dict(ENTRIES[0], **{"target index": 2**40})], "outside 0 to 2147483647"),
        "two axes": (setup(np.zeros((2, 2), int)), "base indices are a list or an array"),
    }
    files = {name: (pickle.dumps(value, 4), text) for name, (value, text) in forms.items()}
    whole = pickle.dumps(ENTRIES, 4)
    files |= {
        "empty": (b"", "it is damaged, or no pickle"),
        "words": (b"PK\x03\x04 no pickle", "it is damaged, or no pickle"),
        "tail": (whole + b".", "something follows its end"),
        "a file in it": (b"c__builtin__\neval\n(S'1'\ntR.", "it asks for '__builtin__.eval'"),
        "inst": (b"(S'true'\nios\nsystem\n.", "it uses the opcode INST"),
        "extension": (b"\x82\x01.", "it uses the opcode EXT1"),
        "persistent": (b"Pname\n.", "it uses the opcode PERSID"),
        "nested reduce": (b"cnumpy\ndtype\n(S'i8'\ntR(tR.", "it calls what is no function"),
        "its array type": (b"cnumpy\nndarray\n(K\x05tR.", "an array of an unknown kind"),
        "names made": (b"]]\x93.", "it asks for what has no name"),
        "claims much": (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "it is damaged"),
        "claims more text": (b"X" + struct.pack("<I", 2**32 - 1) + b"x.", "it is damaged"),
        "a long number": (b"L" + b"9" * 10**5 + b"L\n.", "it is damaged"),
        "an array of claims": (huge, "whose size is not that of its data"),
        "no memory": (b"h\x07.", "it is damaged"),
        "nothing": (b"0.", "it uses the opcode POP"),
        "an open mark": (b"]](.", "something follows its end"),
        "an odd dict": (b"](S'a'\nd.", "it is damaged"),
        "lists in lists": (b"]" + b"]" * 20000 + b"a" * 20000 + b".", "a setup is a dict"),
        "tuples in tuples": (b")" + b"\x85" * 20000 + b".", "it holds no list of setups"),
        "one array often": (many[:-1] + b"h\x01" * 50 + b"e.", "it stands for more"),
        "bytes without end": (
            b"\x80\x02X" + struct.pack("<I", 99) + b"x" * 99 + b"q\x000"[:2]
            + b"c_codecs\nencode\nq\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 50 + b".",
            "it makes more bytes than it has",
        ),
        "too large": (b"]" * (MODULE.MAX_BYTES + 1), "it has more than 4194304 bytes"),
    }  # fmt: skip
    return files


def refusal(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        setups.from_pickle(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300 + len(str(path)) and str(path) in message
    return message


def test_hostile_pickles_run_nothing_and_are_one_line(tmp_path):
    for name, (content, text) in hostile(tmp_path).items():
        assert text in refusal(tmp_path / "p", content), name
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_truncations_are_refused(tmp_path, protocol):
    content = pickle.dumps(ENTRIES, protocol)
    for size in range(0, len(content), 5):
        refusal(tmp_path / "p", content[:size])


def test_changed_bytes_are_refused_or_give_setups(tmp_path):
    """Whatever byte is changed, there is a list of sound setups or one line, and nothing else."""
    content = bytearray(pickle.dumps(ENTRIES[:1], 2))
    for place in range(len(content)):
        for value in (0x2E, content[place] ^ 1):
            changed = content.copy()
            changed[place] = value
            (tmp_path / "p").write_bytes(changed)
            try:
                found = setups.from_pickle(tmp_path / "p")
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017
            else:
                assert all(setup.poison_rows.min() >= 0 for setup in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_class": None}, "is no .npz file with the arrays target_class"),
        ({"base_class": np.zeros(3, int)}, "allowed are integers"),
        ({"base_indices": np.zeros(2, int)}, "allowed are integers"),
        ({"base_indices": np.zeros((2, 6))}, "allowed are integers"),
        ({"base_indices": np.zeros((2, 0), int)}, "setup 0 has no base index"),
        ({"base_indices": np.zeros((2, 6), object)}, "cannot be read"),
        ({"target_index": np.array([-1, 2])}, "setup 0 has a class or row outside"),
    ],
)
def test_other_arrays_are_one_line(tmp_path, change, message):
    kept = {k: v for k, v in (columns() | change).items() if v is not None}
    np.savez(tmp_path / "s.npz", **kept)
    with pytest.raises(InputError, match=message) as caught:
        setups.from_benchmark(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no zip")
    np.save(tmp_path / "bare.npy", np.zeros(3))
    for read in (setups.from_benchmark, setups.from_pickle):
        for name in ("absent", "x.npz", "bare.npy", "", "x.npz/y"):
            with pytest.raises(InputError) as caught:
                read(tmp_path / name)
            assert "\n" not in str(caught.value)
