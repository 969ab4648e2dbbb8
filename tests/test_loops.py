"""The two loops against a plain python loop, against each other, and against damaged files."""

import functools
import io
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import jaxpoison as jp
from jaxpoison import checkpoint, loops
from jaxpoison.types import Info, InputError

KEY = jax.random.key(0)
DATA = jnp.asarray([0.5, -1.0, 2.0])
QUIET = Console(quiet=True)


def walk(nan_at=None):
    """x <- 0.9 x + data + noise, with its number of steps; a NaN at step `nan_at`."""

    def init(key, data):
        return {"x": jax.random.normal(key, (3,)) + data, "t": jnp.zeros((), jnp.int32)}

    def step(key, state, data):
        x = 0.9 * state["x"] + data + jax.random.normal(key, (3,))
        if nan_at is not None:
            x = jnp.where(state["t"] == nan_at, jnp.nan, x)
        loss = jnp.sum(x**2)
        return {"x": x, "t": state["t"] + 1}, Info(loss, jnp.sqrt(loss), jnp.isfinite(loss))

    return jp.Attack(init, step, lambda state, data: None)  # type: ignore


def by_hand(process, key, data, steps):
    """The promise of the module: step t draws fold_in(steps_key, t)."""
    init_key, steps_key = jax.random.split(key)
    state, infos = process.init(init_key, data), []
    for t in range(steps):
        state, info = process.step(jax.random.fold_in(steps_key, t), state, data)
        infos.append(info)
    return state, jax.tree.map(lambda *x: np.stack(x), *infos)


def go(process, directory=None, *, num_steps=10, **options):
    options = {"console": QUIET, "directory": directory, **options}
    return jp.run_chunks(process, KEY, DATA, num_steps=num_steps, **options)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


# run


def test_run_is_a_python_loop_with_the_same_keys():
    process = walk()
    state, info = jp.run(process, KEY, DATA, num_steps=4)
    wanted, infos = by_hand(process, KEY, DATA, 4)
    chex.assert_trees_all_close(state, wanted, rtol=1e-5)
    chex.assert_trees_all_close(info, infos, rtol=1e-5)
    assert type(info) is Info and info.outer_loss.shape == (4,) and info.finite.dtype == bool


def test_run_can_be_differentiated_and_mapped_over_its_data():
    process = walk()

    def last_loss(data):
        return jp.run(process, KEY, data, num_steps=3)[1].outer_loss[-1]

    # x_3 is affine in the data: d x_3 / d data = 0.9^3 (from init) + 0.9^2 + 0.9 + 1.
    x = np.asarray(jp.run(process, KEY, DATA, num_steps=3)[0]["x"])
    slope = 0.9**3 + 0.9**2 + 0.9 + 1
    np.testing.assert_allclose(jax.grad(last_loss)(DATA), 2 * slope * x, rtol=1e-5)
    many = jnp.stack([DATA, 2 * DATA])
    each = [last_loss(data) for data in many]
    np.testing.assert_allclose(jax.vmap(last_loss)(many), each, rtol=1e-5)


def test_a_sweep_over_a_traced_budget_goes_through_run_with_its_gradient():
    """The attack is built inside, around a traced eps; one program serves every value."""

    def attack(eps):
        def step(key, state, data):
            del key
            state = jnp.clip(state + 10 * data, -eps, eps)
            return state, Info(jnp.sum(state * data), jnp.float32(0), jnp.array(True))

        return jp.Attack(lambda key, data: 0 * data, step, lambda state, data: None)  # type: ignore

    def last(eps):
        return jp.run(attack(eps), KEY, DATA, num_steps=2)[1].outer_loss[-1]

    sweep = jnp.asarray([0.0, 0.25, 1.0])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(last)))(sweep)
    size = float(np.abs(DATA).sum())  # sum(sign(d) eps d)
    np.testing.assert_allclose(value, size * np.asarray(sweep), rtol=1e-6)
    np.testing.assert_allclose(slope[1:], [size, size], rtol=1e-6)


