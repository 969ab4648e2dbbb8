"""What D-VAE is made of (Yu et al. 2024): its loss, what it predicts of images, one purifying pass.

L = L_rec + L_sum + L_rate + [late] L_mag, with x^ and p^ of a `types.Disentangler`:
L_rec = mean (x^ - x)^2, L_sum = mean (clip(x^ + p^) - x)^2, L_rate = w max(KLD, k),
L_mag = max(mean p^2, floor).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num, UInt8

from jaxpoison import check, tree
from jaxpoison.types import (
    Dataset,
    Disentangled,
    Disentangler,
    InputError,
    Key,
    Variables,
    as_float,
)

__all__ = [
    "OUTPUTS",
    "QUANTS",
    "Terms",
    "disentangle",
    "disentangling_loss",
    "gaussian_kld",
    "perturbations",
    "purified_images",
]

OUTPUTS = ("x-p", "rec", "two_stage")
QUANTS = ("trunc", "round")


class Terms(NamedTuple):
    """The loss of a batch and its parts.

    Attributes:
      loss: L.
      reconstruction: L_rec.
      sum: L_sum; L_rec of a plain VAE, where it is no part of L.
      kld: nats per latent position; 0 of an auto-encoder.
      magnitude: mean p^2; 0 of a plain VAE.
      psnr: of x^ against x, mean over images of 10 log10(1 / MSE), decibels.
      psnr_sum: of clip(x^ + p^) against x.
    """

    loss: Float[Array, "..."]
    reconstruction: Float[Array, "..."]
    sum: Float[Array, "..."]
    kld: Float[Array, "..."]
    magnitude: Float[Array, "..."]
    psnr: Float[Array, "..."]
    psnr_sum: Float[Array, "..."]


def gaussian_kld(
    mean: Float[Array, "b h w z"], log_variance: Float[Array, "b h w z"]
) -> Float[Array, ""]:
    """-1/2 sum over channels of (1 + lv - mu^2 - exp(lv)), mean over batch and positions; nats."""
    inside = 1 + log_variance - mean**2 - jnp.exp(log_variance)
    return jnp.mean(-0.5 * jnp.sum(inside, axis=-1))


def disentangling_loss(
    made: Disentangled,
    image: Float[Array, "b h w c"],
    *,
    target: float | Float[Array, ""],
    weight: float | Float[Array, ""],
    floor: float | Float[Array, ""] = 0.002,
    gate: float | Float[Array, ""] = 1.0,
) -> Terms:
    """L = L_rec + L_sum + w max(KLD, k) + gate max(mean p^2, floor); see the module.

    Without p^ there is neither L_sum nor L_mag, without a variance no L_rate. Both maxima have no
    gradient below their floor.

    Args:
      made: what the network makes of the batch.
      image: x in [0, 1].
      target: k, nats per latent position.
      weight: w.
      floor: of mean p^2: no price up to it.
      gate: 1 where L_mag counts, 0 where not (the first epochs).

    Source: Yu et al. 2024, eq. 14 and released code.
    """
    square = (made.image - image) ** 2
    reconstruction = jnp.mean(square)
    psnr = _psnr(square)
    zero = jnp.zeros_like(reconstruction)
    loss, kld = reconstruction, zero
    if made.log_variance is not None:
        kld = gaussian_kld(made.mean, made.log_variance).astype(loss.dtype)
        loss = loss + weight * _hinge(kld, target)
    if made.perturbation is None:
        return Terms(loss, reconstruction, reconstruction, kld, zero, psnr, psnr)
    both = (jnp.clip(made.image + made.perturbation, 0, 1) - image) ** 2
    total, magnitude = jnp.mean(both), jnp.mean(made.perturbation**2)
    loss = loss + total + gate * _hinge(magnitude, floor)
    return Terms(loss, reconstruction, total, kld, magnitude, psnr, _psnr(both))


def disentangle(
    network: Disentangler,
    variables: Variables,
    image: Float[Array, "b h w c"],
    label: Int[Array, " b"],
    *,
    key: Key | None = None,
    rows: Int[Array, " b"] | None = None,
    input_noise_std: float = 0.0,
) -> Disentangled:
    """x^, p^, mu and log-variance of one batch, eval mode.

    Args:
      network: the D-VAE.
      variables: its arrays.
      image: x in [0, 1].
      label: y, which p^ reads.
      key: of the latent noise, `fold_in(key, row)` for each row, so that a row's does not depend on
        its batch; None takes the mean of the code.
      rows: numbers of the rows in their set; None for 0, 1, ...
      input_noise_std: of Gaussian noise on what the encoder sees; it needs a key.
    """
    noise, seen = None, image
    if key is not None:
        rows = jnp.arange(image.shape[0]) if rows is None else rows
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        noise = jax.vmap(lambda k: jax.random.normal(k, network.latent_shape))(keys)
        if input_noise_std:
            more = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 1), image.shape[1:]))
            seen = image + input_noise_std * more(keys).astype(image.dtype)
    return network.apply(variables, seen, label, noise, train=False)[0]


def perturbations(
    network: Disentangler,
    variables: Variables,
    dataset: Dataset,
    *,
    key: Key | None = None,
    input_noise_std: float = 0.0,
    batch_size: int = 500,
) -> Float[Array, "n h w c"]:
    """p^ of every row, pixel units; clip(clean + p^) is a poison of its own (paper, section 4.2).

    Args:
      network: with a branch for p^.
      variables: of a fit to the poisoned set: of two stages `state.other` (stage one's) or
        `state.phi.variables`.
      dataset: its N rows.
      key: as in `disentangle`, like input_noise_std.
      input_noise_std: as there.
      batch_size: rows at a time, memory.

    Errors: InputError for a network without p^.
    """
    check.at_least(1, batch_size=batch_size)
    check_perturbs(network)
    own = key, input_noise_std

    def found(image, label, rows):
        return _some(network, variables, own, image, label, rows).perturbation

    return _each_batch(found, dataset, batch_size)


def purified_images(
    network: Disentangler,
    variables: Variables,
    dataset: Dataset,
    *,
    key: Key | None = None,
    output: str = "x-p",
    quant: str = "trunc",
    input_noise_std: float = 0.0,
    batch_size: int = 500,
) -> UInt8[Array, "n h w c"]:
    """One pass over a set, every row once and in its order, as grey levels.

    "x-p": clip(x - p^), what stage one of D-VAE gives. "rec": x^, the reconstruction. "two_stage":
    x' = clip(x - p^) in float, then x^ of x' with latent noise of its own, what stage two gives.

    Args:
      network: the D-VAE.
      variables: its arrays.
      dataset: N rows, uint8.
      key: as in `disentangle`, like input_noise_std.
      output: one of the three; "x-p" and "two_stage" need a network with p^.
      quant: floor(255 v) as released ("trunc"; it darkens by half a level), or "round".
      input_noise_std: as in `disentangle`.
      batch_size: rows at a time; changes memory, and the last bits.

    Source: Yu et al. 2024, section 4.3 and released code.
    Errors: InputError for a bad word, and for a network without p^ where it is needed.
    """
    check.at_least(1, batch_size=batch_size)
    check.one_of(OUTPUTS, output=output)
    check.one_of(QUANTS, quant=quant)
    if output != "rec":
        check_perturbs(network)
    keys = (None, None) if key is None else tuple(jax.random.split(key))

    def purify(image, label, rows):
        value = as_float(image)
        if output != "rec":
            own = keys[0], input_noise_std
            seen: Any = _some(network, variables, own, value, label, rows)
            value = jnp.clip(value - seen.perturbation, 0, 1)
        if output != "x-p":
            own = keys[1], input_noise_std
            value = jnp.clip(_some(network, variables, own, value, label, rows).image, 0, 1)
        level = jnp.floor(255 * value) if quant == "trunc" else jnp.round(255 * value)
        return level.astype(jnp.uint8)

    return _each_batch(purify, dataset, batch_size)


def check_perturbs(network: Disentangler) -> None:
    """An InputError for a plain VAE: it predicts no perturbation."""
    image = jax.ShapeDtypeStruct((1, *network.image_shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    made = jax.eval_shape(
        lambda v, x, y: network.apply(v, x, y, None, train=False)[0], variables, image, label
    )
    if made.perturbation is None:
        raise InputError(
            "the network predicts no perturbation (aux_input = None): its output can only be 'rec'"
        )


def check_rows(network: Disentangler, dataset: Dataset) -> None:
    """An InputError unless these are uint8 images and labels that the network takes."""
    shape, dtype = dataset.image.shape[1:], dataset.image.dtype
    if shape != network.image_shape:
        raise InputError(f"images are {shape}; the D-VAE was built for {network.image_shape}")
    if dtype != np.uint8:
        raise InputError(f"images are {dtype}; this purifier takes uint8 grey levels")
    if isinstance(dataset.label, jax.core.Tracer):
        return
    low, high = int(np.min(dataset.label)), int(np.max(dataset.label))
    if low < 0 or high >= network.num_classes:
        raise InputError(
            f"labels run from {low} to {high}; the D-VAE was built for 0 to "
            f"{network.num_classes - 1}"
        )


def _some(network, variables, own, image, label, rows) -> Disentangled:
    key, std = own
    return disentangle(
        network, variables, as_float(image), label, key=key, rows=rows, input_noise_std=std
    )


def _each_batch(fn, dataset: Dataset, batch_size: int) -> Num[Array, "n h w c"]:
    """fn(image, label, row numbers) of every row, in order."""
    image, label = jnp.asarray(dataset.image), jnp.asarray(dataset.label)
    num = label.shape[0]
    parts, _ = tree.batches((image, label, jnp.arange(num)), batch_size)
    made = lax.map(lambda part: fn(*part), parts)
    return made.reshape(-1, *made.shape[2:])[:num]


def _hinge(value: Array, least: float | Array) -> Array:
    return jnp.where(value > least, value, least).astype(value.dtype)


def _psnr(square: Float[Array, "b h w c"]) -> Float[Array, ""]:
    """Mean over images; a gradient is never taken of it."""
    error = lax.stop_gradient(jnp.mean(square, axis=(1, 2, 3)))
    return jnp.mean(-10 * jnp.log10(jnp.maximum(error, 1e-10)))
