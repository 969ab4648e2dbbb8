"""PGD-AT and TRADES against closed forms, numpy and finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxpoison as jp
from jaxpoison import tree, victims
from jaxpoison.types import Batch, Dataset, InputError, Split
from jaxpoison.victims import adversarial, recipes
from tests.oracles import central_differences, normalized_victim, smooth_victim

KEY = jax.random.key(0)


def batch(num=6, *, weight=None, dtype=None):
    rng = np.random.RandomState(2)
    image = jnp.asarray(rng.uniform(size=(num, 3, 3, 1)), dtype)
    label = jnp.asarray(rng.randint(0, 3, num), jnp.int32)
    weight = jnp.ones(num) if weight is None else jnp.asarray(weight)
    return Batch(image, label, weight.astype(image.dtype), jnp.arange(num, dtype=jnp.int32))


def log_softmax(z):
    return z - np.log(np.sum(np.exp(z), axis=1, keepdims=True))


def rows(image):
    return np.asarray(image).reshape(len(image), -1)


@pytest.fixture
def fixed(monkeypatch):
    """Learners get this delta from `pgd`, so that it is known to numpy."""
    delta = np.random.RandomState(1).uniform(-0.1, 0.1, (6, 3, 3, 1))
    monkeypatch.setattr(adversarial, "pgd", lambda *args, **options: jnp.asarray(delta))
    return delta


def scores(params, x):
    """Logits of the tanh net in numpy."""
    return np.tanh(rows(x) @ np.asarray(params["w"])) @ np.asarray(params["v"])


def divergence(log_p, log_q):
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=1)


@pytest.mark.parametrize("weight", [None, [0.5, 2, 0, 1, 3, 0.25]])
def test_the_loss_of_trades_equals_numpy(weight, x64, fixed):
    """CE(clean) + beta KL(clean || attacked)."""
    learner = victims.trades_learner(smooth_victim(), optax.sgd(0.1), eps=0.1, beta=2.5)
    phi, data = learner.init(KEY), batch(weight=weight)
    loss, (logits, _) = jax.jit(learner.loss)(KEY, phi.params, phi.stats, data)
    image = np.asarray(data.image)
    clean, near = (log_softmax(scores(phi.params, x)) for x in (image, image + fixed))
    ce, kl = -clean[np.arange(6), np.asarray(data.label)], divergence(clean, near)
    assert np.abs(kl / divergence(near, clean) - 1).max() > 1e-2  # the direction shows
    share = np.ones(6) / 6 if weight is None else np.asarray(weight) / np.sum(weight)
    np.testing.assert_allclose(loss, np.sum(share * (ce + 2.5 * kl)), rtol=1e-10)
    np.testing.assert_allclose(logits, scores(phi.params, image), rtol=1e-10)


def test_the_attack_of_trades_climbs_the_divergence(x64):
    """Beyond it at any of a hundred corners of the ball drawn at random, and above 0."""
    data = batch()
    learner = victims.trades_learner(smooth_victim(), optax.sgd(0.1), eps=0.1)
    phi = learner.init(KEY)
    loss, (logits, _) = jax.jit(learner.loss)(KEY, phi.params, phi.stats, data)
    clean = log_softmax(np.asarray(logits))
    found = loss + np.mean(clean[np.arange(6), np.asarray(data.label)])
    rng = np.random.RandomState(0)
    image = np.asarray(data.image)
    corners = [np.clip(image + rng.choice([-0.1, 0.1], image.shape), 0, 1) for _ in range(100)]
    drift = [divergence(clean, log_softmax(scores(phi.params, x))).mean() for x in corners]
    assert found > max(drift) > 0


@pytest.mark.parametrize("of", ["image", "w"])
def test_the_gradient_of_trades_equals_finite_differences(of, x64, fixed):
    """Both branches are differentiated, and the statistics of all 2B rows; delta is constant."""
    learner = victims.trades_learner(normalized_victim(), optax.sgd(0.1), eps=0.1, beta=2.0)
    phi, data = learner.init(KEY), batch()

    def loss(value):
        at = phi.params | {"image": data.image} | {of: value}
        image = at.pop("image")
        return learner.loss(KEY, at, phi.stats, data._replace(image=image))[0]

    at = (phi.params | {"image": data.image})[of]
    gradient = jax.jit(jax.grad(loss))(at)
    np.testing.assert_allclose(gradient, central_differences(jax.jit(loss), at), atol=1e-8)
    assert np.abs(gradient).max() > 1e-2


def test_trades_has_second_derivatives_through_its_attack(x64):
    """Forward over reverse, as hypergradients take it; with the real attack, which is constant."""
    learner = victims.trades_learner(normalized_victim(), optax.sgd(0.1), eps=0.1, steps=2)
    phi, data = learner.init(KEY), batch()
    loss = lambda p, x: learner.loss(KEY, p, phi.stats, data._replace(image=x))[0]  # noqa: E731
    unit = jax.tree.map(jnp.ones_like, phi.params)

    @jax.jit
    def products(params):
        by_image = jax.jvp(lambda p: jax.grad(loss, argnums=1)(p, data.image), (params,), (unit,))
        return by_image, jax.jvp(lambda p: loss(p, data.image), (params,), (unit,))

    @jax.jit
    def moved(t):
        params = jax.tree.map(lambda p: p + t, phi.params)
        return loss(params, data.image), jax.grad(loss, argnums=1)(params, data.image)

    (_, curve), (_, slope) = products(phi.params)
    (high, high_gradient), (low, low_gradient) = moved(1e-5), moved(-1e-5)
    np.testing.assert_allclose(slope, (high - low) / 2e-5, atol=1e-8)
    np.testing.assert_allclose(curve, (high_gradient - low_gradient) / 2e-5, atol=1e-7)


def test_trades_normalizes_clean_and_attacked_rows_together_and_moves_once(x64, fixed):
    learner = victims.trades_learner(normalized_victim(), optax.sgd(0.1), eps=0.1)
    phi, data = learner.init(KEY), batch()
    after, _ = jax.jit(learner.step)(KEY, phi, data)
    image = np.asarray(data.image)
    hidden = rows(np.concatenate([image, image + fixed])) @ np.asarray(phi.params["w"])
    np.testing.assert_allclose(after.stats["mean"], 0.1 * hidden.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(after.stats["var"], 0.9 + 0.1 * hidden.var(axis=0), rtol=1e-10)


def test_trades_attacks_in_train_mode_from_a_small_gaussian_start(x64):
    """PGD on KL(clean || .), made here: statistics of the B rows it is given, 0.01 N(0, I)."""
    net, beta = normalized_victim(), 3.0
    learner = victims.trades_learner(net, optax.sgd(0.1), eps=0.1, step_size=0.01, beta=beta)
    phi, data = learner.init(KEY), batch()
    phi = phi._replace(stats={"mean": jnp.arange(4.0) / 9, "var": 0.1 + jnp.arange(4.0)})

    def expected(train):
        def scores(image):
            return jax.nn.log_softmax(net.apply(phi.variables, image, train=train)[0])

        def drift(image):
            return jnp.sum(jnp.exp(scores(data.image)) * (scores(data.image) - scores(image)))

        def start(key, shape, dtype, budget):
            return 0.01 * jax.random.normal(key, shape, dtype)

        attack_key = jax.random.split(KEY, 3)[0]
        delta = victims.pgd(attack_key, drift, data.image, eps=0.1, step_size=0.01, start=start)
        both = jnp.concatenate([data.image, data.image + delta])
        log_p, log_q = jnp.split(
            jax.nn.log_softmax(net.apply(phi.variables, both, train=True)[0]), 2
        )
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)
        return jnp.mean(-log_p[jnp.arange(6), data.label] + beta * kl)

    loss = jax.jit(learner.loss)(KEY, phi.params, phi.stats, data)[0]
    by_mode = [float(jax.jit(expected, static_argnums=0)(train)) for train in (True, False)]
    np.testing.assert_allclose(loss, by_mode[0], rtol=1e-9)
    assert abs(by_mode[1] - by_mode[0]) > 1e-5


@pytest.mark.parametrize("train_mode", [False, True])
def test_pgd_training_is_a_plain_step_on_the_examples_of_its_mode(train_mode, x64):
    """Examples made here by `pgd` on the batch's cross-entropy; statistics move by the update."""
    net = normalized_victim()
    learner = victims.adversarial_learner(net, optax.sgd(0.1), eps=0.1, train_mode=train_mode)
    phi, data = learner.init(KEY), batch()
    phi = phi._replace(stats={"mean": jnp.arange(4.0) / 9, "var": 0.1 + jnp.arange(4.0)})
    after, info = jax.jit(learner.step)(KEY, phi, data)

    def examples(train):
        def loss(x):
            z, _ = net.apply(phi.variables, x, train=train)
            return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(z, data.label))

        attack_key = jax.random.split(KEY, 3)[0]
        return jax.jit(lambda x: x + victims.pgd(attack_key, loss, x, eps=0.1))(data.image)

    modes = {train: examples(train) for train in (False, True)}
    assert not np.array_equal(modes[False], modes[True])
    plain = jax.jit(victims.learner(net, optax.sgd(0.1)).step)
    expected, seen = plain(KEY, phi, data._replace(image=modes[train_mode]))
    for got, want in zip(
        jax.tree.leaves((after, info)), jax.tree.leaves((expected, seen)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-9)


def test_a_loss_on_examples_has_their_gradient_in_the_images(x64, fixed):
    learner = victims.adversarial_learner(normalized_victim(), optax.sgd(0.1), eps=0.1)
    plain, data = victims.learner(normalized_victim(), optax.sgd(0.1)), batch()
    phi = learner.init(KEY)

    def slope(made, image):
        loss = lambda x: made.loss(KEY, *phi.variables, data._replace(image=x))[0]  # noqa: E731
        return jax.jit(jax.grad(loss))(image)

    expected = slope(plain, data.image + fixed)
    np.testing.assert_allclose(slope(learner, data.image), expected, rtol=1e-10)


@pytest.mark.parametrize("make", [victims.adversarial_learner, victims.trades_learner])
def test_steps_compile_once_accumulate_and_keep_dtypes(make):
    learner = make(
        normalized_victim(), optax.sgd(0.1, momentum=0.9), eps=0.1, steps=2, accumulate=2
    )
    phi, step = learner.init(KEY), jax.jit(learner.step)
    data = batch(dtype=jnp.float32)
    for number in range(3):
        after, info = step(jax.random.key(number), phi, data)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, phi)
        assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("float32")}
        assert info.finite and tree.norm(after.params) != tree.norm(phi.params)
        phi = after
    assert step._cache_size() == 1


