"""Gradient matching against hand formulas, PyTorch's double backward, differences in float64."""

import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxpoison import models, tree
from jaxpoison.data import mixing
from jaxpoison.hypergrad import Aimed, aligned, at_surrogate, hidden, matching
from jaxpoison.hypergrad.matching_losses import LOSSES, margin
from jaxpoison.models import layers
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Batch, Dataset, InputError, Objective, Scenario, Variables
from tests import oracles
from tests.attacks import tiny

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_compile")


def flat(tensors):
    return jnp.concatenate([jnp.ravel(x) for x in tensors])


def length(x):
    return jnp.sqrt(jnp.sum(x**2))


def cosine(a, b):
    return jnp.sum(a * b) / (length(a) * length(b))


def largest(t, p, num):
    order = sorted(range(len(t)), key=lambda i: -np.linalg.norm(t[i]))[:num]
    some = flat([p[i] for i in order])
    return 1 - jnp.sum(flat([t[i] for i in order]) * some) / (length(flat(t)) * length(some))


def narrow(t, p, last):
    extra = sum(jnp.sum(x**2) for x, head in zip(p, last, strict=True) if head)
    return 1 - cosine(flat(t), flat(p)) + 0.5 * extra / length(flat(t))


FORMULAS = {
    "similarity": lambda t, p, last: 1 - cosine(flat(t), flat(p)),
    "top5-similarity": lambda t, p, last: largest(t, p, 5),
    "top10-similarity": lambda t, p, last: largest(t, p, 10),
    "top20-similarity": lambda t, p, last: largest(t, p, 20),
    "similarity-narrow": narrow,
    "scalar_product": lambda t, p, last: -jnp.sum(flat(t) * flat(p)) / length(flat(t)),
    "cosine1": lambda t, p, last: (
        -sum(cosine(a, b) for a, b in zip(t, p, strict=True)) / length(flat(t))
    ),
    "SE": lambda t, p, last: 0.5 * jnp.sum((flat(t) - flat(p)) ** 2) / length(flat(t)),
    "MSE": lambda t, p, last: (
        sum(jnp.mean((a - b) ** 2) for a, b in zip(t, p, strict=True)) / length(flat(t))
    ),
}


def test_every_loss_has_a_formula_here():
    assert set(FORMULAS) == set(LOSSES)


@pytest.mark.parametrize("name", FORMULAS)
def test_each_loss_is_its_formula(x64, name):
    """12 tensors of different sizes, so that the 5 and 10 largest leave some out."""
    rng = np.random.RandomState(0)
    shapes = [(3, 2), (4,), (2, 2, 2), (1,), (5, 3), (7,)] * 2
    t = [jnp.asarray(rng.randn(*s) * (i + 1)) for i, s in enumerate(shapes)]
    p = [jnp.asarray(rng.randn(*s)) + 0.3 * x for x, s in zip(t, shapes, strict=True)]
    last = [False] * 10 + [True] * 2

    @jax.jit
    def both(p):
        return (
            jax.value_and_grad(lambda p: LOSSES[name](t, p, last))(p),
            jax.value_and_grad(lambda p: FORMULAS[name](t, p, last))(p),
        )

    (value, slope), (expected, want) = both(p)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(flat(slope), flat(want), rtol=1e-9, atol=1e-14)


def test_the_direction_of_similarity_is_the_closed_form(x64):
    """v = - t / (||t|| ||p||) + <t, p> p / (||t|| ||p||^3)."""
    t, p = (np.random.RandomState(i).randn(9) for i in (1, 2))
    slope = jax.grad(lambda p: LOSSES["similarity"]([jnp.asarray(t)], [p], [False]))(jnp.asarray(p))
    n_t, n_p = np.linalg.norm(t), np.linalg.norm(p)
    np.testing.assert_allclose(slope, -t / (n_t * n_p) + (t @ p) * p / (n_t * n_p**3), rtol=1e-12)


