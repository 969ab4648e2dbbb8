"""Features as a data set, and a head on them as a network on images."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxpoison as jp
from jaxpoison.victims import Extractor, extract, join_head, mean_gradient, on_features


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