@pytest.mark.parametrize("make", [victims.adversarial_learner, victims.trades_learner])
def test_no_step_of_the_attack_is_kept_for_the_gradient(make):
    """Twenty steps need little more memory than one, also where images are differentiated."""

    data = batch(2048, dtype=jnp.float32)

    def temporary(steps):
        learner = make(normalized_victim(), optax.sgd(0.1), eps=0.1, steps=steps)
        phi = learner.init(KEY)

        def loss(params, data):
            return learner.loss(KEY, params, phi.stats, data)[0]

        slopes = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))
        lowered = slopes.lower(phi.params, data)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(20) < 2 * temporary(1)


@pytest.mark.parametrize("make", [victims.adversarial_learner, victims.trades_learner])
def test_a_network_in_bfloat16_keeps_its_state_in_float32(make):
    net = jp.models.mlp((3, 3, 1), 3, hidden=(4,), dtype=jnp.bfloat16)
    learner, data = make(net, optax.sgd(0.1), eps=0.1, steps=2), batch(dtype=jnp.float32)
    like = jax.eval_shape(learner.init, KEY)
    after, info = jax.eval_shape(learner.step, KEY, like, data)
    assert after == like
    assert {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("float32")}
    assert info.outer_loss.dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        ("adversarial_learner", {"eps": 8}, "eps = 8 looks like grey levels; write 8/255"),
        ("adversarial_learner", {"eps": 0.1, "steps": 0}, "steps = 0; it must be at least 1"),
        (
            "adversarial_learner",
            {"eps": 0.1, "step_size": 0.0},
            "step_size = 0.0; it must be a finite number above 0",
        ),
        ("trades_learner", {"beta": -1.0}, "beta = -1.0; it must be a finite number at least 0"),
        ("trades_learner", {"eps": -0.1}, "eps = -0.1; it must be a finite number at least 0"),
        ("adversarial_learner", {"eps": 1, "norm": "l0"}, "norm = 'l0'; allowed are linf, l2"),
        (
            "trades_learner",
            {"start": "zero"},
            "start = 'zero'; the divergence that TRADES climbs has no gradient there",
        ),
    ],
)
def test_bad_settings_are_one_line(make, settings, message):
    with pytest.raises(InputError) as error:
        getattr(victims, make)(smooth_victim(), optax.sgd(0.1), **settings)
    assert str(error.value) == message