def test_similarity_of_parallel_opposite_and_orthogonal_gradients_and_its_invariance():
    t = [jnp.array([3.0, 0.0]), jnp.array([[4.0]])]
    similarity = functools.partial(LOSSES["similarity"], last=[False, False])
    for scale in (1e-6, 0.5, 300.0):
        for sign, expected in ((1, 0), (-1, 2)):
            p = [sign * scale * x for x in t]
            np.testing.assert_allclose(similarity(t, p), expected, atol=1e-6)
        orthogonal = [scale * jnp.array([0.0, 7.0]), jnp.array([[0.0]])]
        np.testing.assert_allclose(similarity(t, orthogonal), 1, atol=1e-6)


def test_the_margin_leaves_the_wanted_class_out_and_stops_at_minus_100():
    logits = jnp.array([[1.0, 3.0, 2.0], [5.0, 1.0, -4.0], [150.0, 0.0, 1.0]])
    wanted = jnp.array([2, 0, 0])
    np.testing.assert_allclose(margin(logits, wanted), [1.0, -4.0, -100.0])
    slope = jax.grad(lambda z: jnp.sum(margin(z, wanted)))(logits)
    np.testing.assert_allclose(slope, [[0, 1, -1], [-1, 1, 0], [0, 0, 0]])


# --- a smooth net in closed form -----------------------------------------------------------------


@functools.cache
def smooth():
    """(net, weights, scenario of 8 images with two targets) in float64."""
    with jax.enable_x64(True):
        victim, data = oracles.smooth_victim(), oracles.tiny_scenario()
        goal = Dataset(data.goal.image[:2], data.goal.label[:2])
        variables = victim.init(KEY)
        return victim, variables, data._replace(goal=goal, aux=variables)


def batch_of(scenario, image=None):
    rows = scenario.index
    image = scenario.train.image[rows] if image is None else image
    return Batch(image, scenario.train.label[rows], jnp.ones(len(rows)), rows)


def numpy_gradients(variables, image, label):
    """[v, w], tensors in the order of the tree, of the mean cross-entropy, by hand."""
    w, v = np.asarray(variables.params["w"]), np.asarray(variables.params["v"])
    _, _, at_w, at_v = tiny.losses_and_gradients(w, v, np.asarray(image), np.asarray(label))
    return [at_v / len(label), at_w / len(label)]


@functools.cache
def compiled(victim, hide, options):
    """(scenario, images of the poisons) -> (B, dB/dx)."""
    objective = matching(victim, **dict(options))
    objective = objective if hide is None else hidden(objective, victim, weight=hide)

    @jax.jit
    def both(scenario, image):
        aim = objective.aim(KEY, scenario.aux, scenario)
        batch = batch_of(scenario, image)
        return objective.value_and_grad(KEY, scenario.aux, aim, batch, scenario)

    return both


def evaluate(scenario, image=None, *, victim=None, hide=None, **options):
    image = scenario.train.image[scenario.index] if image is None else image
    return compiled(victim or smooth()[0], hide, tuple(options.items()))(scenario, image)


@pytest.mark.parametrize(
    ("name", "params", "targets"),
    [
        ("similarity", "all", "mean"),
        ("similarity-narrow", "all", "each"),
        ("similarity-narrow", "head", "mean"),
        ("SE", "head", "each"),
    ],
)
def test_the_value_is_the_formula_of_gradients_taken_by_hand(x64, name, params, targets):
    _, variables, data = smooth()
    keep, last = (slice(0, 1), [True]) if params == "head" else (slice(0, 2), [True, False])

    def gradients(part):
        return numpy_gradients(variables, part.image, part.label)[keep]

    p = gradients(batch_of(data))
    ones = [Dataset(data.goal.image[j : j + 1], data.goal.label[j : j + 1]) for j in (0, 1)]
    aims = ones if targets == "each" else [data.goal]
    expected = sum(FORMULAS[name](gradients(aim), p, last) for aim in aims)
    value, _ = evaluate(data, loss=name, params=params, targets=targets)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_targets_with_a_margin_and_without_a_wanted_class(x64):
    _, variables, data = smooth()
    p = numpy_gradients(variables, batch_of(data).image, batch_of(data).label)
    t = numpy_gradients(variables, data.goal.image, data.goal.label)
    away = FORMULAS["similarity"]([-x for x in t], p, None)
    value, _ = evaluate(data, target_loss="untargeted")
    np.testing.assert_allclose(value, away, rtol=1e-10)
    w, v = (np.asarray(variables.params[name]) for name in "wv")
    logits, hidden = tiny.forward(w, v, np.asarray(data.goal.image))
    own = np.eye(3)[np.asarray(data.goal.label)]
    other = np.eye(3)[np.argmax(np.where(own, -np.inf, logits), axis=1)]
    t_v = hidden.T @ (other - own) / 2
    value, _ = evaluate(data, target_loss="margin", params="head")
    np.testing.assert_allclose(value, FORMULAS["similarity"]([t_v], p[:1], None), rtol=1e-10)


