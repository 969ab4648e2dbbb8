"""D-VAE: two disentangling VAEs, one after the other (Yu et al. 2024, ICML).

Stage one: a VAE of low rate (k = 1) learns x^ and p^; x1 = clip(x - p^(x, y)), as grey levels.
Stage two: a fresh one of higher rate (k = 3) learns from x1; x' = clip(x1 - p^), x2 = x^(x').
Victims train on x2 and the labels; test images stay. No clean image is needed.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, tree
from jaxpoison.defenses.disentangling import (
    OUTPUTS,
    QUANTS,
    check_perturbs,
    check_rows,
    disentangling_loss,
    purified_images,
)
from jaxpoison.types import (
    Dataset,
    Disentangler,
    InputError,
    Purifier,
    TrainState,
    Variables,
    as_float,
)

__all__ = ["DVAEInfo", "DVAESettings", "DVAEState", "dvae"]

OPTIMIZERS = {"adam": optax.scale_by_adam, "sgd": optax.identity}
SMALL_TARGET = 0.99


@dataclasses.dataclass(frozen=True)
class DVAESettings:
    """How D-VAE is fitted and what it gives; the defaults are those of CIFAR-10.

    Attributes:
      epochs: E of each stage: 60 on CIFAR-10, 100 on CIFAR-100, 20 on a subset of ImageNet.
      batch_size: B, shuffled, the last partial batch left out; smaller sets are one batch.
      learning_rate: r; at epoch e of a stage r (1 + cos(pi e / E)) / 2.
      optimizer: "adam" (0.9, 0.999, 1e-8), or "sgd" without momentum: of auto-encoders, at 0.1.
      clip_norm: of the gradient, all leaves together.
      kld_targets: k of each stage, nats per latent position; one number is one stage.
      kld_weight: w of targets above 0.99.
      small_target_weight: w of smaller targets.
      mag_floor: mean square of p^ that costs nothing; of 8/255, scale it by (eps / 8)^2.
      mag_start_epoch: 0-based first epoch of a stage with L_mag; None is 11, and of less than 60
        epochs 1 + round(10 E / 60), of ImageNet's 20 too, where the code has 11; E or more is the
        ablation without L_mag.
      output: "two_stage", subtract then reconstruct, by the last stage; "x-p" or "rec", what the
        last stage subtracts or reconstructs.
      sample_latent: whether purification draws the latent code, as released, or takes its mean; the
        fit always draws.
      quant: of each stage's output: "trunc", floor(255 v) as released, or "round".
      input_noise_std: of Gaussian noise on what the encoder sees, in the fit and in purification
        where that draws; comments in the released code name 0.062 and 0.093 for REM.
      purify_batch: rows at a time where images are purified, in memory.

    Source: Yu et al. 2024 and released code (main_vae_disentangle, CIFAR-10).
    Errors: InputError for a value that cannot be used.
    """

    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 5e-3
    optimizer: str = "adam"
    clip_norm: float = 5.0
    kld_targets: tuple[float, ...] = (1.0, 3.0)
    kld_weight: float = 0.01
    small_target_weight: float = 0.5
    mag_floor: float = 0.002
    mag_start_epoch: int | None = None
    output: str = "two_stage"
    sample_latent: bool = True
    quant: str = "trunc"
    input_noise_std: float = 0.0
    purify_batch: int = 500

    def __post_init__(self):
        check.at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        check.at_least(1, purify_batch=self.purify_batch)
        check.positive(learning_rate=self.learning_rate, clip_norm=self.clip_norm)
        check.one_of(OPTIMIZERS, optimizer=self.optimizer)
        if not isinstance(self.kld_targets, Sequence):
            raise InputError(
                f"kld_targets = {self.kld_targets}; they must be a sequence, such as (1.0, 3.0)"
            )
        object.__setattr__(self, "kld_targets", tuple(self.kld_targets))
        if len(self.kld_targets) not in (1, 2):
            raise InputError(
                f"kld_targets = {self.kld_targets}; it must be one number for each of 1 or 2 stages"
            )
        for target in self.kld_targets:
            check.positive(kld_targets=target)
        check.number(
            least=0, kld_weight=self.kld_weight, small_target_weight=self.small_target_weight,
            mag_floor=self.mag_floor, input_noise_std=self.input_noise_std,
        )  # fmt: skip
        if self.mag_start_epoch is not None:
            check.at_least(0, mag_start_epoch=self.mag_start_epoch)
        check.one_of(OUTPUTS, output=self.output)
        check.one_of(QUANTS, quant=self.quant)

    @property
    def num_steps(self) -> int:
        """Epochs of all stages."""
        return self.epochs * len(self.kld_targets)

    @property
    def first_mag_epoch(self) -> int:
        """The first epoch of a stage in which L_mag counts."""
        if self.mag_start_epoch is not None:
            return self.mag_start_epoch
        return 11 if self.epochs >= 60 else 1 + round(10 * self.epochs / 60)

    def weight_of(self, target: float) -> float:
        """The weight w of L_rate at a target k: a small one needs a strong weight."""
        return self.kld_weight if target > SMALL_TARGET else self.small_target_weight

    def rate_at(self, epoch: int | Int[Array, ""]) -> float | Float[Array, ""]:
        """The learning rate of epoch e of a stage."""
        return self.learning_rate * (1 + jnp.cos(jnp.pi * epoch / self.epochs)) / 2


class DVAEState(NamedTuple):
    """Both stages.

    Attributes:
      count: epochs done, of all stages.
      image: [N, H, W, C] uint8, what stage two learns from once it has begun; () of one stage.
      draw: what stage one's purification drew by; set with `image`.
      other: the network that does not learn: until stage two begins, its start; then stage one's.
      phi: the stage that learns: network and optimizer.
    """

    count: Int[Array, ""]
    image: Any
    draw: Array
    other: Variables
    phi: TrainState


class DVAEInfo(NamedTuple):
    """Diagnostics of one epoch, means over its updates in train mode.

    Attributes:
      outer_loss: L of the stage at hand.
      grad_norm: of its gradient before the clip.
      finite: whether every update was finite.
      reconstruction: L_rec.
      sum: L_sum.
      kld: nats per latent position.
      magnitude: mean square of p^.
      psnr: of x^ against the stage's images, decibels.
      psnr_sum: of clip(x^ + p^) against them.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    reconstruction: Float[Array, "..."]
    sum: Float[Array, "..."]
    kld: Float[Array, "..."]
    magnitude: Float[Array, "..."]
    psnr: Float[Array, "..."]
    psnr_sum: Float[Array, "..."]