def test_a_bad_start_is_one_line():
    with pytest.raises(InputError, match="^start = 'corner'; allowed are zero, uniform, normal, s"):
        victims.pgd(KEY, jnp.sum, jnp.zeros((1, 3, 3, 1)), eps=0.1, start="corner")


def frail(num, seed):
    """Two classes: 63 pixels that each say a little, and one that is right for nine in ten rows."""
    rng = np.random.RandomState(seed)
    label = rng.randint(0, 2, num)
    sign = (2 * label - 1)[:, None, None, None]
    image = 0.5 + 0.06 * sign + 0.1 * rng.randn(num, 8, 8, 1)
    image[:, 0, 0] = 0.5 + 0.4 * sign[:, 0, 0] * np.where(rng.uniform(size=(num, 1)) < 0.9, 1, -1)
    image = jnp.asarray(np.clip(image, 0, 1), jnp.float32)
    return Dataset(image, jnp.asarray(label, jnp.int32))


@functools.cache
def trained(kind):
    """A linear network trained by a recipe on `frail` data; (network, two seeds, their info)."""
    data = Split(frail(256, 0), frail(200, 1))
    net = jp.models.logistic_regression((8, 8, 1), 2)
    recipe = dataclasses.replace(
        recipes.small(epochs=12, learning_rate=0.05),
        adversarial=kind,
        adversarial_eps=0.1,
        adversarial_beta=3.0,
    )
    process = jp.over_restarts(victims.victim_training(net, recipe, 256), 2, chunk=None)
    state, info = jp.run(process, KEY, data, num_steps=recipe.epochs)
    return net, state, info, data.test


