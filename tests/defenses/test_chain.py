"""Purifiers one after the other: each gets, and is fitted to, what the one before made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison import loops
from tests.oracles import photographs

KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("quick_module")


def pictures(num=6):
    return jp.Dataset(jnp.asarray(photographs(50)[:num]), jnp.arange(num, dtype=jnp.int32) % 2)


def purified(purifier, dataset):
    result, info = jp.defenses.fit_purify(purifier, KEY, dataset)
    np.testing.assert_array_equal(result.label, dataset.label)
    return result, info


def test_grayscale_and_jpeg_are_those_of_iss():
    gray, jpeg, data = jp.defenses.grayscale(), jp.defenses.jpeg(), pictures()
    both, info = purified(jp.defenses.chain(gray, jpeg), data)
    assert info == ()
    np.testing.assert_array_equal(both.image, purified(jpeg, purified(gray, data)[0])[0].image)
    other, _ = purified(jp.defenses.chain(jpeg, gray), data)
    assert not np.array_equal(both.image, other.image)


def test_a_fit_behind_a_codec_sees_what_the_codec_made():
    """OP's own fit draws nothing that the images depend on: any key gives its projection."""
    jpeg, data = jp.defenses.jpeg(), pictures()
    project = jp.defenses.orthogonal_projection(num_classes=2, num_steps=2)
    both, _ = purified(jp.defenses.chain(jpeg, project), data)
    apply_key = jax.random.split(KEY)[1]
    second = jax.random.fold_in(apply_key, 1)
    wanted, _ = jp.defenses.fit_purify(project, second, purified(jpeg, data)[0])
    np.testing.assert_array_equal(both.image, wanted.image)
    with pytest.raises(jp.InputError, match="^purifier 1: images are float32; this purifier takes"):
        purified(jp.defenses.chain(project, jpeg), data)


def test_none_changes_nothing_and_chains_stand_in_chains():
    data, gray, few = pictures(), jp.defenses.grayscale(), jp.defenses.bit_depth()
    np.testing.assert_array_equal(purified(jp.defenses.chain(), data)[0].image, data.image)
    inner = jp.defenses.chain(jp.defenses.chain(gray), few)
    flat = jp.defenses.chain(gray, few)
    np.testing.assert_array_equal(purified(inner, data)[0].image, purified(flat, data)[0].image)


def test_a_fit_that_is_not_finite_is_said():
    project = jp.defenses.orthogonal_projection(num_classes=2, num_steps=2, learning_rate=1e38)
    message = "^purifier 1: the fit of the purifier is not finite at step "
    with pytest.raises(loops.NonFiniteError, match=message):
        purified(jp.defenses.chain(jp.defenses.grayscale(), project), pictures())
