"""The canonical convolution against `lax.conv_general_dilated`, and its layout in lowered code."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxpoison.models import conv as conv_module
from jaxpoison.models.conv import conv_general_dilated
from jaxpoison.models.conv_transpose import ConvTranspose
from jaxpoison.types import InputError

NHWC = ("NHWC", "HWIO", "NHWC")
plain = partial(lax.conv_general_dilated, dimension_numbers=NHWC)

# (image, kernel, strides, padding, lhs_dilation, rhs_dilation)
CASES = [
    ((7, 6), (3, 3), (1, 1), "SAME", (1, 1), (1, 1)),
    ((8, 8), (3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), (1, 1)),
    ((7, 9), (1, 1), (2, 2), "VALID", (1, 1), (1, 1)),
    ((9, 8), (5, 4), (3, 2), "SAME", (1, 1), (1, 1)),
    ((8, 7), (2, 3), (3, 3), [(0, 2), (3, 1)], (1, 1), (1, 1)),
    ((7, 8), (5, 5), (2, 1), "VALID", (1, 1), (1, 1)),
    ((5, 4), (3, 3), (1, 2), [(2, 1), (0, 3)], (2, 3), (1, 1)),
    ((9, 9), (3, 2), (2, 1), [(2, 2), (1, 0)], (1, 1), (2, 3)),
]


def arrays(image, kernel, channels=(2, 3), seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    x = random.normal(size=(2, *image, channels[0])).astype(dtype)
    w = random.normal(size=(*kernel, *channels)).astype(dtype)
    return jnp.asarray(x), jnp.asarray(w)


def derivatives(conv, x, w):
    """Value, both gradients, gradient of a gradient and jvp of a gradient, all in (x, w)."""

    def energy(x, w):
        return jnp.sum(jnp.sin(conv(x, w)))

    first = jax.grad(energy, (0, 1))

    def norm(x, w):
        return sum(jnp.sum(g * jnp.cos(g)) for g in first(x, w))

    second = jax.grad(norm, (0, 1))(x, w)
    tangent = jax.jvp(first, (x, w), (jnp.cos(x), jnp.sin(w)))[1]
    return conv(x, w), first(x, w), second, tangent


def close(a, b, rtol=1e-5):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert u.shape == v.shape and u.dtype == v.dtype
        np.testing.assert_allclose(u, v, rtol=rtol, atol=rtol * (1 + float(jnp.abs(v).max())))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_derivative_equals_the_stock_convolution(case, strict_dtypes):
    image, kernel, *settings = case
    x, w = arrays(image, kernel)
    ours = jax.jit(partial(derivatives, lambda x, w: conv_general_dilated(x, w, *settings)))(x, w)
    close(ours, jax.jit(partial(derivatives, lambda x, w: plain(x, w, *settings)))(x, w))


@pytest.fixture
def grouped(monkeypatch):
    """Every sum over more than 40 products is split, as only those of large images are."""
    monkeypatch.setattr(conv_module, "LONGEST_SUM", 40)
    monkeypatch.setattr(conv_module, "FEW_OUTPUTS", 0)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_a_sum_in_groups_changes_no_derivative(case, grouped, x64):
    image, kernel, *settings = case
    x, w = arrays(image, kernel, dtype=np.float64)
    x = jnp.concatenate([x, jnp.cos(x), jnp.sin(x)])[:5]  # groups of two leave one over
    ours = jax.jit(partial(derivatives, lambda x, w: conv_general_dilated(x, w, *settings)))(x, w)
    stock = jax.jit(partial(derivatives, lambda x, w: plain(x, w, *settings)))(x, w)
    close(ours, stock, rtol=1e-12)


def weight_gradient(x, w):
    return jax.grad(lambda w: jnp.sum(jnp.sin(conv_general_dilated(x, w, (1, 1), "SAME"))))(w)


@pytest.mark.parametrize(
    "case",
    [  # kernels larger than the image; outputs that leave a rest; every dilation
        ((3, 3), (8, 8), (1, 1), [(7, 7), (7, 7)], (1, 1), (1, 1)),
        ((2, 3), (7, 4), (2, 3), [(6, 5), (3, 4)], (1, 1), (1, 1)),
        ((3, 2), (5, 6), (1, 2), [(9, 8), (4, 9)], (2, 3), (1, 1)),
        ((2, 4), (6, 5), (3, 1), [(12, 10), (8, 9)], (1, 2), (2, 3)),
    ],
)
def test_image_and_kernel_exchange_places_when_the_kernel_is_larger(case, x64):
    image, kernel, *window = case
    x, w = arrays(image, kernel, dtype=np.float64)
    close(conv_general_dilated(x, w, *window), plain(x, w, *window), rtol=1e-12)


def test_only_long_sums_for_several_outputs_are_split():
    def loops(num, size, outputs):
        x = jax.ShapeDtypeStruct((num, size, size, 3), jnp.float32)
        w = jax.ShapeDtypeStruct((3, 3, 3, outputs), jnp.float32)
        text = jax.jit(weight_gradient).lower(x, w).as_text()
        assert CANONICAL in text
        return text.count("stablehlo.while")

    assert loops(8, 32, 24) == 1
    assert loops(2, 32, 24) == loops(8, 32, 16) == loops(32, 8, 24) == 0


def test_a_split_sum_of_bfloat16_is_added_up_in_float32(grouped):
    x, w = arrays((8, 8), (3, 3))
    x = jnp.tile(x, (8, 1, 1, 1))
    narrow = weight_gradient(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    exact = weight_gradient(x, w)
    np.testing.assert_allclose(
        narrow.astype(jnp.float32), exact, atol=0.01 * float(jnp.abs(exact).max())
    )


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_split_sum_under_shard_map(grouped, check_vma):
    mesh = jax.make_mesh((4,), ("restart",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = arrays((6, 6), (3, 3))
    ws = jnp.stack([w, 3 * w, w - 1, -w])
    sharded = jax.shard_map(
        lambda x, w: weight_gradient(x, w[0])[None],
        mesh=mesh,
        in_specs=(P(), P("restart")),
        out_specs=P("restart"),
        check_vma=check_vma,
    )
    close(jax.jit(sharded)(x, ws), jnp.stack([weight_gradient(x, w) for w in ws]))


@pytest.mark.parametrize("channels", [(3, 3), (2, 6)], ids=["one", "three per channel"])
def test_depthwise_equals_the_grouped_convolution(channels, strict_dtypes):
    inputs, outputs = channels
    x, _ = arrays((7, 8), (1, 1), (inputs, 1))
    _, w = arrays((3, 2), (3, 2), (1, outputs), seed=1)
    settings = ((2, 1), [(1, 2), (0, 1)], (1, 2), (2, 1))
    ours = partial(conv_general_dilated, feature_group_count=inputs)
    stock = partial(plain, feature_group_count=inputs)
    close(
        jax.jit(partial(derivatives, lambda x, w: ours(x, w, *settings)))(x, w),
        jax.jit(partial(derivatives, lambda x, w: stock(x, w, *settings)))(x, w),
    )


def test_one_and_three_spatial_axes():
    for n, names in ((1, ("NHC", "HIO", "NHC")), (3, ("NDHWC", "DHWIO", "NDHWC"))):
        x, w = arrays((5, 6, 4)[:n], (3, 2, 3)[:n])
        settings = ((2, 1, 1)[:n], "SAME")
        stock = partial(lax.conv_general_dilated, dimension_numbers=names)
        close(
            jax.jit(partial(derivatives, lambda x, w, s=settings: conv_general_dilated(x, w, *s)))(
                x, w
            ),
            jax.jit(partial(derivatives, lambda x, w, s=settings, c=stock: c(x, w, *s)))(x, w),
        )


def test_gradient_matches_central_differences_in_float64(x64):
    x, w = arrays((5, 6), (3, 3), dtype=np.float64)
    u, v = jnp.cos(3 * x), jnp.sin(2 * w)

    def energy(x, w):
        return jnp.sum(jnp.tanh(conv_general_dilated(x, w, (2, 1), "SAME")))

    def slope(x, w):
        return jax.jvp(energy, (x, w), (u, v))[1]

    h = 1e-5
    for f in (energy, slope):
        gx, gw = jax.grad(f, (0, 1))(x, w)
        assert gx.dtype == jnp.float64
        numeric = (f(x + h * u, w + h * v) - f(x - h * u, w - h * v)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(gx * u) + jnp.sum(gw * v), numeric, rtol=1e-7)


def test_bfloat16_stays_bfloat16_and_is_near_float32():
    x, w = arrays((8, 8), (3, 3))
    narrow = [a.astype(jnp.bfloat16) for a in (x, w)]

    def f(x, w):
        return conv_general_dilated(x, w, (1, 1), "SAME")

    y, back = jax.vjp(f, *narrow)
    assert y.dtype == jnp.bfloat16 and all(g.dtype == jnp.bfloat16 for g in back(y))
    np.testing.assert_allclose(y.astype(jnp.float32), f(x, w), atol=0.1)


MAPS = {"x": (0, None), "w": (None, 0), "both": (0, 0), "last axes": (-1, 3)}


@pytest.mark.parametrize("axes", MAPS.values(), ids=MAPS)
def test_vmap_equals_a_loop(axes):
    random = np.random.default_rng(0)
    x, w = random.normal(size=(3, 2, 6, 5, 2)), random.normal(size=(3, 3, 2, 2, 4))
    x, w = x.astype(np.float32), w.astype(np.float32)
    f = partial(derivatives, lambda x, w: conv_general_dilated(x, w, (2, 1), "SAME"))
    xs = x if axes[0] is not None else np.broadcast_to(x[0], x.shape)
    ws = w if axes[1] is not None else np.broadcast_to(w[0], w.shape)
    want = jax.lax.map(lambda a: f(*a), (jnp.asarray(xs), jnp.asarray(ws)))
    x = x[0] if axes[0] is None else np.moveaxis(x, 0, axes[0])
    w = w[0] if axes[1] is None else np.moveaxis(w, 0, axes[1])
    close(jax.jit(jax.vmap(f, axes))(x, w), want)


def test_scan_map_checkpoint_and_nested_vmap_agree_with_the_plain_call():
    x, w = arrays((6, 6), (3, 3), (2, 2))

    def energy(x, w):
        return jnp.sum(jnp.sin(conv_general_dilated(x, w, (1, 1), "SAME")))

    def descend(x, w):
        step = jax.checkpoint(lambda w, _: (w - 0.1 * jax.grad(energy, 1)(x, w), None))
        return energy(x, lax.scan(step, w, None, length=3)[0])

    def unrolled(x, w):
        def f(x, w):
            return jnp.sum(jnp.sin(plain(x, w, (1, 1), "SAME")))

        for _ in range(3):
            w = w - 0.1 * jax.grad(f, 1)(x, w)
        return f(x, w)

    close(jax.jit(jax.grad(descend, (0, 1)))(x, w), jax.jit(jax.grad(unrolled, (0, 1)))(x, w))
    images, kernels = jnp.stack([x, 2 * x]), jnp.stack([w, w + 1, 3 * w])
    nested = jax.vmap(jax.vmap(jax.grad(energy, 1), (None, 0)), (0, None))(images, kernels)
    want = [[jax.grad(energy, 1)(x, w) for w in kernels] for x in images]
    close(nested, jnp.array(want))


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_with_shared_kernel_and_with_shared_images(check_vma):
    mesh = jax.make_mesh((4,), ("restart",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = arrays((5, 5), (3, 3))
    xs, ws = jnp.stack([x, 2 * x, -x, x + 1]), jnp.stack([w, 3 * w, w - 1, -w])

    def energy(x, w):
        return jnp.sum(jnp.sin(conv_general_dilated(x, w, (1, 1), "SAME")))

    def sharded(f, *specs):
        return jax.jit(
            jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("restart"), check_vma=check_vma)
        )

    one = sharded(lambda x, w: lax.map(lambda x: jax.grad(energy)(x, w), x), P("restart"), P())
    close(one(xs, w), jnp.stack([jax.grad(energy)(x, w) for x in xs]))
    two = sharded(lambda x, w: lax.map(lambda w: jax.grad(energy, 1)(x, w), w), P(), P("restart"))
    close(two(x, ws), jnp.stack([jax.grad(energy, 1)(x, w) for w in ws]))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 0), (5, 3, 1), (2, 2, 1)])
def test_transposed_convolution_is_the_transpose(kernel, stride, padding):
    layer = ConvTranspose(3, kernel, stride=stride, padding=padding)
    x, _ = arrays((4, 5), (1, 1))
    variables = layer.init(jax.random.key(0), x)
    y = layer.apply(variables, x)
    full = np.zeros((2, *((n - 1) * stride + kernel for n in (4, 5)), 3), np.float32)
    weight = variables["params"]["kernel"][::-1, ::-1]
    for i, j in np.ndindex(4, 5):
        patch = np.einsum("ni,klio->nklo", x[:, i, j], weight)
        full[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel] += patch
    h, w = full.shape[1:3]
    want = full[:, padding : h - padding, padding : w - padding]
    close(y, want + variables["params"]["bias"].reshape(1, 1, 1, -1))
    kernels, pad = variables["params"]["kernel"], kernel - 1 - padding
    stock = lax.conv_transpose(x, kernels, (stride,) * 2, [(pad, pad)] * 2, dimension_numbers=NHWC)
    close(want, stock)
    bound = (3 * kernel**2) ** -0.5
    assert 0.5 * bound < jnp.abs(kernels).max() <= bound


def test_what_is_not_supported_is_one_clear_line():
    x, w = arrays((4, 4), (3, 3), (4, 4))
    with pytest.raises(InputError, match="feature_group_count=2 with 4 channels"):
        conv_general_dilated(x, w[:, :, :2], (1, 1), "SAME", feature_group_count=2)
    with pytest.raises(InputError, match="channels-last"):
        conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    with pytest.raises(InputError, match="does not fit"):
        conv_general_dilated(x[:, :2, :2], w, (1, 1), "VALID")


# --- the layout of lowered code ------------------------------------------------------------------

CANONICAL = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"


def small_net(conv, params, x):
    y = jax.nn.relu(conv(x, params["first"], (1, 1), "SAME"))
    y = jax.nn.relu(conv(y, params["second"], (2, 2), [(1, 1), (1, 1)]))
    return y.mean((1, 2)) @ params["linear"]


def convolutions(conv):
    """The lowered ones of a training step in a scan, differentiated again by the images."""
    params = {"first": jnp.ones((3, 3, 1, 4)), "second": jnp.ones((3, 3, 4, 6))}
    params["linear"] = jnp.ones((6, 3))
    x = jnp.ones((2, 8, 8, 1))

    def loss(params, x):
        return jnp.sum(jax.nn.softmax(small_net(conv, params, x)) ** 2)

    def train(x):
        def step(params, _):
            gradient = jax.grad(loss)(params, x)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), None

        return loss(lax.scan(step, params, None, length=3)[0], x)

    def crafted(x):
        tangent = jax.grad(loss)(params, x)
        matched = jax.jvp(lambda p: jax.grad(loss, 1)(p, x), (params,), (tangent,))[1]
        return jax.grad(train)(x) + matched

    text = jax.jit(lambda x: lax.map(crafted, x)).lower(x[None]).as_text()
    lines = re.findall(r"stablehlo\.convolution.*", text)
    assert len(lines) > 20 and "stablehlo.while" in text
    return lines


def odd_convolutions(conv):
    """Those that are not canonical."""
    lines = convolutions(conv)
    groups = [re.search(r"feature_group_count = (\d+)", line).group(1) for line in lines]
    return [a for a, g in zip(lines, groups, strict=True) if CANONICAL not in a or g != "1"]


def test_twice_differentiated_training_in_a_scan_is_canonical_throughout():
    assert not odd_convolutions(conv_general_dilated)


def test_no_kernel_of_a_second_derivative_is_larger_than_its_image():
    def areas(line):
        shapes = re.findall(r"tensor<([\dx]+)xf32>", line)[:2]
        (_, height, width, _), (tall, wide, *_) = (map(int, s.split("x")) for s in shapes)
        return height * width, tall * wide

    sizes = [areas(line) for line in convolutions(conv_general_dilated)]
    assert all(kernel <= image for image, kernel in sizes)
    assert any(kernel > image for image, kernel in map(areas, convolutions(plain)))


def test_it_is_canonical_in_groups_too(grouped):
    assert not odd_convolutions(conv_general_dilated)


def test_the_same_check_fails_on_the_stock_convolution():
    assert odd_convolutions(plain)


def test_other_platforms_keep_the_stock_convolution_and_its_derivatives():
    x, w = arrays((6, 6), (3, 3))
    f = jax.jit(jax.grad(lambda w: jnp.sum(conv_general_dilated(x, w, (1, 1), "SAME") ** 2)))
    on_gpu = f.trace(w).lower(lowering_platforms=("cuda",)).as_text()
    assert "[f, 0, 1, b]x[i, 0, 1, o]" in on_gpu
