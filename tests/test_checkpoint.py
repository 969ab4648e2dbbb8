"""Checkpoints: whole or not there, and one clear line when they cannot be used."""

import errno
import hashlib
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxpoison import checkpoint
from jaxpoison.types import InputError


class State(NamedTuple):
    theta: Any
    opt_state: Any


def state(value=0.0, size=3):
    theta = {"w": jnp.full((2, size), value), "low": jnp.full(3, value, jnp.bfloat16)}
    return State(theta, optax.adam(1e-3).init(theta))


def save(folder, step, value, **options):
    checkpoint.save(folder, step, state(value), notes={"value": value}, **options)


def damage(path):
    """Flip one bit in the middle of the largest file of a checkpoint."""
    victim = max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_nested_named_tuples_and_optimizer_states_come_back_with_their_dtypes(tmp_path):
    rng = np.random.RandomState(0)
    values = {
        "f32": rng.randn(3, 2).astype(np.float32),
        "bf16": rng.randn(4).astype(ml_dtypes.bfloat16),
        "u8": np.arange(5, dtype=np.uint8),
        "flag": np.array(True),
        "count": np.int32(7),
        "none": np.zeros((0, 3), np.float32),
    }
    params = {"w": jnp.asarray(values["f32"])}
    tx = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=0.1))
    _, opt_state = tx.update(params, tx.init(params), params)
    full = State((jax.tree.map(jnp.asarray, values), ()), opt_state)
    checkpoint.save(tmp_path, 3, full, notes={"a": [1, 2]})
    blank = jax.tree.map(jnp.zeros_like, full)
    found = checkpoint.restore(tmp_path, blank)
    assert found is not None and found.step == 3 and found.notes == {"a": [1, 2]}
    assert jax.tree.structure(found.state) == jax.tree.structure(full)
    for name, value in values.items():
        again = np.asarray(found.state.theta[0][name])
        assert again.dtype == value.dtype
        np.testing.assert_array_equal(again, value)
    for again, leaf in zip(*map(jax.tree.leaves, (found.state, full)), strict=True):
        assert again.dtype == leaf.dtype and again.weak_type == leaf.weak_type is False
        np.testing.assert_array_equal(np.asarray(again), np.asarray(leaf))


@pytest.mark.parametrize("empty", [(), {"a": ()}, jnp.zeros((0, 2))])
def test_a_state_without_entries(tmp_path, empty):
    checkpoint.save(tmp_path, 1, empty, notes={})
    found = checkpoint.restore(tmp_path, empty)
    assert found is not None and found.step == 1
    assert jax.tree.structure(found.state) == jax.tree.structure(empty)


