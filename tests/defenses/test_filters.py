"""Every filter against a few lines of numpy."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import neighbors

import jaxpoison as jp
from tests.test_defense_contract import CLASSES, NUM, WIDTH, features, head

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_module")


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


def screened(filter, dataset, aux):
    return jp.defenses.screen_and_score(
        filter, KEY, dataset, aux, np.arange(NUM)[: len(dataset.label)] < 4
    )


def below(score, y, share):
    """Below the quantile of the class."""
    keep = np.zeros(NUM, bool)
    for c in range(CLASSES):
        keep[y == c] = score[y == c] < np.quantile(score[y == c], 1 - share)
    return keep


def test_largest_loss():
    dataset, aux, _, y, p = arrays()
    loss = -np.log(p[np.arange(NUM), y])
    build = jp.defenses.largest_loss
    found, _ = screened(build(head(), share=0.1, num_classes=CLASSES), dataset, aux)
    np.testing.assert_allclose(found.score, loss, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.keep, below(loss, y, 0.1))
    whole, _ = screened(build(head(), share=0.1), dataset, aux)
    np.testing.assert_array_equal(whole.keep, loss < np.quantile(loss, 0.9))


def test_norm_of_trusted_rows():
    dataset, aux, x, _, _ = arrays()
    clean = aux._replace(trusted=jax.tree.map(lambda a: a[4:40], dataset))
    found, _ = screened(jp.defenses.norm_filter(level=0.9), dataset, clean)
    size = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(found.score, size, rtol=1e-5)
    np.testing.assert_array_equal(found.keep, size <= np.quantile(size[4:40], 0.9))


def test_largest_gradient():
    dataset, aux, x, y, p = arrays()
    error = p - np.eye(CLASSES)[y]
    size = np.linalg.norm(error, axis=1) * np.linalg.norm(np.c_[x, np.ones(NUM)], axis=1)
    build = jp.defenses.largest_gradient
    for gradients in ("head", "all"):
        found, _ = screened(build(head(), share=0.1, gradients=gradients), dataset, aux)
        np.testing.assert_allclose(found.score, size, rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(found.keep, size < np.quantile(size, 0.9))


def test_influence_is_that_of_a_dense_solve():
    dataset, aux, x, y, p = arrays()
    aux = aux._replace(trusted=jax.tree.map(lambda a: a[4:40], dataset))
    wide = np.c_[x, np.ones(NUM)]
    slopes = np.einsum("nl,nd->nld", p - np.eye(CLASSES)[y], wide).reshape(NUM, -1)
    inner = np.einsum("nl,lm->nlm", p, np.eye(CLASSES)) - np.einsum("nl,nm->nlm", p, p)
    size = slopes.shape[1]
    hessian = np.einsum("nlm,nd,ne->ldme", inner, wide, wide).reshape(size, size) / NUM
    v = np.linalg.solve(hessian + 0.05 * np.eye(size), slopes[4:40].mean(axis=0))
    harm = np.maximum(-slopes @ v, 0)
    build = jp.defenses.influence(head(), share=0.1, damping=0.05, tolerance=1e-5, batch_size=25)
    found, _ = screened(build, dataset, aux)
    np.testing.assert_allclose(found.score, harm, rtol=1e-2, atol=1e-3)
    np.testing.assert_array_equal(found.keep, harm < np.quantile(harm, 0.9))


def means(x, y, rows=slice(None)):
    return np.stack([x[rows][y[rows] == c].mean(axis=0) for c in range(CLASSES)])


def test_sphere():
    dataset, aux, x, y, p = arrays()
    aux = aux._replace(trusted=jax.tree.map(lambda a: a[4:40], dataset))
    slopes = np.einsum("nl,nd->nld", p - np.eye(CLASSES)[y], np.c_[x, np.ones(NUM)])
    cases = (("set", "data", x), ("trusted", "gradients", slopes.reshape(NUM, -1)))
    for center, space, z in cases:
        options = {"center": center, "space": space, "victim": head(), "share": 0.1}
        found, _ = screened(jp.defenses.sphere(num_classes=CLASSES, **options), dataset, aux)
        rows = slice(4, 40) if center == "trusted" else slice(None)
        gap = np.linalg.norm(z - means(z, y, rows)[y], axis=1)
        np.testing.assert_allclose(found.score, gap, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found.keep, below(gap, y, 0.1))


def test_slab():
    dataset, aux, x, y, _ = arrays()
    found, _ = screened(jp.defenses.slab(CLASSES, share=0.1), dataset, aux)
    score = np.zeros(NUM)
    for c in range(CLASSES):
        own, rest = x[y == c].mean(axis=0), x[y != c].mean(axis=0)
        score[y == c] = np.abs((x[y == c] - own) @ (own - rest))
    np.testing.assert_allclose(found.score, score, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found.keep, below(score, y, 0.1))


def test_a_class_without_trusted_rows_is_kept_whole():
    dataset, aux, _, y, _ = arrays()
    rows = np.flatnonzero(y != 1)
    aux = aux._replace(trusted=jax.tree.map(lambda a: a[rows], dataset))
    found, _ = screened(
        jp.defenses.sphere(num_classes=CLASSES, center="trusted", share=0.1), dataset, aux
    )
    assert found.keep[y == 1].all() and not found.keep[y != 1].all()


@pytest.mark.parametrize("size", [7, 100])
def test_neighbors_are_those_of_scikit_learn(size):
    dataset, aux, x, y, _ = arrays()
    gap, rows = neighbors.NearestNeighbors(n_neighbors=6).fit(x).kneighbors(x)
    gap, rows = gap[:, 1:], rows[:, 1:]  # the first is the row itself
    options = {"victim": head(), "num_classes": CLASSES, "batch_size": size}
    found, _ = screened(jp.defenses.deep_knn(5, **options), dataset, aux)
    agree = (y[rows] == y[:, None]).sum(axis=1)
    np.testing.assert_array_equal(found.keep, agree >= 2.5)
    np.testing.assert_allclose(found.score, 1 - agree / 5, atol=1e-6)
    found, _ = screened(jp.defenses.knn_distance(5, share=0.1, space="data"), dataset, aux)
    np.testing.assert_allclose(found.score, gap[:, -1], rtol=1e-3)
    np.testing.assert_array_equal(found.keep, gap[:, -1] < np.quantile(gap[:, -1], 0.9))


def test_half_keeps_a_tie_and_plurality_counts_the_row_itself():
    """On a line, k = 2: the vote of row 1 (label 0) is split between labels 0 and 1."""
    image = jnp.array([0.0, 1, 2.1, 9, 9.1, 9.3]).reshape(6, 1, 1, 1)
    dataset = jp.Dataset(image, jnp.array([0, 0, 1, 1, 0, 1]))
    options = {"space": "data", "num_classes": 2}
    half, _ = screened(jp.defenses.deep_knn(2, **options), dataset, jp.defenses.Known())
    np.testing.assert_array_equal(half.keep, [1, 1, 0, 1, 0, 1])
    vote, _ = screened(
        jp.defenses.deep_knn(3, vote="plurality", **options), dataset, jp.defenses.Known()
    )
    np.testing.assert_array_equal(vote.keep, [1, 1, 0, 1, 0, 1])
    np.testing.assert_allclose(vote.score[jnp.array([0, 2])], [-1 / 3, 1 / 3], atol=1e-6)


@pytest.mark.parametrize("axis", [None, 0])
def test_range_of_trusted_rows(axis):
    dataset, aux, x, _, _ = arrays()
    clean = aux._replace(trusted=jax.tree.map(lambda a: a[4:], dataset))
    found, _ = screened(jp.defenses.range_filter(per_coordinate=axis == 0), dataset, clean)
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
    found, _ = screened(jp.defenses.range_filter(), dataset, aux)
    np.testing.assert_array_equal(found.keep, [1, 0, 1])
    np.testing.assert_allclose(found.score, [0, 200 / 255, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: jp.defenses.random_filter(share=1.0), "share = 1.0"),
        (lambda: jp.defenses.sphere(share=-0.1), "share = -0.1"),
        (lambda: jp.defenses.sphere(space="gradients"), "needs a victim"),
        (lambda: jp.defenses.slab(1), "num_classes = 1"),
        (lambda: jp.defenses.knn_distance(3), "needs a victim"),
        (lambda: jp.defenses.deep_knn(1, space="data", vote="plurality"), "num_neighbors = 1"),
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
    other = jp.models.logistic_regression((1, 1, 99), 10).init(KEY)
    with pytest.raises(jp.InputError, match="Known.variables (has an array|is not the Variables)"):
        jp.defenses.largest_loss(head()).screen(KEY, dataset, jp.defenses.Known(other))
    with pytest.raises(jp.InputError, match="Known.trusted holds none"):
        jp.defenses.norm_filter().screen(KEY, dataset, nothing)
    with pytest.raises(jp.InputError, match="60 neighbors of 60 rows; at most 59"):
        jp.defenses.knn_distance(60, space="data").screen(KEY, dataset, nothing)
    with pytest.raises(jp.InputError, match="needs a victim"):
        jp.defenses.norm_filter(space="features").screen(
            KEY, dataset, jp.defenses.Known(trusted=dataset)
        )


@pytest.mark.parametrize(
    "build",
    [
        lambda: jp.defenses.slab(2),
        lambda: jp.defenses.sphere(num_classes=2),
        lambda: jp.defenses.random_filter(num_classes=2),
        lambda: jp.defenses.deep_knn(3, space="data", num_classes=2),
        lambda: jp.defenses.sever(head(), lambda *_: None, num_classes=2),
    ],
)
def test_labels_of_more_classes_are_refused_in_and_out_of_one_program(build):
    dataset, aux, *_ = arrays()
    line = "labels run from 0 to 2; num_classes = 2 allows 0 to 1"
    with pytest.raises(jp.InputError, match=line):
        build().screen(KEY, dataset, aux)
    with pytest.raises(jp.InputError, match=line):
        jp.defenses.screen_and_score(build(), KEY, dataset, aux, np.zeros(NUM, bool))


def test_trusted_rows_of_another_kind_are_one_line():
    dataset, aux, *_ = arrays()
    flat = jax.tree.map(jnp.asarray, aux.trusted._replace(image=jnp.zeros((NUM, 2, 2, 1))))
    every = (jp.defenses.norm_filter(), jp.defenses.range_filter(),
             jp.defenses.sphere(center="trusted"), jp.defenses.influence(head()))  # fmt: skip
    for one in every:
        with pytest.raises(jp.InputError, match=r"Known.trusted have shape \(2, 2, 1\); those of"):
            one.screen(KEY, dataset, aux._replace(trusted=flat))
    wrong = aux.trusted._replace(label=jnp.full(NUM, 9))
    with pytest.raises(jp.InputError, match="labels of Known.trusted run from 9 to 9"):
        jp.defenses.slab(CLASSES).screen(KEY, dataset, aux._replace(trusted=wrong))


@pytest.mark.parametrize(
    ("known", "line"),
    [
        (lambda aux: aux.variables, "aux is a Variables; it must be Known"),
        (lambda aux: aux._replace(variables=head()), "Known holds functions"),
        (
            lambda aux: aux._replace(variables=jp.TrainState(*aux.variables, ())),
            "Known.variables is a TrainState; write Known.state.variables",
        ),
    ],
)
def test_what_is_no_known_is_one_line(known, line):
    dataset, aux, *_ = arrays()
    score = inspect.unwrap(jp.defenses.screen_and_score)
    with pytest.raises(jp.InputError, match=line):
        score(jp.defenses.largest_loss(head()), KEY, dataset, known(aux), np.zeros(NUM, bool))


def test_sever_says_what_a_fit_is():
    with pytest.raises(jp.InputError, match="fit is a ToConvergence; it must be"):
        inspect.unwrap(jp.defenses.sever)(head(), jp.victims.ToConvergence())
