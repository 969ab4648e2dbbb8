"""Thresholds of reachability: printed values, grids, and gradient canceling at either side."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from scipy.optimize import minimize

import jaxpoison as jp
from jaxpoison.hypergrad import reachability as theory
from jaxpoison.types import InputError, Variables
from jaxpoison.victims import ToConvergence, converge, mean_gradient

pytestmark = pytest.mark.usefixtures("quick_module")
OMEGA = {
    2: 0.2784645427610738,
    3: 0.4630555133655489,
    10: 1.1010029972769728,
    100: 2.6286495970202823,
    1000: 4.4205016039429275,
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dataset(x, y):
    """Rows [N, D] and labels 0 .. L - 1 as the library has them, in float64."""
    return jp.Dataset(jnp.asarray(x[:, None, None, :]), jnp.asarray(y, jnp.int32))


@functools.cache
def head(width, classes, bias=False):
    return jp.models.logistic_regression((1, 1, width), classes, bias=bias, dtype=jnp.float64)


def variables(kernel, bias=None):
    own = {"kernel": jnp.asarray(kernel)} | ({} if bias is None else {"bias": jnp.asarray(bias)})
    like = jax.eval_shape(head(len(kernel), kernel.shape[1], bias is not None).init,
                          jax.random.key(0))  # fmt: skip
    return Variables({name: own for name in like.params}, {})


def binary_head(w, b=None):
    """The two-class head of which w is the second column minus the first, both of equal size."""
    kernel = np.stack([-np.asarray(w) / 2, np.asarray(w) / 2], axis=1)
    return variables(kernel, None if b is None else np.array([-b / 2, b / 2]))


def binary_gradient(w, x, y, b=0.0):
    """Mean gradients of ln(1 + e^(-y (<w, x> + b))) in w and b."""
    wrong = -y * sigmoid(-y * (x @ w + b))
    return x.T @ wrong / len(y), wrong.mean()


@jax.jit(static_argnums=0)
def canceled(victim, flat, label, share, target, clean):
    """J and its gradient in the points, by `hypergrad.canceling`."""
    rule = jp.hypergrad.canceling(victim, jp.perturb.free_points(), weight=share)
    value = flat.reshape(len(label), 1, 1, -1)
    rows = jp.Dataset(value, label.astype(jnp.int32))
    scenario = jp.Scenario(rows, rows, jnp.arange(len(label), dtype=jnp.int32), aux=target)
    theta, phi = jp.perturb.Points(value, label), jp.hypergrad.Canceling(target, clean)
    gradient, _, loss = rule.estimate(jax.random.key(0), theta, phi, scenario)
    return loss, gradient.value.ravel()


def gradients(target, g, g_b):
    """Those of the two-class head, like its params."""
    both = {2: np.stack([-g, g], axis=1), 1: np.array([-g_b, g_b])}
    return jax.tree.map(lambda x: jnp.asarray(both[x.ndim]), target.params)


def best_residual(victim, target, clean, label, share, start):
    """The smallest ||r|| that L-BFGS finds, and the points [P, D] that have it."""
    label = jnp.asarray(label, jnp.float64)

    def both(flat):
        loss, slope = canceled(victim, flat, label, share, target, clean)
        return float(loss), np.asarray(slope)

    options = {"maxiter": 1000, "maxfun": 1500, "ftol": 0, "gtol": 1e-12, "maxcor": 30}
    found = minimize(both, np.ravel(start), jac=True, method="L-BFGS-B", options=options)
    return math.sqrt(2 * found.fun), found.x.reshape(len(label), -1)


def test_omega():
    t = np.linspace(-20, 60, 200_001)
    for classes, value in OMEGA.items():
        assert theory.omega(classes) == pytest.approx(value, abs=1e-12)
        # All wrong logits equal, t below that of y: z_y - E_p[z] = t (1 - p_y).
        gain = t * (classes - 1) / (classes - 1 + np.exp(t))
        assert value - 1e-6 < gain.max() <= value + 1e-12
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, 3)) * rng.exponential(2, size=(20_000, 1))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert (z[:, 0] - (p * z).sum(1)).max() <= OMEGA[3]


def test_omega_of_a_frozen_bias_is_the_most_that_a_point_gives():
    t = np.linspace(-20, 40, 600_001)
    for b in (-1.5, 0.0, 0.7):
        gains = [(t * sigmoid(-(t + y * b))).max() for y in (-1, 1)]
        for label, gain in enumerate(gains):
            got = theory.omega(bias=[-b / 2, b / 2], label=label)
            assert got == pytest.approx(gain, abs=1e-8)
        assert theory.omega(bias=[0.0, b]) == pytest.approx(max(gains), abs=1e-8)
    bias, rng = np.array([0.3, -0.5, 0.9]), np.random.default_rng(0)
    z = rng.normal(size=(50_000, 3)) * rng.exponential(2, size=(50_000, 1))
    p = np.exp(z + bias)
    p /= p.sum(1, keepdims=True)
    gain = (z - (p * z).sum(1, keepdims=True)).max()
    assert 0.5 < gain <= theory.omega(bias=bias)
    assert theory.omega(bias=np.zeros(3)) == pytest.approx(OMEGA[3], abs=1e-12)


def test_root():
    assert theory.root(0.2) == pytest.approx(0.5448804401599816, abs=1e-12)
    assert theory.root(0.2, branch=-1) == pytest.approx(2.3961385060760683, abs=1e-12)
    assert theory.root(-1) == pytest.approx(-1.2784645427610738, abs=1e-12)
    assert theory.root(0) == 0
    for c, b, k in [(0.1, 0.4, 0), (0.1, 0.4, -1), (-2.0, -0.7, 0)]:
        t = theory.root(c, branch=k, bias=b)
        assert t / (1 + math.exp(t + b)) == pytest.approx(c, abs=1e-12)
    with pytest.raises(InputError, match="at the most"):
        theory.root(0.3)
    with pytest.raises(InputError, match="second root"):
        theory.root(-1, branch=-1)


class TestReleasedToySet:
    """Three points, labels 1, 1, 0, clean minimum (0, ln 2), one added point of label 1."""

    x = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, 1.0]])
    y = np.array([1, 1, -1])

    @pytest.mark.parametrize(
        ("scale", "inner", "tau"),
        [(1.0, 0.1848392481, 0.6637801938), (1 / 1.1, 0.1416610192, 0.5087219284)],
    )
    def test_threshold(self, scale, inner, tau):
        w = np.array([0.0, 2 * math.log(2) * scale])
        g, _ = binary_gradient(w, self.x, self.y)
        tolerance = 1e-9 if scale == 1 else 1e-7  # the release's constants are float32
        assert w @ g == pytest.approx(inner, rel=tolerance)
        assert theory.threshold(w, g) == pytest.approx(tau, rel=tolerance)

    @pytest.mark.parametrize(
        ("scale", "first", "rate", "last", "tolerance"),
        [
            (1.0, [0.0103757564, 0.0086520980], 1, 8.3411711e-4, 1e-4),
            (1.0, [0.0103757564], 10, 8.3411711e-4, 1e-4),
            (1.0, [0.0103757564], 0.1, 8.468e-4, 1e-3),
            (1.0, [0.0103757564], 0.01, 2.195e-3, 1e-3),
            (1 / 1.1, [0.0072669951, 0.0059260078], 1, 4.689e-9, 1e-2),
        ],
    )
    def test_gradient_descent_on_the_public_pieces(self, x64, scale, first, rate, last, tolerance):
        w = np.array([0.0, 2 * math.log(2) * scale])
        g, _ = binary_gradient(w, self.x, self.y)
        # J = ||r||^2 / 2 over both columns of a two-class head is ||r||^2 of the vector.
        history = descend(w, jnp.asarray(g), jnp.float64(rate))
        np.testing.assert_allclose(history[: len(first)], first, rtol=2e-6)
        assert history[-1] == pytest.approx(last, rel=tolerance)
        if scale == 1:
            assert theory.floor(w, g, 0.52) ** 2 == pytest.approx(8.3411711e-4, rel=1e-4)
            assert history[-1] >= theory.floor(w, g, 0.52) ** 2 * (1 - 1e-12)


@functools.cache
def descent():
    victim, toy = head(2, 2), TestReleasedToySet
    data = dataset(toy.x, (toy.y + 1) // 2)
    rule = jp.hypergrad.canceling(victim, jp.perturb.free_points(), weight=0.52)

    @jax.jit
    def run(target, start, rate):
        index = jnp.zeros(1, jnp.int32)
        scenario = jp.Scenario(data, data, index, aux=target)
        phi, tx = rule.init(jax.random.key(0), scenario), optax.sgd(rate)
        theta = jp.perturb.Points(start.reshape(1, 1, 1, 2), jnp.ones(1))

        def step(carry, _):
            theta, state = carry
            gradient, _, loss = rule.estimate(jax.random.key(0), theta, phi, scenario)
            updates, state = tx.update(gradient, state)
            return (optax.apply_updates(theta, updates), state), loss

        return lax.scan(step, (theta, tx.init(theta)), None, length=2000)[1]

    return run


def descend(w, start, rate):
    return np.asarray(descent()(binary_head(w), start, rate))


class TestGaussians:
    """One thousand rows of two Gaussians, 5000 to test on, logistic regression without bias."""

    CLEAN = (2.02941908, 0.97754375, -0.04469908, -0.06063793, 0.13216704)

    @staticmethod
    @functools.cache
    def sets():
        rng, sets = np.random.default_rng(0), []
        for num in (1000, 5000):
            y = rng.choice([-1, 1], num)
            x = rng.normal(size=(num, 5)) + y[:, None] * np.array([1, 0.5, 0, 0, 0])
            sets.append((x, y))
        return sets

    def solve(self, extra=(), weight=1.0):
        x, y = self.sets()[0]
        if len(extra):
            x, y = np.concatenate([x, extra]), np.concatenate([y, [1]])
        settings = ToConvergence(tolerance=1e-11, added_weight=weight)
        start = binary_head(np.zeros(5))
        found, solved = converge(
            head(5, 2), start, dataset(x, (y + 1) // 2), settings, num_clean=1000
        )
        assert solved.grad_norm < 1e-11
        (kernel,) = jax.tree.leaves(found.params)
        return np.asarray(kernel[:, 1] - kernel[:, 0])

    def accuracy(self, w):
        x, y = self.sets()[1]
        return np.mean(np.sign(x @ w) == y)

    def test_thresholds_and_retraining_at_the_closed_form_point(self, x64):
        clean = self.solve()
        np.testing.assert_allclose(clean, self.CLEAN, atol=1e-8)
        assert self.accuracy(clean) == pytest.approx(0.8744)
        for scale, tau in [(1, 9.0215265627), (0.1, 0.5513752208), (0.01, 0.0461328686)]:
            w = -scale * clean
            g, _ = binary_gradient(w, *self.sets()[0])
            assert theory.threshold(w, g) == pytest.approx(tau, rel=1e-8)
            share = 1.02 * tau
            point = theory.single_point(w, g, share)
            retrained = self.solve(point[None], share * 1000)
            np.testing.assert_allclose(retrained, w, atol=1e-6)
            assert self.accuracy(retrained) == pytest.approx(0.1256)
        assert share < 0.0471 and np.linalg.norm(point) == pytest.approx(47, abs=0.5)

    def test_no_point_is_better_than_the_floor(self, x64):
        x, y = self.sets()[0]
        w = -self.solve()
        g, _ = binary_gradient(w, x, y)
        share = theory.threshold(w, g) / 2
        assert theory.floor(w, g, share) == pytest.approx(0.5563535151725, abs=1e-12)
        for label in (-1, 1):
            point = theory.single_point(w, g, share, label=label)
            nu = -label * sigmoid(-label * (w @ point)) * point
            assert np.linalg.norm(g + share * nu) == pytest.approx(0.5563535151725, abs=1e-12)
        target, rng = binary_head(w), np.random.default_rng(1)
        clean = mean_gradient(head(5, 2), target, dataset(x, (y + 1) // 2))
        start = rng.normal(size=(3, 5))
        got, _ = best_residual(head(5, 2), target, clean, [1, 0, 1], share, start)
        assert got / math.sqrt(2) == pytest.approx(0.5563535151725, abs=1e-9)


def test_several_classes_at_either_side_of_the_threshold(x64):
    """A gradient whose nearest points are finite: equal parts of every label, on the face."""
    rng = np.random.default_rng(3)
    kernel, classes = rng.normal(size=(5, 3)), np.eye(3)
    centered, top = kernel - kernel.mean(axis=1, keepdims=True), OMEGA[3]
    nearest = np.zeros((5, 3))
    for label in range(3):  # z_y - z_k = 1 + omega, p - e_y, and any part that W does not see
        z = (1 + top) * (classes[label] - 1 / 3)
        p = np.exp(z) / np.exp(z).sum()
        x = np.linalg.pinv(centered.T) @ z + np.linalg.svd(centered)[0][:, 2:] @ rng.normal(size=3)
        nearest += np.outer(x, p - classes[label]) / 3
    assert (kernel * nearest).sum() == pytest.approx(-top)
    g = -0.9 * nearest + 0.1 * top * centered / (centered**2).sum()
    assert theory.threshold(kernel, g, omega=top) == pytest.approx(1)
    target, label = variables(kernel), np.arange(6) % 3
    clean = jax.tree.map(lambda _: jnp.asarray(g), target.params)
    start = rng.normal(size=(6, 5))
    below, _ = best_residual(head(5, 3), target, clean, label, 0.9, start)
    record = theory.reach(target, clean, 0.9)
    assert record.reachable is False and record.tau == pytest.approx(1)
    assert record.floor == pytest.approx(0.1 * top / np.linalg.norm(centered))
    assert theory.floor(kernel, g, 0.9, omega=top) == pytest.approx(record.floor)
    assert record.floor * (1 - 1e-9) <= below < 1.01 * record.floor
    above, points = best_residual(head(5, 3), target, clean, label, 1.1, start)
    assert above < 1e-6 and theory.reach(target, clean, 1.1).reachable is True
    p = np.exp(points @ kernel)
    p /= p.sum(1, keepdims=True)
    nu = points.T @ (p - classes[label]) / 6
    assert np.linalg.norm(g + 1.1 * nu) < 1e-6  # by numpy alone
    flat = variables(np.outer(np.ones(5), [1.0, -1.0, 0.0]))  # rank 1: one functional is not all
    assert theory.reach(flat, clean, 9.0).reachable is None


class TestBinaryWithBias:
    """Random rows; thresholds of the kernel alone and of kernel and bias, both exact."""

    w, b = np.array([1.1, -0.6, 0.4]), 0.8

    @staticmethod
    @functools.cache
    def rows():
        rng = np.random.default_rng(5)
        return rng.normal(size=(60, 3)), rng.choice([-1, 1], 60, p=[0.55, 0.45])

    @staticmethod
    def check(victim, target, clean, label, share, record, floor):
        """Optimized points, the record, and the formula for a residual of both columns agree."""
        start = np.random.default_rng(6).normal(size=(len(label), 3))
        got, _ = best_residual(victim, target, clean, label, share, start)
        assert record.floor == pytest.approx(math.sqrt(2) * floor, abs=1e-8)
        assert record.reachable == (floor == 0)
        if floor:
            assert got == pytest.approx(math.sqrt(2) * floor, rel=1e-5)
        else:
            assert got < 1e-6

    @pytest.mark.parametrize("factor", [1.05, 0.9])
    def test_frozen(self, x64, factor):
        x, y = self.rows()
        whole, victim = binary_head(self.w, self.b), head(3, 2, True)
        mask = jax.tree.map(lambda v: v.ndim == 2, whole.params)
        part = jp.victims.partial_victim(victim, mask)
        target = jp.victims.partial_variables(whole, mask)
        g, g_b = binary_gradient(self.w, x, y, self.b)
        clean = gradients(whole, g, g_b)
        top = theory.omega(bias=[0, self.b])
        assert top == pytest.approx(theory.omega(bias=[0, self.b], label=0))  # y = -sign(b)
        share = factor * (self.w @ g) / top
        floor = theory.floor(self.w, g, share, omega=top)
        record = theory.reach(whole, clean, share, bias="frozen")
        own = jp.victims.partial_variables(Variables(clean, {}), mask).params
        self.check(part, target, own, np.zeros(3), share, record, floor)
        point = theory.single_point(self.w, g, share, bias=self.b, label=-1)
        wrong = sigmoid(self.w @ point + self.b)
        assert np.linalg.norm(g + share * wrong * point) == pytest.approx(floor, abs=1e-9)

    @pytest.mark.parametrize("factor", [1.05, 0.9])
    def test_joint_on_the_face(self, x64, factor):
        """A bias gradient for which three points in four have label 1."""
        w, b, lowest = self.w, self.b, OMEGA[2] / (1 + OMEGA[2])
        square, across = w @ w + b * b, np.array([0.3, 0.4, 0.0])
        across = across - w * (w @ across) / (w @ w)
        g_b = 0.9 * lowest / 2 + 0.1 * OMEGA[2] * b / square
        g = w * (OMEGA[2] - b * g_b) / (w @ w) + across
        assert theory.joint_threshold(w, b, g, g_b) == pytest.approx(1)
        self.joint(w, b, g, g_b, factor, [1, 1, 1, 0])
        if factor < 1:
            want = 0.1 * OMEGA[2] / math.sqrt(square)
            assert theory.joint_floor(w, b, g, g_b, 0.9) == pytest.approx(want, rel=1e-9)

    @pytest.mark.parametrize("factor", [1.05, 0.9])
    def test_joint_beyond_the_face(self, x64, factor):
        """So large a bias gradient that all points have one label and q = |g_b| / eps > q*."""
        g_b, s = 0.3, 0.2  # <w, g> + b g_b, below (1 + omega) |g_b|
        g = self.w * (s - self.b * g_b) / (self.w @ self.w) + np.array([0.6, 1.1, 0.0]) / 5
        assert theory.joint_threshold(self.w, self.b, g, g_b) == pytest.approx(
            g_b * (1 + math.exp(s / g_b))
        )
        self.joint(self.w, self.b, g, g_b, factor, [1] * 4)

    def test_joint_without_a_bias_gradient(self):
        """A balanced set: nothing to divide by; any share will do where <w, g> <= 0."""
        assert theory.joint_threshold(self.w, 0.0, -self.w, 0.0) == 0
        want = self.w @ self.w / OMEGA[2]
        assert theory.joint_threshold(self.w, 0.0, self.w, 0.0) == pytest.approx(want)

    def test_joint_floor_of_a_bias_alone(self):
        """With w = 0 no point moves a score: nu_b is between -sigma(-b) and sigma(b)."""
        zero = np.zeros(3)
        for g_b in (-0.9, 0.9):
            left = 0.9 - sigmoid(0.5 if g_b < 0 else -0.5)
            got = theory.joint_floor(zero, 0.5, zero, g_b, 1.0)
            assert got == pytest.approx(left, rel=1e-6)

    def joint(self, w, b, g, g_b, factor, label):
        share = factor * theory.joint_threshold(w, b, g, g_b)
        a, c, lowest = abs(g_b) / share, (w @ g + b * g_b) / share, OMEGA[2] / (1 + OMEGA[2])
        q = max(a, lowest)
        by_the_text = a < 1 and c <= q * math.log((1 - q) / q)
        assert by_the_text == (factor > 1)
        floor = theory.joint_floor(w, b, g, g_b, share)
        floor = floor if factor < 1 else 0 if floor < 1e-8 else math.nan
        target = binary_head(w, b)
        clean = gradients(target, g, g_b)
        record = theory.reach(target, clean, share)
        self.check(head(3, 2, True), target, clean, label, share, record, floor)

    def test_two_points(self):
        x, y = self.rows()
        g, g_b = binary_gradient(self.w, x, y, 0.1)
        share = 3 * theory.joint_threshold(self.w, 0.1, g, g_b)
        one, zero, rho = theory.two_points(self.w, 0.1, g, g_b, share)
        wrong = -sigmoid(-(self.w @ one + 0.1)) * rho, sigmoid(self.w @ zero + 0.1) * (1 - rho)
        np.testing.assert_allclose(g + share * (wrong[0] * one + wrong[1] * zero), 0, atol=1e-12)
        assert g_b + share * sum(wrong) == pytest.approx(0, abs=1e-12)
        with pytest.raises(InputError, match="bias gradient"):
            theory.two_points(self.w, 0.0, g, 10 * share, share)


def test_several_classes_with_a_bias_are_only_necessary(x64):
    rng = np.random.default_rng(4)
    kernel, bias = rng.normal(size=(4, 3)), np.array([0.5, -0.2, 0.1])
    data = dataset(rng.normal(size=(30, 4)), np.repeat([0, 1, 2], [20, 6, 4]))
    target, victim = variables(kernel, bias), head(4, 3, True)
    gradient = mean_gradient(victim, target, data)
    g_b, g = sorted((np.asarray(v) for v in jax.tree.leaves(gradient)), key=np.ndim)
    small = 0.9 * np.abs(g_b).sum() / 2
    record = theory.reach(target, gradient, small)
    assert record.reachable is False and record.conditions["||g_b||_1 / 2"] > small
    label, start = np.arange(9) % 3, rng.normal(size=(9, 4))
    got, _ = best_residual(victim, target, gradient, label, small, start)
    assert 0 < record.floor <= got
    want = max(((kernel * g).sum() + bias @ g_b) / OMEGA[3], np.abs(g_b).sum() / 2)
    assert record.tau == pytest.approx(want)
    assert theory.reach(target, gradient, 100.0).reachable is None
    frozen = theory.reach(target, gradient, 100.0, bias="frozen")
    assert frozen.reachable is None
    assert frozen.tau == pytest.approx((kernel * g).sum() / theory.omega(bias=bias))


@pytest.mark.parametrize("normalize", ["clean", "all"])
def test_weight_decay(x64, normalize):
    """The closed-form point just above tau makes the victim with weight decay go to w."""
    rng = np.random.default_rng(7)
    y = rng.choice([-1, 1], 50)
    x = rng.normal(size=(50, 3)) + y[:, None]
    w, decay = np.array([-0.3, -0.1, 0.2]), 0.04
    g, _ = binary_gradient(w, x, y)
    tau = theory.threshold(w, g, weight_decay=decay, normalize=normalize)
    assert tau > theory.threshold(w, g)
    share = 1.01 * tau
    whole = theory.effective_gradient(w, g, share, weight_decay=decay, normalize=normalize)
    point = theory.single_point(w, whole, share)
    nu = -sigmoid(-(w @ point)) * point
    total = 1 if normalize == "clean" else 1 + share
    np.testing.assert_allclose((g + share * nu) / total + decay * w, 0, atol=1e-12)
    under = theory.effective_gradient(w, g, 0.99 * tau, weight_decay=decay, normalize=normalize)
    assert theory.floor(w, under, 0.99 * tau) > 0
    # lambda ||w||^2 of a two-class head is half of that of the vector, the same for lambda / 2.
    rows = np.concatenate([x, point[None]]), np.concatenate([(y + 1) // 2, [1]])
    settings = ToConvergence(
        weight_decay=2 * decay, normalize=normalize, added_weight=share * 50, tolerance=1e-11
    )
    found, _ = converge(head(3, 2), binary_head(0 * w), dataset(*rows), settings, num_clean=50)
    (kernel,) = jax.tree.leaves(found.params)
    np.testing.assert_allclose(kernel[:, 1] - kernel[:, 0], w, atol=1e-7)


def test_weight_decay_of_a_mean_over_classes_cannot_be_canceled():
    rng = np.random.default_rng(8)
    kernel, g = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    g -= g.mean(axis=1, keepdims=True)
    off = Variables([kernel + 0.5], {})
    for share in (0.1, 50.0):
        record = theory.reach(off, [g], share, weight_decay=0.1)
        assert record.reachable is False and record.tau == math.inf
    mean = np.linalg.norm((kernel + 0.5).mean(axis=1)) * math.sqrt(3)
    assert record.floor == pytest.approx(0.1 * mean)
    record = theory.reach(off, [g], 50.0, weight_decay=0.1, normalize="all")
    centered = kernel - kernel.mean(axis=1, keepdims=True)
    rest = theory.floor(centered, g + 51 * 0.1 * centered, 50.0, omega=OMEGA[3])
    assert record.floor == pytest.approx(math.hypot(rest, 51 * 0.1 * mean))
    assert theory.reach(Variables([kernel], {}), [g], 50.0).reachable is True


def test_other_losses():
    t = np.linspace(-5, 5, 100_001)
    assert theory.omega_squared(1.5) == pytest.approx((t * 1.5 - t**2).max(), abs=1e-8)
    w, g = np.array([1.0, 2.0]), np.array([0.3, 0.1])
    assert theory.threshold(w, g, omega=theory.omega_squared(1.5)) == pytest.approx(4 * 0.5 / 2.25)
    assert theory.threshold(w, g, omega=theory.omega_squared(math.inf)) == 0
    assert theory.threshold(w, g, omega=theory.HINGE) == pytest.approx(0.5)
    assert theory.threshold(w, -g) == 0
    large = {"weight_decay": 0.1, "normalize": "all"}
    assert theory.threshold(w, g, **large) == math.inf  # lambda ||w||^2 = 0.5 is above omega


def test_scaling_keeps_predictions_and_lowers_the_threshold(x64):
    rng = np.random.default_rng(9)
    kernel, x = rng.normal(size=(4, 3)), rng.normal(size=(50, 4))
    y = np.argmin(x @ kernel, axis=1)  # the target is wrong everywhere
    data, target, victim = dataset(x, y), variables(kernel), head(4, 3)
    taus = []
    for scale in (1, 0.3, 0.1, 0.01, 0.001):
        small = jp.attacks.scale_target(target, scale)
        logits, _ = victim.apply(small, data.image, train=False)
        np.testing.assert_array_equal(np.argmax(logits, 1), np.argmax(x @ kernel, 1))
        taus.append(theory.reach(small, mean_gradient(victim, small, data), 0.1).tau)
    assert all(a > b for a, b in zip(taus, taus[1:], strict=False))
    assert taus[0] > 1 and taus[-1] < 1e-3 * taus[0]


class TestCertificates:
    rng = np.random.default_rng(10)
    w, u, g = rng.normal(size=(3, 4))
    g *= np.sign(u @ g)
    low, high = -rng.uniform(0.1, 1, 4), rng.uniform(0.1, 1, 4)

    def test_the_supremum_of_a_direction_is_exact(self):
        low, high = self.low, self.high
        want, found = 0.0, 0.0
        for y in (-1, 1):

            def value(x, y=y):
                return -y * (self.u @ x) * sigmoid(-y * (self.w @ x))

            for start in np.random.default_rng(0).uniform(low, high, size=(20, 4)):
                best = minimize(value, start, bounds=list(zip(low, high, strict=True)), tol=1e-14)
                want = max(want, -best.fun)
            x = np.random.default_rng(1).uniform(low, high, size=(5000, 4))
            found = max(found, (y * (x @ self.u) * sigmoid(-y * (x @ self.w))).max())
        share = theory.direction_share(self.u, self.w, self.g, low, high)
        assert share == pytest.approx(self.u @ self.g / want, rel=1e-6) and found <= want
        assert theory.direction_share(-self.u, self.w, self.g, low, high) == 0

    def test_a_wide_box_is_none_and_a_narrow_one_asks_for_more(self):
        w, g = self.w, self.g * np.sign(self.w @ self.g)
        tau = theory.threshold(w, g)
        wide = theory.direction_share(w, w, g, -1e3, 1e3)
        assert wide == pytest.approx(tau, rel=1e-9)
        shares = [theory.box_share(w, g, -size, size) for size in (1e3, 1.0, 0.1)]
        assert tau <= shares[0] < shares[1] < shares[2]
        cheap = g @ g / (0.1 * np.abs(g).sum())  # sigma <= 1
        assert shares[2] >= cheap

    def test_the_best_points_in_a_box_stay_above_what_it_says(self, x64):
        rng = np.random.default_rng(11)
        kernel, x, y = rng.normal(size=(4, 3)), rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
        target, data = variables(kernel), dataset(x, y)
        gradient = mean_gradient(head(4, 3), target, data)
        (g,) = (np.asarray(v) for v in jax.tree.leaves(gradient))
        record = theory.reach(target, gradient, 0.1, low=-0.5, high=0.5)
        most = theory.largest_supremum(g, -0.5, 0.5)
        assert record.tau >= (g * g).sum() / most > 0 and record.reachable is False
        corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 4), -1).reshape(-1, 4) @ g
        assert most == pytest.approx(np.ptp(corners, axis=1).max())
        assert theory.largest_supremum(g, 0, np.inf) == np.inf
        assert theory.reach(target, gradient, 9.0, low=0, high=np.inf).reachable is None
        assert theory.reach(target, gradient, 9.0, constrained=True).reachable is None

    def test_shrinking_the_target_asks_for_tau_in_the_limit(self):
        x, y = TestGaussians.sets()[0]
        w = np.array([-0.8, 0.1, 0.0, 0.2, 0.0])
        g, _ = binary_gradient(w, x, y)
        tau = theory.threshold(w, g)
        shares = [theory.ray_share(y * (x @ w), scale=s) for s in (0.0, 0.5, 0.9, 0.9999)]
        assert shares == sorted(shares) and shares[-1] == pytest.approx(tau, rel=1e-3)
        assert shares[-1] <= tau


def test_bad_heads():
    kernel = np.ones((4, 3))
    with pytest.raises(InputError, match="a linear head has"):
        theory.reach(Variables([kernel, kernel], {}), [kernel, kernel], 0.1)
    with pytest.raises(InputError, match="share"):
        theory.reach(Variables([kernel], {}), [kernel], 0.0)
    with pytest.raises(InputError, match="belong together"):
        theory.reach(Variables([kernel], {}), [kernel], 0.1, low=0)
    with pytest.raises(InputError, match="the gradient's kernel"):
        theory.reach(Variables([kernel], {}), [kernel.T], 0.1)
    with pytest.raises(InputError, match="finite"):
        theory.direction_share([1.0], [1.0], [1.0], 0, np.inf)