def test_poisons_that_are_the_target_match_it_and_oppose_it_where_it_is_untargeted(x64):
    _, _, data = smooth()
    same = data._replace(goal=Dataset(*batch_of(data)[:2]))
    np.testing.assert_allclose(evaluate(same)[0], 0, atol=1e-12)
    np.testing.assert_allclose(evaluate(same, target_loss="untargeted")[0], 2, rtol=1e-12)


def test_the_further_terms_are_the_loss_and_the_gradient_norm_of_the_poisons(x64):
    _, variables, data = smooth()
    batch = batch_of(data)
    w, v = (np.asarray(variables.params[name]) for name in "wv")
    losses = tiny.losses_and_gradients(w, v, np.asarray(batch.image), np.asarray(batch.label))[0]
    size = length(flat(numpy_gradients(variables, batch.image, batch.label)))
    more = evaluate(data, centreg=0.7, normreg=0.2)[0] - evaluate(data)[0]
    np.testing.assert_allclose(more, 0.7 * losses.mean() + 0.2 * size, rtol=1e-10)


def test_clip_and_noise_are_those_of_noisy_training(x64):
    """E ||n||^2 = d (c sigma)^2 over the d = 60 numbers of the net."""
    _, variables, data = smooth()
    t, p = (
        numpy_gradients(variables, part.image, part.label) for part in (data.goal, batch_of(data))
    )
    size = length(flat(p))
    for clip in (0.5 * size, 2 * size):
        small = [x * min(1, clip / size) for x in p]
        value, _ = evaluate(data, loss="SE", clip_norm=float(clip))
        np.testing.assert_allclose(value, FORMULAS["SE"](t, small, None), rtol=1e-10)
    objective = matching(smooth()[0], loss="SE", clip_norm=float(0.5 * size), noise=3.0)

    @jax.jit
    def noisy(keys):
        aim = objective.aim(KEY, data.aux, data)
        batch = batch_of(data)
        return jax.vmap(lambda k: objective.value_and_grad(k, data.aux, aim, batch, data)[0])(keys)

    values = noisy(jax.random.split(KEY, 100))
    spread = 60 * (3 * 0.5 * size) ** 2 / (2 * length(flat(t)))
    expected = FORMULAS["SE"](t, [0.5 * x for x in p], None) + spread
    np.testing.assert_allclose(values.mean(), expected, rtol=0.06)


def test_a_mixed_batch_has_the_mixed_loss_of_poisons_and_clean_images(x64):
    """All clean images are alike here, so that it does not matter which are drawn."""
    _, variables, data = smooth()
    poisons = batch_of(data).image
    same = jnp.broadcast_to(data.train.image[:1], (8, 3, 3, 1))
    alike = data._replace(train=Dataset(same, jnp.full(8, 2, jnp.int32)))

    def reflect(key, image):
        del key
        rows = jnp.stack([jnp.arange(len(image)), jnp.arange(len(image))[::-1]])
        weight = jnp.array([0.3, 0.7])
        return mixing.Mixed(0.3 * image + 0.7 * image[::-1], weight, rows)

    value, _ = evaluate(alike, poisons, mixing=reflect, clean_rows=2)
    whole = np.concatenate([poisons, alike.train.image[:2]])
    mixed, label = 0.3 * whole + 0.7 * whole[::-1], np.full(7, 2)
    p = numpy_gradients(variables, mixed, label)
    t = numpy_gradients(variables, *data.goal)
    np.testing.assert_allclose(value, FORMULAS["similarity"](t, p, None), rtol=1e-10)