def test_a_second_run_traces_nothing():
    process, traces = walk(), []

    def step(key, state, data):
        traces.append(None)
        return process.step(key, state, data)

    counted = process._replace(step=step)
    for loop in (functools.partial(jp.run, counted, num_steps=3), None):
        first = loop(KEY, DATA) if loop else go(counted, num_steps=3)
        before, compiled = len(traces), loops._chunk._cache_size() + loops._run._cache_size()
        again = loop(KEY, DATA) if loop else go(counted, num_steps=3)
        chex.assert_trees_all_equal(again[:2], first[:2])
        assert before and len(traces) == before
        assert loops._chunk._cache_size() + loops._run._cache_size() == compiled


@pytest.mark.parametrize("loop", ["run", "run_chunks"])
@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_is_one_line(loop, steps):
    with pytest.raises(InputError, match=f"^num_steps = {steps}; it must be at least 1$"):
        getattr(jp, loop)(walk(), KEY, DATA, num_steps=steps)


def test_saving_every_zero_steps_is_one_line(tmp_path):
    with pytest.raises(InputError, match="^save_every = 0; it must be at least 1$"):
        go(walk(), tmp_path / "new", save_every=0)
    assert not (tmp_path / "new").exists()


# run_chunks


def test_chunks_take_the_same_steps_whatever_their_length(monkeypatch):
    process = walk()
    monkeypatch.setattr(loops, "CHUNK_SECONDS", 0.0)  # one step a chunk
    state, info, _ = go(process, num_steps=40)
    monkeypatch.setattr(loops, "CHUNK_SECONDS", 1e6)  # 1, 4, 16, then the rest
    longer, longer_info, _ = go(process, num_steps=40)
    chex.assert_trees_all_equal(longer, state)
    chex.assert_trees_all_equal(longer_info, info)
    saved, _, _ = go(process, num_steps=40, save_every=7)
    chex.assert_trees_all_equal(saved, state)
    monkeypatch.setattr(loops, "CAPACITY", 3)
    small, small_info, _ = go(walk(), num_steps=40)  # a new process: its program holds 3 steps
    chex.assert_trees_all_equal(small, state)
    chex.assert_trees_all_equal(small_info, info)
    wanted, infos = jp.run(process, KEY, DATA, num_steps=40)
    chex.assert_trees_all_close(state, wanted, rtol=1e-5)
    chex.assert_trees_all_close(info, jax.device_get(infos), rtol=1e-5)
    assert type(info) is Info and isinstance(info.outer_loss, np.ndarray)
    assert info.outer_loss.dtype == np.float32 and info.finite.dtype == bool


def test_the_bar_shows_steps_speed_time_left_and_loss():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, legacy_windows=False)
    _, info, _ = go(walk(), num_steps=6, console=console, description="crafting")
    text = screen.getvalue()
    assert "crafting" in text and "6/6" in text and "steps/s" in text
    assert "0:00:00" in text  # time left
    assert f"loss {info.outer_loss[-1]:.4g}" in text


def test_one_valid_line_of_metrics_a_step_and_a_checkpoint_every_n(tmp_path, monkeypatch):
    saved = []
    save = checkpoint.save

    def noted(folder, step, state, **options):
        assert len(metrics(tmp_path)) == step  # metrics are never behind a checkpoint
        saved.append(step)
        save(folder, step, state, **options)

    monkeypatch.setattr(checkpoint, "save", noted)
    _, info, seconds = go(walk(), tmp_path, num_steps=8, save_every=3)
    assert saved == [3, 6, 8]
    assert checkpoint.valid_steps(tmp_path / "checkpoints") == [6, 8]
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(8))
    for row, loss in zip(rows, info.outer_loss, strict=True):
        assert row.keys() == {"step", *Info._fields}
        assert np.float32(row["outer_loss"]) == loss and row["finite"] is True
    assert seconds.compile > 0 and seconds.steps > 0


