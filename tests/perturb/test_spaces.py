import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxpoison.perturb import Budget, class_wise, per_sample, poison
from jaxpoison.types import Dataset, InputError, Scenario, as_float

pytestmark = pytest.mark.usefixtures("quick_module")
BUDGETS = [Budget("linf", 8 / 255), Budget("l2", 0.5), Budget("l0", 2)]
SPACES = {
    "per_sample": per_sample,
    "class_wise": lambda budget, **options: class_wise(budget, 3, **options),
}


def _scenario(seed=0, num=10, index=(7, 2, 5)):
    rng = np.random.default_rng(seed)
    image = jnp.asarray(rng.integers(0, 256, (num, 4, 4, 2)), jnp.uint8)
    train = Dataset(image, jnp.asarray(rng.integers(0, 3, num), jnp.int32))
    return Scenario(train, train, jnp.asarray(index, jnp.int32).reshape(-1))


def _size(p, norm):
    p = np.asarray(p, np.float64)
    if norm == "linf":
        return np.abs(p).max(axis=(1, 2, 3))
    if norm == "l2":
        return np.sqrt((p**2).sum(axis=(1, 2, 3)))
    return (p != 0).any(axis=3).sum(axis=(1, 2))


@pytest.fixture(params=["per_sample", "class_wise"])
def make(request):
    return SPACES[request.param]


@pytest.mark.usefixtures("strict_dtypes")
@pytest.mark.parametrize("init", ["zero", "uniform", "normal"])
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: b.norm)
def test_start_and_projection_keep_the_budget_and_the_box(make, budget, init):
    space, scenario = make(budget, init=init), _scenario()
    theta = space.init(jax.random.key(0), scenario)
    assert theta.dtype == jnp.float32
    assert _size(theta, budget.norm).max() <= budget.eps * (1 + 1e-6)
    assert (init == "zero") == bool((theta == 0).all())
    np.testing.assert_array_equal(theta, space.init(jax.random.key(0), scenario))
    moved = space.project(theta + 0.3, scenario)
    assert moved.shape == theta.shape
    assert moved.dtype == theta.dtype
    assert _size(moved, budget.norm).max() <= budget.eps * (1 + 1e-6)
    data = poison(space, moved, scenario)
    assert data.image.dtype == jnp.float32
    assert float(data.image.min()) >= 0
    assert float(data.image.max()) <= 1
    clean = as_float(scenario.train.image)
    assert _size(data.image - clean, budget.norm).max() <= budget.eps * (1 + 1e-5)
    np.testing.assert_array_equal(data.label, scenario.train.label)
    untouched = np.setdiff1d(np.arange(10), scenario.index)
    np.testing.assert_array_equal(data.image[untouched], clean[untouched])


def test_radius_zero_gives_the_clean_bits(make):
    scenario = _scenario()
    for norm in ("linf", "l2", "l0"):
        space = make(Budget(norm, 0), init="normal")
        theta = space.init(jax.random.key(1), scenario)
        np.testing.assert_array_equal(
            poison(space, theta, scenario).image, as_float(scenario.train.image)
        )


def test_each_row_gets_its_own_delta_and_a_batch_may_repeat_rows():
    space, scenario = per_sample(BUDGETS[0]), _scenario()
    theta = jnp.full((3, 4, 4, 2), 0.01) * jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    rows = jnp.array([5, 0, 7, 5], jnp.int32)
    batch = space.apply(theta, scenario, rows)
    change = batch.image - as_float(scenario.train.image[rows])
    np.testing.assert_allclose(change[:, 0, 0, 0], [0.03, 0, 0.01, 0.03], atol=1e-6)
    np.testing.assert_array_equal(batch.index, rows)
    np.testing.assert_array_equal(batch.weight, 1)
    np.testing.assert_array_equal(batch.label, scenario.train.label[rows])