def test_the_inner_attack_climbs_the_cosine_from_a_normal_start(x64):
    """Two steps of 0.4 eps along signs of central differences of gradients taken by hand."""
    _, variables, data = smooth()
    image, label = (np.asarray(x) for x in batch_of(data)[:2])
    t = numpy_gradients(variables, *data.goal)

    def ravel(tensors):
        return np.concatenate([x.ravel() for x in tensors])

    def bound(image):
        a, b = ravel(t), ravel(numpy_gradients(variables, image, label))
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    def gradient(image):
        def loss(tensors):
            v, w = tensors
            logits = jnp.tanh(image.reshape(len(image), -1) @ w) @ v
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        return jax.grad(loss)([variables.params["v"], variables.params["w"]])

    @jax.jit
    def attacked(image, wanted):
        start = jax.random.normal(KEY, image.shape, image.dtype)
        return aligned(KEY, gradient, image, wanted, eps=0.1, steps=2), start

    got, start = attacked(image, [jnp.asarray(x) for x in t])
    delta = np.clip(0.1 * np.asarray(start), -image, 1 - image)
    for _ in range(2):
        slope = oracles.central_differences(bound, image + delta)
        delta = np.clip(delta + 0.04 * np.sign(slope), -0.1, 0.1)
        delta = np.clip(delta, -image, 1 - image)
    np.testing.assert_allclose(got, delta, atol=1e-12)
    assert bound(image + delta) > bound(image) + 0.01


def test_p_is_taken_where_the_victims_own_attack_moves_the_poisons(x64, monkeypatch):
    """It aims at clean images as the poisons' most frequent label; what it adds is a constant."""
    victim, variables, data = smooth()
    same = jnp.broadcast_to(data.train.image[:1], (8, 3, 3, 1))
    label = np.zeros(8, np.int32)
    label[np.asarray(data.index)] = 0, 2, 1, 2, 2
    alike = data._replace(train=Dataset(same, jnp.asarray(label)))
    image, seen = batch_of(data).image, []

    def constant(key, gradient, image, wanted, **how):
        seen.append((gradient(image), wanted))
        assert how == {"eps": 0.1, "steps": 3}
        return jax.lax.stop_gradient(0.05 + 0 * image)

    monkeypatch.setattr(sys.modules["jaxpoison.hypergrad.matching"], "aligned", constant)
    how = {"adversarial_eps": 0.1, "adversarial_steps": 3, "clean_rows": 4}
    objective = matching(victim, **how, augment=lambda key, image: image + 0.1)

    @jax.jit
    def both(image):
        aim = objective.aim(KEY, variables, alike)
        found = objective.value_and_grad(KEY, variables, aim, batch_of(alike, image), alike)
        return *found, *seen[0]

    value, slope, p, t = both(image)
    far_value, far_slope = evaluate(alike, image + 0.05)
    np.testing.assert_allclose(value, far_value, rtol=1e-10)
    np.testing.assert_allclose(slope, far_slope, rtol=1e-9)
    at_poisons = numpy_gradients(variables, image, batch_of(alike).label)
    at_clean = numpy_gradients(variables, same[:4] + 0.1, np.full(4, 2))
    for got, by_hand in zip((*p, *t), (*at_poisons, *at_clean), strict=True):
        np.testing.assert_allclose(got, by_hand, rtol=1e-9)


def test_hidden_poisons_pay_for_their_distance_in_feature_space(x64):
    victim, variables, data = smooth()
    image = data.train.image[data.index]
    far = image + 0.1
    w = np.asarray(variables.params["w"])
    gap = np.tanh(far.reshape(5, -1) @ w) - np.tanh(image.reshape(5, -1) @ w)
    more = evaluate(data, far, hide=0.7)[0] - evaluate(data, far)[0]
    np.testing.assert_allclose(more, 0.7 * np.mean(gap**2), rtol=1e-9)
    np.testing.assert_allclose(evaluate(data, image, hide=0.7)[0], evaluate(data)[0], rtol=1e-12)
    double = hidden(matching(victim), victim, augment=lambda key, x: x + 0.1)

    @jax.jit
    def doubled(image):
        aim = double.aim(KEY, variables, data)
        return double.value_and_grad(KEY, variables, aim, batch_of(data, image), data)[0]

    value = doubled(far)
    np.testing.assert_allclose(value, evaluate(data, far)[0], rtol=1e-10)


