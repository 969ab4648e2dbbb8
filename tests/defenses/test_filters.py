"""Every filter against a few lines of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from tests.test_defense_contract import CLASSES, NUM, WIDTH, features, head

KEY = jax.random.key(0)


def arrays():
    dataset, aux = features()
    kernel, bias = (
        next(np.asarray(x, float) for x in jax.tree.leaves(aux.variables.params) if x.ndim == n)
        for n in (2, 1)
    )
    x, y = np.asarray(dataset.image, float).reshape(NUM, WIDTH), np.asarray(dataset.label)
    z = x @ kernel + bias
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return dataset, aux, x, y, p / p.sum(axis=1, keepdims=True)


def below(score, y, share):
    """Below the quantile of the class."""
    keep = np.zeros(NUM, bool)
    for c in range(CLASSES):
        keep[y == c] = score[y == c] < np.quantile(score[y == c], 1 - share)
    return keep


def test_largest_loss():
    dataset, aux, _, y, p = arrays()
    loss = -np.log(p[np.arange(NUM), y])
    found = jp.defenses.largest_loss(head(), share=0.1, num_classes=CLASSES).screen(
        KEY, dataset, aux
    )
    np.testing.assert_allclose(found.score, loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.keep, below(loss, y, 0.1))
    whole = jp.defenses.largest_loss(head(), share=0.1).screen(KEY, dataset, aux)
    np.testing.assert_array_equal(whole.keep, loss < np.quantile(loss, 0.9))


def test_norm_of_trusted_rows():
    dataset, aux, x, _, _ = arrays()
    clean = aux._replace(trusted=jax.tree.map(lambda a: a[4:40], dataset))
    found = jp.defenses.norm_filter(level=0.9).screen(KEY, dataset, clean)
    size = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(found.score, size, rtol=1e-5)
    np.testing.assert_array_equal(found.keep, size <= np.quantile(size[4:40], 0.9))


@pytest.mark.parametrize("axis", [None, 0])
def test_range_of_trusted_rows(axis):
    dataset, aux, x, _, _ = arrays()
    clean = aux._replace(trusted=jax.tree.map(lambda a: a[4:], dataset))
    found = jp.defenses.range_filter(per_coordinate=axis == 0).screen(KEY, dataset, clean)
    low, high = x[4:].min(axis=axis), x[4:].max(axis=axis)
    np.testing.assert_array_equal(found.keep, ((x >= low) & (x <= high)).all(axis=1))
    assert found.keep[4:].all() and not found.keep[:4].all()
    np.testing.assert_allclose(
        found.score, np.maximum(np.maximum(low - x, x - high), 0).max(axis=1), atol=1e-5
    )


def test_uint8_images_are_read_as_pixels():
    image = np.zeros((3, 2, 2, 1), np.uint8)
    image[1] = 200
    dataset = jp.Dataset(jnp.asarray(image), jnp.zeros(3, jnp.int32))
    aux = jp.defenses.Known(trusted=jax.tree.map(lambda a: a[:1], dataset))
    found = jp.defenses.range_filter().screen(KEY, dataset, aux)
    np.testing.assert_array_equal(found.keep, [1, 0, 1])
    np.testing.assert_allclose(found.score, [0, 200 / 255, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: jp.defenses.random_filter(share=1.0), "share = 1.0"),
        (lambda: jp.defenses.norm_filter(level=0), "level = 0"),
        (lambda: jp.defenses.norm_filter(space="pixels"), "allowed are data, features"),
        (lambda: jp.defenses.range_filter(tolerance=-1), "tolerance = -1"),
    ],
)
def test_bad_settings_get_one_line(build, line):
    with pytest.raises(jp.InputError, match=line):
        build()


def test_what_is_missing_in_known_is_named():
    dataset, _, *_ = arrays()
    nothing = jp.defenses.Known()
    with pytest.raises(jp.InputError, match="Known.variables holds none"):
        jp.defenses.largest_loss(head()).screen(KEY, dataset, nothing)
    with pytest.raises(jp.InputError, match="Known.trusted holds none"):
        jp.defenses.norm_filter().screen(KEY, dataset, nothing)
    with pytest.raises(jp.InputError, match="needs a victim"):
        jp.defenses.norm_filter(space="features").screen(
            KEY, dataset, jp.defenses.Known(trusted=dataset)
        )
