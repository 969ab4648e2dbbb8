"""The contracts: NamedTuples of arrays (data, states) and of pure functions (behavior).

Axis letters: N train rows, P rows that may change, B batch, G goal, R restarts, M members,
H W C image, L classes, D features. Images live in [0, 1] at use; `eps` is in the same units
(8/255, not 8). Keys come first. Every function here is traceable; checks happen in factories.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import jaxtyping
from jaxtyping import Array, Float, Int, Num

__all__ = [
    "Attack",
    "Batch",
    "Bilevel",
    "Dataset",
    "Decoder",
    "Disentangled",
    "Disentangler",
    "Filter",
    "Game",
    "Generator",
    "Hypergrad",
    "Info",
    "InputError",
    "Key",
    "Leader",
    "Learner",
    "Losses",
    "Mixture",
    "Objective",
    "Perturbation",
    "Purifier",
    "Replaced",
    "Scenario",
    "Screening",
    "Split",
    "Streaming",
    "Sweep",
    "TrainState",
    "Training",
    "TrainingDefense",
    "Variables",
    "Victim",
    "as_float",
]

Key = jaxtyping.Key[Array, ""]
PyTree = Any


class InputError(ValueError):
    """A value from outside that cannot be used; its message is one line a user can act on."""


class Dataset(NamedTuple):
    """Labeled images, in the words of TFDS.

    Attributes:
      image: [N, H, W, C], uint8 as stored or float32 in [0, 1].
      label: [N], int32 in [0, L).
    """

    image: Num[Array, "n h w c"]
    label: Int[Array, " n"]


class Mixture(NamedTuple):
    """The labels of mixed rows: q_i(y) = sum_k weight[i, k] [label[i, k] = y].

    Attributes:
      label: [B, K], int32; a label may stand there more than once.
      weight: [B, K], float32, of sum 1 over k.
    """

    label: Int[Array, "b k"]
    weight: Float[Array, "b k"]


class Batch(NamedTuple):
    """What a learner takes in one step.

    Attributes:
      image: [B, H, W, C], float32 in [0, 1].
      label: [B], int32.
      weight: [B], float32; the loss is the weighted mean. Ones unless a defense says otherwise.
      index: [B], int32 rows in the training set, for defenses that keep per-sample state.
      mixture: what the loss takes instead of `label`, of a batch whose images are mixed; else None.
      epoch: int32, epochs that the learner has finished, where it counts them (see
        `victims.learner`); else None.
    """

    image: Float[Array, "b h w c"]
    label: Int[Array, " b"]
    weight: Float[Array, " b"]
    index: Int[Array, " b"]
    mixture: Mixture | None = None
    epoch: Int[Array, ""] | None = None


class Split(NamedTuple):
    """What a victim is trained and judged on.

    Attributes:
      train: the (poisoned) training set.
      test: held-out clean data; read by evaluation only, never by an update.
    """

    train: Dataset
    test: Dataset


class Scenario(NamedTuple):
    """Everything an attack may know. Arrays are arguments of jitted code, never closures.

    Attributes:
      train: the clean training set.
      goal: what the outer loss reads: held-out clean data, or targets with the wanted labels.
      index: [P], int32, the rows of `train` that may change, each at most once.
      aux: frozen parameters (surrogates, extractor, decoder), any pytree.
    """

    train: Dataset
    goal: Dataset
    index: Int[Array, " p"]
    aux: PyTree = ()


class Replaced(NamedTuple):
    """A split whose training set has other images in some rows, as P rows and not as N.

    Attributes:
      split: the clean one, whole: a Split, or what else has its `train` (`victims.TransferSplit`).
      rows: [P], int32, rows of its training set, each at most once.
      image: [P, H, W, C], what stands there instead, in the dtype of the set.
    """

    split: Any
    rows: Int[Array, " p"]
    image: Num[Array, "p h w c"]

    def whole(self) -> Any:
        """The split that this stands for; labels are the clean ones."""
        train = self.split.train
        image = jnp.asarray(train.image).at[self.rows].set(self.image)
        return self.split._replace(train=Dataset(image, train.label))


class Sweep(NamedTuple):
    """What `over_setups` goes through: S setups of one shape, each with a number of its own.

    Attributes:
      number: [S], int32, folded into every key: of all setups of a study, whichever stand here.
      data: a Scenario whose goal and index have a leading axis S (train and aux are shared); a
        Replaced whose rows and image have one (split is shared); or a tuple with such a Replaced as
        its field `data`, whose other fields have one too (`victims.Watched`).
    """

    number: Int[Array, " s"]
    data: Any


class Variables(NamedTuple):
    """A network's arrays: trainable `params` and running statistics `stats` (may be empty)."""

    params: PyTree
    stats: PyTree