def dvae(
    network: Disentangler,
    settings: DVAESettings = DVAESettings(),  # noqa: B008
    *,
    rows: Int[np.ndarray, " p"] | None = None,
) -> Purifier:
    """Fit stage one for E epochs, purify, fit a fresh network for E more, purify twice.

    One process: step t < E is an epoch of stage one; step E first makes x1 of every row, so that
    resumption, checkpoints and the progress bar are those of the loops. Both stages take the same
    compiled epoch, their target and rate are numbers. The latent noise of a row is drawn by its
    number, so that results do not depend on the batch that it is purified in. Purification reads
    running statistics of BatchNorm, which take some 50 updates of a stage to settle: a fit as short
    as that is poor, but because it has learned little; other statistics would not mend it.

    `apply` takes the fitted rows, or others (then stage one purifies those as well), labels and
    all. p^ by itself is `perturbations(network, state.other, dataset)` of the last state.

    Args:
      network: `models.dvae(...)`, or one of your own with the contract of `types.Disentangler`; a
        plain VAE gives output = "rec" in one stage.
      settings: see there.
      rows: numbers of the rows that are purified (rows that a detector found, say); None for all.
        The others come back as they are, from both stages. The fit sees every row.

    Returns: a Purifier; its step's info is `DVAEInfo`, its images uint8.
    Errors: InputError for a network without p^ where it is needed; before the fit for images of
      another shape or that are not uint8, labels outside the network's classes, and rows that the
      set does not have; at apply for a fit that is not complete.
    Cost: an epoch at width 64 is 1.3 GMAC for each 32x32 image; purification three forward passes.
    Source: Yu et al. 2024, algorithm 1 and released code; see `DVAESettings`.
    """
    check.kind(Disentangler, network=network)
    check.kind(DVAESettings, settings=settings)
    stages = len(settings.kld_targets)
    if settings.output != "rec" or stages == 2:
        check_perturbs(network)
    if settings.output == "two_stage" and stages == 1:
        raise InputError(
            "output = 'two_stage' with one number in kld_targets; it needs two, or 'x-p' or 'rec'"
        )
    tx = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm), OPTIMIZERS[settings.optimizer]()
    )

    def fresh(start):
        return TrainState(start.params, start.stats, tx.init(start.params))

    def init(key, dataset):
        check_rows(network, dataset)
        _mask(rows, len(dataset.label))
        start = lax.map(network.init, jax.random.split(key, stages))  # compiled once
        zero, image = jnp.zeros((), jnp.int32), jnp.asarray(dataset.image)
        phi = fresh(tree.take(start, 0))
        return DVAEState(zero, image if stages == 2 else (), zero, tree.take(start, -1), phi)

    def begin(key, state, dataset):
        """Stage two: its images, and the network that has learnt nothing."""
        draw = jax.random.randint(key, (), 0, jnp.iinfo(jnp.int32).max, jnp.int32)
        first, mask = state.phi.variables, _mask(rows, len(dataset.label))
        made = _pass(network, settings, "x-p", mask, first, dataset, jax.random.key(draw))
        return DVAEState(state.count, made, draw, first, fresh(state.other))

    def step(key, state, dataset):
        begin_key, epoch_key = jax.random.split(key)
        if stages == 2:
            state = lax.cond(
                state.count == settings.epochs,
                functools.partial(begin, begin_key),
                lambda state, dataset: state,
                state,
                dataset,
            )
        image = state.image if stages == 2 else dataset.image
        phi, info = _epoch(network, settings, tx, epoch_key, state, image, dataset.label)
        return DVAEState(state.count + 1, state.image, state.draw, state.other, phi), info

    def apply(key, state, dataset):
        check_rows(network, dataset)
        if (done := int(state.count)) < settings.num_steps:
            raise InputError(f"the fit has done {done} of its {settings.num_steps} steps")
        mask = _mask(rows, len(dataset.label))
        image, label = jnp.asarray(dataset.image), jnp.asarray(dataset.label)
        if stages == 2:
            again = jax.random.key(state.draw)  # as the fit drew
            image = _jitted(
                network, settings, "x-p", mask, state.other, Dataset(image, label), again
            )
        last = settings.output, mask, state.phi.variables, Dataset(image, label), key
        return Dataset(_jitted(network, settings, *last), label)

    check_set = functools.partial(check_rows, network)
    return Purifier(init, step, apply, settings.num_steps, check_set)


