"""README's examples run, its commands are the ones CI runs, and its map names every method."""

import pathlib
import re

import chex
import jax
import numpy as np
import pytest

import jaxpoison as jp

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_every_python_block_runs_in_order(quickest_compile):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["stored"].image.dtype == "uint8"


def test_the_pytorch_dataset_reads_a_poison_folder(tmp_path):
    torch = pytest.importorskip("torch", reason="the PyTorch example needs torch")
    block = torch_block("TensorDataset")
    assert len(block.splitlines()) <= 5
    image = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.save(tmp_path / "images.npy", image)
    np.save(tmp_path / "labels.npy", np.array([3, 1], np.int32))
    namespace = {"path": tmp_path}
    exec(compile(block, "README.md", "exec"), namespace)
    batch, label = next(iter(torch.utils.data.DataLoader(namespace["dataset"], batch_size=2)))
    assert label.tolist() == [3, 1] and batch.dtype == torch.float32
    np.testing.assert_array_equal(batch.numpy().transpose(0, 2, 3, 1), image / np.float32(255))


def test_a_released_state_is_read(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="the checkpoint example needs torch")
    network = jp.models.unet((32, 32, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes)
    state = jp.models.to_pytorch(network, variables)
    torch.save({name: torch.as_tensor(x) for name, x in state.items()}, tmp_path / "checkpoint.pt")
    monkeypatch.chdir(tmp_path)
    dataset = jp.Dataset(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int32))
    namespace = {"jp": jp, "torch": torch, "dataset": dataset}
    exec(compile(torch_block("from_pytorch"), "README.md", "exec"), namespace)
    chex.assert_trees_all_equal(namespace["variables"], variables)
    assert 0 < np.max(namespace["poisoned"].image) <= 8 / 255


def torch_block(word):
    (block,) = (b for b in re.findall(r"```py\n(.*?)```", README, flags=re.DOTALL) if word in b)
    return block


def test_ci_runs_the_test_command_word_for_word():
    (command,) = re.findall(r"`(python3 -m venv .*pytest)`", README)
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_map_names_every_attack():
    for room in ("attacks", "defenses"):
        for path in (ROOT / "jaxpoison" / room).glob("*/*.py"):
            if path.name != "__init__.py":
                assert str(path.relative_to(ROOT)) in README, path
