import functools
import subprocess
import sys

import numpy as np
import pytest
import sklearn.dummy
import sklearn.metrics

import jaxpoison as jp
from jaxpoison import victims
from jaxpoison.types import Dataset, InputError
from jaxpoison.victims import CLASSICAL, Classical, judge_classical


@functools.cache
def digits():
    """Three hundred training and two hundred test images of 8 x 8."""
    train, test = jp.data.digits("train"), jp.data.digits("test")
    return Dataset(train.image[:300], train.label[:300]), Dataset(
        test.image[:200], test.label[:200]
    )


@pytest.mark.parametrize("name", sorted(CLASSICAL))
def test_every_classifier_learns_digits_and_reports_as_networks_do(name):
    train, test = digits()
    got = judge_classical(name, train, test, num=2)
    assert isinstance(got, victims.Judgment)
    assert got.final_accuracy.mean > 0.85 and got.train_accuracy.mean > 0.99
    assert got.peak_accuracy == got.final_accuracy
    assert got.curve == [got.final_accuracy.mean]
    fits = 2 if CLASSICAL[name].seeded else 1
    assert len(got.final_accuracy.values) == len(got.train_accuracy.values) == fits
    assert np.sum(got.confusion) == fits * len(test.label)
    rows = np.sum(got.confusion, axis=1)
    np.testing.assert_array_equal(rows, fits * np.bincount(test.label, minlength=10))
    np.testing.assert_allclose(got.per_class, np.diag(got.confusion) / rows)
    if fits == 1:
        assert got.final_accuracy.low is None and got.final_accuracy.high is None


def test_the_forest_is_scikit_learns_with_300_trees():
    from sklearn.ensemble import RandomForestClassifier

    train, test = digits()
    got = judge_classical("random_forest", train, test, num=2, seed=5)
    x, x_test = (np.asarray(d.image).reshape(len(d.label), -1) / 255 for d in (train, test))
    expected, counts = [], 0
    for seed in (5, 6):
        model = RandomForestClassifier(300, random_state=seed).fit(
            x.astype(np.float32), train.label
        )
        predicted = model.predict(x_test.astype(np.float32))
        expected.append(np.mean(predicted == test.label))
        counts = counts + sklearn.metrics.confusion_matrix(test.label, predicted, labels=range(10))
    np.testing.assert_allclose(got.final_accuracy.values, expected, atol=0.006)  # one ulp of x
    assert np.abs(np.array(got.confusion) - counts).sum() <= 4


def test_the_constants_are_those_of_the_papers():
    forest = CLASSICAL["random_forest"].make(7).get_params()
    assert (forest["n_estimators"], forest["random_state"]) == (300, 7)
    svm = CLASSICAL["rbf_svm"].make(0).get_params()
    assert (svm["kernel"], svm["gamma"], svm["C"]) == ("rbf", 0.01, 200.0)
    linear = CLASSICAL["logistic_regression"].make(0).get_params()
    assert (linear["C"], linear["solver"]) == (1.0, "lbfgs")


def test_a_classifier_of_ones_own_and_a_class_that_only_one_set_has():
    train, test = digits()
    few = Dataset(train.image, np.minimum(train.label, 4))
    constant = Classical(
        lambda seed: sklearn.dummy.DummyClassifier(strategy="constant", constant=seed), True, "-"
    )
    got = judge_classical(constant, few, test, num=2, seed=1)
    shares = [np.mean(np.asarray(test.label) == c) for c in (1, 2)]
    np.testing.assert_allclose(got.final_accuracy.values, shares, rtol=1e-12)
    seen = [np.mean(np.asarray(few.label) == c) for c in (1, 2)]
    np.testing.assert_allclose(got.train_accuracy.values, seen, rtol=1e-12)
    assert np.shape(got.confusion) == (10, 10)


def test_poisoned_labels_mislead_every_classifier():
    train, test = digits()
    shifted = Dataset(train.image, (train.label + 1) % 10)
    for name in CLASSICAL:
        assert judge_classical(name, shifted, test).final_accuracy.mean < 0.1


def test_bad_input_is_one_line():
    train, test = digits()
    one = Dataset(train.image[:4], np.zeros(4, np.int32) + 3)
    wide = Dataset(np.zeros((2, 9, 8, 1), np.uint8), np.arange(2))
    empty = Dataset(train.image[:0], train.label[:0])
    for arguments, message in [
        (("svm", train, test), "^victim = 'svm'; allowed are random_forest, rbf_svm, logistic_"),
        (("rbf_svm", one, test), "^every training label is 3; a classifier needs two classes$"),
        (("rbf_svm", train, wide), r"^training images are \(8, 8, 1\), test images \(9, 8, 1\)$"),
        (("rbf_svm", empty, test), "^the training set: no images"),
        (("rbf_svm", train, empty), "^the test set: no images"),
    ]:
        with pytest.raises(InputError, match=message):
            judge_classical(*arguments)
    with pytest.raises(InputError, match="^num = 0; it must be at least 1$"):
        judge_classical("rbf_svm", train, test, num=0)
    with pytest.raises(InputError, match="^seed = -1; it must be at least 0$"):
        judge_classical("random_forest", train, test, seed=-1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), [("random_forest", 0.9723), ("rbf_svm", 0.9824)])
def test_clean_mnist_is_learned_as_published(shared_data, tmp_path, name, published):
    command = [sys.executable, shared_data / "prepare.py", "--npz", tmp_path, "mnist"]
    subprocess.run(command, check=True, capture_output=True)
    train, test = (jp.data.from_npz(tmp_path / f"mnist-{s}.npz") for s in ("train", "test"))
    assert abs(judge_classical(name, train, test).final_accuracy.mean - published) < 0.005
