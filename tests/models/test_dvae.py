"""D-VAE's network: sizes, starting values, what each branch reads, and PyTorch's values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpoison as jp
from tests.models.miniatures import filled

CIFAR, SMALL, KEY = (32, 32, 3), (8, 8, 3), jax.random.key(0)

STEM7 = 1_728 + 128 + 147_456 + 512 + 229_376 + 768
BLOCK8 = 9 * 2 * 128 * 128 + 4 * 128  # the second block of the second stage
STAGE3 = 9 * (128 * 256 + 3 * 256 * 256) + 128 * 256 + 10 * 256
STAGE4 = 9 * (256 * 512 + 3 * 512 * 512) + 256 * 512 + 10 * 512
BLOCK3 = 9 * (128 * 256 + 256 * 256) + 128 * 256 + 6 * 256  # the first of the third stage
BLOCK4 = 9 * (256 * 512 + 512 * 512) + 256 * 512 + 6 * 512
UP4 = 16 * 256 * 128 + 128 + (9 * 128 * 128 + 128) + (16 * 128 * 64 + 64) + 9 * 64 * 3 + 3
UP8 = (16 * 512 * 256 + 256) + (9 * 256 * 128 + 128) + (16 * 128 * 64 + 64)
UP8 += (9 * 64 * 32 + 32) + (16 * 32 * 3 + 3)
SIZES = {  # (shape, options): (parameters, code)
    (CIFAR, ()): (1_181_382, (16, 16, 256)),
    (CIFAR, (("embedding", "broadcast"),)): (854_982, (16, 16, 256)),
    (CIFAR, (("aux_input", None),)): (STEM7 + 2 * 33_024 + 32_896 + 187_395, (16, 16, 256)),
    (CIFAR, (("variational", False), ("aux_input", None), ("latent", 8))): (
        STEM7 + 129 * 8 + 9 * 128 + 187_395,
        (16, 16, 8),
    ),
    (CIFAR, (("stem_end_block", 9),)): (1_181_382 + BLOCK8, (16, 16, 256)),
    (CIFAR, (("stem_end_block", 11), ("aux_input", None))): (
        STEM7 + BLOCK8 + BLOCK3 + 3 * 257 * 256 + UP4,
        (8, 8, 256),
    ),
    (CIFAR, (("stem_end_block", 13), ("aux_input", None))): (
        STEM7 + BLOCK8 + STAGE3 + 3 * 257 * 256 + UP4,
        (8, 8, 256),
    ),
    ((224, 224, 3), (("stem_end_block", 15),)): (
        STEM7 + BLOCK8 + STAGE3 + BLOCK4 + 2 * 513 * 256 + 257 * 512 + 2 * UP8 + 10 * 401_408,
        (28, 28, 256),
    ),
    ((224, 224, 3), (("stem_end_block", 17), ("embedding", "broadcast"))): (
        STEM7 + BLOCK8 + STAGE3 + STAGE4 + 2 * 513 * 256 + 257 * 512 + 2 * UP8 + 5_120,
        (28, 28, 256),
    ),
}


@pytest.mark.parametrize("row", SIZES, ids=str)
def test_number_of_parameters_and_shapes(row):
    (shape, options), (count, code) = row, SIZES[row]
    network = jp.models.dvae(shape, 10, **dict(options))
    assert jp.models.num_params(network) == count and isinstance(hash(network), int)
    assert (network.image_shape, network.latent_shape, network.num_classes) == (shape, code, 10)
    variables = jax.eval_shape(network.init, KEY)
    image, label = jax.ShapeDtypeStruct((2, *shape), jnp.float32), jnp.zeros(2, jnp.int32)
    noise = jax.ShapeDtypeStruct((2, *code), jnp.float32)
    apply = functools.partial(network.apply, train=True)
    made, stats = jax.eval_shape(apply, variables, image, label, noise)
    assert made.image.shape == (2, *shape) and made.mean.shape == (2, *code)
    assert (made.perturbation is None) == (dict(options).get("aux_input", "z") is None)
    assert (made.log_variance is None) == (not dict(options).get("variational", True))
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, variables.stats)


@pytest.mark.usefixtures("quick_compile")
def test_layers_start_as_pytorchs():
    """Bounds of reference networks: 1 / sqrt(fan_in), and of the output side when transposed."""
    params = jax.jit(jp.models.dvae(SMALL, 2, width=4).init)(KEY).params
    fan = {"conv_stem": 27, "mean": 8, "log_variance": 8, "post": 16}
    fan |= {f"{d}_up{i}": n for d in ("image", "perturbation")
            for i, n in ((1, 16 * 4), (2, 9 * 4), (3, 9 * 2), (4, 9 * 3))}  # fmt: skip
    for name, size in fan.items():
        for part in params[name].values():
            top = float(jnp.max(jnp.abs(part)))
            assert (0.7 if part.size > 20 else 0.2) < top * size**0.5 <= 1 + 1e-6, name
    for block, size in (("stage1_block1", 36), ("stage2_block1", 36)):
        top = float(jnp.max(jnp.abs(params[block]["conv1"]["kernel"])))
        assert 0.9 < top * size**0.5 <= 1 + 1e-6
    table = params["embedding"]
    assert table.shape == (2, 4 * 4 * 8) and 0.85 < float(jnp.std(table)) < 1.15


def inputs(num=4):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.uniform(size=(num, *SMALL)), jnp.float32)
    noise = jnp.asarray(rng.normal(size=(num, 4, 4, 8)), jnp.float32)
    return image, jnp.array([0, 1, 0, 2], jnp.int32)[:num], noise


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("aux_input", ("z", "feature", "class"))
def test_what_the_perturbation_reads(aux_input):
    network = jp.models.dvae(SMALL, 3, width=2, aux_input=aux_input)
    image, label, noise = inputs()
    apply = jax.jit(functools.partial(network.apply, train=False))
    variables = filled(network)

    def found(image=image, label=label, noise=noise):
        return apply(variables, image, label, noise)[0]

    def moves(**change):
        return bool(jnp.max(jnp.abs(found(**change).perturbation - found().perturbation)) > 1e-4)

    assert moves(label=(label + 1) % 3)
    assert moves(image=image[::-1]) == (aux_input != "class")
    assert moves(noise=noise[::-1]) == (aux_input == "z")
    other = found(label=(label + 1) % 3)
    np.testing.assert_array_equal(other.image, found().image)  # x^ does not read the label
    half = found(noise=noise / 2)
    assert jnp.any(half.image != found().image)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("train", (True, False))
def test_values_are_those_of_pytorch(train):
    torch = pytest.importorskip("torch")
    from torch.nn import functional as F

    network, (image, label, noise) = jp.models.dvae(SMALL, 3, width=2), inputs()
    variables = filled(network)
    made, _ = jax.jit(functools.partial(network.apply, train=train))(variables, image, label, noise)
    params = jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64)), variables.params)
    stats = jax.tree.map(lambda x: torch.tensor(np.asarray(x, np.float64)), variables.stats)

    def conv(x, p, **how):
        return F.conv2d(x, p["kernel"].permute(3, 2, 0, 1), p.get("bias"), **how)

    def norm(x, p, s):
        return F.batch_norm(x, s["mean"].clone(), s["var"].clone(), p["scale"], p["bias"], train)

    def block(x, name, stride):
        p, s = params[name], stats[name]
        y = F.relu(norm(conv(x, p["conv1"], stride=stride, padding=1), p["norm1"], s["norm1"]))
        y = norm(conv(y, p["conv2"], padding=1), p["norm2"], s["norm2"])
        if stride == 2:
            x = conv(x, p["conv_shortcut"], stride=2)
            x = norm(x, p["norm_shortcut"], s["norm_shortcut"])
        return F.relu(x + y)

    def decode(x, name):
        for i, stride in enumerate((2, 1, 1, 1), 1):
            p = params[f"{name}_up{i}"]
            weight = p["kernel"].flip(0, 1).permute(2, 3, 0, 1)
            x = F.conv_transpose2d(x, weight, p["bias"], stride=stride, padding=1)
            x = F.relu(F.instance_norm(x)) if i in (2, 3) else x
        return x

    def nchw(x):
        return torch.tensor(np.asarray(x, np.float64)).permute(0, 3, 1, 2)

    x = conv(nchw(image), params["conv_stem"], padding=1)
    x = F.relu(norm(x, params["norm_stem"], stats["norm_stem"]))
    for name, stride in (("stage1_block1", 1), ("stage1_block2", 1), ("stage2_block1", 2)):
        x = block(x, name, stride)
    mean, log_variance = conv(x, params["mean"]), conv(x, params["log_variance"])
    z = conv(mean + torch.exp(log_variance / 2) * nchw(noise), params["post"])
    own = params["embedding"][torch.tensor(np.asarray(label)).long()].reshape(-1, 4, 4, 4)
    want = (torch.sigmoid(decode(z, "image")), decode(own.permute(0, 3, 1, 2) + z, "perturbation"),
            mean, log_variance)  # fmt: skip
    for ours, theirs in zip(made, want, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=2e-4, rtol=2e-4)


def test_wrong_arguments_are_one_clear_line():
    for options, line in (
        ({"stem_end_block": 5}, "stem_end_block = 5; allowed are 7, 9, 11, 13, 15, 17"),
        ({"stem_end_block": 11}, "aux_input = 'z'; stem_end_block = 11 has no auxiliary decoder"),
        ({"variational": False}, "aux_input = 'z'; an auto-encoder has none"),
        ({"aux_input": "y"}, "aux_input = 'y'; allowed are z, feature, class, None"),
        ({"embedding": "none"}, "embedding = 'none'; allowed are spatial, broadcast"),
        ({"width": 0}, "width = 0; it must be at least 1"),
        ({"dtype": "int8"}, "dtype = int8; it must be a floating dtype"),
    ):
        with pytest.raises(jp.InputError, match=f"^{line}"):
            jp.models.dvae(CIFAR, **options)
    with pytest.raises(jp.InputError, match="must be multiples of 2 for dvae"):
        jp.models.dvae((9, 9, 1))
    network = jp.models.dvae(SMALL, width=1)
    variables, label = jax.eval_shape(network.init, KEY), jnp.zeros(2, jnp.int32)
    for image, line in (
        (jnp.zeros((2, 6, 6, 3)), r"images are \(2, 6, 6, 3\), the network takes"),
        (jnp.zeros((2, *SMALL), jnp.uint8), "images are uint8: pass floats"),
    ):
        with pytest.raises(jp.InputError, match=f"^{line}"):
            network.apply(variables, image, label, None, train=False)