VARIANTS = {
    **{name: {"loss": name} for name in LOSSES},
    "head": {"params": "head"},
    "each": {"targets": "each", "loss": "SE"},
    "margin": {"target_loss": "margin"},
    "further terms": {"centreg": 0.7, "normreg": 0.2},
    "noise": {"loss": "SE", "clip_norm": 0.01, "noise": 0.1},
    "mixup": {"mixing": mixing.mixup(3), "clean_rows": 3},
    "hidden": {"loss": "similarity", "hide": 0.7},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_image_gradient_is_central_differences(x64, name):
    _, _, data = smooth()
    image = data.train.image[data.index]
    _, gradient = evaluate(data, image, **VARIANTS[name])
    expected = oracles.central_differences(
        lambda x: evaluate(data, x, **VARIANTS[name])[0], np.asarray(image)
    )
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


# --- a convolutional net with BatchNorm ----------------------------------------------------------


class Small(nn.Module):
    """(conv 3x3, BatchNorm, ReLU) twice, an average pool of 2 between them, mean, linear."""

    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
        x = x.astype(self.dtype)
        for i, width in enumerate((4, 6)):
            x = layers.conv(x, width, 3, padding=1, use_bias=False, dtype=self.dtype)
            x = nn.relu(layers.batch_norm(x, train=train, dtype=self.dtype))
            x = layers.avg_pool(x, 2) if i == 0 else x
        x = x.mean((1, 2))
        self.sow("intermediates", "features", x)
        return layers.logits(x, 3, dtype=self.dtype)


def wave(number, shape):
    return np.sin(0.7 * np.arange(np.prod(shape)) + number).reshape(shape)


@functools.cache
def small(dtype=jnp.float32):
    """(net, scenario: 4 poisons and 2 targets), weights and images from sines."""
    victim = models.adapt(Small(dtype), (6, 6, 1))
    shapes = jax.eval_shape(victim.init, KEY)
    order = ["conv0", "conv1", "dense", "bias", "scale0", "bias0", "scale1", "bias1"]
    order += ["mean0", "var0", "mean1", "var1"]
    leaves = {
        "conv0": (3, 3, 1, 4), "conv1": (3, 3, 4, 6), "dense": (6, 3), "bias": (3,),
    }  # fmt: skip

    def value(name):
        shape = leaves.get(name, (4,) if name.endswith("0") else (6,))
        w = wave(order.index(name), shape)
        if name.startswith(("scale", "var")):
            return 1 + 0.3 * w if name.startswith("scale") else 0.5 + w**2
        if name.startswith(("mean", "bias")):
            return 0.2 * w
        return w / np.sqrt(np.prod(shape[:-1]))

    def fill(path, leaf):
        names = [str(part.key) for part in path]
        if leaf.ndim == 4:
            found = "conv0" if leaf.shape[2] == 1 else "conv1"
        elif leaf.ndim == 2:
            found = "dense"
        elif leaf.shape == (3,):
            found = "bias"
        else:
            found = names[-1] + ("0" if leaf.shape == (4,) else "1")
        assert value(found).shape == leaf.shape
        return jnp.asarray(value(found), jnp.float32)

    params = jax.tree_util.tree_map_with_path(fill, shapes.params)
    stats = jax.tree_util.tree_map_with_path(fill, shapes.stats)
    image = 0.5 + 0.4 * wave(20, (6, 6, 6, 1)) * np.cos(np.arange(6))[:, None, None, None]
    image, label = jnp.asarray(image, jnp.float32), jnp.array([0, 1, 2, 0, 1, 2])
    goal = Dataset(image[4:], jnp.array([2, 0]))
    variables = Variables(params, stats)
    return victim, Scenario(Dataset(image, label), goal, jnp.arange(4), variables)


# (B, sum_d cos(d) dB/dx[n, d] of the four poisons): the same net, weights and images in PyTorch
# 2.13 in float64, dB/dx by double backward
PYTORCH = [
    ({}, 0.5716972, (-0.00179585, -0.00487747, 0.00786517, -0.00154242)),
    ({"loss": "SE"}, 0.2064562, (-0.000429777, -0.00107829, 0.00177683, -0.000369568)),
    (
        {"target_loss": "margin", "targets": "each"},
        1.932054,
        (-0.00180953, -0.00512451, 0.0080903, -0.00162474),
    ),
    ({"params": "head"}, 0.5051635, (-0.000598035, -0.00502749, 0.00648025, -0.000455783)),
]


@pytest.mark.parametrize(("options", "value", "probes"), PYTORCH)
def test_loss_and_gradient_of_a_convolutional_net_are_those_of_pytorch(options, value, probes):
    victim, data = small()
    got, gradient = evaluate(data, victim=victim, **options)
    np.testing.assert_allclose(got, value, rtol=2e-6)
    got = gradient.reshape(4, -1) @ jnp.cos(jnp.arange(36.0))
    np.testing.assert_allclose(got, probes, rtol=1e-4, atol=1e-7)


def test_forward_over_reverse_is_reverse_over_reverse():
    victim, data = small()
    image, label = batch_of(data)[:2]

    def gradient(image, label):
        def loss(params):
            logits, _ = victim.apply(Variables(params, data.aux.stats), image, train=False)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        return jax.tree.leaves(jax.grad(loss)(data.aux.params))

    def bound(image):
        return FORMULAS["similarity"](gradient(*data.goal), gradient(image, label), None)

    want = jax.jit(jax.grad(bound))(image)
    _, got = evaluate(data, victim=victim)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))


