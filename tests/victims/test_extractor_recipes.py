"""The presets: their sources' constants, and that `pretrain` could take every one of them."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxpoison as jp
from jaxpoison.types import Dataset, Split
from jaxpoison.victims import Recipe, extractor_recipes, pretrain
from jaxpoison.victims.contrastive import as_dict, from_dict

NAMES = [name for name in extractor_recipes.__all__ if name != "Pretraining"]


def test_rates_are_those_of_the_whole_batch():
    found = {name: getattr(extractor_recipes, name)().recipe for name in NAMES}
    assert found["simclr_cifar10"].learning_rate == 2.0
    assert found["simclr_imagenet"].learning_rate == pytest.approx(4.8)
    assert found["moco_v3_imagenet"].learning_rate == pytest.approx(4.8)
    large = [recipe for name, recipe in found.items() if "small" not in name]
    assert all(recipe.optimizer == "lars" and recipe.warmup == 10 for recipe in large)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * ("small" not in n)) for n in NAMES]
)
def test_a_preset_is_what_pretrain_takes(name, monkeypatch, tmp_path):
    """Everything is built; the training itself is not run."""
    preset = getattr(extractor_recipes, name)(epochs=2)
    size = 224 if "imagenet" in name else 32
    rows = preset.recipe.batch_size
    data = Dataset(jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8), jnp.zeros(rows, int))
    built = []

    def stop(process, *arguments, num_steps, **options):
        built.append((process, num_steps))
        raise KeyboardInterrupt

    monkeypatch.setattr(jp.loops, "run_chunks", stop)
    key = jax.random.key(0)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "net", key, Split(data, data), num_classes=10, **preset._asdict())
    assert built[0][1] == 2
    if preset.contrastive is not None:
        assert from_dict(as_dict(preset.contrastive)) == preset.contrastive


def test_lars_is_the_formula():
    """v <- m v - rate q (g + d w), q = trust |w| / |g + d w|; biases have neither q nor decay."""
    recipe = Recipe(2, 5, 0.5, optimizer="lars", weight_decay=0.1, trust=0.02, momentum=0.9)
    rule = recipe.optimizer_for(10)
    params = {"w": jnp.asarray([[3.0, 4.0]]), "b": jnp.asarray([2.0])}
    grads = {"w": jnp.asarray([[0.6, -0.4]]), "b": jnp.asarray([1.0])}
    state, velocity = rule.init(params), {"w": 0.0, "b": 0.0}
    for _ in range(2):
        decayed = grads["w"] + 0.1 * params["w"]
        ratio = 0.02 * jnp.linalg.norm(params["w"]) / jnp.linalg.norm(decayed)
        velocity = {
            "w": 0.9 * velocity["w"] - 0.5 * ratio * decayed,
            "b": 0.9 * velocity["b"] - 0.5 * grads["b"],
        }
        updates, state = rule.update(grads, state, params)
        for name in params:
            assert jnp.allclose(updates[name], velocity[name], rtol=1e-5)
        params = optax.apply_updates(params, updates)
