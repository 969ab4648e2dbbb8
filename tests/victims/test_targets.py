"""What victims make of targets, against a softmax by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import models
from jaxpoison.types import Dataset, InputError
from jaxpoison.victims import on_targets, read_targets, targeted


def test_logits_of_two_victims_on_three_targets():
    scores = np.array([
        [[2.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 5.0, 1.0]],
        [[0.0, 4.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 9.0]],
    ])  # fmt: skip
    wanted, true = np.array([1, 2, 0]), np.array([0, 0, 1])
    on = read_targets(scores, wanted, true)
    odds = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    rows = np.arange(3)
    assert on.success.tolist() == [pytest.approx(1 / 3), pytest.approx(1 / 3)]
    assert on.intended == pytest.approx(odds[:, rows, wanted].mean(axis=1))
    assert on.true == pytest.approx(odds[:, rows, true].mean(axis=1))
    assert on.intended_loss == pytest.approx(-np.log(odds[:, rows, wanted]).mean(axis=1))
    assert on.true_loss == pytest.approx(-np.log(odds[:, rows, true]).mean(axis=1))
    far = read_targets(np.array([[[0.0, 2000.0]]]), np.array([0]), np.array([1]))
    assert far.intended_loss.tolist() == [2000.0]  # no overflow, no log of zero


def test_a_single_victim_reads_as_targeted_does():
    victim = models.logistic_regression((4, 4, 1), 3)
    variables = victim.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    wanted = jnp.array([0, 1, 2, 0, 1])
    on = on_targets(victim, variables, image, wanted=wanted, true=(wanted + 1) % 3)
    rate, probability = targeted(victim, variables, Dataset(image, wanted))
    assert on.success == pytest.approx(np.array([rate])) and on.success.shape == (1,)
    assert on.intended == pytest.approx(np.array([probability]))


def test_bad_targets_are_one_line():
    scores = np.zeros((1, 1, 3))
    with pytest.raises(InputError, match="wanted labels run from 3 to 3; the network has 3"):
        read_targets(scores, np.array([3]), np.array([0]))
    with pytest.raises(InputError, match="there are no targets"):
        read_targets(scores[:, :0], np.zeros(0, int), np.zeros(0, int))