def test_a_run_resumes_on_its_own_and_a_finished_one_is_only_loaded(tmp_path, monkeypatch):
    process = walk()
    state, info, _ = go(process)
    go(process, tmp_path, num_steps=4)
    resumed, resumed_info, seconds = go(process, tmp_path)
    chex.assert_trees_all_equal(resumed, state)
    chex.assert_trees_all_equal(resumed_info, info)

    def never(*args):
        raise AssertionError("a step was taken")

    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(loops, "_chunk", never)
    screen = io.StringIO()
    loaded, loaded_info, again = go(process, tmp_path, console=Console(file=screen))
    chex.assert_trees_all_equal(loaded, state)
    chex.assert_trees_all_equal(loaded_info, info)
    assert again == seconds and screen.getvalue() == ""
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before


def test_metrics_after_the_last_checkpoint_are_taken_again_once(tmp_path):
    process = walk()
    _, info, _ = go(process)
    go(process, tmp_path, num_steps=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:  # as a killed process leaves it
        file.write(
            '{"step": 4, "outer_loss": 1e9, "grad_norm": 0, "finite": true}\n{"step": 5, "ou'
        )
    _, resumed, _ = go(process, tmp_path)
    chex.assert_trees_all_equal(resumed, info)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(10))
    np.testing.assert_array_equal(np.float32([r["outer_loss"] for r in rows]), info.outer_loss)


def test_without_a_checkpoint_the_run_begins_again(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "outer_loss": 7')
    _, info, _ = go(walk(), tmp_path, num_steps=2)
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1] and info.finite.all()


def test_a_damaged_newest_checkpoint_costs_only_its_steps(tmp_path):
    process = walk()
    whole, info, _ = go(process)
    go(process, tmp_path, num_steps=7, save_every=5)
    path = tmp_path / "checkpoints" / "00000007" / "meta.json"
    path.write_text(path.read_text()[:40])
    with pytest.warns(UserWarning, match="damaged checkpoint .*00000007"):
        state, again, _ = go(process, tmp_path)
    chex.assert_trees_all_equal(state, whole)
    chex.assert_trees_all_equal(again, info)


@pytest.mark.parametrize(
    "notes",
    [{}, {"key": [0, 0]}, {"key": [0, 0], "seconds": 3}]
    + [{"key": [0, 0], "seconds": s} for s in ({}, {"compile": 1, "steps": "2"}, {"x": 1})]
    + [{"key": [0, 0], "seconds": {"compile": -1.0, "steps": 2.0}}],
)
def test_notes_of_other_types_are_damage_even_if_their_digest_is_right(tmp_path, notes):
    process = walk()
    go(process, tmp_path, num_steps=7, save_every=5)
    path = tmp_path / "checkpoints" / "00000007" / "meta.json"
    content = json.loads(path.read_text()) | {"notes": notes}
    del content["sha256"]
    path.write_text(checkpoint.json_text(checkpoint.sealed(content)))
    with pytest.warns(UserWarning, match="damaged checkpoint .*00000007"):
        go(process, tmp_path)


@pytest.mark.parametrize("nan_at", [0, 7])
def test_a_value_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, nan_at):
    process = walk(nan_at)
    with pytest.raises(jp.NonFiniteError, match=f"^step {nan_at} is not finite") as error:
        go(process, tmp_path, save_every=3)
    rows = metrics(tmp_path)
    assert len(rows) == nan_at + 1 and rows[-1]["outer_loss"] is None and not rows[-1]["finite"]
    if nan_at == 0:
        assert one_line(error).endswith("last good checkpoint: none")
        return
    assert one_line(error).endswith(f"last good checkpoint: step 6 in {tmp_path / 'checkpoints'}")
    found = checkpoint.restore(tmp_path / "checkpoints", process.init(KEY, DATA))
    assert found is not None and found.step == 6 and np.isfinite(found.state["x"]).all()
    six, _, _ = go(process, num_steps=6)
    chex.assert_trees_all_equal(found.state, six)
    with pytest.raises(jp.NonFiniteError, match="^step 7 is not finite"):
        go(process, tmp_path, save_every=3)  # and again, from the checkpoint