def test_shardings_of_the_wanted_state_are_kept(tmp_path):
    mesh = jax.make_mesh((4,), ("r",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("r"))
    spread = jax.device_put(np.arange(8.0, dtype=np.float32), sharding)
    checkpoint.save(tmp_path, 1, {"x": spread}, notes={})
    again = checkpoint.restore(tmp_path, {"x": jnp.zeros_like(spread, device=sharding)})
    assert again is not None and again.state["x"].sharding == sharding
    np.testing.assert_array_equal(again.state["x"], np.arange(8.0))
    on_one = checkpoint.restore(tmp_path, {"x": jnp.zeros(8)})
    assert on_one is not None and len(on_one.state["x"].sharding.device_set) == 1


def test_the_newest_valid_one_wins_and_two_stay(tmp_path):
    assert checkpoint.restore(tmp_path / "none yet", state()) is None
    for step in (1, 2, 10):
        save(tmp_path, step, float(step))
    assert checkpoint.valid_steps(tmp_path) == [2, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000010"]
    found = checkpoint.restore(tmp_path, state())
    assert found is not None and found.step == 10 and found.notes["value"] == 10.0
    assert float(found.state.theta["w"][0, 0]) == 10.0


def test_every_file_has_its_digest(tmp_path):
    save(tmp_path, 1, 1.0)
    path = tmp_path / "00000001"
    meta = json.loads((path / "meta.json").read_text())
    on_disk = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()}
    assert set(meta["files"]) == on_disk - {"meta.json"}


def test_one_cut_off_while_being_written_does_not_count(tmp_path):
    save(tmp_path, 1, 1.0)
    save(tmp_path, 2, 2.0)
    (tmp_path / "00000002" / "meta.json").unlink()
    (tmp_path / "00000003" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    found = checkpoint.restore(tmp_path, state())
    assert found is not None and found.step == 1
    save(tmp_path, 2, 2.5)  # the run goes on: what was cut off is cleared away
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002"]
    found = checkpoint.restore(tmp_path, state())
    assert found is not None and float(found.state.theta["w"][0, 0]) == 2.5


def test_a_damaged_one_falls_back_to_an_older_one(tmp_path):
    for step in (1, 5):
        save(tmp_path, step, float(step))
    damage(tmp_path / "00000005")
    with pytest.warns(UserWarning, match="damaged checkpoint .*00000005.* passed over") as record:
        found = checkpoint.restore(tmp_path, state())
    assert len(record) == 1 and found is not None and found.step == 1
    # With one kept, the new checkpoint stays and not the damaged one of a later step.
    save(tmp_path, 2, 2.0, keep=1)
    assert checkpoint.valid_steps(tmp_path) == [2]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": 5, "files": {}}', "\udcff"])
def test_a_damaged_meta_file_is_a_damaged_checkpoint(tmp_path, content):
    for step in (1, 5):
        save(tmp_path, step, float(step))
    meta = tmp_path / "00000005" / "meta.json"
    meta.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.warns(UserWarning, match="00000005"):
        found = checkpoint.restore(tmp_path, state())
    assert found is not None and found.step == 1


def resign(meta, **changes):
    """Edit meta.json as a forger would, with a right digest of its own."""
    content = json.loads(meta.read_text())
    del content["sha256"]
    text = json.dumps(content | changes, indent=2) + "\n"
    signed = json.loads(text) | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    meta.write_text(json.dumps(signed, indent=2) + "\n")


def passed_over(folder, like, **options):
    with pytest.warns(UserWarning, match=r"damaged checkpoint .*00000005 .* passed over") as record:
        found = checkpoint.restore(folder, like, **options)
    assert len(record) == 1 and "\n" not in str(record[0].message)
    assert found is not None and found.step == 1


def test_every_change_of_the_meta_file_is_damage(tmp_path):
    small = {"x": jnp.ones(2)}
    for step in (1, 5):
        checkpoint.save(tmp_path, step, small, notes={"a": 0.5})
    meta = tmp_path / "00000005" / "meta.json"
    whole = meta.read_bytes()
    for place in range(0, len(whole), 7):
        for bit in (1, 128):
            meta.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            passed_over(tmp_path, small)
    for text in (whole[:-1], whole + b" ", whole.replace(b": ", b":"), b"[" * 100_000, b"1e999"):
        meta.write_bytes(text)
        passed_over(tmp_path, small)
    meta.write_bytes(whole.replace(b'"step": 5', b'"step": 6'))
    passed_over(tmp_path, small)
    meta.write_bytes(whole)
    found = checkpoint.restore(tmp_path, small)
    assert found is not None and found.step == 5


@pytest.mark.parametrize("field", ["step", "files", "notes"])
@pytest.mark.parametrize("value", [None, 6, "5", 5.5, [], [5], {}, {"a": 1}, {"state": "0"}])
def test_a_meta_file_of_other_types_is_damage_even_if_its_digest_is_right(tmp_path, field, value):
    small = {"x": jnp.ones(2)}
    for step in (1, 5):
        checkpoint.save(tmp_path, step, small, notes={"a": 0.5})
    resign(tmp_path / "00000005" / "meta.json", **{field: value})
    passed_over(tmp_path, small, read=lambda notes: notes["a"] * 2.0 + {0.5: 0}[notes["a"]])


def test_a_folder_that_only_looks_like_a_checkpoint_does_not_count(tmp_path):
    save(tmp_path, 1, 1.0)
    shutil.copytree(tmp_path / "00000001", tmp_path / "00000001 (copy)")
    assert checkpoint.valid_steps(tmp_path) == [1]


def test_all_damaged_is_one_line_and_nothing_is_deleted(tmp_path):
    for step in (1, 5):
        save(tmp_path, step, float(step))
        damage(tmp_path / f"{step:08d}")
    before = snapshot(tmp_path)
    with pytest.raises(InputError) as error:
        checkpoint.restore(tmp_path, state())
    assert "00000005" in one_line(error) and f"remove {tmp_path}" in str(error.value)
    assert snapshot(tmp_path) == before


OTHER = {
    "shape": (state(size=4), r"theta/w is float32\[2, 3\] there and float32\[2, 4\]"),
    "dtype": (
        State({"w": jnp.zeros((2, 3)), "low": jnp.zeros(3)}, state().opt_state),
        r"theta/low is bfloat16\[3\] there and float32\[3\]",
    ),
    "name": (State({"v": jnp.zeros((2, 3))}, ()), "theta/v is absent there and float32"),
    "number": (state()._replace(opt_state=()), "opt_state/0/count is int32.* there and absent"),
}


@pytest.mark.parametrize("name", OTHER)
def test_other_settings_are_one_line(tmp_path, name):
    like, words = OTHER[name]
    save(tmp_path, 1, 1.0)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=f"other settings.*{words}") as error:
        checkpoint.restore(tmp_path, like)
    assert "00000001" in one_line(error)
    assert snapshot(tmp_path) == before


def test_exchanged_dtypes_are_not_cast_in_silence(tmp_path):
    checkpoint.save(tmp_path, 1, {"a": jnp.ones(2), "b": jnp.ones(2, jnp.int32)}, notes={})
    with pytest.raises(InputError, match="state a is float32"):
        checkpoint.restore(tmp_path, {"a": jnp.ones(2, jnp.int32), "b": jnp.ones(2)})


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device\nmore\nlines"),
]


@pytest.mark.parametrize("failure", FULL, ids=["OSError", "ValueError"])
def test_a_full_disk_is_one_line_and_older_ones_stay(tmp_path, monkeypatch, failure):
    save(tmp_path, 1, 1.0)
    save(tmp_path, 2, 2.0)
    before = snapshot(tmp_path)

    def full(path, tree):
        del tree
        part = pathlib.Path(f"{path}.orbax-checkpoint-tmp")
        part.mkdir(parents=True)
        (part / "piece").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with pytest.raises(OSError, match="00000003 not written, older ones are kept") as error:
        save(tmp_path, 3, 3.0)
    assert "No space left on device" in one_line(error)
    assert snapshot(tmp_path) == before  # and the half-written one gives its room back
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "00000002"]


def test_a_failing_digest_file_leaves_no_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, 1.0)

    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(OSError, match="00000002 not written"):
        save(tmp_path, 2, 2.0)
    assert checkpoint.valid_steps(tmp_path) == [1]


def test_write_json_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    checkpoint.write_json(path, {"x": 1})
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            checkpoint.write_json(path, bad)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):

        def half(self, text):
            self.write_bytes(text[:3].encode())
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(pathlib.Path, "write_text", half)
        checkpoint.write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    checkpoint.write_json(path, {"x": 3})
    assert json.loads(path.read_text()) == {"x": 3}


def test_digest_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checkpoint.digest(tmp_path / "f") == known
