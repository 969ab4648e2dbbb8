"""What attacks that add points are compared with: label flips and random points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from jaxpoison.perturb import Constraint
from jaxpoison.types import InputError
from jaxpoison.victims import ToConvergence, converge

KEY, CLASSES = jax.random.key(0), 4
pytestmark = pytest.mark.usefixtures("quick_module")


def scenario(num=40, added=30, width=3):
    rng = np.random.default_rng(0)
    label = np.arange(num) % CLASSES
    image = rng.normal(size=(num, 1, 1, width)) + 2 * np.eye(CLASSES, width)[label][:, None, None]
    train = jp.Dataset(jnp.asarray(image, jnp.float32), jnp.asarray(label, jnp.int32))
    index = jnp.asarray(rng.permutation(num)[:added], jnp.int32)
    return jp.Scenario(train, train, index)


def pixels(data):
    """The same rows, moved into [0, 1]."""
    image = data.train.image
    low, high = image.min(), image.max()
    return data._replace(train=data.train._replace(image=(image - low) / (high - low)))


def made(attack, data=None, key=KEY):
    data = scenario() if data is None else data
    state, info = jp.run(attack, key, data, num_steps=1)
    assert np.all(info.finite)
    return attack.poison(state, data)


def test_added_copies_with_wrong_labels():
    data = scenario()
    base, label = (np.asarray(x)[np.asarray(data.index)] for x in data.train)
    for labels in ("random", "next"):
        got = made(jp.attacks.label_flip(num_classes=CLASSES, labels=labels))
        np.testing.assert_array_equal(got.image[40:], base)
        step = (np.asarray(got.label[40:]) - label) % CLASSES
        assert set(step) == ({1} if labels == "next" else {1, 2, 3})


def test_the_least_likely_label_is_never_the_true_one():
    head = jp.models.logistic_regression((1, 1, 3), CLASSES)
    params = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.ndim), x.shape), head.init(KEY).params
    )
    data = scenario()._replace(aux=jp.Variables(params, {}))
    attack = jp.attacks.label_flip(head, num_classes=CLASSES, labels="least_likely", batch_size=7)
    kernel, bias = sorted(map(np.asarray, jax.tree.leaves(params)), key=lambda x: -x.ndim)
    base, label = (np.asarray(x)[np.asarray(data.index)] for x in data.train)
    scores = base.reshape(-1, 3) @ kernel + bias
    assert np.any(scores.argmin(1) == label)  # so that the exception matters
    scores[np.arange(30), label] = np.inf
    np.testing.assert_array_equal(made(attack, data).label[40:], scores.argmin(1))


def test_rows_relabeled_in_their_place():
    data = scenario(added=12)
    got = made(jp.attacks.label_flip(num_classes=CLASSES, rows="changed"), data)
    assert got.image.shape == data.train.image.shape
    np.testing.assert_array_equal(got.image, data.train.image)
    other = np.flatnonzero(np.asarray(got.label) != data.train.label)
    np.testing.assert_array_equal(other, np.sort(data.index))


def test_random_points_fill_what_the_constraint_allows():
    data = pixels(scenario(num=40, added=40))
    data = data._replace(train=data.train._replace(image=0.1 + 0.5 * data.train.image))
    clean = np.asarray(data.train.image)
    for kind, low, high in [
        ("box", 0, 1),
        ("range", clean.min(), clean.max()),
        ("coordinate", clean.min(0), clean.max(0)),
    ]:
        attack = jp.attacks.random_points(num_classes=CLASSES, constraint=Constraint(kind))
        points = made(attack, data)
        value = (np.asarray(points.image[40:]) - low) / (high - low)
        assert -1e-6 <= value.min() < 0.05 and 0.95 < value.max() <= 1 + 1e-6
        assert abs(value.mean() - 0.5) < 0.1
        assert len(set(np.asarray(points.label[40:]))) == CLASSES
        assert not np.array_equal(made(attack, data, jax.random.key(1)).image, points.image)


def test_gaussian_points_have_the_stated_scale():
    for kind in ("none", "nonnegative"):
        attack = jp.attacks.random_points(labels="base", constraint=Constraint(kind), std=50.0)
        data = scenario()
        points = made(attack, data)
        value = np.asarray(points.image[40:])
        assert np.sqrt((value**2).mean()) == pytest.approx(50, rel=0.2)
        assert (value.min() >= 0) == (kind == "nonnegative")
        np.testing.assert_array_equal(points.label[40:], data.train.label[data.index])


def test_flipped_labels_hurt_more_than_copies_and_than_random_points():
    """Test error of the minimum on twice the clean set, over true copies by 20 points at least."""
    data, test = pixels(scenario(num=200, added=180)), pixels(scenario(num=200)).train
    head, settings = jp.models.logistic_regression((1, 1, 3), CLASSES), ToConvergence(0.01)

    def accuracy(train):
        start = head.init(KEY)
        found, _ = converge(head, start, train, settings, num_clean=200)
        return float(jp.victims.accuracy(head, found, test))

    flipped = accuracy(made(jp.attacks.label_flip(num_classes=CLASSES, labels="next"), data))
    same = made(jp.attacks.random_points(labels="base", constraint=Constraint("linf", 0.0)), data)
    random = accuracy(made(jp.attacks.random_points(num_classes=CLASSES), data))
    assert flipped < accuracy(same) - 0.2 and flipped < random - 0.1


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: jp.attacks.label_flip(num_classes=1), "num_classes"),
        (lambda: jp.attacks.label_flip(num_classes=3, labels="worst"), "least_likely"),
        (lambda: jp.attacks.label_flip(num_classes=3, rows="some"), "added, changed"),
        (lambda: jp.attacks.label_flip(num_classes=3, labels="least_likely"), "needs the network"),
        (lambda: jp.attacks.random_points(), "num_classes"),
        (lambda: jp.attacks.random_points(labels="base", std=1.0), "needs none"),
        (lambda: jp.attacks.random_points(labels="base", constraint=Constraint()), "needs one"),
    ],
)
def test_bad_arguments(make, why):
    with pytest.raises(InputError, match=why):
        make()


@pytest.mark.parametrize("loop", [jp.run, jp.run_chunks])
def test_labels_outside_the_classes_are_refused_before_a_run(loop):
    line = "labels of the training set run from 0 to 3; num_classes = 3 allows 0 to 2"
    head = jp.models.logistic_regression((1, 1, 3), 3)
    for attack in (
        jp.attacks.label_flip(num_classes=3),
        jp.attacks.random_points(num_classes=3),
        jp.attacks.gradient_canceling(head),
        jp.attacks.total_gradient(head, constraint=Constraint("range")),
    ):
        with pytest.raises(InputError, match=line):
            loop(attack, KEY, scenario(), num_steps=1)


@pytest.mark.parametrize("kind", ["box", "linf"])
def test_pixels_constraints_on_features_are_refused(kind):
    head = jp.models.logistic_regression((1, 1, 3), CLASSES)
    constraint = Constraint(kind, 0.1 if kind == "linf" else None)
    for attack in (
        jp.attacks.random_points(num_classes=CLASSES, constraint=constraint),
        jp.attacks.gradient_canceling(head, constraint=constraint),
        jp.attacks.total_gradient(head, constraint=constraint),
    ):
        with pytest.raises(InputError, match=f"constraint = {kind} is for pixels in .0, 1., base"):
            jp.run(attack, KEY, scenario(), num_steps=1)


@pytest.mark.parametrize(
    ("attack", "data", "line"),
    [
        (
            lambda: jp.attacks.label_flip(num_classes=CLASSES),
            lambda: scenario(added=0),
            "scenario.index is empty",
        ),
        (
            lambda: jp.attacks.random_points(num_classes=CLASSES),
            lambda: scenario(added=0),
            "scenario.index is empty",
        ),
        (
            lambda: jp.attacks.gradient_canceling(
                jp.models.logistic_regression((1, 1, 3), CLASSES), labels="random", num_classes=9
            ),
            scenario,
            "num_classes = 9; the network has 4 logits",
        ),
        (
            lambda: jp.attacks.gradient_canceling(
                jp.models.logistic_regression((1, 1, 9), CLASSES)
            ),
            scenario,
            "images are .1, 1, 1, 3., the network takes",
        ),
        (
            lambda: jp.attacks.label_flip(
                jp.models.logistic_regression((1, 1, 3), 6),
                num_classes=CLASSES,
                labels="least_likely",
            ),
            lambda: scenario()._replace(aux=jp.models.logistic_regression((1, 1, 3), 6).init(KEY)),
            "num_classes = 4; the network has 6 logits",
        ),
    ],
)
def test_a_scenario_that_cannot_be_used_is_one_line(attack, data, line):
    with pytest.raises(InputError, match=line):
        jp.run(attack(), KEY, data(), num_steps=1)
