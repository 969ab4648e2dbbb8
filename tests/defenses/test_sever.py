"""Sever against np.linalg.svd, its operators against per-row gradients, and planted points."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison.defenses import per_sample_gradients as rows
from jaxpoison.types import as_float
from tests.oracles import smooth_victim
from tests.test_defense_contract import descend

CLASSES, WIDTH, NUM = 3, 5, 50
KEY = jax.random.key(0)

pytestmark = pytest.mark.usefixtures("quick_module")


@functools.cache
def head(bias=True, dtype=jnp.float32):
    return jp.models.logistic_regression((1, 1, WIDTH), CLASSES, bias=bias, dtype=dtype)


def problem(victim, dtype, side=(1, 1, WIDTH)):
    """Classes of 5, 30 and 15 rows; a random network."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat(np.arange(CLASSES), (5, 30, 15)))
    image = rng.normal(size=(NUM, *side)) * (1 + label.reshape(-1, 1, 1, 1))
    draw = victim.init(KEY)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), draw)
    return jp.Dataset(jnp.asarray(image, dtype), jnp.asarray(label, jnp.int32)), variables


def matrix(victim, variables, dataset):
    """G [N, D] by reverse mode, a row at a time."""

    def loss(params, image, label):
        z, _ = victim.apply(jp.Variables(params, variables.stats), image[None], train=False)
        return optax.softmax_cross_entropy_with_integer_labels(z, label[None])[0]

    slopes = jax.vmap(jax.grad(loss), (None, 0, 0))(
        variables.params, as_float(dataset.image), dataset.label
    )
    flat = [np.asarray(s, float).reshape(NUM, -1) for s in jax.tree.leaves(slopes)]
    return np.concatenate(flat, axis=1)


def svd_scores(matrix, group):
    """|G^ v| by numpy."""
    score = np.zeros(len(matrix))
    for g in set(group):
        own = matrix[group == g]
        centered = (own - own.mean(axis=0)) / np.sqrt(len(own))
        score[group == g] = np.abs(centered @ np.linalg.svd(centered)[2][0])
    return score


def operators():
    yield head(False, jnp.float64), rows.head_gradients, (1, 1, WIDTH)
    yield smooth_victim(4, CLASSES, 9), rows.parameter_gradients, (3, 3, 1)


@pytest.mark.parametrize("number", range(2))
def test_operators_and_scores_are_those_of_the_matrix(x64, number):
    victim, operator, side = list(operators())[number]
    dataset, variables = problem(victim, jnp.float64, side)
    label = np.asarray(dataset.label)
    keep = np.random.default_rng(1).uniform(size=NUM) < 0.7

    @jax.jit
    def compute(variables, dataset):
        blocks = rows.class_blocks(dataset.label, CLASSES)
        gradients = operator(victim, variables, dataset, blocks)
        weight = blocks.cut(jnp.asarray(keep, jnp.float64))
        found = rows.singular_scores(KEY, gradients, blocks, weight, iterations=20)
        gap = rows.gradient_gaps(gradients, blocks, rows.mean_gradients(gradients, blocks, NUM))
        return [blocks.rejoin(x, NUM) for x in (gradients.norm(), gap, found)]

    size, gap, found = compute(variables, dataset)
    full = matrix(victim, variables, dataset)
    loose = {"rtol": 2e-5, "atol": 2e-5}  # the logits of a linear head are float32
    np.testing.assert_allclose(size, np.linalg.norm(full, axis=1), **loose)
    means = np.stack([full[label == c].mean(axis=0) for c in range(CLASSES)])
    np.testing.assert_allclose(gap, np.linalg.norm(full - means[label], axis=1), **loose)
    want = np.zeros(NUM)
    want[keep] = svd_scores(full[keep], label[keep])
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("counts", [(5, 30, 15), (0, 50, 0), (1, 0, 49)])
def test_blocks_hold_every_row_once_in_a_block_of_its_class(counts):
    label = jnp.asarray(np.random.default_rng(0).permutation(np.repeat(np.arange(3), counts)))
    blocks = jax.jit(lambda label: rows.class_blocks(label, 3)[:2])(label)
    blocks = rows.Blocks(*blocks, 3)
    place = np.asarray(blocks.rows)
    real = place < NUM
    np.testing.assert_array_equal(np.sort(place[real]), np.arange(NUM))
    owner = np.broadcast_to(np.asarray(blocks.owner)[:, None], place.shape)
    np.testing.assert_array_equal(np.asarray(label)[place[real]], owner[real])
    np.testing.assert_array_equal(blocks.rejoin(blocks.cut(jnp.arange(NUM)), NUM), range(NUM))


