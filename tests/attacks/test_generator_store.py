import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import attacks, checkpoint
from jaxpoison.attacks import generator_store
from jaxpoison.data.verification import fingerprint
from jaxpoison.types import Dataset, InputError, Scenario
from tests.attacks import tiny_generator

KEY, EPS, SHAPE = jax.random.key(3), 8 / 255, (8, 8, 1)


def images(num, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    image = jnp.asarray(rng.integers(0, 256, (num, *shape)), jnp.uint8)
    return Dataset(image, jnp.asarray(rng.integers(0, 3, num), jnp.int32))


def variables(seed=0):
    return tiny_generator.network().init(jax.random.key(seed))


def store(path, **changes):
    train = images(20)
    known = {"network": tiny_generator.network(), "eps": EPS, "attack": "mine", "key": KEY}
    known |= {"scenario": Scenario(train, train, jnp.arange(5)), "settings": {"steps": 3}}
    known |= {"source": {"name": "toy", "split": "train"}}
    return attacks.save_generator(path, changes.pop("variables", variables()), **known | changes)


def test_a_generator_comes_back_bit_for_bit_with_its_card(tmp_path):
    card = store(tmp_path / "deep" / "generator")
    mine = tiny_generator.network()
    found = attacks.load_generator(tmp_path / "deep" / "generator", network=mine)
    chex.assert_trees_all_equal(found.variables, variables())
    assert found.network is mine and found.card == card
    assert card.train == fingerprint(images(20)) | {"num_changed": 5}
    assert (card.network, card.options, card.image_shape) == (None, {}, SHAPE)
    assert (card.eps, card.attack, card.settings) == (EPS, "mine", {"steps": 3})
    assert card.source == {"name": "toy", "split": "train"} and card.versions["jax"]
    assert card.key["data"] == np.asarray(jax.random.key_data(KEY)).tolist()
    with pytest.raises(InputError, match="holds a network of your own; pass it as network=$"):
        attacks.load_generator(tmp_path / "deep" / "generator")


def test_a_shipped_network_is_known_by_its_name(tmp_path):
    network = jp.models.create_generator("mlp_generator", SHAPE, hidden=(5, 4), dtype=jnp.bfloat16)
    theta = jax.jit(network.init)(KEY)
    card = store(tmp_path / "g", variables=theta, network=network, scenario=None)
    options = {"hidden": [5, 4], "dtype": "bfloat16"}
    assert (card.network, card.options, card.image_shape) == ("mlp_generator", options, SHAPE)
    found = attacks.load_generator(tmp_path / "g")
    assert found.card == card and found.network.options == network.options
    chex.assert_trees_all_equal(found.variables, theta)
    before, after = (
        jax.jit(g.apply, static_argnames="train")(theta, images(6).image / 255, train=False)[0]
        for g in (network, found.network)
    )
    np.testing.assert_array_equal(before, after)
    liar = network._replace(options=(("hidden", (5,)),))
    with pytest.raises(InputError, match="^the variables are of another network: their names"):
        store(tmp_path / "other", variables=theta, network=liar)
    with pytest.raises(InputError, match="^no generator is called 'mlp_generato'; did you mean"):
        store(tmp_path / "other", variables=theta, network=network._replace(name="mlp_generato"))


@pytest.mark.parametrize("num", [7, 37])
def test_any_images_are_poisoned_as_the_attack_does(tmp_path, monkeypatch, num):
    """One block, and blocks in several chunks of which the last is moved back and filled up."""
    network, dataset = tiny_generator.network(), images(num, seed=num)
    store(tmp_path / "g")
    trained = attacks.load_generator(tmp_path / "g", network=network)
    space = jp.perturb.generator(network, eps=EPS)

    @jax.jit
    def poison(theta, scenario):
        return jp.perturb.poison(space, theta, scenario, batch_size=8)

    expected = poison(variables(), Scenario(dataset, dataset, jnp.arange(num)))
    monkeypatch.setattr(generator_store, "CHUNK_BYTES", 4 * 64 * 8 * 2)
    found = attacks.poison_dataset(trained, dataset, batch_size=8)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.label, dataset.label)
    by_hand = np.asarray(dataset.image, np.float64) / 255
    w, mean = float(variables().params["w"][0, 0]), float(variables().stats["mean"][0])
    noise = np.tanh(3 * (np.roll(by_hand, 1, axis=2) - mean) * w - by_hand)
    np.testing.assert_allclose(found.image, np.clip(by_hand + EPS * noise, 0, 1), atol=1e-6)
    part = attacks.poison_dataset(trained, dataset, index=np.array([1, 4]), eps=0.2)
    changed = np.asarray(part.image != jp.types.as_float(dataset.image)).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == [1, 4]
    assert EPS < np.abs(part.image - by_hand).max() <= 0.2 + 1e-6


