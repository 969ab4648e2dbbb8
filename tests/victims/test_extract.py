"""Features as a data set, and a head on them as a network on images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.models.catalog import FACTORIES
from jaxpoison.types import Dataset, InputError
from jaxpoison.victims import Extractor, extract, join_head, mean_gradient, on_features
from tests.models import miniatures

pytestmark = pytest.mark.usefixtures("quick_module")


def test_a_head_sees_the_same_on_features_as_on_images():
    shape = (4, 4, 1)
    dataset = jp.data.synthetic.blobs(jax.random.key(0), 7, num_classes=3, image_shape=shape)
    body = jp.models.mlp(shape, 5, hidden=(6,))
    head = jp.models.logistic_regression((1, 1, 6), 3, bias=False)
    arrays, own = body.init(jax.random.key(1)), head.init(jax.random.key(2))
    assert jax.tree.map(jnp.shape, jax.tree.leaves(own.params)) == [(6, 3)]
    features = extract(Extractor(body, arrays), dataset, batch_size=3)
    assert features.image.shape == (7, 1, 1, 6)
    np.testing.assert_array_equal(features.label, dataset.label)
    pixels = jnp.asarray(dataset.image, jnp.float32) / 255
    np.testing.assert_allclose(features.image[:, 0, 0], body.features(arrays, pixels), rtol=1e-5)
    whole, variables = on_features(body, head), join_head(arrays, own)
    assert jax.tree.structure(whole.init(jax.random.key(3))) == jax.tree.structure(variables)
    scores, stats = whole.apply(variables, pixels, train=True)
    want, _ = head.apply(own, features.image, train=False)
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(stats) == jax.tree.structure(variables.stats)
    one = mean_gradient(whole, variables, dataset, batch_size=2)
    two = mean_gradient(head, own, features, batch_size=7)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn5", "densenet", "resnet18", "vgg", "vit"])
def test_every_network_is_an_extractor(name):
    shape, make = miniatures.RUNNABLE[name]
    _extracts(make(shape, 3), shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FACTORIES))
def test_every_network_of_the_catalog_is_an_extractor(name):
    _extracts(jp.models.create(name, (32, 32, 3), 10), (32, 32, 3))


def _extracts(net, shape):
    """Shapes alone: features of a set, and features and logits of one pass in train mode."""

    def found(key, image, label):
        variables = net.init(key)
        features = extract(Extractor(net, variables), Dataset(image, label), batch_size=2)
        pixels = jp.types.as_float(image)
        return features, net.embed(variables, pixels, train=True, key=key), variables.stats

    image, label = jax.ShapeDtypeStruct((3, *shape), jnp.uint8), jnp.zeros(3, jnp.int32)
    features, (own, logits, moved), stats = jax.eval_shape(found, jax.random.key(0), image, label)
    assert features.image.shape == (3, 1, 1, own.shape[1]) and features.image.dtype == jnp.float32
    assert own.shape[0] == logits.shape[0] == 3
    assert jax.tree.structure(moved) == jax.tree.structure(stats)


def test_an_extractor_comes_from_a_folder(tmp_path):
    shape, options = (4, 4, 1), {"hidden": (6,)}
    keys = jax.random.split(jax.random.key(0), 2)
    net = jp.models.mlp(shape, 3, **options)
    both = jax.vmap(net.init)(keys)
    card = {"network": "mlp", "options": options, "image_shape": shape, "num_classes": 3}
    jp.victims.save(tmp_path / "nets", both, **card)
    found = jp.victims.extractor(tmp_path / "nets", member=1)
    want = jp.tree.take(both, 1)
    jax.tree.map(np.testing.assert_array_equal, found.variables, want)
    again = jp.victims.extractor(jp.victims.load(tmp_path / "nets"), member=1)
    jax.tree.map(np.testing.assert_array_equal, again.variables, want)
    with pytest.raises(InputError, match="member = None; 2 networks are saved there"):
        jp.victims.extractor(tmp_path / "nets")
