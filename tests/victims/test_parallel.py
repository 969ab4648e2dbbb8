"""Batches over four fake devices: the numbers of one device, and a program that really divides."""

import functools
import re

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn

import jaxpoison as jp
from jaxpoison import victims
from jaxpoison.models import layers
from jaxpoison.types import Dataset, InputError, Split

KEY, SHAPE, CLASSES = jax.random.key(0), (8, 8, 1), 3
RECIPE = victims.Recipe(epochs=2, batch_size=8, learning_rate=0.05, augmentation="crop")


class Net(nn.Module):
    """A strided convolution, BatchNorm, a second convolution: what a ResNet is made of."""

    @nn.compact
    def __call__(self, x, *, train):
        x = layers.conv(x, 4, 3, stride=2, padding=1, use_bias=False)
        x = nn.relu(layers.batch_norm(x, train=train))
        x = layers.avg_pool(nn.relu(layers.conv(x, 6, 3, padding=1)), 2)
        return layers.dense(layers.flatten(x), CLASSES)


@functools.cache
def process(num_devices, num_train=22, accumulate=1):
    mesh = None if num_devices is None else jp.device_mesh(num_devices, axis="batch")
    victim = jp.models.adapt(Net(), SHAPE)
    return victims.victim_training(victim, RECIPE, num_train, mesh=mesh, accumulate=accumulate)


@functools.cache
def split(num=22, num_test=12):
    every = jp.data.synthetic.blobs(jax.random.key(1), num + num_test, CLASSES, SHAPE)
    return Split(*(Dataset(every.image[s], every.label[s]) for s in (slice(num), slice(num, None))))


def test_four_devices_train_as_one_does(tmp_path):
    """Batches of 8, 8 and 6, not divisible by 4; BatchNorm; two seeds; stopped and resumed."""
    one, info, _ = jp.run_chunks(jp.over_restarts(process(None), 2), KEY, split(), num_steps=2)
    four = jp.over_restarts(process(4), 2)
    jp.run_chunks(four, KEY, split(), num_steps=1, directory=tmp_path)
    state, other, _ = jp.run_chunks(four, KEY, split(), num_steps=2, directory=tmp_path)
    chex.assert_trees_all_close(state, one, atol=1e-5)
    chex.assert_trees_all_close(tuple(other), tuple(info), atol=1e-5)
    assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(state))
    judged = victims.judge(jp.models.adapt(Net(), SHAPE), state, other, *split())
    np.testing.assert_allclose(judged.final_accuracy.values, info.test_accuracy[-1], atol=1e-6)


def hlo(training, data):
    phi = jax.eval_shape(training.init, KEY, data)
    mesh = jp.device_mesh(4, axis="batch")
    home = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home),
        (jax.eval_shape(lambda: KEY), phi, jax.eval_shape(lambda: data)),
    )
    return jax.jit(training.step).lower(*given).compile().as_text()


def collectives(text):
    names = r"all-\w+|reduce-scatter|collective-\w+|ragged-all-to-all"
    return set(re.findall(rf" ({names})(?:-start)?\(", text))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_device_convolves_its_part_and_only_sums_cross(accumulate):
    data = split(16, 8)  # whole batches alone
    text = hlo(process(4, 16, accumulate), data)
    assert collectives(text) == {"all-reduce"}
    share = RECIPE.batch_size // 4 // accumulate
    sizes = re.findall(r"f32\[(\d+),4,4,\d\]\S* convolution\(", text)  # images at half size
    assert sizes and set(map(int, sizes)) == {share, 2}  # 2: the test set, eight rows at once
    whole = hlo(process(None, 16, accumulate), data)
    assert not collectives(whole)
    sizes = re.findall(r"f32\[(\d+),4,4,\d\]\S* convolution\(", whole)
    assert set(map(int, sizes)) == {RECIPE.batch_size // accumulate, 8}


def test_micro_batches_over_devices():
    victim, how = jp.models.logistic_regression(SHAPE, CLASSES), {"accumulate": 2}
    mesh = jp.device_mesh(4, axis="batch")
    one, _ = jp.run(victims.victim_training(victim, RECIPE, 22, **how), KEY, split(), num_steps=1)
    spread = victims.victim_training(victim, RECIPE, 22, mesh=mesh, **how)
    four, _ = jp.run(spread, KEY, split(), num_steps=1)
    chex.assert_trees_all_close(one, four, atol=1e-5)


def test_a_mesh_that_cannot_carry_the_batch_is_one_line():
    victim = jp.models.adapt(Net(), SHAPE)
    mesh = jp.device_mesh(3, axis="batch")
    with pytest.raises(InputError, match="^batch_size = 8 cannot be spread evenly over 3 devices "
                       "of axis 'batch'; it must be a multiple of 3$"):  # fmt: skip
        victims.victim_training(victim, RECIPE, 22, mesh=mesh)
    with pytest.raises(InputError, match="^axis = 'batch' is not in the mesh; it has restart$"):
        victims.victim_training(victim, RECIPE, 22, mesh=jp.device_mesh(4))
