"""Vision transformers: patches as words, a class token, equal blocks of attention and MLP."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxpoison import check
from jaxpoison.models.adapt import adapt, check_image_shape
from jaxpoison.models.layers import dense, logits
from jaxpoison.models.repeat import repeat
from jaxpoison.types import InputError, Victim

__all__ = ["EncoderBlock", "VisionTransformer", "vit_small"]

_normal = nn.initializers.normal(0.02)
_START = {"kernel_init": _normal, "zero_bias": True}


def vit_small(
    image_shape: Sequence[int],
    num_classes: int = 10,
    *,
    patch: int = 4,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    mlp: int | None = None,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Victim:
    """ViT-S: 21,342,346 parameters with patches of 4 (32x32x3, 10 classes).

    22,050,664 with `patch=16` on 224x224x3 and 1000 classes, the published ViT-S/16; `width=768,
    heads=12, patch=16` is ViT-B/16. Linear map of the patches, class token, learned positions;
    `depth` blocks x + attention(LN x), then x + MLP(LN x) with `mlp` GELUs; LN; linear on the class
    token.

    Source: Dosovitskiy et al. 2021, eq. 1-4; sizes of ViT-S in Touvron et al. 2021 (DeiT), table 1.
    For CIFAR this one has that encoder and patches of 4; `width=512, depth=6, heads=8, mlp=512,
    dropout=0.1` are the sizes of the ViT in the code of Liu et al. 2023 (ISS).

    Args:
      image_shape: (H, W, C); H and W multiples of `patch`.
      num_classes: L, at least 2.
      patch: side of a patch in pixels: 4 for 32x32 images, 16 for 224x224.
      width: D, numbers per patch, a multiple of `heads`.
      depth: how many blocks; from six on they are compiled once (`models.repeat`).
      heads: of the attention.
      mlp: units of the hidden layer of a block's MLP; None for 4 `width`.
      dropout: rate after the positions, the attention and both layers of the MLP; 0 for none.
      dtype: compute dtype; parameters and logits stay float32, as do the softmax of the attention
        and the moments of LN.
      mean: per channel, pixel units, subtracted first; None for zeros.
      std: per channel, pixel units, divided by; None for ones.

    Returns: a Victim without statistics; it needs a key in train mode if `dropout` is above 0.
      Weights start normal of standard deviation 0.02, biases at zero. Features are the class token.
    Errors: InputError for a bad argument.
    """
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, patch=patch, width=width, depth=depth, heads=heads)
    if mlp is not None:
        check.at_least(1, mlp=mlp)
    check.number(least=0, below=1, dropout=dropout)
    if width % heads:
        raise InputError(f"width = {width}; it must be a multiple of heads = {heads}")
    name = f"vit_small (patches of {patch})"
    shape = check_image_shape(image_shape, divisor=patch, name=name)
    module = VisionTransformer(num_classes, patch, width, depth, heads, mlp, float(dropout), dtype)
    return adapt(module, shape, mean=mean, std=std)


class VisionTransformer(nn.Module):
    """See `vit_small`."""

    num_classes: int = 10
    patch: int = 4
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp: int | None = None
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b l"]:
        """[B, H, W, C] -> logits [B, L]."""
        x = _dense(_patches(x.astype(self.dtype), self.patch), self.width, self.dtype, "patches")
        token = self.param("class_token", _normal, (1, 1, self.width))
        token = jnp.broadcast_to(token, (x.shape[0], 1, self.width)).astype(x.dtype)
        x = jnp.concatenate([token, x], axis=1)
        positions = self.param("positions", _normal, (1, *x.shape[1:]))
        x = (x + positions).astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        mlp = 4 * self.width if self.mlp is None else self.mlp
        block = partial(EncoderBlock, self.heads, mlp, self.dropout, self.dtype)
        x = repeat(block, self.depth, x, train=train, name="block")
        x = _layer_norm(x[:, 0], jnp.promote_types(x.dtype, jnp.float32), "norm_last")
        self.sow("intermediates", "features", x)
        return logits(x, self.num_classes, **_START, dtype=self.dtype, name="linear")


class EncoderBlock(nn.Module):
    """First x + attention(LN x), then x + MLP(LN x)."""

    heads: int
    mlp: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], *, train: bool) -> Float[Array, "b n d"]:
        """[B, N, D] -> [B, N, D]."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = nn.MultiHeadDotProductAttention(
            self.heads,
            dtype=self.dtype,
            kernel_init=_normal,
            force_fp32_for_softmax=True,
            name="attention",
        )
        x = x + drop(attention(_layer_norm(x, self.dtype, "norm1")))
        y = _dense(_layer_norm(x, self.dtype, "norm2"), self.mlp, self.dtype, "mlp1")
        y = drop(nn.gelu(y, approximate=False))
        return x + drop(_dense(y, x.shape[-1], self.dtype, "mlp2"))


def _patches(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b n d"]:
    """[B, H, W, C] -> [B, (H / side) (W / side), side^2 C], row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3)
    return x.reshape(b, (h // side) * (w // side), side * side * c)


def _dense(x: Array, features: int, dtype: Any, name: str) -> Array:
    return dense(x, features, **_START, dtype=dtype, name=name)


def _layer_norm(x: Array, dtype: Any, name: str) -> Array:
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)(x)