def _pass(network, settings, output, mask, variables, dataset, key):
    """One pass by one stage over the rows of the mask; the others stay."""
    made = purified_images(
        network, variables, dataset, key=key if settings.sample_latent else None, output=output,
        quant=settings.quant, input_noise_std=settings.input_noise_std,
        batch_size=settings.purify_batch,
    )  # fmt: skip
    return jnp.where(jnp.asarray(mask).reshape(-1, 1, 1, 1), made, dataset.image)


_jitted = functools.partial(jax.jit, static_argnums=(0, 1, 2))(_pass)


def _epoch(network, settings, tx, key, state, image, label):
    """(phi, info) after one epoch of the stage that `state.count` says."""
    num, targets = label.shape[0], settings.kld_targets
    size = min(settings.batch_size, num)
    stage = jnp.minimum(state.count // settings.epochs, len(targets) - 1)
    epoch = jnp.minimum(state.count - stage * settings.epochs, settings.epochs)
    target = jnp.asarray(targets, jnp.float32)[stage]
    weight = jnp.asarray([settings.weight_of(k) for k in targets], jnp.float32)[stage]
    gate = (epoch >= settings.first_mag_epoch).astype(jnp.float32)
    rate = settings.rate_at(epoch)

    def loss(params, stats, x, y, noise_key):
        code_key, input_key = jax.random.split(noise_key)
        noise = jax.random.normal(code_key, (size, *network.latent_shape))
        seen = x
        if settings.input_noise_std:
            seen = x + settings.input_noise_std * jax.random.normal(input_key, x.shape, x.dtype)
        made, stats = network.apply(Variables(params, stats), seen, y, noise, train=True)
        terms = disentangling_loss(
            made, x, target=target, weight=weight, floor=settings.mag_floor, gate=gate
        )
        return terms.loss, (stats, terms)

    def update(phi, job):
        number, rows = job
        noise_key = jax.random.fold_in(key, number)
        slope = jax.value_and_grad(loss, has_aux=True)
        (_, (stats, terms)), gradient = slope(
            phi.params, phi.stats, as_float(image[rows]), label[rows], noise_key
        )
        updates, opt_state = tx.update(gradient, phi.opt_state, phi.params)
        params = jax.tree.map(lambda p, u: (p - rate * u).astype(p.dtype), phi.params, updates)
        norm = tree.norm(gradient)
        return TrainState(params, stats, opt_state), (terms, norm)

    key, order_key = jax.random.split(key)
    count = num // size
    order = jax.random.permutation(order_key, num)[: count * size].reshape(count, size)
    phi, (terms, norm) = lax.scan(update, state.phi, (jnp.arange(count), order))
    finite = jnp.all(jnp.isfinite(terms.loss) & jnp.isfinite(norm))
    mean = jax.tree.map(jnp.mean, terms)
    return phi, DVAEInfo(mean.loss, jnp.mean(norm), finite, *mean[1:])


def _mask(rows: Any, num: int) -> np.ndarray:
    """[N] bool of the rows that are purified."""
    if rows is None:
        return np.ones(num, bool)
    check.distinct_rows("rows", rows, num)
    mask = np.zeros(num, bool)
    mask[np.asarray(rows)] = True
    return mask