def test_each_class_shares_its_delta_and_the_image_is_clipped():
    space = class_wise(Budget("linf", 0.9), 3)
    scenario = _scenario(index=range(10))
    theta = jnp.array([0.0, 0.9, -0.9]).reshape(3, 1, 1, 1) * jnp.ones((3, 4, 4, 2))
    rows = jnp.arange(10, dtype=jnp.int32)
    image = np.asarray(space.apply(theta, scenario, rows).image)
    shift = np.array([0, 0.9, -0.9])[np.asarray(scenario.train.label)].reshape(-1, 1, 1, 1)
    clean = np.asarray(as_float(scenario.train.image))
    np.testing.assert_allclose(image, np.clip(clean + shift, 0, 1), atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_gradients_are_difference_quotients(make):
    space, scenario = make(Budget("linf", 0.1)), _scenario(index=(1, 4))
    rng = np.random.default_rng(3)
    inner = rng.uniform(0.2, 0.8, (10, 4, 4, 2))
    scenario = scenario._replace(train=scenario.train._replace(image=jnp.asarray(inner)))
    theta = space.init(jax.random.key(0), scenario) + 0.01
    assert theta.dtype == jnp.float64
    weight = jnp.asarray(rng.standard_normal((5, 4, 4, 2)))
    rows = jnp.array([4, 0, 1, 4, 9], jnp.int32)

    def score(theta):
        return (weight * space.apply(jnp.asarray(theta), scenario, rows).image ** 2).sum()

    check_grads(score, (theta,), order=1, modes=["rev"], eps=1e-6)


def test_no_changeable_rows_is_the_clean_set(make):
    space, scenario = make(Budget("l2", 0.5), init="uniform"), _scenario(index=())
    theta = space.project(space.init(jax.random.key(0), scenario), scenario)
    np.testing.assert_array_equal(
        poison(space, theta, scenario).image, as_float(scenario.train.image)
    )


def test_block_size_does_not_change_the_poison(make):
    space, scenario = make(Budget("l2", 0.5), init="uniform"), _scenario()
    theta = space.init(jax.random.key(0), scenario)
    whole = poison(space, theta, scenario)
    for size in (1, 3, 10, 64):
        blocks = jax.jit(poison, static_argnums=0, static_argnames="batch_size")(
            space, theta, scenario, batch_size=size
        )
        # Compiled code may fuse the division by 255 with the sum: one rounding instead of two.
        np.testing.assert_allclose(blocks.image, whole.image, rtol=0, atol=1e-7)
        assert float(blocks.image.min()) >= 0
        assert float(blocks.image.max()) <= 1
        np.testing.assert_array_equal(blocks.label, whole.label)
    train = Dataset(*map(np.asarray, scenario.train))  # as a loader gives it
    given = scenario._replace(train=train, index=np.asarray(scenario.index))
    found = poison(space, theta, given, batch_size=3)
    np.testing.assert_allclose(found.image, whole.image, rtol=0, atol=1e-7)
    with pytest.raises(InputError, match="batch_size = 0; it must be at least 1"):
        poison(space, theta, scenario, batch_size=0)


def test_a_sweep_over_eps_is_a_vmap_and_jit_equals_eager(make):
    scenario = _scenario(index=(0, 1, 2, 3))

    def crafted(eps):
        space = make(Budget("linf", eps), init="uniform")
        return poison(space, space.init(jax.random.key(0), scenario), scenario).image

    swept = jax.jit(jax.vmap(crafted))(jnp.array([0.0, 0.05]))
    np.testing.assert_allclose(swept[0], crafted(0.0), atol=1e-7)
    np.testing.assert_allclose(swept[1], crafted(0.05), atol=1e-7)


def test_a_function_may_draw_the_start():
    def half(key, shape, dtype, budget):
        return jnp.full(shape, 0.5 * budget.eps, dtype)

    scenario = _scenario()
    grey = scenario.train._replace(image=jnp.full((10, 4, 4, 2), 100, jnp.uint8))
    theta = per_sample(BUDGETS[0], init=half).init(jax.random.key(0), scenario._replace(train=grey))
    np.testing.assert_allclose(theta, 4 / 255, rtol=1e-6)


def test_wrong_settings_are_one_line(make):
    with pytest.raises(InputError, match="init = 'ones'; allowed are zero, uniform"):
        make(BUDGETS[0], init="ones")
    for num_classes, range_ in ((0, "at least 1"), (-2, "at least 1"), (True, "a whole number")):
        with pytest.raises(InputError, match=f"^num_classes = {num_classes}; it must be {range_}$"):
            class_wise(BUDGETS[0], num_classes)
    message = "labels run from 0 to 2; num_classes = 2 allows 0 to 1"
    with pytest.raises(InputError, match=message):
        class_wise(BUDGETS[0], 2).init(jax.random.key(0), _scenario())