def test_a_bfloat16_network_keeps_everything_else_in_float32():
    """Also where p is tiny, so that v is huge: every label fits, the logits are large."""
    (victim, data), (half, _) = small(), small(jnp.bfloat16)
    weights = jax.tree.map(lambda x: 40 * x if x.shape == (6, 3) else x, data.aux.params)
    aux = data.aux._replace(params=weights)
    logits = jax.jit(lambda v, x: victim.apply(v, x, train=False)[0])(aux, data.train.image)
    sure = data._replace(
        aux=aux,
        train=data.train._replace(label=jnp.argmax(logits, axis=1).astype(jnp.int32)),
    )
    value, gradient = evaluate(sure, victim=victim)
    low, low_gradient = evaluate(sure, victim=half)
    assert low.dtype == low_gradient.dtype == jnp.float32
    np.testing.assert_allclose(low, value, atol=0.01)
    assert tree.cosine(low_gradient, gradient) > 0.99


# --- batches -------------------------------------------------------------------------------------


def test_every_batch_is_a_matching_of_its_own_in_fixed_order(x64):
    """5 poisons by twos: two batches through the loop, then one of a single image."""
    victim, _, data = smooth()
    space = per_sample(Budget("linf", 0.1))
    theta = jnp.asarray(np.random.RandomState(0).uniform(-0.1, 0.1, (5, 3, 3, 1)))
    hypergrad = at_surrogate(matching(victim), space, batch_size=2)
    phi = hypergrad.init(KEY, data)
    gradient, after, loss = jax.jit(hypergrad.estimate)(KEY, theta, phi, data)
    values, parts = [], []
    for rows, delta in zip(*(jnp.split(x, [2, 4]) for x in (data.index, theta)), strict=True):
        part = data._replace(index=rows)
        value, slope = evaluate(part, part.train.image[rows] + delta)
        values.append(value)
        parts.append(slope)
    np.testing.assert_allclose(gradient, jnp.concatenate(parts), rtol=1e-9)
    np.testing.assert_allclose(loss, np.mean(values), rtol=1e-12)
    jax.tree.map(np.testing.assert_array_equal, after, phi)


def test_every_batch_draws_its_own_augmentation():
    """The objective's image gradient is the image itself, so that the draws can be read off."""
    image = jnp.full((8, 3, 3, 1), 0.5)
    data = Scenario(Dataset(image, jnp.zeros(8, jnp.int32)), None, jnp.arange(5), jnp.ones(1))
    copy = Objective(lambda *_: (), lambda key, v, a, batch, s: (jnp.float32(0), batch.image))
    space = per_sample(Budget("linf", 0.1))
    moved = at_surrogate(copy, space, batch_size=2, augment=lambda k, x: x + jax.random.uniform(k))
    theta, phi = jnp.zeros((5, 3, 3, 1)), Aimed(jnp.ones(1), ())
    estimate = jax.jit(moved.estimate)
    draws = np.asarray(estimate(KEY, theta, phi, data)[0])[:, 0, 0, 0]
    assert draws[0] == draws[1] and draws[2] == draws[3] and len(set(draws)) == 3
    assert estimate(jax.random.key(9), theta, phi, data)[0][0, 0, 0, 0] not in draws


