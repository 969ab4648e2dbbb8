import dataclasses
import functools
import json
import os
import shutil
import socket
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import checkpoint, victims
from jaxpoison.data.verification import fingerprint
from jaxpoison.types import Dataset, InputError, Split, Variables
from jaxpoison.victims import recipes

KEY, SHAPE, CLASSES = jax.random.key(0), (8, 8, 1), 3
OPTIONS = {"hidden": (6,), "dtype": jnp.float32, "mean": (0.5,), "std": (0.25,)}
KNOWN = {"network": "mlp", "image_shape": SHAPE, "num_classes": CLASSES, "options": OPTIONS}


@functools.cache
def split():
    every = jp.data.synthetic.blobs(jax.random.key(1), 60, CLASSES, SHAPE)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(40), slice(40, None))))


@functools.cache
def trained():
    """A net with BatchNorm after two epochs: two seeds, as `over_restarts` leaves them."""
    net = jp.models.create("mlp", SHAPE, CLASSES, **OPTIONS)
    process = victims.victim_training(net, recipes.small(epochs=2, batch_size=20), 40)
    state, info = jp.run(jp.over_restarts(process, num=2, chunk=None), KEY, split(), num_steps=2)
    return net, state, victims.judge(net, state, info, split().train, split().test)


def one(state):
    return jp.tree.take(state, 0)


def test_stacked_seeds_come_back_bit_for_bit_with_their_card(tmp_path):
    net, state, judgment = trained()
    brew = dataclasses.replace(
        recipes.witches_brew(epochs=2), adversarial="pgd", statistics="batch"
    )
    recipe = dataclasses.replace(brew, learning_rate=jnp.float32(0.25))
    facts = {"recipe": recipe, "train": split().train, "accuracy": judgment.final_accuracy}
    card = victims.save(tmp_path / "a" / "victim", state, **KNOWN, **facts)
    found = victims.load(tmp_path / "a" / "victim")
    chex.assert_trees_all_equal(found.variables, state.variables)
    assert found.card == dataclasses.replace(
        card, recipe=dataclasses.replace(recipe, learning_rate=0.25), options=found.card.options
    )
    assert found.card.options == OPTIONS | {"dtype": jnp.dtype("float32")}
    assert found.card.num == 2 and found.card.network == "mlp"
    assert found.card.train == fingerprint(split().train)
    assert found.card.accuracy == judgment.final_accuracy.values
    assert found.card.versions["jax"] == jax.__version__
    image = split().test.image
    for seed in range(2):
        before = victims.logits(net, jp.tree.take(state.variables, seed), image)
        after = victims.logits(found.victim, jp.tree.take(found.variables, seed), image)
        np.testing.assert_array_equal(before, after)
    report = victims.assess(found.victim, found.variables, split().test)
    assert report.accuracy == judgment.final_accuracy
    assert report.confusion == judgment.confusion and report.per_class == judgment.per_class


def test_a_single_victim_of_ones_own(tmp_path):
    net, state, _ = trained()
    mine = net._replace(features=net.features)
    how = {"network": mine, "image_shape": SHAPE, "num_classes": CLASSES}
    everywhere = jax.NamedSharding(jp.device_mesh(axis="batch"), jax.P())  # as `mesh=` leaves it
    victims.save(tmp_path / "victim", jax.device_put(one(state).variables, everywhere), **how)
    found = victims.load(tmp_path / "victim", victim=mine)
    assert {len(x.devices()) for x in jax.tree.leaves(found.variables)} == {1}
    chex.assert_trees_all_equal(found.variables, one(state).variables)
    assert found.card.num is None and found.card.network is None and found.victim is mine
    with pytest.raises(InputError, match=r"victim holds a network of your own; pass it as victim="):
        victims.load(tmp_path / "victim")


