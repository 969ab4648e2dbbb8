"""D-VAE: a variational auto-encoder with a second decoder for what the label says of an image."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.models.adapt import check_image_shape
from jaxpoison.models.conv_transpose import ConvTranspose
from jaxpoison.models.generators import compute_dtype
from jaxpoison.models.layers import conv, conv_norm, uniform_fan_in
from jaxpoison.models.resnet import BasicBlock
from jaxpoison.types import Disentangled, Disentangler, InputError, Variables

__all__ = ["DVAE", "dvae"]

AUX_INPUTS = ("z", "feature", "class")
EMBEDDINGS = ("spatial", "broadcast")


class _Size(NamedTuple):
    """One row of the table of encoders.

    Attributes:
      blocks: basic blocks of ResNet-18 before the latent code, two a stage.
      up: (features in units of the width or 0 for the image's channels, whether it doubles height
        and width, whether InstanceNorm and ReLU follow) of each transposed convolution.
    """

    blocks: int
    up: tuple[tuple[float, bool, bool], ...]

    @property
    def stages(self) -> int:
        return (self.blocks + 1) // 2


_UP2 = ((1, True, False), (1, False, True), (0.5, False, True), (0, False, False))
_UP4 = ((2, True, False), (2, False, True), (1, True, True), (0, False, False))
_UP8 = ((4, True, False), (2, False, True), (1, True, False), (0.5, False, True), (0, True, False))
SIZES = {7: _Size(3, _UP2), 9: _Size(4, _UP2), 11: _Size(5, _UP4), 13: _Size(6, _UP4),
         15: _Size(7, _UP8), 17: _Size(8, _UP8)}  # fmt: skip
"""By `stem_end_block`, the number of the released configurations."""


def dvae(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    width: int = 64,
    stem_end_block: int = 7,
    latent: int | None = None,
    aux_input: str | None = "z",
    embedding: str = "spatial",
    variational: bool = True,
    dtype: Any = jnp.float32,
) -> Disentangler:
    """First blocks of ResNet-18, a code, decoders D and D_p: 1,181,382 parameters on CIFAR-10.

    F = stem(x), mu = conv1x1(F), log_variance = conv1x1(F), z = conv1x1(mu + exp(lv / 2) noise),
    x^ = sigmoid(D(z)), p^ = D_p(u_y + z) with a table u of class embeddings. With w = width the
    code has 1/2 (7, 9), 1/4 (11, 13) or 1/8 (15, 17) of the image's height, F has 2w, 4w or 8w
    channels. 854,982 parameters with broadcast embedding.

    Source: Yu et al. 2024 (ICML) and released code, configuration ResNet18DVAE.

    Args:
      image_shape: (H, W, C); H and W multiples of 2, 4 or 8.
      num_classes: L, rows of u.
      width: w; the paper's is 64, 16 costs a sixteenth.
      stem_end_block: where the encoder ends: 7 and 9 in or after the second stage (CIFAR), 11 and
        13 the third, which have no D_p (so aux_input = None), 15 and 17 the fourth (15 for 224
        x 224).
      latent: Z, channels of the code; None for 4 w.
      aux_input: what D_p sees beside u_y: "z"; "feature", F, which no rate limits; "class",
        nothing; or None, the plain VAE without u and D_p.
      embedding: u_y as "spatial", one number for every place and channel, or "broadcast", one for
        every channel: the sensible one at 224 x 224, where the released code cannot run.
      variational: False is the plain auto-encoder of bottleneck Z: no log_variance, z = conv(mu).
      dtype: compute dtype; parameters, statistics, mu, log_variance, x^ and p^ stay float32.

    Returns: a Disentangler; it starts as PyTorch's layers do, u standard normal. Running variances
      are of the biased batch variance (PyTorch's unbiased one differs by 1 / (B H W)).
    Errors: InputError for a bad argument, D_p where there is none.
    """
    check.at_least(1, num_classes=num_classes, width=width)
    check.one_of(SIZES, stem_end_block=stem_end_block)
    check.one_of((*AUX_INPUTS, None), aux_input=aux_input)
    check.one_of(EMBEDDINGS, embedding=embedding)
    latent = 4 * width if latent is None else latent
    check.at_least(1, latent=latent)
    if SIZES[stem_end_block].up is _UP4 and aux_input is not None:
        raise InputError(
            f"aux_input = {aux_input!r}; stem_end_block = {stem_end_block} has no auxiliary "
            "decoder, so it must be None"
        )
    if not variational and aux_input is not None:
        raise InputError(f"aux_input = {aux_input!r}; an auto-encoder has none, it must be None")
    scale = 2 ** (SIZES[stem_end_block].stages - 1)
    shape = check_image_shape(image_shape, divisor=scale, name=f"dvae, block {stem_end_block}")
    module = DVAE(
        shape[2], int(num_classes), int(width), stem_end_block, int(latent), aux_input, embedding,
        variational, compute_dtype(dtype),
    )  # fmt: skip
    code = (shape[0] // scale, shape[1] // scale, int(latent))
    return _adapted(module, shape, code, int(num_classes))


def _adapted(module: "DVAE", shape: Any, code: Any, num_classes: int) -> Disentangler:
    def init(key):
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        label = jax.ShapeDtypeStruct((1,), jnp.int32)
        made = unfreeze(module.lazy_init(key, image, label, None, train=False))
        return Variables(made["params"], made["batch_stats"])

    def apply(variables, image, label, noise, *, train):
        if image.shape[1:] != shape:
            raise InputError(f"images are {image.shape}, the network takes (batch, *{shape})")
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise InputError(f"images are {image.dtype}: pass floats in [0, 1] (types.as_float)")
        collections = {"params": variables.params, "batch_stats": variables.stats}
        if not train:
            made: Any = module.apply(collections, image, label, noise, train=False)
            return made, variables.stats
        found: Any = module.apply(
            collections, image, label, noise, train=True, mutable=["batch_stats"]
        )
        return found[0], unfreeze(found[1])["batch_stats"]

    return Disentangler(init, apply, shape, code, num_classes)


class DVAE(nn.Module):
    """See `dvae`."""

    channels: int = 3
    num_classes: int = 10
    width: int = 64
    end: int = 7
    latent: int = 256
    aux_input: str | None = "z"
    embedding: str = "spatial"
    variational: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        label: Int[Array, " b"],
        noise: Float[Array, "b y x z"] | None,
        *,
        train: bool,
    ) -> Disentangled:
        """Images, labels and the code's noise (None: its mean) -> what D-VAE makes of them."""
        feature = self._stem(image.astype(self.dtype), train=train)
        code = mean = _wide(conv(feature, self.latent, 1, dtype=self.dtype, name="mean"))
        log_variance = None
        if self.variational:
            log_variance = _wide(
                conv(feature, self.latent, 1, dtype=self.dtype, name="log_variance")
            )
            if noise is not None:
                code = mean + jnp.exp(log_variance / 2) * noise.astype(mean.dtype)
        z = conv(code.astype(self.dtype), feature.shape[-1], 1, dtype=self.dtype, name="post")
        made = nn.sigmoid(_wide(self._decode(z, "image")))
        if self.aux_input is None:
            return Disentangled(made, None, mean, log_variance)
        own = self._embed(label, z.shape[1:])
        beside = {"z": z, "feature": feature, "class": jnp.zeros_like(z)}[self.aux_input]
        perturbation = _wide(self._decode(own + beside, "perturbation"))
        return Disentangled(made, perturbation, mean, log_variance)

    def _stem(self, x: Array, *, train: bool) -> Array:
        kind = {"dtype": self.dtype, "kernel_init": uniform_fan_in}
        x = nn.relu(conv_norm(x, self.width, 3, train=train, name="_stem", **kind))
        for i in range(SIZES[self.end].blocks):
            stage = i // 2
            stride = 2 if stage and i % 2 == 0 else 1
            name = f"stage{stage + 1}_block{i % 2 + 1}"
            x = BasicBlock(self.width * 2**stage, stride, name=name, **kind)(x, train=train)
        return x

    def _decode(self, x: Array, name: str) -> Array:
        """Transposed convolutions k4 s2 p1 and k3 s1 p1; InstanceNorm without parameters."""
        for i, (factor, doubles, norm) in enumerate(SIZES[self.end].up, 1):
            features = math.ceil(factor * self.width) or self.channels
            kernel, stride = (4, 2) if doubles else (3, 1)
            x = ConvTranspose(features, kernel, stride, 1, dtype=self.dtype, name=f"{name}_up{i}")(
                x
            )
            if norm:
                layer = nn.InstanceNorm(
                    1e-5, use_bias=False, use_scale=False, use_fast_variance=False,
                    dtype=self.dtype,
                )  # fmt: skip
                x = nn.relu(layer(x))
        return x

    def _embed(self, label: Array, shape: tuple[int, ...]) -> Array:
        """u_y as a product with the labels' indicators: its gradient adds up in a fixed order."""
        place = shape if self.embedding == "spatial" else (1, 1, shape[-1])
        start = nn.initializers.normal(1.0)
        table = self.param("embedding", start, (self.num_classes, math.prod(place)))
        chosen = jax.nn.one_hot(label, self.num_classes, dtype=table.dtype)
        own = jnp.matmul(chosen, table, precision=lax.Precision.HIGHEST)
        own = own.reshape(-1, *place).astype(self.dtype)
        return jnp.broadcast_to(own, (label.shape[0], *shape))


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