class TrainState(NamedTuple):
    """A learner in training (`phi`): `params`, running `stats`, `opt_state`.

    `variables` is the network alone, as `Victim.apply` and `Scenario.aux` take it.
    """

    params: PyTree
    stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> Variables:
        """The network alone, as `Victim.apply` takes it."""
        return Variables(self.params, self.stats)


class Victim(NamedTuple):
    """A network as pure functions; input normalization is inside.

    Attributes:
      init: (key) -> Variables.
      apply: (variables, image, *, train, key) -> (logits [B, L] float32, new stats). With
        `train=True` BatchNorm uses batch statistics and dropout draws from `key`; else running
        statistics, and `stats` come back unchanged.
      features: (variables, image) -> [B, D] float32, the input of the last layer, eval mode.
      embed: (variables, image, *, train, key) -> (features [B, D], logits [B, L], new stats) of one
        pass, as `apply` has it; None of a network that cannot be pretrained self-supervised.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Array, PyTree]]
    features: Callable[..., Array]
    embed: Callable[..., tuple[Array, Array, PyTree]] | None = None


class Generator(NamedTuple):
    """A network that makes a perturbation of an image; hashable, and self-describing if shipped.

    Attributes:
      init: (key) -> Variables.
      apply: (variables, image, *, train) -> (direction [B, H, W, C] float32 in [-1, 1], new stats).
        With `train=True` BatchNorm uses batch statistics; else running statistics, and `stats`
        come back unchanged.
      name: of its factory in `jaxpoison.models.GENERATORS`; "" for a network of the user's own.
      image_shape: (H, W, C).
      options: that factory's keyword arguments, as pairs.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Array, PyTree]]
    name: str = ""
    image_shape: tuple[int, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


class Decoder(NamedTuple):
    """A network from features back to images; hashable.

    Attributes:
      init: (key) -> Variables.
      apply: (variables, features [B, D], *, train) -> (image [B, H, W, C] float32 in [0, 1], new
        stats). With `train=True` BatchNorm uses batch statistics; else running statistics, and
        `stats` come back unchanged.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Array, PyTree]]


class Disentangled(NamedTuple):
    """What a `Disentangler` makes of images, all at least float32.

    Attributes:
      image: x^ [B, H, W, C] in [0, 1], the reconstruction.
      perturbation: p^ [B, H, W, C], pixel units, unbounded; None of a plain VAE.
      mean: mu [B, h, w, Z] of the latent code.
      log_variance: of the same shape; None of an auto-encoder, whose code is the mean.
    """

    image: Float[Array, "b h w c"]
    perturbation: Float[Array, "b h w c"] | None
    mean: Float[Array, "b y x z"]
    log_variance: Float[Array, "b y x z"] | None


class Disentangler(NamedTuple):
    """A variational auto-encoder of labeled images with a branch for their perturbation; hashable.

    Attributes:
      init: (key) -> Variables.
      apply: (variables, image [B, H, W, C] in [0, 1], label [B], noise, *, train) -> (Disentangled,
        new stats). The latent code is mu + exp(log_variance / 2) noise, noise [B, h, w, Z] standard
        normal, or mu for None. With `train=True` BatchNorm uses batch statistics; else running
        statistics, and `stats` come back unchanged.
      image_shape: (H, W, C).
      latent_shape: (h, w, Z).
      num_classes: L, of the labels.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Disentangled, PyTree]]
    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    num_classes: int


class Leader(NamedTuple):
    """A network that makes an added point of its base image and its label; hashable.

    Attributes:
      init: (key) -> Variables, without statistics.
      apply: (variables, image [B, H, W, C] in [0, 1], label [B]) -> image [B, H, W, C], in pixel
        units; nothing but the network itself bounds it.
    """

    init: Callable[..., Variables]
    apply: Callable[..., Array]


class Learner(NamedTuple):
    """How a victim learns from one batch.

    Attributes:
      victim: the network.
      init: (key) -> TrainState.
      loss: (key, params, stats, batch) -> (loss, (logits, new stats)), train mode.
      step: (key, TrainState, batch) -> (TrainState, Info).
    """

    victim: Victim
    init: Callable[..., TrainState]
    loss: Callable[..., tuple[Array, Any]]
    step: Callable[..., tuple[TrainState, Any]]


