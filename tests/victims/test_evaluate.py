import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

import jaxpoison as jp
from jaxpoison import victims
from jaxpoison.types import Dataset, InputError, Variables
from jaxpoison.victims import evaluate
from jaxpoison.victims.train import EpochInfo
from tests.oracles import normalized_victim, smooth_victim

KEY, SHAPE, CLASSES = jax.random.key(0), (3, 3, 1), 3
RNG = np.random.RandomState(0)


@functools.cache
def dataset(num=20):
    rng = np.random.RandomState(num)
    image = jnp.asarray(rng.randint(0, 256, (num, *SHAPE)), jnp.uint8)
    return Dataset(image, jnp.asarray(rng.randint(0, CLASSES, num), jnp.int32))


def scores(variables, image):
    """Logits of the tanh net in numpy."""
    x = np.asarray(image, np.float64).reshape(len(image), -1) / 255
    return np.tanh(x @ np.asarray(variables.params["w"])) @ np.asarray(variables.params["v"])


@pytest.mark.parametrize("batch_size", [1, 7, 20, 500])
def test_filled_up_batches_give_what_one_batch_gives(batch_size):
    net, data = smooth_victim(), dataset()
    variables = jax.jit(net.init)(KEY)
    expected = scores(variables, data.image)
    got = victims.logits(net, variables, data.image, batch_size=batch_size)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    share = victims.accuracy(net, variables, data, batch_size=batch_size)
    np.testing.assert_allclose(share, np.mean(expected.argmax(1) == data.label), rtol=1e-6)


def test_running_statistics_are_read():
    net = jp.models.mlp(SHAPE, CLASSES, hidden=(4,))
    variables = jax.jit(net.init)(KEY)
    moved = Variables(variables.params, jax.tree.map(lambda s: s + 0.5, variables.stats))
    data = dataset()
    alone = victims.logits(net, moved, data.image, batch_size=1)
    together = victims.logits(net, moved, data.image)
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert not np.allclose(together, victims.logits(net, variables, data.image), atol=1e-2)


@pytest.mark.parametrize(
    ("batch_size", "batches"),  # rows of each batch, and which of them are new
    [
        (5, [(0, 5, 0), (5, 10, 0), (10, 15, 0), (15, 20, 0)]),
        (7, [(0, 7, 0), (7, 14, 0), (13, 20, 1)]),
        (20, [(0, 20, 0)]),
        (500, [(0, 20, 0)]),
    ],
)
def test_batch_statistics_are_those_of_whole_batches_of_real_rows(batch_size, batches):
    """The last batch reaches back; running statistics are not read. In numpy."""
    net, data = normalized_victim(), dataset()
    variables = net.init(KEY)
    w, v = (np.asarray(variables.params[k], np.float64) for k in "wv")
    x = np.asarray(data.image, np.float64).reshape(20, -1) / 255
    parts = []
    for start, stop, new in batches:
        hidden = x[start:stop] @ w
        normal = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5)
        parts.append((np.tanh(normal) @ v)[new:])
    expected = np.concatenate(parts)
    moved = Variables(variables.params, jax.tree.map(lambda s: s + 3.0, variables.stats))
    how = {"batch_size": batch_size, "statistics": "batch"}
    for some in (variables, moved):
        got = victims.logits(net, some, data.image, **how)
        np.testing.assert_allclose(got, expected, atol=1e-4)
    right = np.mean(expected.argmax(axis=1) == np.asarray(data.label))
    share = victims.accuracy(net, moved, data, **how)
    np.testing.assert_allclose(share, right, rtol=1e-6)
    np.testing.assert_allclose(victims.targeted(net, moved, data, **how)[0], right, rtol=1e-6)
    found = victims.assess(net, moved, data, **how)
    assert found.accuracy.values == pytest.approx([right])
    state = jp.types.TrainState(*jax.tree.map(lambda x: x[None], moved), ())
    zeros = np.zeros((1, 1), np.float32)
    info = EpochInfo(zeros, zeros, zeros == 0, zeros, zeros)
    judged = victims.judge(net, state, info, data, data, **how)
    success, _ = victims.hits(net, state, data, **how)
    assert success.values == pytest.approx([right])
    assert judged.final_accuracy.values == judged.train_accuracy.values == pytest.approx([right])