@pytest.mark.parametrize("kind", ["none", "pgd", "trades"])
def test_robust_accuracy_is_that_of_the_worst_corner_and_training_raises_it(kind):
    """The cross-entropy of two linear classes is largest at x -+ eps sign(w_1 - w_0)."""
    net, state, info, test = trained(kind)
    found = victims.assess_robust(KEY, net, state.variables, test, eps=0.1, batch_size=64)
    sign = 2 * np.asarray(test.label) - 1
    for seed, share in enumerate(found.accuracy.values):
        dense = jax.tree.map(lambda x: np.asarray(x)[seed], state.params)["Dense_0"]  # noqa: B023
        w, b = dense["kernel"][:, 1] - dense["kernel"][:, 0], dense["bias"][1] - dense["bias"][0]
        worst = np.clip(rows(test.image) - 0.1 * sign[:, None] * np.sign(w), 0, 1)
        assert share == pytest.approx(np.mean(sign * (worst @ w + b) > 0), abs=1e-9)
        assert share < 0.5 if kind == "none" else share > 0.85
    clean = victims.assess(net, state.variables, test)
    assert clean.accuracy.mean > 0.85 and np.all(np.isfinite(info.outer_loss))
    one = victims.assess_robust(KEY, net, tree.take(state.variables, 0), test, eps=0.1)
    assert one.accuracy.values == pytest.approx(found.accuracy.values[:1])
    compiled = adversarial._robust_counts._cache_size()
    harmless = victims.assess_robust(KEY, net, state.variables, test, eps=0.0, batch_size=64)
    assert adversarial._robust_counts._cache_size() == compiled
    assert harmless.confusion == clean.confusion


def test_what_cannot_be_assessed_is_one_line():
    net, state, _, test = trained("none")
    assess = functools.partial(victims.assess_robust, KEY, net, state.variables)
    with pytest.raises(InputError, match="^eps = 8 looks like grey levels; write 8/255$"):
        assess(test, eps=8)
    with pytest.raises(InputError, match="^steps = 0; it must be at least 1$"):
        assess(test, eps=0.1, steps=0)
    with pytest.raises(InputError, match="^number of images = 0; it must be at least 1$"):
        assess(Dataset(test.image[:0], test.label[:0]), eps=0.1)
    with pytest.raises(InputError, match="^200 labels of the set are not among the network's 2"):
        assess(Dataset(test.image, test.label + 2), eps=0.1)