def test_one_bad_restart_stops_all_of_them():
    with pytest.raises(jp.NonFiniteError, match=r"^step 2 is not finite .*last good .*: none$"):
        go(jp.over_restarts(walk(nan_at=2), 2))


def test_nothing_is_moved_during_a_chunk(monkeypatch):
    chunk, guarded = loops._chunk, []

    def tries(*args):
        try:
            jnp.add(args[2]["x"], np.ones(3, np.float32))  # an implicit transfer
        except jax.errors.JaxRuntimeError as error:
            guarded.append("Disallowed" in str(error))
        return chunk(*args)

    monkeypatch.setattr(loops, "_chunk", tries)
    jnp.add(DATA, np.ones(3, np.float32))
    process = walk()
    state, _, _ = jp.run_chunks(process, KEY, np.asarray(DATA), num_steps=3, console=QUIET)
    assert guarded and all(guarded)
    monkeypatch.undo()
    chex.assert_trees_all_equal(state, go(process, num_steps=3)[0])  # numpy data is moved before


def test_the_data_outlive_the_run_though_the_state_is_donated():
    def init(key, data):
        return data

    def step(key, state, data):
        return state, Info(jnp.sum(state), jnp.float32(0), jnp.array(True))

    data = jnp.arange(3.0)
    process = jp.Attack(init, step, lambda state, data: None)  # type: ignore
    state, _, _ = jp.run_chunks(process, KEY, data, num_steps=3, console=QUIET)
    assert not data.is_deleted()
    np.testing.assert_array_equal(state, data)


# what a user can get wrong


def test_another_key_is_one_line(tmp_path):
    process = walk()
    go(process, tmp_path, num_steps=2)
    with pytest.raises(InputError, match="made with another key") as error:
        jp.run_chunks(
            process, jax.random.key(1), DATA, num_steps=3, directory=tmp_path, console=QUIET
        )
    assert str(tmp_path) in one_line(error) and len(metrics(tmp_path)) == 2


def test_fewer_steps_than_done_is_one_line(tmp_path):
    process = walk()
    go(process, tmp_path, num_steps=5)
    with pytest.raises(InputError, match="has 5 steps done, more than num_steps = 3") as error:
        go(process, tmp_path, num_steps=3)
    assert str(tmp_path) in one_line(error) and len(metrics(tmp_path)) == 5


def test_other_settings_are_one_line(tmp_path):
    go(walk(), tmp_path, num_steps=2)
    with pytest.raises(InputError, match="made with other settings: state t is int32") as error:
        jp.run_chunks(
            jp.over_restarts(walk(), 2), KEY, DATA, num_steps=3, directory=tmp_path, console=QUIET
        )
    one_line(error)


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "no json": lambda text: text.replace('{"step": 1', "{step 1"),
    "gone": lambda text: "",
    "other columns": lambda text: text.replace("grad_norm", "norm"),
    "other order": lambda text: "\n".join(reversed(text.splitlines())),
    "no object": lambda text: "1\n2\n3\n",
    "no text": lambda text: b"\xff\xfe" + text.encode(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_metrics_are_one_line_and_nothing_is_lost(tmp_path, name):
    process = walk()
    go(process, tmp_path, num_steps=3)
    path = tmp_path / "metrics.jsonl"
    broken = DAMAGE[name](path.read_text())
    broken = broken if isinstance(broken, bytes) else broken.encode()
    path.write_bytes(broken)
    with pytest.raises(InputError, match="metrics.jsonl is damaged") as error:
        go(process, tmp_path, num_steps=5)
    assert f"remove {tmp_path} to start again" in one_line(error)
    assert path.read_bytes() == broken
    assert checkpoint.valid_steps(tmp_path / "checkpoints") == [3]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be written") as error:
            go(walk(), folder)
        assert str(folder) in one_line(error)
    assert (tmp_path / "file").read_text() == "in the way"