def test_statistics_of_another_name_are_one_line():
    net = normalized_victim()
    with pytest.raises(InputError, match="^statistics = 'test'; allowed are running, batch$"):
        victims.logits(net, net.init(KEY), dataset().image, statistics="test")


def test_confusion_equals_sklearn():
    label, predicted = RNG.randint(0, 4, 50), RNG.randint(0, 4, 50)
    got = victims.confusion(jnp.asarray(label, jnp.int32), jnp.asarray(predicted, jnp.int32), 5)
    expected = sklearn.metrics.confusion_matrix(label, predicted, labels=range(5))
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == jnp.int32


def test_targeted_success_and_intended_probability():
    net, goal = smooth_victim(), dataset(9)
    variables = jax.jit(net.init)(KEY)
    z = scores(variables, goal.image)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    rate, intended = victims.targeted(net, variables, goal)
    np.testing.assert_allclose(rate, np.mean(z.argmax(1) == goal.label), rtol=1e-6)
    np.testing.assert_allclose(intended, np.mean(p[np.arange(9), goal.label]), rtol=1e-5)


def test_judge_counts_every_seed():
    net, train = smooth_victim(), dataset(20)
    test = Dataset(dataset(30).image, jnp.minimum(dataset(30).label, 1))  # no row of class 2
    seeds = [jax.jit(net.init)(jax.random.key(r)) for r in range(3)]
    state = jp.types.TrainState(
        jax.tree.map(lambda *x: jnp.stack(x), *[s.params for s in seeds]), {}, ()
    )
    curve = np.array([[0.1, 0.2, 0.9], [0.3, 0.1, 0.2]], np.float32)
    zeros = np.zeros((2, 3), np.float32)
    info = EpochInfo(zeros, zeros, zeros == 0, zeros, curve)
    got = victims.judge(net, state, info, train, test, batch_size=7)

    predicted = [scores(s, test.image).argmax(1) for s in seeds]
    label = np.asarray(test.label)
    right = [np.mean(p == label) for p in predicted]
    seen = [np.mean(scores(s, train.image).argmax(1) == train.label) for s in seeds]
    np.testing.assert_allclose(got.final_accuracy.values, right, rtol=1e-12)
    np.testing.assert_allclose(got.train_accuracy.values, seen, rtol=1e-6)
    best = np.maximum([0.3, 0.2, 0.9], right)
    np.testing.assert_allclose(got.peak_accuracy.values, best, rtol=1e-6)
    np.testing.assert_allclose(got.curve, [0.4, 0.2], rtol=1e-6)
    total = sum(
        sklearn.metrics.confusion_matrix(label, p, labels=range(CLASSES)) for p in predicted
    )
    assert got.confusion == total.tolist()
    recall = [np.mean([np.mean(p[label == c] == c) for p in predicted]) for c in range(2)]
    np.testing.assert_allclose(got.per_class[:2], recall, rtol=1e-12)
    assert got.per_class[2] is None
    assert got.final_accuracy == victims.interval(right)
    alone, epochs = jax.tree.map(lambda x: x[0], state), jax.tree.map(lambda x: x[:, 0], info)
    single = victims.judge(net, alone, epochs, train, test, batch_size=7)  # no axis of seeds
    assert single.final_accuracy.values == got.final_accuracy.values[:1]
    assert single.peak_accuracy.values == got.peak_accuracy.values[:1]