Losses = Callable[..., tuple[Array, tuple[Array, Any]]]
"""(victim, key, variables, batch) -> (losses [B], (logits [B, L], new stats)), train mode."""

TrainingDefense = Callable[[Losses], Losses]
"""A defense inside a victim's training: it changes the losses of rows, or the batch they are of.

The batch comes augmented. What it draws is of the key it gets, of which it hands a part on; weights
of rows stay as they are. `defenses.compose` chains them, `victims.victim_training` takes one.
"""


class Perturbation(NamedTuple):
    """What the attacker may change.

    Attributes:
      init: (key, scenario) -> theta.
      apply: (theta, scenario, rows [B]) -> Batch, differentiable in theta; rows that may not
        change come back clean.
      project: (theta, scenario) -> theta inside the budget and, joined to the images, the box.
      release: (theta, scenario) -> Dataset, of a space that adds rows: the N clean ones, then the
        added ones, which `apply` knows as rows N, N + 1, ... None where the N rows are all there
        are.
      added: (theta, scenario) -> Batch of the added rows alone, as `apply` gives rows N, N + 1, ...
        but without looking each of them up; None where there are none.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Batch]
    project: Callable[..., PyTree]
    release: Callable[..., "Dataset"] | None = None
    added: Callable[..., Batch] | None = None


class Bilevel(NamedTuple):
    """The game: a follower `phi` trains on what `theta` poisons, the leader minimizes outer_loss.

    Attributes:
      inner_init: (key, scenario) -> phi, a TrainState unless the problem says otherwise.
      inner_step: (key, theta, phi, scenario) -> (phi, info), differentiable in theta and phi.
      inner_loss: (key, theta, phi, scenario) -> scalar, the follower's loss on one batch.
      outer_loss: (key, theta, phi, scenario) -> scalar, minimized by the attacker.
    """

    inner_init: Callable[..., PyTree]
    inner_step: Callable[..., tuple[PyTree, Any]]
    inner_loss: Callable[..., Array]
    outer_loss: Callable[..., Array]


class Game(NamedTuple):
    """A follower trains on what a generator makes of a batch; the leader reads it on clean images.

    Attributes:
      poison: (theta, image [B, H, W, C]) -> (poisoned image, new stats), the generator in train
        mode; differentiable in theta.params.
      release: (theta, image) -> poisoned image as a victim gets it, the generator in eval mode.
      follower: its `loss` on a poisoned batch is what the follower minimizes.
      lead: (key, params, stats, batch) -> scalar on a clean batch, follower in train mode;
        minimized by the attacker.
    """

    poison: Callable[..., tuple[Array, PyTree]]
    release: Callable[..., Array]
    follower: Learner
    lead: Callable[..., Array]


class Hypergrad(NamedTuple):
    """A rule for d(outer loss) / d(theta).

    Attributes:
      init: (key, scenario) -> phi.
      estimate: (key, theta, phi, scenario) -> (gradient like theta, phi, outer loss). Where theta
        is the Variables of a generator, the gradient is Variables too: d/d params, and in the place
        of `stats` the running statistics after this step (see `perturb.moving`).
    """

    init: Callable[..., PyTree]
    estimate: Callable[..., tuple[PyTree, PyTree, Array]]


class Objective(NamedTuple):
    """What a targeted attack wants of its poisons at a surrogate that stands still.

    Attributes:
      aim: (key, variables, scenario) -> constants of one surrogate and the targets, any pytree: the
        target gradient, the targets' features.
      value_and_grad: (key, variables, aim, batch, scenario) -> (scalar, its gradient with respect
        to batch.image [B, H, W, C]). The batch holds poisons, augmented; minimized. Forward over
        reverse or first order, as the objective likes.
    """

    aim: Callable[..., PyTree]
    value_and_grad: Callable[..., tuple[Array, Array]]


class Info(NamedTuple):
    """Diagnostics of one step; scalars, or [R] under `over_restarts`.

    Attributes:
      outer_loss: the loss the step minimizes, before the update.
      grad_norm: L2 norm of its gradient.
      finite: whether loss and gradient are finite.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array