def test_full_data_reads_clean_images_with_the_poisons(x64):
    """One batch of all rows: p is of all of them, the gradient of the poisons among them."""
    victim, variables, data = smooth()
    space = per_sample(Budget("linf", 0.1))
    theta = jnp.asarray(np.random.RandomState(0).uniform(-0.1, 0.1, (5, 3, 3, 1)))
    hypergrad = at_surrogate(matching(victim), space, batch_size=8, full_data=True)
    phi = hypergrad.init(KEY, data)
    gradient, _, loss = jax.jit(hypergrad.estimate)(KEY, theta, phi, data)
    whole = data._replace(index=jnp.arange(8))
    image = data.train.image.at[data.index].add(theta)
    value, slope = evaluate(whole, image)
    np.testing.assert_allclose(gradient, slope[data.index], rtol=1e-9)
    np.testing.assert_allclose(loss, value, rtol=1e-12)
    t = numpy_gradients(variables, *data.goal)
    p = numpy_gradients(variables, image, data.train.label)
    np.testing.assert_allclose(loss, FORMULAS["similarity"](t, p, None), rtol=1e-10)


def test_full_data_shuffles_and_leaves_batches_without_a_poison_out_of_the_loss(x64):
    """One poison, batches of 4: the loss is that of the one batch, whatever three are with it."""
    victim, variables, data = smooth()
    one = data._replace(index=jnp.array([6], jnp.int32))
    space = per_sample(Budget("linf", 0.1))
    hypergrad = at_surrogate(matching(victim), space, batch_size=4, full_data=True)
    phi = hypergrad.init(KEY, one)
    estimate = jax.jit(hypergrad.estimate)
    theta, t = jnp.zeros((1, 3, 3, 1)), numpy_gradients(variables, *data.goal)
    possible = [
        float(FORMULAS["similarity"](t, numpy_gradients(variables, *batch), None))
        for others in itertools.combinations([0, 1, 2, 3, 4, 5, 7], 3)
        for batch in [jax.tree.map(lambda x, rows=(6, *others): x[np.array(rows)], data.train)]
    ]
    losses = [float(estimate(jax.random.key(k), theta, phi, one)[2]) for k in range(3)]
    for loss in losses:
        assert np.abs(np.array(possible) - loss).min() < 1e-10
    assert len(set(losses)) > 1


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "cos"}, "loss = 'cos'; allowed are similarity,"),
        ({"target_loss": "ce"}, "target_loss = 'ce'; allowed are cross_entropy,"),
        ({"targets": "all"}, "targets = 'all'; allowed are mean, each"),
        ({"params": "last"}, "params = 'last'; allowed are all, head"),
        ({"centreg": -1.0}, "centreg = -1.0; it must be"),
        ({"normreg": float("nan")}, "normreg = nan; it must be"),
        ({"clip_norm": 0.0}, "clip_norm = 0.0; it must be"),
        ({"noise": -0.1}, "noise = -0.1; it must be"),
        ({"adversarial_eps": 8.0}, "eps = 8 looks like grey levels"),
        ({"adversarial_eps": -0.1}, "adversarial_eps = -0.1; it must be"),
        ({"adversarial_steps": 0}, "adversarial_steps = 0; it must be at least 1"),
        ({"clean_rows": 0}, "clean_rows = 0; it must be at least 1"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        matching(smooth()[0], **options)


def test_a_network_without_a_last_layer_cannot_be_matched_there():
    _, _, data = smooth()
    victim, variables, _ = smooth()
    headless = victim._replace(features=lambda v, x: victim.apply(v, x, train=False)[0])
    objective = matching(headless, params="head")
    with pytest.raises(InputError, match="no last layer"):
        objective.aim(KEY, variables, data)