def test_assess_counts_one_victim_or_several():
    net, data = smooth_victim(), dataset(30)
    seeds = [jax.jit(net.init)(jax.random.key(r)) for r in range(3)]
    predicted = [scores(s, data.image).argmax(1) for s in seeds]
    counts = [
        sklearn.metrics.confusion_matrix(data.label, p, labels=range(CLASSES)) for p in predicted
    ]
    one = victims.assess(net, seeds[1], data, batch_size=7)
    share = sklearn.metrics.accuracy_score(data.label, predicted[1])
    assert one.accuracy.values == pytest.approx([share]) and one.accuracy.low is None
    assert one.confusion == counts[1].tolist()
    recall = sklearn.metrics.recall_score(data.label, predicted[1], average=None)
    np.testing.assert_allclose(one.per_class, recall, rtol=1e-12)
    several = victims.assess(net, jax.tree.map(lambda *x: jnp.stack(x), *seeds), data)
    assert several.confusion == sum(counts).tolist()
    right = [np.mean(p == np.asarray(data.label)) for p in predicted]
    np.testing.assert_allclose(several.accuracy.values, right, rtol=1e-12)


def test_assess_refuses_another_network_and_labels_without_a_logit():
    net, data = smooth_victim(), dataset()
    variables = net.init(KEY)
    other = Variables(jax.tree.map(lambda x: x[:-1], variables.params), ())
    with pytest.raises(InputError, match="^the variables are of another network: an array is "):
        victims.assess(net, Variables(other.params, variables.stats), data)
    with pytest.raises(InputError, match="^the variables are of another network: their names"):
        victims.assess(net, Variables({"w": variables.params["w"]}, variables.stats), data)
    with pytest.raises(InputError, match="^20 labels of the set are not among the network's 3"):
        victims.assess(net, variables, Dataset(data.image, data.label + 3))


def test_evaluation_holds_one_batch_of_activations():
    net = jp.models.small_cnn((16, 16, 1), 3, widths=(8,))
    several = jax.eval_shape(
        jax.vmap(net.init), jax.ShapeDtypeStruct((4,), jax.random.key(0).dtype)
    )

    def scratch(num):
        data = Dataset(
            jax.ShapeDtypeStruct((num, 16, 16, 1), jnp.uint8),
            jax.ShapeDtypeStruct((num,), jnp.int32),
        )
        lowered = evaluate._counts.lower(net, several, data, 50, "running")
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = scratch(100), scratch(2000)
    of_the_set = 1900 * (16 * 16 + 4 * 3 + 4)  # its uint8 batches and logits
    one_activation = 1900 * 16 * 16 * 8 * 4
    assert many - few < 3 * of_the_set < one_activation / 4


def test_an_interval_by_hand_and_by_scipy():
    got = victims.interval([1.0, 2.0, 3.0])
    point = 0.95 * np.sqrt(2 / (4 * 0.975 * 0.025))  # 97.5 % of t with 2 degrees, in closed form
    half = point / np.sqrt(3)  # s = 1
    np.testing.assert_allclose([got.mean, got.low, got.high], [2, 2 - half, 2 + half], rtol=1e-12)
    assert got.values == [1.0, 2.0, 3.0]
    values = RNG.uniform(size=7)
    got = victims.interval(values)
    expected = scipy.stats.t.interval(0.95, 6, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose([got.low, got.high], expected, rtol=1e-12)


def test_one_value_has_no_interval_and_equal_ones_a_point():
    assert victims.interval([0.25]) == (0.25, None, None, [0.25])
    assert victims.interval([0.5, 0.5]) == (0.5, 0.5, 0.5, [0.5, 0.5])
    with pytest.raises(InputError, match="^an interval needs at least one value$"):
        victims.interval([])


def test_bad_batches_are_one_line():
    net = smooth_victim()
    with pytest.raises(InputError, match="^batch_size = 0; it must be at least 1$"):
        victims.accuracy(net, net.init(KEY), dataset(), batch_size=0)