class Attack(NamedTuple):
    """A poisoning attack. Build it once: it is a static argument of `run`.

    Attributes:
      init: (key, scenario) -> state.
      step: (key, state, scenario) -> (state, info); info holds at least the fields of `Info`.
      poison: (state, scenario) -> Dataset, float32 images, before rounding to grey levels.
      single: under `over_restarts` and `over_devices` the attack they repeat, else None.
      generator: of attacks that train one: (state) -> its Variables, as `poison` uses them; such a
        state poisons any scenario of the same image shape. Else None.
      round_steps: of an attack that selects (`keep_best`), the steps of one round: run a multiple
        of them, as what comes after the last whole round is never used. Else 1.
      num_steps: the steps that its schedule is laid out over, of an attack that has one: run it
        for so many. Else None.
      score: (state, scenario) -> scalar by which `best_of` chooses among restarts, lower is better
        ([R] under `over_restarts` and `over_devices`); None chooses by the last outer loss.
      target: of an attack that cancels the gradient at given parameters: (state) -> that network,
        Variables of the victim it was built with, or of its head; its info then has `residual`, or
        an outer loss of half the squared residual. Else None.
      check: (scenario) -> None, an InputError for values that it cannot use: labels, pixels. Only
        concrete arrays have values, so the loops call it before they trace; None checks nothing.
    """

    init: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, Any]]
    poison: Callable[..., Dataset]
    single: "Attack | None" = None
    generator: Callable[..., Variables] | None = None
    round_steps: int = 1
    num_steps: int | None = None
    score: Callable[..., Array] | None = None
    target: Callable[..., Variables] | None = None
    check: Callable[..., None] | None = None


class Training(NamedTuple):
    """A victim's training, one epoch a step, over a `Split`; runs in the same loop as an attack.

    Attributes:
      init: (key, split) -> TrainState.
      step: (key, TrainState, split) -> (TrainState, info).
      single: as in `Attack`.
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Any]]
    single: "Training | None" = None


class Screening(NamedTuple):
    """What a filter makes of a training set.

    Attributes:
      keep: [N] bool, the rows to train on.
      score: [N] float32, by which it decided; larger is more suspicious.
    """

    keep: Array
    score: Float[Array, " n"]


class Filter(NamedTuple):
    """A defense that removes rows of a training set before a victim sees it.

    Attributes:
      screen: (key, dataset, aux) -> Screening, of fixed shape. `aux` are arrays the defender has,
        any pytree: a network trained on the set, trusted clean rows; each filter says which.
      num_classes: L of a filter that goes by class: labels must lie in [0, L). Else None.
    """

    screen: Callable[..., Screening]
    num_classes: int | None = None


class Purifier(NamedTuple):
    """A defense that makes another training set of one, before a victim sees it.

    Attributes:
      init: (key, dataset) -> state, of the fit; () where there is nothing to fit.
      step: (key, state, dataset) -> (state, info), one epoch of the fit, traceable: a process of
        `run` and `run_chunks`.
      apply: (key, state, dataset) -> Dataset of the same rows in the same order, labels unchanged.
        Images uint8 unless the purifier says otherwise. Called outside jit: it may batch on the
        host, or use a codec.
      num_steps: of the fit; 0 where there is nothing to fit.
      check: what the fit asks of a Dataset, by its values: an `InputError` for what it cannot take.
        `run` and `run_chunks` ask it before they compute; None asks nothing.
    """

    init: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, Any]]
    apply: Callable[..., Dataset]
    num_steps: int = 0
    check: Callable[[Dataset], None] | None = None


class Streaming(NamedTuple):
    """A Training whose epochs the host drives, because its rows are not on the device.

    Runs in `run_chunks` alone.

    Attributes:
      init: (key, split) -> TrainState.
      step: as in `Training`, for the shapes of its results; never computed.
      chunk: (steps_key, state, split, start, stop) -> (state, steps done, info of the new steps
        [T, ...]); start = stop compiles and changes nothing.
      max_bytes: of device memory for the rows that are there at a time.
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Any]]
    chunk: Callable[..., tuple[TrainState, Any, Any]]
    max_bytes: int


def as_float(image: Num[Array, "..."]) -> Float[Array, "..."]:
    """Pixels in [0, 1]: v / 255 of uint8 [...]; any float dtype passes unchanged.

    XLA multiplies by 1/255, so about half of the levels differ from numpy's quotient by one ulp.
    """
    if image.dtype == jnp.uint8:
        return image.astype(jnp.float32) / 255
    return image
