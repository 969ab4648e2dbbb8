"""Thresholds in the record: closed forms in numpy, boxes in the units of the kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import jaxpoison as jp
from jaxpoison.perturb import Constraint
from jaxpoison.report import added_arm
from jaxpoison.report.added_reach import reachable
from jaxpoison.types import Scenario, Variables
from jaxpoison.victims import ToConvergence, recipes
from tests.report import small_added

pytestmark = pytest.mark.usefixtures("quick_module")

MEAN, STD = 0.3, 0.5
HEAD = jp.models.logistic_regression(small_added.SHAPE, 3, bias=False, mean=(MEAN,), std=(STD,))


@pytest.fixture(scope="module")
def target():
    """Twice the negative of a fit, where <W, G> is large."""
    network = HEAD.init(jax.random.key(1))
    return Variables(jax.tree.map(lambda x: -2 * jnp.sign(x), network.params), network.stats)


def found(kind, target, how, eps=None, index=12):
    one = added_arm(
        jp.attacks.gradient_canceling, HEAD, constraint=Constraint(kind, eps), expect=""
    )
    train = small_added.split().train
    scenario = Scenario(train, train, jnp.arange(index), ())
    return reachable(one, HEAD, target, scenario, how, space="input")


def slope(target):
    """W and the clean mean gradient at it, [64, 3], in float64."""
    (w,) = (np.asarray(x, np.float64) for x in jax.tree.leaves(target.params))
    train = small_added.split().train
    x = (np.asarray(train.image, np.float64).reshape(48, 64) / 255 - MEAN) / STD
    p = scipy.special.softmax(x @ w, axis=1) - np.eye(3)[np.asarray(train.label)]
    return w, x.T @ p / 48


def test_free_points_have_the_threshold_of_the_paper(target):
    w, g = slope(target)
    omega = scipy.special.lambertw(2 / np.e).real
    record = found("none", target, ToConvergence())
    assert record["tau"] == pytest.approx((w * g).sum() / omega, rel=1e-4)
    assert record["reachable"] is False and record["floor"] > 0
    centered = w - w.mean(axis=1, keepdims=True)
    floor = ((w * g).sum() - 0.25 * omega) / np.linalg.norm(centered)
    assert record["floor"] == pytest.approx(floor, rel=1e-4)
    heavy = found("none", target, ToConvergence(added_weight=4 * record["tau"] * 1.01))
    assert heavy["reachable"] is True and heavy["floor"] == 0


def test_weight_decay_counts_as_each_follower_normalizes_it(target):
    w, g = slope(target)
    omega, decay = scipy.special.lambertw(2 / np.e).real, 0.001
    centered = w - w.mean(axis=1, keepdims=True)
    sgd = dataclasses.replace(recipes.small(), weight_decay=decay)
    for how, share in ((ToConvergence(decay), 0), (ToConvergence(decay, normalize="all"), 0.25),
                       (sgd, 0.25)):  # fmt: skip
        condition = found("none", target, how)["conditions"]["<W, G> / omega"]
        expected = ((w * g).sum() + (1 + share) * decay * (centered**2).sum()) / omega
        assert condition == pytest.approx(expected, rel=1e-4)


def test_constrained_points_have_a_box_and_only_necessary_conditions(target):
    how = ToConvergence(added_weight=1000.0)
    box, ball, half = (found(*kind[:1], target, how, *kind[1:])
                       for kind in (("box",), ("linf", 0.01), ("nonnegative",)))  # fmt: skip
    assert box["reachable"] is None and half["reachable"] is None
    assert len(half["conditions"]) == 1 and len(box["conditions"]) == 2
    name = next(k for k in box["conditions"] if "box" in k)
    assert ball["conditions"][name] > box["conditions"][name] > 0


def test_a_network_that_is_no_linear_head_has_none():
    net = jp.models.mlp(small_added.SHAPE, 3, hidden=(4,), batch_norm=False)
    one = small_added.canceling("none")
    train = small_added.split().train
    scenario = Scenario(train, train, jnp.arange(3), ())
    variables = net.init(jax.random.key(0))
    assert reachable(one, net, variables, scenario, ToConvergence(), space="input") is None
