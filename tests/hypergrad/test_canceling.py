"""Gradient canceling: its gradient against reverse mode and in closed form; its points."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp

pytestmark = pytest.mark.usefixtures("quick_compile")
CLEAN, ADDED, SHARE, DECAY = 12, 5, 5 / 12, 0.3


def problem(dtype, hidden=()):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(CLEAN, 1, 1, 4)), dtype)
    train = jp.Dataset(image, jnp.asarray(rng.integers(0, 3, CLEAN), jnp.int32))
    victim = jp.models.mlp((1, 1, 4), 3, hidden=hidden, batch_norm=False, dtype=dtype)
    target = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), dtype),
        jax.eval_shape(victim.init, jax.random.key(0)),
    )
    index = jnp.arange(ADDED, dtype=jnp.int32)
    return victim, jp.Scenario(train, train, index, aux=target)


def estimated(victim, scenario, **options):
    """Theta, and what `canceling` says of it."""
    space = jp.perturb.free_points(labels="random", num_classes=3)
    rule = jp.hypergrad.canceling(victim, space, batch_size=2, **options)
    theta = space.init(jax.random.key(1), scenario)
    phi = rule.init(jax.random.key(2), scenario)
    gradient, _, loss = rule.estimate(jax.random.key(3), theta, phi, scenario)
    assert not np.any(gradient.label)
    return theta, gradient.value, loss


def residual(victim, scenario, theta, value, decay):
    """r as JAX differentiates the whole training loss."""

    def loss(params):
        def mean(image, label):
            logits, _ = victim.apply(jp.Variables(params, {}), image, train=False)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
            return losses.sum() / CLEAN

        clean = mean(scenario.train.image, scenario.train.label)
        square = sum(jnp.sum(x**2) for x in jax.tree.leaves(params))
        return clean + mean(value, theta.label.astype(jnp.int32)) + decay / 2 * square

    return jax.grad(loss)(scenario.aux.params)


FIRST = {"Dense_0": {"bias": False, "kernel": True}, "Dense_1": {"bias": False, "kernel": False}}
BIASES = {"Dense_0": {"bias": True, "kernel": False}, "Dense_1": {"bias": True, "kernel": False}}


@pytest.mark.parametrize(
    ("options", "mask", "decay"),
    [
        ({}, None, 0),
        ({"params": "first", "objective": "l2"}, FIRST, 0),
        ({"params": lambda params: BIASES, "objective": "tensors", "weight_decay": DECAY},
         BIASES, DECAY),
        ({"params": "weights", "weight_decay": DECAY, "normalize": "all"},
         jax.tree.map(lambda x: not x, BIASES), DECAY * (1 + SHARE)),
        ({"objective": "l2", "sums": True}, None, 0),
        ({"objective": "sq", "sums": True}, None, 0),
    ],
)  # fmt: skip
def test_gradient_is_reverse_mode_of_the_objective(x64, options, mask, decay):
    victim, scenario = problem(jnp.float64, hidden=(3,))
    theta, got, loss = estimated(victim, scenario, **options)
    num = CLEAN if options.get("sums") else 1

    def objective(value):
        r = residual(victim, scenario, theta, value, decay)
        if mask is not None:
            r = jax.tree.map(lambda keep, x: x if keep else 0 * x[:0], mask, r)
        squares = [jnp.sum((num * x) ** 2) for x in jax.tree.leaves(r) if x.size]
        name = options.get("objective", "sq")
        if name == "tensors":
            return sum(jnp.sqrt(x) for x in squares), sum(squares)
        return jnp.sqrt(sum(squares)) if name == "l2" else sum(squares) / 2, sum(squares)

    slope, square = jax.jacrev(objective, has_aux=True)(theta.value)
    np.testing.assert_allclose(loss, square / num**2 / 2, rtol=1e-12)
    np.testing.assert_allclose(got, slope, rtol=1e-10, atol=1e-13)


def test_gradient_is_the_closed_form_of_a_linear_head(x64):
    victim, scenario = problem(jnp.float64)
    theta, got, loss = estimated(victim, scenario)
    params = scenario.aux.params["Dense_0"]
    w, b = np.asarray(params["kernel"]), np.asarray(params["bias"])

    def errors(x, label):
        z = x @ w + b
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return p, p - np.eye(3)[label]

    clean = np.asarray(scenario.train.image).reshape(CLEAN, 4)
    x, label = np.asarray(theta.value).reshape(ADDED, 4), np.asarray(theta.label, int)
    _, d_clean = errors(clean, np.asarray(scenario.train.label))
    p, d = errors(x, label)
    weights = (clean.T @ d_clean + x.T @ d) / CLEAN
    biases = (d_clean.sum(axis=0) + d.sum(axis=0)) / CLEAN
    np.testing.assert_allclose(loss, (np.sum(weights**2) + np.sum(biases**2)) / 2, rtol=1e-12)
    u = x @ weights + biases
    want = d @ weights.T + (p * u - p * np.sum(p * u, axis=1, keepdims=True)) @ w.T
    np.testing.assert_allclose(got.reshape(ADDED, 4), want / CLEAN, rtol=1e-10)


def test_opposing_labels_are_the_best_one_after_another(x64):
    victim, scenario = problem(jnp.float64)
    rule = jp.hypergrad.canceling(victim, jp.perturb.free_points())
    phi = rule.init(jax.random.key(0), scenario)
    image = scenario.train.image[:ADDED]
    got = jp.hypergrad.opposing_labels(victim, phi, image, num_classes=3, scenario=scenario)
    params = scenario.aux.params["Dense_0"]
    left = np.concatenate([np.ravel(x) for x in jax.tree.leaves(phi.clean)])
    for x, label in zip(np.asarray(image).reshape(ADDED, 4), got, strict=True):
        z = x @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
        p = np.exp(z) / np.exp(z).sum()
        d = p - np.eye(3)
        after = [left + np.append(r, np.outer(x, r)) / CLEAN for r in d]
        best = np.argmin([np.linalg.norm(r) for r in after])
        assert label == best
        left = after[best]


def test_added_points_are_rows_n_and_on(x64):
    victim, scenario = problem(jnp.float64)
    for options in ({}, {"constraint": jp.perturb.Constraint("box"), "sigmoid": True}):
        space = jp.perturb.free_points(labels="random", num_classes=3, **options)
        theta = space.init(jax.random.key(1), scenario)
        theta = theta._replace(value=theta.value + 1)
        looked_up = space.apply(theta, scenario, jnp.arange(12, 17))
        jax.tree.map(np.testing.assert_array_equal, space.added(theta, scenario), looked_up)
        np.testing.assert_array_equal(space.release(theta, scenario).image[12:], looked_up.image)


def test_a_sigmoid_stays_between_the_bounds_and_starts_near_the_base_rows():
    _, scenario = problem(jnp.float32)
    space = jp.perturb.free_points(jp.perturb.Constraint("coordinate"), sigmoid=True)
    theta = space.init(jax.random.key(1), scenario)
    clean = scenario.train.image
    low, high = clean.min(axis=0, keepdims=True), clean.max(axis=0, keepdims=True)
    base = jnp.clip(clean[:5], low + 0.01 * (high - low), high - 0.01 * (high - low))
    np.testing.assert_allclose(space.added(theta, scenario).image, base, atol=1e-5)
    far = space.project(theta._replace(value=theta.value + 100), scenario)
    np.testing.assert_allclose(
        space.added(far, scenario).image, jnp.broadcast_to(high, (5, 1, 1, 4)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "l1"}, "objective = 'l1'; allowed are sq, l2, tensors"),
        ({"params": "biases"}, "params = 'biases'; allowed are all, weights, first"),
        ({"weight": 0.0}, "weight = 0.0; it must be a finite number above 0"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0; it must be a finite number at least 0"),
    ],
)
def test_a_setting_that_cannot_be_used(options, message):
    victim, _ = problem(jnp.float32)
    with pytest.raises(jp.InputError, match=message):
        inspect.unwrap(jp.hypergrad.canceling)(victim, jp.perturb.free_points(), **options)


def test_scenarios_and_spaces_that_cannot_be_used():
    victim, scenario = problem(jnp.float32)
    make = functools.partial(jp.hypergrad.canceling, victim, jp.perturb.free_points())
    with pytest.raises(jp.InputError, match="a space of added points"):
        jp.hypergrad.canceling(victim, jp.perturb.per_sample(jp.perturb.Budget("linf", 0.1)))
    with pytest.raises(jp.InputError, match="Variables of a network trained on clean data"):
        make().init(jax.random.key(0), scenario._replace(aux=()))
    with pytest.raises(jp.InputError, match="scenario.aux has an array of shape"):
        stacked = jax.tree.map(lambda x: x[None], scenario.aux)
        make().init(jax.random.key(0), scenario._replace(aux=stacked))
    with pytest.raises(jp.InputError, match=r"scenario\.index is empty"):
        make().init(jax.random.key(0), scenario._replace(index=scenario.index[:0]))
    with pytest.raises(jp.InputError, match="no parameter is marked"):
        none = jax.tree.map(lambda x: False, scenario.aux.params)
        make(params=lambda params: none).init(jax.random.key(0), scenario)
    with pytest.raises(jp.InputError, match="has not the form of the parameters"):
        make(params=lambda params: True).init(jax.random.key(0), scenario)
    with pytest.raises(jp.InputError, match=r"constraint = 'box'; write Constraint\(\.\.\.\)"):
        inspect.unwrap(jp.perturb.free_points)("box")
    with pytest.raises(jp.InputError, match="a sigmoid needs two bounds"):
        jp.perturb.free_points(sigmoid=True)