def planted():
    """300 rows in 3 classes; 5 % of class 0 lie far out, on the side of class 1."""
    data = jp.data.synthetic.blobs(KEY, 300, CLASSES, (1, 1, WIDTH))
    image = np.asarray(as_float(data.image)).reshape(300, 1, 1, WIDTH)
    label = np.asarray(data.label)
    gone = np.flatnonzero(label == 0)[:5]
    means = [image[label == c].mean(axis=0) for c in range(CLASSES)]
    image = image.copy()
    image[gone] = means[1] + 5 * (means[1] - means[0])
    truth = np.zeros(300, bool)
    truth[gone] = True
    return jp.Dataset(jnp.asarray(image), data.label), truth


def test_planted_points_are_removed_in_three_rounds():
    dataset, truth = planted()
    settings = jp.defenses.SeverSettings(0.03, 3)
    defense = jp.defenses.sever(head(), descend, settings, num_classes=CLASSES)
    _, found = jp.defenses.screen_and_score(defense, KEY, dataset, jp.defenses.Known(), truth)
    assert found.true_positive_rate >= 0.9
    assert found.false_positive_rate < 0.1 and found.auc > 0.9


def test_a_round_is_the_svd_of_the_fitted_model():
    dataset, _ = planted()
    rng = np.random.default_rng(0)
    start = head().init(KEY)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), start)
    label = np.asarray(dataset.label)
    score = svd_scores(_matrix(variables, dataset), label)
    limit = np.array([np.quantile(score[label == c], 0.9) for c in range(CLASSES)])[label]
    unit = np.array([np.sqrt(np.mean(score[label == c] ** 2)) for c in range(CLASSES)])[label]
    defense = jp.defenses.sever(
        head(),
        lambda key, dataset, keep: variables,
        jp.defenses.SeverSettings(0.1, 1),
        num_classes=CLASSES,
        gradients="all",
    )
    screening, _ = jp.defenses.screen_and_score(
        defense, KEY, dataset, jp.defenses.Known(), score < limit
    )
    np.testing.assert_allclose(screening.score, score / unit, rtol=1e-2, atol=1e-3)
    np.testing.assert_array_equal(screening.keep, score < limit)


def test_a_later_round_fits_and_ranks_the_rows_that_are_left():
    """Three rounds: the fit shifts by how many rows it is given; gone rows keep their score."""
    dataset, _ = planted()
    rng = np.random.default_rng(0)
    start = head().init(KEY)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), start)

    def fit(key, dataset, keep):
        return jax.tree.map(lambda x: x * (1 + jnp.sum(~keep) / 30), variables)

    label, keep, score = np.asarray(dataset.label), np.ones(300, bool), np.zeros(300)
    for _ in range(3):
        own = fit(KEY, dataset, keep)
        rows_of, own_label = _matrix(own, dataset), np.where(keep, label, -1)
        found, stays = svd_scores(rows_of, own_label), keep.copy()
        for c in range(CLASSES):
            some = own_label == c
            score[some] = found[some] / np.sqrt(np.mean(found[some] ** 2))
            stays[some] = score[some] < np.quantile(score[some], 0.9)
        keep = stays
    settings = jp.defenses.SeverSettings(0.1, 3)
    defense = jp.defenses.sever(head(), fit, settings, num_classes=CLASSES)
    screening = jax.jit(defense.screen)(KEY, dataset, jp.defenses.Known())
    np.testing.assert_array_equal(screening.keep, keep)
    np.testing.assert_allclose(screening.score, score, rtol=1e-2, atol=1e-2)
    assert 70 < 300 - keep.sum() < 90  # 1 - 0.9^3


