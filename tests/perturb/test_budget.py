import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import check
from jaxpoison.perturb import Budget
from jaxpoison.types import InputError


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", 8, "eps = 8 looks like grey levels; write 8/255"),
        ("linf", 1.5, "eps = 1.5 looks like grey levels; write 1.5/255"),
        ("linf", 1000, "eps = 1000 is too large; pixels are in [0, 1]"),
        ("linf", -0.1, "eps = -0.1; it must be a finite number at least 0"),
        ("l2", float("nan"), "eps = nan; it must be a finite number at least 0"),
        ("l2", float("inf"), "eps = inf; it must be a finite number at least 0"),
        ("l0", 1.5, "eps = 1.5 counts pixels under l0; write a whole number"),
        ("l0", -1, "eps = -1; it must be a finite number at least 0"),
        ("linf", "8/255", "eps = '8/255'; it must be a finite number at least 0"),
        ("linf", None, "eps = None; it must be a finite number at least 0"),
        ("linf", True, "eps = True; it must be a finite number at least 0"),
        ("linf", np.array([0.1]), "eps = [0.1]; it must be a finite number at least 0"),
        ("l1", 0.1, "norm = 'l1'; allowed are linf, l2, l0"),
        (["linf"], 0.1, "norm = ['linf']; allowed are linf, l2, l0"),
    ],
)
def test_a_wrong_budget_is_one_line(norm, eps, message):
    with pytest.raises(InputError) as caught:
        check.radius(norm, eps)
    assert str(caught.value) == message


def test_numbers_become_python_numbers_so_that_a_budget_is_hashable():
    for eps in (0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.array(0.5)):
        budget = Budget("l2", eps)
        assert budget == Budget("l2", 0.5)
        assert hash(budget) == hash(Budget("l2", 0.5))
        assert type(budget.eps) is float
    assert type(Budget("l0", jnp.array(3)).eps) is int
    assert Budget("l2", 3.5).eps == 3.5
    assert Budget("linf", 1).eps == 1.0
    with pytest.raises(AttributeError):
        Budget("l2", 0.5).eps = 1.0  # ty: ignore


def test_a_traced_radius_passes_and_a_traced_vector_does_not():
    doubled = jax.vmap(lambda eps: 2 * Budget("linf", eps).eps)(jnp.array([0.1, 8.0]))
    np.testing.assert_allclose(doubled, [0.2, 16.0])
    with pytest.raises(InputError, match=r"eps has shape \(2,\); a scalar is needed"):
        jax.jit(lambda eps: Budget("linf", eps).eps)(jnp.array([0.1, 0.2]))
