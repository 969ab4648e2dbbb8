"""LSP, linearly separable perturbations (Yu et al. 2022): class-structured Gaussian patches.

u = A_y^T z + centroid_y,  delta = B * upsample(u) / ||upsample(u)||_2,  x' = clip(x + delta, 0, 1)

Threat model: training images change by at most B in L2, labels stay; no model is needed.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check
from jaxpoison.attacks.bilevel import closed_form, of_classes
from jaxpoison.perturb import Budget, per_sample
from jaxpoison.types import Attack, InputError, Key, as_float

__all__ = ["lsp", "lsp_noise"]

CLASS_SEP = 10.0  # half the side of the hypercube whose vertices are the class centers


def lsp(*, eps: float | Float[Array, ""] = 1.0, num_classes: int, patch: int = 8) -> Attack:
    """Poisons whose noise alone is linearly separable by class.

    Args:
      eps: B, the L2 norm over one image, pixel units: 1.0 in comparisons of defenses,
        sqrt(H W C) 6/255 (1.304 on CIFAR) in the paper.
      num_classes: L.
      patch: p, side of the constant cells; divides H and W (8 on CIFAR, 32 at 224 pixels).

    Returns: an Attack without steps; theta is the noise after the image box.
    Raises: InputError for a bad value; at init if p does not divide the image or the
      2^(H W C / p^2) vertices are fewer than the classes.
    Source: Yu et al. 2022 and released code.
    """
    budget = Budget("l2", eps)
    check.at_least(2, num_classes=num_classes)
    check.at_least(1, patch=patch)
    space = per_sample(budget)

    def init(key, scenario):
        clean = as_float(scenario.train.image[scenario.index])
        label = scenario.train.label[scenario.index]
        noise = lsp_noise(
            key, label, image_shape=clean.shape[1:], eps=eps, num_classes=num_classes, patch=patch
        )
        return jnp.clip(clean + noise, 0, 1) - clean

    return closed_form(space._replace(init=init))._replace(check=of_classes(num_classes))


def lsp_noise(
    key: Key,
    label: Int[Array, " n"],
    *,
    image_shape: tuple[int, ...],
    eps: float | Float[Array, ""],
    num_classes: int,
    patch: int,
) -> Float[Array, "n h w c"]:
    """The noise before it meets the image box: exact L2 norm eps, constant on p x p cells.

    Args:
      key: one draw of centers, mixing matrices, feature order and samples.
      label: [N].
      image_shape: (H, W, C).
      eps: B.
      num_classes: L.
      patch: p.

    Returns: [N, H, W, C].
    Raises: InputError as in `lsp`.
    """
    height, width, channels = image_shape
    if height % patch or width % patch:
        raise InputError(f"patch = {patch} does not divide the {height} x {width} image")
    cells = (height // patch, width // patch, channels)
    size = math.prod(cells)
    if 2**size < num_classes:
        raise InputError(
            f"patch = {patch} leaves {size} cells, too few for {num_classes} classes; "
            f"a smaller patch is needed"
        )
    center_key, mix_key, sample_key, order_key = jax.random.split(key, 4)
    center = _vertices(center_key, num_classes, size)
    mix = jax.random.uniform(mix_key, (num_classes, size, size), minval=-1.0, maxval=1.0)
    z = jax.random.normal(sample_key, (label.shape[0], size))

    def of_class(total, c):
        return total + jnp.where((label == c)[:, None], z @ mix[c] + center[c][None], 0.0), None

    u, _ = lax.scan(of_class, jnp.zeros_like(z), jnp.arange(num_classes))
    u = u[:, jax.random.permutation(order_key, size)].reshape(-1, *cells)
    noise = jnp.repeat(jnp.repeat(u, patch, axis=1), patch, axis=2)
    length = jnp.sqrt(jnp.sum(noise**2, axis=(1, 2, 3), keepdims=True))
    return eps * noise / length


def _vertices(key, num: int, size: int) -> Float[Array, "l m"]:
    """`num` different vertices of {-CLASS_SEP, CLASS_SEP}^size: those that repeat are redrawn.

    The final draw is uniform over all choices, since no step tells one vertex from another.
    """

    def draw(attempt):
        return jax.random.bernoulli(jax.random.fold_in(key, attempt), shape=(num, size))

    def repeats(bits):  # an earlier row is the same
        same = jnp.all(bits[:, None] == bits[None], axis=-1)
        return jnp.any(jnp.tril(same, -1), axis=1)

    def again(carry):
        attempt, bits = carry
        return attempt + 1, jnp.where(repeats(bits)[:, None], draw(attempt), bits)

    _, bits = lax.while_loop(lambda carry: jnp.any(repeats(carry[1])), again, (1, draw(0)))
    return jnp.where(bits, CLASS_SEP, -CLASS_SEP)
