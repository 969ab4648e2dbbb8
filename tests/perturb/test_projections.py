import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxpoison.perturb import Budget, project, project_ball, project_l0, project_l2, project_linf

pytestmark = pytest.mark.usefixtures("quick_module")
SHAPE = (4, 3, 5, 2)
CASES = [("linf", 8 / 255), ("linf", 1.0), ("l2", 0.3), ("l2", 1.7), ("l0", 1), ("l0", 7)]

quick = settings(max_examples=25, deadline=None, derandomize=True)


def _draw(seed, scale=1.0, shape=SHAPE):
    """Perturbations of all sizes and images that often sit on the faces of the box."""
    rng = np.random.default_rng(seed)
    image = np.clip(rng.uniform(-0.3, 1.3, shape), 0, 1).astype(np.float32)
    delta = (scale * rng.standard_normal(shape)).astype(np.float32)
    return jnp.asarray(delta), jnp.asarray(image)


def _size(p, norm):
    p = np.asarray(p, np.float64)
    if norm == "linf":
        return np.abs(p).max(axis=(1, 2, 3))
    if norm == "l2":
        return np.sqrt((p**2).sum(axis=(1, 2, 3)))
    return (p != 0).any(axis=3).sum(axis=(1, 2))


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize(("norm", "eps"), CASES)
@quick
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 0.1, 1.0, 1e3, 1e25]))
def test_inside_ball_and_box_idempotent_and_non_expansive(norm, eps, seed, scale):
    delta, image = _draw(seed, scale)
    other, _ = _draw(seed + 1, scale)
    budget = Budget(norm, eps)
    p, q = project(delta, image, budget), project(other, image, budget)
    assert p.dtype == jnp.float32
    assert _size(p, norm).max() <= eps * (1 + 1e-6)
    assert float((image + p).min()) >= 0
    assert float((image + p).max()) <= 1
    np.testing.assert_array_equal(project(p, image, budget), p)
    np.testing.assert_array_equal(project(jnp.zeros_like(delta), image, budget), 0)
    if norm != "l0":
        before = _size(np.float64(delta) - np.float64(other), "l2")
        assert (_size(np.float64(p) - np.float64(q), "l2") <= before * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize(("norm", "eps"), CASES)
def test_a_point_inside_comes_back_bit_for_bit(norm, eps):
    delta, _ = _draw(3, 1e-3)
    delta = delta.at[:, 1:].set(0).at[:, :, 1:].set(0)
    image = jnp.full(SHAPE, 0.5)
    np.testing.assert_array_equal(project(delta, image, Budget(norm, eps)), delta)
    np.testing.assert_array_equal(project_ball(delta, Budget(norm, eps)), delta)


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_radius_zero_is_no_change_and_has_finite_gradients(norm):
    delta, image = _draw(5)
    np.testing.assert_array_equal(project(delta, image, Budget(norm, 0)), 0)
    for start in (delta, 0 * delta, 1e-21 * jnp.sign(delta)):
        gradient = jax.grad(lambda d: project(d, image, Budget(norm, 0)).sum())(start)
        assert bool(jnp.all(jnp.isfinite(gradient)))


def test_linf_is_the_closed_form_and_optax_agrees_on_the_ball():
    delta, image = _draw(7)
    expected = jnp.clip(image + jnp.clip(delta, -0.1, 0.1), 0, 1) - image
    np.testing.assert_allclose(project_linf(delta, image, eps=0.1), expected, atol=1e-7)
    np.testing.assert_allclose(
        project_ball(delta, Budget("linf", 0.1)), optax.projections.projection_linf_ball(delta, 0.1)
    )
    rows = jax.vmap(lambda d: optax.projections.projection_l2_ball(d, 0.4))(delta)
    np.testing.assert_allclose(project_ball(delta, Budget("l2", 0.4)), rows, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(4))
def test_l2_is_the_minimizer_that_scipy_finds(seed):
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 1, (1, 1, 2, 2))
    delta = rng.standard_normal((1, 1, 2, 2)) * [0.1, 1, 3, 10][seed]
    eps = 0.6
    p = np.asarray(project_l2(jnp.asarray(delta), jnp.asarray(image), eps=eps)).ravel()
    d, x = delta.ravel(), image.ravel()
    best = scipy.optimize.minimize(
        lambda q: ((q - d) ** 2).sum(),
        np.zeros(4),
        jac=lambda q: 2 * (q - d),
        bounds=list(zip(-x, 1 - x, strict=True)),
        constraints={
            "type": "ineq",
            "fun": lambda q: eps**2 - (q**2).sum(),
            "jac": lambda q: -2 * q,
        },
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    np.testing.assert_allclose(p, best.x, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_l2_meets_bisection_also_where_breakpoints_are_spread_over_many_orders():
    rng = np.random.default_rng(0)
    delta = rng.standard_normal((3, 8, 8, 1)) * 10.0 ** rng.uniform(-6, 6, (3, 8, 8, 1))
    image = np.clip(rng.uniform(-0.2, 1.2, (3, 8, 8, 1)), 0, 1)
    for eps in (0.01, 0.5, 2.0, 3.5):
        p = np.asarray(project_l2(jnp.asarray(delta), jnp.asarray(image), eps=eps))
        for i in range(3):
            low, high = 0.0, 1.0
            for _ in range(200):
                s = (low + high) / 2
                q = np.clip(s * delta[i], -image[i], 1 - image[i])
                low, high = (s, high) if np.sqrt((q**2).sum()) <= eps else (low, s)
            np.testing.assert_allclose(p[i], q, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("eps", [0.2, 0.9])
def test_l2_gradient_is_the_difference_quotient_in_delta_and_radius(eps):
    rng = np.random.default_rng(2)
    image = jnp.asarray(rng.uniform(0, 1, (2, 2, 2, 1)))
    delta, weight = (jnp.asarray(rng.standard_normal((2, 2, 2, 1))) for _ in range(2))

    def score(delta, eps):
        return (weight * project_l2(jnp.asarray(delta), image, eps=eps)).sum()

    check_grads(score, (delta, jnp.asarray(eps)), order=1, modes=["rev"], eps=1e-6)


def test_l0_keeps_the_pixels_that_change_most_after_clipping():
    delta = np.zeros((1, 1, 4, 2), np.float32)
    delta[0, 0] = [[0.3, 0.3], [9.0, 0.0], [0.4, 0.0], [0.0, 0.0]]
    image = np.full((1, 1, 4, 2), 0.5, np.float32)
    image[0, 0, 1] = 0.9  # the box cuts 9.0 down to 0.1
    delta, image = jnp.asarray(delta), jnp.asarray(image)
    p = project_l0(delta, image, eps=2)
    np.testing.assert_allclose(p[0, 0], [[0.3, 0.3], [0, 0], [0.4, 0], [0, 0]])
    np.testing.assert_array_equal(project_l0(delta, image, eps=100), jnp.clip(delta, -1, 1 - image))


def test_l0_keeps_the_first_of_equal_pixels():
    delta = jnp.full((1, 2, 2, 1), 0.2)
    p = project_l0(delta, jnp.zeros_like(delta), eps=3)
    np.testing.assert_array_equal(np.asarray(p[0, :, :, 0]) > 0, [[True, True], [True, False]])


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_a_sweep_over_radii_is_a_vmap_that_equals_single_calls(norm):
    delta, image = _draw(11)
    radii = np.array([1, 2, 3]) if norm == "l0" else np.array([0.1, 0.2, 0.7], np.float32)
    swept = jax.jit(jax.vmap(lambda eps: project(delta, image, Budget(norm, eps))))(radii)
    for i, eps in enumerate(radii):
        single = project(delta, image, Budget(norm, eps))
        np.testing.assert_allclose(swept[i], single, rtol=1e-6, atol=1e-7)
