"""Conjugate gradients against dense solves in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison.hypergrad import cg, hvp, neumann, normal_cg
from jaxpoison.types import InputError

pytestmark = pytest.mark.usefixtures("quick_module")


def system(values):
    """A symmetric matrix with these eigenvalues, and a right side as a tree of two leaves."""
    rng = np.random.RandomState(0)
    basis, _ = np.linalg.qr(rng.randn(len(values), len(values)))
    matrix = basis @ np.diag(values) @ basis.T
    b = rng.randn(len(values))
    return matrix, b, {"u": jnp.asarray(b[:2]), "w": jnp.asarray(b[2:].reshape(2, -1))}


def product(matrix, scale=1.0):
    def matvec(p):
        flat = scale * matrix @ jnp.concatenate([p["u"], p["w"].ravel()])
        return {"u": flat[:2], "w": flat[2:].reshape(2, -1)}

    return matvec


def flat(v):
    return np.concatenate([v["u"], np.ravel(v["w"])])


@pytest.mark.parametrize("solver", [cg, normal_cg])
def test_two_unknowns_in_two_iterations(x64, solver):
    """The golden value of the released code's test system."""
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    v, solve = solver(lambda p: matrix @ p, jnp.array([3.0, 4.0]), iterations=2)
    np.testing.assert_allclose(v, [1, 1], rtol=1e-12)
    assert solve.iterations == 2 and solve.residual < 1e-12


@pytest.mark.parametrize("solver", [cg, normal_cg])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_positive_definite_is_the_dense_solve(x64, solver, damping):
    matrix, b, tree = system(np.linspace(0.5, 3, 6))
    solve = jax.jit(functools.partial(solver, product(matrix), iterations=6, damping=damping))
    v, report = solve(tree)
    np.testing.assert_allclose(flat(v), np.linalg.solve(matrix + damping * np.eye(6), b), rtol=1e-9)
    assert report.residual < 1e-9 and report.iterations == 6


def test_indefinite_is_solved_by_the_normal_equations_alone(x64):
    matrix, b, tree = system(np.array([-2, -1, 0.5, 1, 2, 3.0]))
    v, report = normal_cg(product(matrix), tree, iterations=6)
    np.testing.assert_allclose(flat(v), np.linalg.solve(matrix, b), rtol=1e-8)
    assert report.residual < 1e-8
    v, report = cg(product(matrix), tree, iterations=50)  # ends at a direction that curves down
    assert report.iterations < 6 and np.isfinite(flat(v)).all()
    np.testing.assert_allclose(
        report.residual, np.linalg.norm(b - matrix @ flat(v)) / np.linalg.norm(b), rtol=1e-9
    )


def test_singular_gives_the_least_squares_of_least_norm(x64):
    matrix, b, tree = system(np.array([0, 0, 0.5, 1, 2, 3.0]))
    v, report = normal_cg(product(matrix), tree, iterations=50, tolerance=1e-12)
    np.testing.assert_allclose(flat(v), np.linalg.pinv(matrix, rcond=1e-10) @ b, rtol=1e-9)
    assert report.iterations <= 5
    np.testing.assert_allclose(
        report.residual, np.linalg.norm(b - matrix @ flat(v)) / np.linalg.norm(b), rtol=1e-9
    )


def test_neumann_is_its_series(x64):
    matrix, b, tree = system(np.linspace(0.5, 3, 6))
    v, report = neumann(product(matrix), tree, iterations=7, step_size=0.2, damping=0.1)
    shrink = np.eye(6) - 0.2 * (matrix + 0.1 * np.eye(6))
    series = 0.2 * sum(np.linalg.matrix_power(shrink, k) for k in range(7)) @ b
    np.testing.assert_allclose(flat(v), series, rtol=1e-10)
    left = np.linalg.norm(np.linalg.matrix_power(shrink, 7) @ b) / np.linalg.norm(b)
    np.testing.assert_allclose(report.residual, left, rtol=1e-10)


@pytest.mark.parametrize("solver", [cg, normal_cg, functools.partial(neumann, step_size=0.3)])
def test_a_tolerance_ends_it_and_zero_needs_no_step(solver):
    matrix, _, tree = system(np.linspace(0.5, 3, 6))
    matrix = jnp.asarray(matrix, jnp.float32)
    tree = jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    _, loose = solver(product(matrix), tree, iterations=200, tolerance=0.1)
    _, tight = solver(product(matrix), tree, iterations=200, tolerance=1e-4)
    assert 0 < loose.iterations < tight.iterations < 200
    assert tight.residual < 1e-3 < loose.residual < 0.3
    nothing = jax.tree.map(jnp.zeros_like, tree)
    v, none = solver(product(matrix), nothing, iterations=5)
    assert none.iterations == 0 and none.residual == 0 and not flat(v).any()


def test_hvp_is_the_hessian(x64):
    def fn(x):
        return jnp.sum(jnp.sin(x["a"]) * x["b"]) + jnp.sum(x["b"] ** 4)

    at = {"a": jnp.array([0.3, -0.2]), "b": jnp.array([1.0, 0.5])}
    direction = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([-0.5, 0.1])}
    got = hvp(fn, at, direction)
    a, b, u, w = (np.asarray(x) for x in (at["a"], at["b"], direction["a"], direction["b"]))
    np.testing.assert_allclose(got["a"], -np.sin(a) * b * u + np.cos(a) * w, rtol=1e-12)
    np.testing.assert_allclose(got["b"], np.cos(a) * u + 12 * b**2 * w, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations = 0"),
        ({"iterations": 2, "tolerance": -1.0}, "tolerance = -1"),
        ({"iterations": 2, "damping": -0.1}, "damping = -0.1"),
    ],
)
def test_bad_settings_are_named(settings, message):
    for solver in (cg, normal_cg, functools.partial(neumann, step_size=0.1)):
        with pytest.raises(InputError, match=message):
            solver(lambda p: p, jnp.ones(2), **settings)
    with pytest.raises(InputError, match="step_size = 0"):
        neumann(lambda p: p, jnp.ones(2), iterations=1, step_size=0)