def test_a_loaded_victim_is_a_surrogate(tmp_path):
    _, state, _ = trained()
    victims.save(tmp_path / "victim", one(state), **KNOWN)
    found = victims.load(tmp_path / "victim")
    options = {"eps": 0.1, "num_classes": CLASSES, "batch_size": 20, "augment": None}
    attack = jp.attacks.error_maximizing(found.victim, **options)

    def poisons(variables):
        scenario = jp.Scenario(split().train, split().train, jnp.arange(10), aux=variables)
        after, _ = jp.run(attack, KEY, scenario, num_steps=2)
        return attack.poison(after, scenario).image

    expected = poisons(one(state).variables)
    np.testing.assert_array_equal(poisons(found.variables), expected)
    assert not np.array_equal(expected[:10], split().train.image[:10] / 255)


def test_arrays_of_another_network_are_refused(tmp_path):
    _, state, _ = trained()
    target = tmp_path / "victim"
    for change, message in [
        ({"options": {"hidden": (7,)}}, "^the variables are of another network: an array is"),
        ({"network": "logistic_regression", "options": {}}, "^the variables are of another "),
        ({"num_classes": 4}, "^the variables are of another network: an array is"),
        ({"image_shape": (9, 8, 1)}, "^the variables are of another network: an array is"),
        ({"network": "mpl"}, "^no model is called 'mpl'; did you mean 'mlp'"),
        ({"options": {"hiden": 3}}, "^mlp has no option 'hiden'"),
        ({"options": OPTIONS | {"std": np.sqrt}}, "^option std is a function and cannot be stored"),
        ({"network": trained()[0]}, "^options are for a network of models.create"),
        ({"network": trained()[0], "options": {}, "num_classes": 4}, "^the network gives 3 logits"),
        ({"accuracy": [0.5]}, "^there are 1 accuracies for 2 victims$"),
        ({"accuracy": [0.5, 7.0]}, "^accuracy = 7.0; it must be a number at least 0 and at most 1"),
    ]:
        with pytest.raises(InputError, match=message):
            victims.save(target, state, **KNOWN | change)
    assert list(tmp_path.iterdir()) == []
    victims.save(target, state, **KNOWN)
    for wrong, message in [
        (jp.models.mlp(SHAPE, CLASSES, hidden=(7,)), "cannot be loaded: .* other settings: state"),
        (jp.models.mlp(SHAPE, 4, hidden=(6,)), "^the network gives 4 logits; num_classes = 3$"),
        (jp.models.mlp((9, 8, 1), 3), r"^images are \(1, 8, 8, 1\), the network takes"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            victims.load(target, victim=wrong)
        assert "\n" not in str(error.value)


def test_what_is_missing_or_damaged_is_one_line(tmp_path):
    _, state, _ = trained()
    whole = tmp_path / "whole"
    victims.save(whole, state, **KNOWN)

    def copy(name):
        shutil.copytree(whole, tmp_path / name)
        return tmp_path / name

    with pytest.raises(InputError, match="is no saved victim: it has no victim.json$"):
        victims.load(tmp_path / "nothing")
    card = copy("card")
    (card / "victim.json").write_text((card / "victim.json").read_text().replace("mlp", "mlq"))
    with pytest.raises(InputError, match="victim.json cannot be read: it was damaged or changed$"):
        victims.load(card)
    (card / "victim.json").write_text("{")
    with pytest.raises(InputError, match="victim.json cannot be read: "):
        victims.load(card)
    future = json.loads((whole / "victim.json").read_text()) | {"schema": 2}
    future.pop("sha256")
    (card / "victim.json").write_text(checkpoint.json_text(checkpoint.sealed(future)))
    with pytest.raises(InputError, match="victim.json cannot be read: its schema is not 1$"):
        victims.load(card)
    flipped = copy("flipped")
    file = max((flipped / "00000000" / "state").rglob("*"), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="flipped cannot be loaded: checkpoint .* is damaged"):
        victims.load(flipped)
    shutil.rmtree(copy("empty") / "00000000")
    with pytest.raises(InputError, match="its arrays are missing or of another save$"):
        victims.load(tmp_path / "empty")
    mixed = copy("mixed")
    victims.save(tmp_path / "other", one(state), **KNOWN)
    shutil.rmtree(mixed / "00000000")
    victims.save(tmp_path / "again", state, **KNOWN, accuracy=[0.5, 0.5])
    shutil.copytree(tmp_path / "again" / "00000000", mixed / "00000000")
    with pytest.raises(InputError, match="its arrays are missing or of another save$"):
        victims.load(mixed)


def test_a_path_that_is_taken_or_cannot_be_is_refused(tmp_path):
    _, state, _ = trained()
    victims.save(tmp_path / "victim", state, **KNOWN)
    before = (tmp_path / "victim" / "victim.json").read_bytes()
    with pytest.raises(InputError, match="victim exists; a saved victim is not overwritten$"):
        victims.save(tmp_path / "victim", state, **KNOWN)
    assert (tmp_path / "victim" / "victim.json").read_bytes() == before
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file" / "under" / "victim", tmp_path / "nul\0"):
        with pytest.raises(InputError, match="^cannot write ") as error:
            victims.save(path, state, **KNOWN)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_failing_write_leaves_nothing_behind(tmp_path, monkeypatch):
    _, state, _ = trained()
    left = tmp_path / "deep" / ".victim.0123abcd.new"  # of a process that was killed
    left.mkdir(parents=True)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for name in ("save", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, full)
            for path in (tmp_path / "deep" / "victim", tmp_path / "new" / "er" / "victim"):
                with pytest.raises(InputError, match="No space left on device$"):
                    victims.save(path, state, **KNOWN)
    assert not (tmp_path / "new").exists() and list((tmp_path / "deep").iterdir()) == []
    victims.save(tmp_path / "deep" / "victim", state, **KNOWN)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["victim"]


def test_a_network_without_running_statistics_and_its_compute_dtype(tmp_path):
    how = {"network": "logistic_regression", "image_shape": SHAPE, "num_classes": CLASSES}
    options = {"dtype": jnp.bfloat16}
    net = jp.models.logistic_regression(SHAPE, CLASSES, **options)
    variables = jax.jit(net.init)(KEY)
    victims.save(tmp_path / "victim", variables, **how, options=options)
    found = victims.load(tmp_path / "victim")
    assert isinstance(found.variables, Variables)
    chex.assert_trees_all_equal(found.variables, variables)
    image = split().test.image
    logits = victims.logits(found.victim, found.variables, image)
    np.testing.assert_array_equal(logits, victims.logits(net, variables, image))
    wide = jp.models.logistic_regression(SHAPE, CLASSES)
    assert victims.load(tmp_path / "victim", victim=wide).victim is wide
    assert not np.array_equal(logits, victims.logits(wide, variables, image))


TWO = """
import sys
from jaxpoison import hosts
address, own, folder = sys.argv[1:]
hosts.start(distributed=f"{address},2,{own}")
import jax
import jaxpoison as jp
net = jp.models.logistic_regression((8, 8, 1), 3)
keys = jax.random.split(jax.random.key(0), 4)
seeds = jax.NamedSharding(jp.device_mesh(), jax.P("restart"))
spread = jax.jit(jax.vmap(net.init), out_shardings=seeds)(keys)
assert not jax.tree.leaves(spread)[0].is_fully_addressable
how = {"network": "logistic_regression", "image_shape": (8, 8, 1), "num_classes": 3}
jp.victims.save(folder, spread, **how)
try:
    jp.victims.save(folder, spread, **how)
except jp.InputError as error:
    assert str(error).endswith("exists; a saved victim is not overwritten"), error
"""


def test_two_hosts_save_seeds_spread_over_both_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", TWO, address]
    processes = [
        subprocess.Popen([*words, own, tmp_path / "deep" / "victim"], env=os.environ | flags)
        for own in ("0", "1")
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["victim"]
    found = victims.load(tmp_path / "deep" / "victim")
    expected = jax.jit(jax.vmap(found.victim.init))(jax.random.split(KEY, 4))
    assert found.card.num == 4
    chex.assert_trees_all_close(found.variables, expected, rtol=1e-6)
