import dataclasses
import functools

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxpoison as jp
from jaxpoison import data, loops, victims
from jaxpoison.types import Dataset, InputError, Split
from jaxpoison.victims import Recipe, pretrain, transfer

KEY, SHAPE = jax.random.key(0), (4, 4, 1)
RECIPE = Recipe(epochs=3, batch_size=10, learning_rate=0.1)
KNOWN = {"network": "mlp", "options": {"hidden": [5]}, "recipe": RECIPE, "num_classes": 4}
KNOWN |= {"console": Console(quiet=True)}


@functools.cache
def split():
    every = data.synthetic.blobs(jax.random.key(1), 30, 4, SHAPE)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(20), slice(20, None))))


@pytest.mark.usefixtures("quick_compile")
def test_a_pretrained_network_is_kept_and_loaded_again(tmp_path, monkeypatch):
    path = tmp_path / "nets" / "mlp"
    found = pretrain(path, KEY, split(), num=2, **KNOWN)
    assert sorted(x.name for x in path.parent.iterdir()) == ["mlp"]
    right = victims.assess(found.victim, found.variables, split().test).accuracy
    np.testing.assert_allclose(found.card.accuracy, right.values, atol=1e-6)
    assert found.card.recipe == RECIPE and found.card.num == 2 and found.card.num_classes == 4
    monkeypatch.setattr(loops, "run_chunks", None)  # what is there is not trained again
    again = pretrain(path, KEY, split(), num=2, **KNOWN)
    jax.tree.map(np.testing.assert_array_equal, again.variables, found.variables)
    start = transfer("linear", path, member=1).start
    jax.tree.map(np.testing.assert_array_equal, start, jp.tree.take(found.variables, 1))
    for field, value in (
        ("recipe", dataclasses.replace(RECIPE, epochs=4)),
        ("options", {"hidden": [6]}),
        ("num", None),
    ):
        with pytest.raises(InputError, match=f"holds a network of another {field}"):
            pretrain(path, KEY, split(), **KNOWN | {"num": 2, field: value})
    with pytest.raises(InputError, match=r"another key: .*'data': \[0, 0\].*, not .*\[0, 1\]"):
        pretrain(path, jax.random.key(1), split(), num=2, **KNOWN)
    with pytest.raises(InputError, match="holds a network of another train"):
        pretrain(path, KEY, Split(split().test, split().test), num=2, **KNOWN)


@pytest.mark.usefixtures("quick_compile")
def test_a_killed_pretraining_goes_on(tmp_path, monkeypatch):
    run, asked = loops.run_chunks, []

    def broken_off(*arguments, num_steps, **options):
        run(*arguments, num_steps=1, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loops, "run_chunks", broken_off)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / "net", KEY, split(), **KNOWN)
    assert [x.name for x in tmp_path.iterdir()] == ["net.training"]

    def watched(process, key, data, *, directory, **options):
        metrics = directory / "metrics.jsonl"
        asked.append(len(metrics.read_text().splitlines()) if metrics.exists() else 0)
        return run(process, key, data, directory=directory, **options)

    monkeypatch.setattr(loops, "run_chunks", watched)
    found = pretrain(tmp_path / "net", KEY, split(), **KNOWN)
    assert asked == [1] and [x.name for x in tmp_path.iterdir()] == ["net"]
    whole = pretrain(tmp_path / "other", KEY, split(), **KNOWN)
    jax.tree.map(np.testing.assert_array_equal, found.variables, whole.variables)