def test_what_does_not_fit_is_one_line_and_leaves_nothing(tmp_path):
    mine, several = tiny_generator.network(), jax.vmap(tiny_generator.network().init)
    wide = mine._replace(apply=lambda v, x, train: (jnp.tile(x, (1, 2, 1, 1)), v.stats))
    for change, message in [
        ({"variables": several(jax.random.split(KEY, 2))}, "^the variables are of several gener"),
        ({"variables": tiny_generator.network((8, 8, 3)).init(KEY)}, "^the variables are of anot"),
        ({"network": wide}, r"^the network makes \(1, 16, 8, 1\) of an image \(1, 8, 8, 1\)"),
        ({"scenario": None}, r"^image_shape = \(\); it must be"),
        ({"eps": 8}, "^eps = 8 looks like grey levels; write 8/255$"),
        ({"settings": {"x": object()}}, "^generator.json.settings.x is a object"),
        ({"key": "seven"}, "^key is a str"),
    ]:
        with pytest.raises(InputError, match=message):
            store(tmp_path / "g", **change)
    assert list(tmp_path.iterdir()) == []
    store(tmp_path / "g")
    with pytest.raises(InputError, match="g exists; a saved generator is not overwritten$"):
        store(tmp_path / "g")
    more = mine._replace(init=lambda key: mine.init(key)._replace(stats={"mean": jnp.zeros(2)}))
    for wrong, message in [
        (tiny_generator.network((8, 8, 3)), r"^the network makes \(1, 8, 8, 3\) of an image"),
        (more._replace(apply=lambda v, x, train: (x, v.stats)), "cannot be loaded: .* state"),
    ]:
        with pytest.raises(InputError, match=message):
            attacks.load_generator(tmp_path / "g", network=wrong)
    trained = attacks.load_generator(tmp_path / "g", network=mine)
    with pytest.raises(InputError, match=r"^images are \(9, 8, 1\); the generator was trained on"):
        attacks.poison_dataset(trained, images(3, (9, 8, 1)))


def test_what_is_missing_or_damaged_is_one_line(tmp_path):
    mine, whole = tiny_generator.network(), tmp_path / "whole"
    store(whole)
    with pytest.raises(InputError, match="is no saved generator: it has no generator.json$"):
        attacks.load_generator(tmp_path / "nothing", network=mine)
    card = shutil.copytree(whole, tmp_path / "card") / "generator.json"
    card.write_text(card.read_text().replace("mine", "your"))
    with pytest.raises(InputError, match="cannot be read: it was damaged or changed$"):
        attacks.load_generator(card.parent, network=mine)
    flipped = shutil.copytree(whole, tmp_path / "flipped")
    files = [f for f in (flipped / "00000000" / "state").rglob("*") if f.is_file()]
    file = max(files, key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="flipped cannot be loaded: checkpoint .* is damaged"):
        attacks.load_generator(flipped, network=mine)
    shutil.rmtree(shutil.copytree(whole, tmp_path / "empty") / "00000000")
    with pytest.raises(InputError, match="its arrays are missing or of another save$"):
        attacks.load_generator(tmp_path / "empty", network=mine)


def test_a_failing_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for name in ("save", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, name, full)
            with pytest.raises(InputError, match="No space left on device$"):
                store(tmp_path / "new" / "generator")
    assert list(tmp_path.iterdir()) == []
