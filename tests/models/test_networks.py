"""The shipped networks: sizes, layouts, golden logits, dtypes, lowered code."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpoison import models
from jaxpoison.models.catalog import FACTORIES
from jaxpoison.models.layers import avg_pool, max_pool
from jaxpoison.models.resnet import BasicBlock
from jaxpoison.types import InputError, Variables
from tests.models.miniatures import PYTORCH_FEATURES, RUNNABLE, filled, ramp

CIFAR, MNIST = (32, 32, 3), (28, 28, 1)


# (name, image shape, options, parameters); published counts where the shape is the paper's
SIZES = [
    ("logistic_regression", MNIST, {}, 784 * 10 + 10),
    ("mlp", (8, 8, 1), {}, 64 * 128 + 128 * 128 + 128 * 10 + 3 * (128 + 128 + 10)),
    ("mlp", MNIST, {"hidden": (64,), "batch_norm": False}, 784 * 64 + 64 + 64 * 10 + 10),
    ("mlp", (8, 8, 1), {"logits_norm": False}, 65 * 128 + 129 * 128 + 129 * 10 + 2 * 256),
    ("small_cnn", MNIST, {}, 160 + 16 * 32 * 9 + 32 + 7 * 7 * 32 * 10 + 10),
    ("mlp", MNIST, {"hidden": (784, 784), "batch_norm": False, "slope": 0.2}, 1_238_730),
    ("small_cnn", MNIST, {"kernel": 5, "pool": "max"}, 416 + 12_832 + 1568 * 10 + 10),
    ("convnet", CIFAR, {"width": 32}, 289_290),
    ("convnet", CIFAR, {"width": 64}, 1_131_530),
    ("convnet", CIFAR, {"batch_norm": True}, 2_904_970),
    ("convnet", MNIST, {"width": 32}, 289_290 - 2 * 9 * 32),
    ("cnn5", CIFAR, {}, 896 + 18_496 + 73_856 + 2 * 147_584 + 2 * 480 + 1290),
    ("cnn5", (224, 224, 3), {"width": 16}, 448 + 4640 + 18_496 + 2 * 36_928 + 480 + 650),
    ("metapoison_convnet", CIFAR, {}, 70_410),
    ("metapoison_convnet", CIFAR, {"batch_norm": True}, 70_826),
    ("vgg11", CIFAR, {"bottleneck": 2}, 9_227_040),
    ("lenet", MNIST, {"size": "small"}, 109_885),
    ("lenet", MNIST, {"size": "normal"}, 432_240),
    ("lenet", MNIST, {"size": "large"}, 1_714_450),
    ("lenet5", CIFAR, {}, 62_006),
    ("resnet18", CIFAR, {}, 11_173_962),
    ("resnet18", CIFAR, {"width": 16}, 701_466),
    ("resnet18", MNIST, {"width": 16}, 701_466 - 2 * 9 * 16),
]


@pytest.mark.parametrize(("name", "shape", "options", "count"), SIZES)
def test_number_of_parameters_and_shapes(name, shape, options, count):
    victim = models.create(name, shape, 10, **options)
    assert models.num_params(victim) == count
    variables = jax.eval_shape(victim.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((7, *shape), jnp.float32)
    logits, stats = jax.eval_shape(lambda v, x: victim.apply(v, x, train=True), variables, x)
    assert logits.shape == (7, 10) and logits.dtype == jnp.float32
    assert jax.tree.map(lambda a: (a.shape, a.dtype), stats) == jax.tree.map(
        lambda a: (a.shape, a.dtype), variables.stats
    )
    assert jax.eval_shape(victim.features, variables, x).shape[0] == 7


@pytest.mark.parametrize("name", RUNNABLE)
def test_float32_is_the_reference_and_bfloat16_trains_near_it(name):
    shape, factory = RUNNABLE[name]
    narrow = factory(shape, 3, dtype=jnp.bfloat16)
    variables = filled(narrow)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(6, *shape)), jnp.float32)

    @jax.jit
    def run(params, x):
        def loss(params, x):
            logits, stats = narrow.apply(variables._replace(params=params), x, train=True)
            return jnp.mean(jax.nn.logsumexp(logits, 1) - logits[:, 0]), (logits, stats)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x), narrow.features(variables, x)

    ((grads, image_grad), (logits, stats)), features = run(variables.params, x)
    assert jnp.any(logits != logits.astype(jnp.bfloat16))  # the last sum is not rounded
    assert logits.shape == (6, 3) and features.ndim == 2 and jnp.any(image_grad != 0)
    for leaf in jax.tree.leaves((grads, image_grad, logits, stats, features)):
        assert leaf.dtype == jnp.float32 and jnp.all(jnp.isfinite(leaf))
    assert all(map(jnp.any, jax.tree.leaves(jax.tree.map(jnp.subtract, stats, variables.stats))))
    want = jax.jit(factory(shape, 3).features)(variables, x)
    assert jnp.linalg.norm(features - want) < 0.03 * jnp.linalg.norm(want)
    if name in PYTORCH_FEATURES:
        seen = want[:3] @ jnp.cos(jnp.arange(want.shape[1]))
        np.testing.assert_allclose(seen, PYTORCH_FEATURES[name], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", RUNNABLE)
def test_no_windowed_reduction_and_canonical_convolutions_in_a_scanned_hvp(name):
    shape, factory = RUNNABLE[name]
    victim = factory(shape, 3)
    variables = jax.eval_shape(victim.init, jax.random.key(0))

    def loss(params, stats, x):
        return jnp.sum(
            victim.apply(variables._replace(params=params, stats=stats), x, train=True)[0] ** 2
        )

    def crafted(variables, x):
        params, stats = variables
        tangent = jax.grad(loss)(params, stats, x)
        return jax.jvp(lambda p: jax.grad(loss, 2)(p, stats, x), (params,), (tangent,))[1]

    mapped = jax.jit(lambda v, xs: jax.lax.map(lambda x: crafted(v, x), xs))
    text = mapped.lower(variables, jax.ShapeDtypeStruct((2, 4, *shape), jnp.float32)).as_text()
    assert "reduce_window" not in text and "select_and_scatter" not in text
    lines = re.findall(r"stablehlo\.convolution.*", text)
    assert bool(lines) == (name not in ("logistic_regression", "mlp", "vit"))
    for line in lines:
        assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line
        assert "feature_group_count = 1 " in line


def test_float64_networks_for_finite_differences(x64):
    victim = models.small_cnn((8, 8, 1), 3, widths=(3, 4), dtype=jnp.float64)
    variables = jax.tree.map(jnp.float64, filled(victim))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.uniform(size=(4, 8, 8, 1)))
    direction = jnp.asarray(random.normal(size=x.shape))

    @jax.jit
    def f(x):
        return jnp.sum(jnp.sin(victim.apply(variables, x, train=True)[0]))

    numeric = (f(x + 1e-6 * direction) - f(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.sum(jax.grad(f)(x) * direction), numeric, rtol=1e-6)


@pytest.mark.parametrize("case", [(10, 3, None), (7, 2, None), (5, 2, 1), (9, 3, 2)], ids=str)
def test_pools_equal_windows_cut_by_hand(case, strict_dtypes):
    size, window, stride = case
    x = np.random.default_rng(0).normal(size=(2, size, size + 1, 3)).astype(np.float32)
    step = stride or window
    rows, columns = ((n - window) // step + 1 for n in x.shape[1:3])
    want = np.zeros((2, rows, columns, window * window, 3), np.float32)
    for i, j in np.ndindex(rows, columns):
        patch = x[:, i * step : i * step + window, j * step : j * step + window]
        want[:, i, j] = patch.reshape(2, -1, 3)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), window, stride=stride), want.max(3))
    np.testing.assert_allclose(
        avg_pool(jnp.asarray(x), window, stride=stride), want.mean(3), rtol=1e-5, atol=1e-6
    )


def test_features_meet_the_last_layer(strict_dtypes):
    victim = models.small_cnn((8, 8, 1), 3, widths=(4,))
    variables = filled(victim)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 8, 8, 1)), jnp.float32)
    last = variables.params["Dense_0"]
    logits = victim.features(variables, x) @ last["kernel"] + last["bias"].reshape(1, -1)
    np.testing.assert_allclose(logits, victim.apply(variables, x, train=False)[0], atol=1e-5)


def test_the_cnn_with_dropout_is_that_of_the_example_and_drops_in_training_alone(quick_compile):
    assert models.num_params(models.dropout_cnn(MNIST)) == 1_199_882
    victim = models.dropout_cnn((6, 6, 1), 3)
    variables = jax.jit(victim.init)(jax.random.key(0))
    image = jnp.asarray(np.random.default_rng(0).random((4, 6, 6, 1)), jnp.float32)

    def scores(seed, train):
        return victim.apply(variables, image, train=train, key=jax.random.key(seed))[0]

    np.testing.assert_array_equal(scores(0, False), scores(1, False))
    assert np.abs(scores(0, True) - scores(1, True)).max() > 1e-3
    assert victim.features(variables, image).shape == (4, 128)


@pytest.mark.parametrize(("pool", "of"), [("average", np.mean), ("max", np.max)])
def test_the_pools_of_the_small_cnn(pool, of):
    victim = models.create("small_cnn", (4, 6, 1), 3, widths=(1,), pool=pool)
    params = dict(victim.init(jax.random.key(0)).params)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)  # a convolution that changes nothing
    params["Conv_0"] = {"kernel": kernel, "bias": jnp.zeros(1)}
    x = np.random.default_rng(0).uniform(size=(2, 4, 6, 1)).astype(np.float32)
    windows = x.reshape(2, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4).reshape(2, 6, 4)
    found = victim.features(Variables(params, {}), jnp.asarray(x))
    np.testing.assert_allclose(found, of(windows, axis=2), rtol=1e-6)
    with pytest.raises(InputError, match="pool = 'median'; allowed are average, max"):
        models.small_cnn((4, 6, 1), pool="median")


def test_batch_norm_on_the_logits_is_an_option_of_its_own():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 4, 4, 1)), jnp.float32)
    for hidden, last in ((True, False), (False, True)):
        options = {"hidden": (5,), "batch_norm": hidden, "logits_norm": last}
        victim = models.create("mlp", x.shape[1:], 3, **options)
        variables = filled(victim)
        sizes = {array.shape for array in jax.tree.leaves(variables.stats)}
        assert sizes == ({(5,)} if hidden else {(3,)})
        logits, _ = victim.apply(variables, x, train=True)
        assert bool((jnp.abs(logits.mean(0)) < 1e-5).all()) == last


def test_batch_norm_of_the_metapoison_convnet_is_behind_relu():
    """What is subtracted behind the ReLU leaves negative features; before it, zeros."""
    victim = models.metapoison_convnet((32, 32, 1), 3, width=1, batch_norm=True)
    variables = filled(victim)
    stats = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 9 * (path[-1].key == "mean"), variables.stats
    )
    features = victim.features(variables._replace(stats=stats), jnp.zeros((1, 32, 32, 1)))
    assert features.max() < -1


def test_initial_scale():
    key = jax.random.key(0)
    block = BasicBlock(features=64).init(key, jnp.zeros((1, 4, 4, 64)), train=False)
    kernel = block["params"]["conv1"]["kernel"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    params = models.small_cnn((8, 8, 1), widths=(8,)).init(key).params
    for name, fan_in in (("Conv_0", 9), ("Dense_0", 128)):
        for leaf in params[name].values():
            assert 0.5 * fan_in**-0.5 < jnp.abs(leaf).max() <= fan_in**-0.5
    dense = models.logistic_regression((8, 8, 1)).init(key).params["Dense_0"]
    assert 0.12 < jnp.abs(dense["kernel"]).max() <= 0.125 and not dense["bias"].any()


def test_golden_logits_of_resnet18_in_train_mode():
    victim = models.resnet18(CIFAR)
    x = ramp(4, CIFAR)
    logits, _ = jax.jit(lambda v, x: victim.apply(v, x, train=True))(filled(victim), x)
    np.testing.assert_allclose(logits[0, :4], [-0.43055, -0.04825, 0.11993, 0.76760], atol=2e-4)
    np.testing.assert_allclose(logits[3, :4], [-0.91967, -0.31935, 0.18813, -0.02655], atol=2e-4)


def test_wrong_names_and_arguments_are_one_clear_line():
    with pytest.raises(
        InputError, match="no model is called 'resnet-18'; did you mean 'resnet18'?"
    ):
        models.create("resnet-18", CIFAR, 10)
    with pytest.raises(
        InputError, match="no model is called 'zzz'; allowed are logistic_regression"
    ):
        models.create("zzz", CIFAR, 10)
    with pytest.raises(
        InputError, match="convnet has no option 'widht'; it takes width, batch_norm"
    ):
        models.create("convnet", CIFAR, 10, widht=3)
    for name in FACTORIES:
        with pytest.raises(InputError, match="num_classes = 1; it must be at least 2"):
            models.create(name, CIFAR, 1)
        with pytest.raises(InputError, match="image_shape = "):
            models.create(name, (32, 32), 10)
    with pytest.raises(InputError, match="size = 'tiny'; allowed are small, normal, large"):
        models.lenet(MNIST, size="tiny")
    for name, side in (
        ("lenet", 15),
        ("convnet", 8),
        ("small_cnn", 3),
        ("cnn5", 31),
        ("metapoison_convnet", 31),
    ):
        with pytest.raises(InputError, match="height and width must be at least "):
            models.create(name, (side, side, 1), 10)
    with pytest.raises(InputError, match="width = 0; it must be at least 1"):
        models.resnet18(CIFAR, width=0)
    with pytest.raises(InputError, match="hidden = 0"):
        models.mlp(MNIST, hidden=(4, 0))


def test_a_slope_makes_the_activation_leaky():
    victim = models.mlp((2, 3, 1), 4, hidden=(5,), batch_norm=False, slope=0.2)
    params = jax.tree.map(np.asarray, filled(victim).params)
    x = np.random.default_rng(0).uniform(-1, 1, (7, 2, 3, 1)).astype(np.float32)
    first, last = (params[name] for name in sorted(params))
    hidden = x.reshape(7, -1) @ first["kernel"] + first["bias"]
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    expected = hidden @ last["kernel"] + last["bias"]
    scores, _ = victim.apply(filled(victim), jnp.asarray(x), train=False)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
