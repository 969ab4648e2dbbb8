"""Mixtures: whose images and whose labels, in which shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.data.mixing import cutmix, mixup
from jaxpoison.types import InputError

pytestmark = pytest.mark.usefixtures("quick_module")
NUM = 5
IMAGE = jnp.asarray(np.random.RandomState(0).rand(NUM, 6, 8, 2), jnp.float32)


@pytest.mark.parametrize("ways", [2, 4])
def test_mixup_is_the_weighted_sum_of_whole_images_none_of_them_in_place(ways):
    for seed in range(4):
        mixed = mixup(ways)(jax.random.key(seed), IMAGE)
        assert mixed.weight.shape == (ways,) and mixed.rows.shape == (ways, NUM)
        np.testing.assert_allclose(mixed.weight.sum(), 1, rtol=1e-6)
        assert (mixed.weight >= 0).all()
        for rows in np.asarray(mixed.rows):
            assert sorted(rows) == list(range(NUM)) and (rows != np.arange(NUM)).any()
        want = np.einsum("j,jbhwc->bhwc", mixed.weight, np.asarray(IMAGE)[mixed.rows])
        np.testing.assert_allclose(mixed.image, want, rtol=1e-5)


def test_of_two_images_mixup_always_takes_the_other():
    rows = [mixup()(jax.random.key(seed), IMAGE[:2]).rows for seed in range(6)]
    np.testing.assert_array_equal(rows, np.broadcast_to([1, 0], (6, 2, 2)))


def test_cutmix_pastes_one_box_of_the_stated_share():
    mix = jax.vmap(lambda key: cutmix(probability=1.0)(key, IMAGE))
    mixed = jax.jit(mix)(jax.random.split(jax.random.key(0), 20))
    areas = []
    for i in range(20):
        one = jax.tree.map(lambda x, i=i: x[i], mixed)
        other = np.asarray(IMAGE)[one.rows[1]]
        moved = one.rows[1] != np.arange(NUM)
        pasted = (np.asarray(one.image) == other)[np.asarray(moved)].all(axis=(0, 3))
        kept = np.where(pasted[None, :, :, None], other, IMAGE)
        np.testing.assert_array_equal(one.image, kept)
        rows, columns = pasted.any(axis=1), pasted.any(axis=0)
        np.testing.assert_array_equal(pasted, rows[:, None] & columns[None])
        assert np.diff(np.flatnonzero(rows)).max(initial=1) == 1
        np.testing.assert_allclose(one.weight, [1 - pasted.mean(), pasted.mean()], atol=1e-6)
        np.testing.assert_array_equal(one.rows[0], np.arange(NUM))
        areas.append(pasted.mean())
    assert min(areas) < 0.1 and max(areas) > 0.5


def test_half_of_the_batches_are_left_alone():
    def share(key):
        return cutmix()(key, IMAGE).weight[1]

    share = jax.jit(jax.vmap(share))(jax.random.split(jax.random.key(0), 400))
    assert 0.4 < np.mean(share == 0) < 0.7  # also boxes smaller than a pixel
    alone = cutmix(probability=0.0)(jax.random.key(0), IMAGE)
    np.testing.assert_array_equal(alone.image, IMAGE)
    np.testing.assert_array_equal(alone.weight, [1, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mixup(1), "ways = 1; it must be at least 2"),
        (lambda: mixup(alpha=0.0), "alpha = 0.0; it must be"),
        (lambda: cutmix(alpha=-1.0), "alpha = -1.0; it must be"),
        (lambda: cutmix(probability=2.0), "probability = 2.0; it must be"),
        (lambda: mixup()(jax.random.key(0), IMAGE[:1]), "a batch of 1 image cannot be mixed"),
    ],
)
def test_bad_values_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make()