def _matrix(variables, dataset):
    x = np.asarray(dataset.image, float).reshape(len(dataset.label), -1)
    kernel, bias = (
        next(np.asarray(a, float) for a in jax.tree.leaves(variables.params) if a.ndim == n)
        for n in (2, 1)
    )
    z = x @ kernel + bias
    p = np.exp(z - z.max(axis=1, keepdims=True))
    error = p / p.sum(axis=1, keepdims=True) - np.eye(CLASSES)[np.asarray(dataset.label)]
    return np.einsum("nl,nd->nld", error, np.c_[x, np.ones(len(x))]).reshape(len(x), -1)


def test_a_given_training_sees_no_removed_row():
    """Labels of removed rows are of a class that no kept row has: it is never learned."""
    dataset, _ = planted()
    keep = dataset.label != 2
    training = jp.victims.victim_training(head(), jp.victims.Recipe(5, 50, 0.5), 300)
    variables = jax.jit(jp.defenses.trained(training, 5))(KEY, dataset, keep)
    z, _ = head().apply(variables, dataset.image, train=False)
    seen = np.asarray(jnp.argmax(z, axis=1))
    assert 2 not in seen
    assert (seen == dataset.label)[keep].mean() > 0.9


def test_convergence_is_the_minimum_over_kept_rows():
    """There the mean gradient of the kept rows and the weight decay cancel."""
    dataset, truth = planted()
    settings = jp.victims.ToConvergence(weight_decay=1e-2, tolerance=1e-4)
    keep = ~truth & (np.arange(300) % 2 == 0)
    found = jp.defenses.converged(head(), settings)(KEY, dataset, jnp.asarray(keep))
    mean = _matrix(found, dataset)[keep].mean(axis=0).reshape(CLASSES, WIDTH + 1)
    kernel, bias = (
        next(np.asarray(a) for a in jax.tree.leaves(found.params) if a.ndim == n) for n in (2, 1)
    )
    decay = 1e-2 * np.c_[kernel.T, bias]
    assert np.abs(decay).max() > 1e-3
    np.testing.assert_allclose(mean, -decay, atol=3e-4)


def test_bad_settings_get_one_line():
    with pytest.raises(jp.InputError, match="share = 1; it must be"):
        jp.defenses.SeverSettings(share=1)
    with pytest.raises(jp.InputError, match="rounds = 0"):
        jp.defenses.SeverSettings(rounds=0)
    fit = jp.defenses.converged(head(), jp.victims.ToConvergence())
    with pytest.raises(jp.InputError, match="allowed are head, all"):
        jp.defenses.sever(head(), fit, gradients="last")


def test_a_last_layer_that_is_not_linear_is_named():
    victim = jp.models.mlp((1, 1, WIDTH), CLASSES, hidden=())  # BatchNorm on the logits
    dataset, variables = problem(victim, jnp.float32)
    blocks = rows.class_blocks(dataset.label, CLASSES)
    with pytest.raises(jp.InputError, match="it is not linear; use gradients = all"):
        rows.head_gradients(victim, variables, dataset, blocks)


def test_settings_of_the_release():
    assert jp.defenses.RELEASE == jp.defenses.SeverSettings(0.03, 5)
    assert jp.defenses.ENRON == jp.defenses.SeverSettings(0.017, 2)
    assert jp.defenses.REGRESSION == jp.defenses.SeverSettings(0.3, 8, per_class=False)
