"""Feature-targeted poisoning of a pre-trained extractor (Lu et al. 2024), in its three stages.

1. Target head: `parameter_corruption` of the clean one, w.
2. Poisoned features: zeta_1 .. zeta_P of added points that make w a place of rest of training on
   the features (`hypergrad.canceling`), from the features of their base images.
3. Inversion: images with these features. "decoder": x_j = clip(d(zeta_j)), d a trained decoder.
   "matching": min over x_j of ||f(x_j) - zeta_j||^2 + beta ||x_j - b_j||^2 from the base image b_j.

Threat model: the victim trains a linear head on the features of a frozen, trusted extractor f. The
attacker knows f, the training set, head and recipe, and adds P = eps N images; clean rows stay.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from jaxpoison import check, hypergrad, perturb, tree
from jaxpoison.attacks.bilevel import BilevelState, bilevel
from jaxpoison.attacks.parameter_corruption import (
    Corruption,
    check_corruption,
    parameter_corruption,
)
from jaxpoison.hypergrad import feature_distances
from jaxpoison.perturb import Constraint, Points
from jaxpoison.types import (
    Attack,
    Dataset,
    Decoder,
    InputError,
    Scenario,
    Variables,
    Victim,
    as_float,
)
from jaxpoison.victims import Extractor, decode, extract, on_features, split_head
from jaxpoison.victims.checks import check_classes

__all__ = [
    "FeatureTargetedInfo",
    "FeatureTargetedState",
    "feature_targeted",
    "poisoned_features",
]

INVERSIONS = ("decoder", "matching")
HEAD_BATCH = 10_000  # points at a time in stage 2


class FeatureTargetedState(NamedTuple):
    """All three stages.

    Attributes:
      count: steps done.
      clean: [N, 1, 1, D], the features of the training set.
      feature: stage 2; `theta` are zeta and the labels of the points, `phi.target` the target head.
      image: [P, H, W, C], stage 3; the base images until it begins.
      opt_state: of stage 3; () of a decoder.
    """

    count: Int[Array, ""]
    clean: Float[Array, "n 1 1 d"]
    feature: BilevelState
    image: Float[Array, "p h w c"]
    opt_state: Any


class FeatureTargetedInfo(NamedTuple):
    """`types.Info`, and how far both stages are.

    Before the update, but for the one step of a decoder: after it.

    Attributes:
      outer_loss: in stage 2 half of the squared residual; in stage 3 the mean over the points of
        ||f(x) - zeta||^2 + beta ||x - x_base||^2.
      grad_norm: of all its gradients, point by point; 0 of a decoder.
      finite: whether both are finite.
      residual: ||r|| at the target head; in stage 2 of zeta, in stage 3 of f(x).
      feature_error: mean over the points of ||f(x) - zeta||; x are the base images in stage 2.
    """

    outer_loss: Float[Array, "..."]
    grad_norm: Float[Array, "..."]
    finite: Array
    residual: Float[Array, "..."]
    feature_error: Float[Array, "..."]


def feature_targeted(
    extractor: Victim,
    head: Victim,
    decoder: Decoder | None = None,
    *,
    corruption: Corruption | None = Corruption(1.0, step_size=0.1, batch_size=1000),  # noqa: B008
    feature_constraint: Constraint = Constraint(),  # noqa: B008
    inversion: str = "matching",
    constraint: Constraint = Constraint("box"),  # noqa: B008
    beta: float = 0.0,
    labels: str = "base",
    num_classes: int | None = None,
    weight: float | None = None,
    weight_decay: float = 0.0,
    normalize: str = "clean",
    cancel_steps: int = 1000,
    cancel_rate: float = 0.1,
    match_steps: int = 1000,
    match_rate: float = 0.01,
    batch_size: int = 500,
) -> Attack:
    """Stage 1 in `init`, then `cancel_steps` of stage 2, then stage 3; run it for `num_steps`.

    Both optimizers are Adam, each with a rate that falls to 0 as a cosine over its own stage;
    features and images are projected after every step. A decoder has one step in stage 3, matching
    `match_steps`.

    `scenario.aux` is what `join_head` makes of extractor and head, the head trained on clean
    features; with a decoder the pair of that and the decoder's Variables (see
    `victims.decoder_training`). `scenario.index` are the base rows, one for each added point;
    `goal` is not read. The paper's tables, its target's radius, learning rates and decoder could
    not be read: the defaults are those of a development tree of the same authors, or ours.

    Args:
      extractor: f, its `features`; frozen, running statistics.
      head: a network on [B, 1, 1, D] features, such as `logistic_regression((1, 1, D))`.
      decoder: from D features to the images; for inversion = "decoder".
      corruption: how the target is made of the head in `scenario.aux`; None takes that head.
      feature_constraint: where zeta may be: none, "range", "coordinate" or "nonnegative".
      inversion: "decoder" or "matching".
      constraint: of the images: none, "box" (clip), or "linf" around the base image.
      beta: closeness to the base image, in matching; both terms are sums over coordinates. 0 with a
        decoder, whose images have no such term.
      labels: as in `perturb.free_points`, like num_classes; the same in both stages.
      num_classes: as there.
      weight: as in `hypergrad.canceling`, like weight_decay and normalize: the victim's.
      weight_decay: as there.
      normalize: as there.
      cancel_steps: of stage 2.
      cancel_rate: of its Adam, in units of the features.
      match_steps: of stage 3, in matching; a decoder, asked once, does not read it.
      match_rate: of its Adam, pixel units; neither.
      batch_size: images at a time through the extractor or the decoder; memory, and last bits.

    Returns: an Attack whose poison has N + P images, the added ones last; its info is
      `FeatureTargetedInfo`. `poisoned_features` gives zeta, `hypergrad.inversion_error` judges it.
    Errors: InputError for a bad argument, a constraint that is of the other space, a decoder that
      is missing or has no use; of a scenario for another `aux`, no base rows, labels that are none
      of the head's classes, images outside [0, 1].
    Cost: a step of stage 2 passes the head P times, one of matching the extractor, with gradients.
    Source: Lu et al. 2024 (SaTML), section on feature-targeted attacks.
    """
    check.kind(Victim, extractor=extractor, head=head)
    check_corruption(corruption)
    _check(inversion, decoder, feature_constraint, constraint)
    check.at_least(1, cancel_steps=cancel_steps, match_steps=match_steps, batch_size=batch_size)
    check.positive(cancel_rate=cancel_rate, match_rate=match_rate)
    check.number(least=0, beta=beta)
    if decoder is not None and beta:
        raise InputError(f"beta = {beta}; inversion = 'decoder' has no closeness: it must be 0")
    space = perturb.free_points(feature_constraint, labels=labels, num_classes=num_classes)
    rule = hypergrad.canceling(
        head, space, target=_target(head, corruption), weight=weight, weight_decay=weight_decay,
        normalize=normalize, batch_size=HEAD_BATCH,
    )  # fmt: skip
    cancel = bilevel(
        space, rule, optax.adam(optax.cosine_decay_schedule(cancel_rate, cancel_steps))
    )
    images = perturb.free_points(constraint)
    if decoder is None:
        tx = optax.adam(optax.cosine_decay_schedule(match_rate, match_steps))
        invert, last = _matching(extractor, images, tx, beta, batch_size), match_steps
    else:
        invert, last = _decoding(extractor, decoder, images, beta, batch_size), 1

    def init(key, scenario):
        check.some_rows(scenario)
        pretrained, own, decoding = _known(scenario.aux)
        if decoder is not None and not isinstance(decoding, Variables):
            raise InputError(
                "scenario.aux has no decoder; it must be the pair of join_head's Variables and the "
                "decoder's"
            )
        clean = extract(Extractor(extractor, pretrained), scenario.train, batch_size=batch_size)
        feature = cancel.init(key, _on_features(clean.image, own, scenario))
        start = Points(_base(scenario), feature.theta.label)
        image = images.project(start, scenario).value
        zero = jnp.zeros((), jnp.int32)
        return FeatureTargetedState(zero, clean.image, feature, image, invert.init(image))

    def step(key, state, scenario):
        known = _known(scenario.aux)
        inner = _on_features(state.clean, known.head, scenario)

        def stage_2(feature, image, opt_state):
            after, info = cancel.step(key, feature, inner)
            apart = _lengths(state.clean[scenario.index] - feature.theta.value)
            residual = jnp.sqrt(2 * info.outer_loss)
            info = FeatureTargetedInfo(
                info.outer_loss, info.grad_norm, info.finite, residual, jnp.mean(apart)
            )
            return (after, image, opt_state), info

        def stage_3(feature, image, opt_state):
            image, opt_state, seen = invert.step(known, feature.theta, image, opt_state, scenario)
            found = seen.features[:, None, None].astype(feature.theta.value.dtype)
            points = Points(found, feature.theta.label)
            residual = jnp.sqrt(2 * rule.estimate(key, points, feature.phi, inner)[2])
            finite = jnp.isfinite(seen.loss) & jnp.isfinite(seen.norm)
            info = FeatureTargetedInfo(seen.loss, seen.norm, finite, residual, seen.error)
            return (feature, image, opt_state), info

        moving = state.feature, state.image, state.opt_state
        now = state.count < cancel_steps
        moving, info = lax.cond(now, stage_2, stage_3, *moving)
        return FeatureTargetedState(state.count + 1, state.clean, *moving), info

    def poison(state, scenario):
        points = Points(state.image, state.feature.theta.label)
        return perturb.poison(images, points, scenario)

    def target(state):
        return state.feature.phi.target

    def sound(scenario):
        constraint.check(scenario)
        check_classes(on_features(extractor, head), scenario.train, num_classes)

    return Attack(init, step, poison, num_steps=cancel_steps + last, target=target, check=sound)


def poisoned_features(state: FeatureTargetedState, scenario: Scenario) -> Dataset:
    """The training set of stage 2: clean features, then zeta; [N + P, 1, 1, D].

    A head trained on it is as bad as inversion can make one at the best.
    """
    zeta = state.feature.theta
    label = jnp.concatenate([scenario.train.label, zeta.label.astype(jnp.int32)])
    return Dataset(jnp.concatenate([state.clean, zeta.value]), label.astype(jnp.int32))


class _Known(NamedTuple):
    """What the attacker knows: `scenario.aux` in its parts."""

    extractor: Variables
    head: Variables
    decoder: Any


class _Seen(NamedTuple):
    """One step of stage 3: fields of the info, and f(x) [P, D]."""

    loss: Array
    norm: Array
    error: Array
    features: Array


class _Inverter(NamedTuple):
    """Stage 3.

    Attributes:
      init: (image) -> optimizer state.
      step: (_Known, zeta, image, opt_state, scenario) -> (image, opt_state, _Seen).
    """

    init: Any
    step: Any


def _matching(extractor, images, tx, beta, batch_size) -> _Inverter:
    """X <- P(x - Adam(d/dx ||f(x) - zeta||^2 + beta ||x - x_base||^2)), every point by itself."""

    def step(known, zeta, image, opt_state, scenario):
        found, loss, slope = _objective(extractor, known, zeta, image, scenario, beta, batch_size)
        updates, opt_state = tx.update(slope, opt_state, image)
        moved = Points(image + updates, zeta.label)
        seen = _Seen(loss, tree.norm(slope), jnp.mean(jnp.sqrt(found.value)), found.features)
        return images.project(moved, scenario).value, opt_state, seen

    return _Inverter(tx.init, step)


def _decoding(extractor, decoder, images, beta, batch_size) -> _Inverter:
    """X <- P(d(zeta))."""

    def step(known, zeta, image, opt_state, scenario):
        aim = zeta.value[:, 0, 0]
        made = decode(decoder, known.decoder, aim, batch_size=batch_size).astype(image.dtype)
        image = images.project(Points(made, zeta.label), scenario).value
        found, loss, _ = _objective(extractor, known, zeta, image, scenario, beta, batch_size)
        zero, error = jnp.zeros((), loss.dtype), jnp.mean(jnp.sqrt(found.value))
        return image, opt_state, _Seen(loss, zero, error, found.features)

    return _Inverter(lambda image: (), step)


def _objective(extractor, known, zeta, image, scenario, beta, batch_size):
    """(distances in feature space, mean objective, its gradient point by point)."""
    aim = zeta.value[:, 0, 0]
    found = feature_distances(
        lambda x: extractor.features(known.extractor, x), image, aim, batch_size=batch_size
    )
    away = image - _base(scenario)
    loss = jnp.mean(found.value + beta * _lengths(away) ** 2)
    return found, loss, found.gradient + 2 * beta * away


def _target(head: Victim, corruption: Corruption | None) -> Any:
    def target(key, scenario):
        if corruption is None:
            return scenario.aux
        return parameter_corruption(key, head, scenario.aux, scenario.train, corruption)

    return target


def _known(aux: Any) -> _Known:
    network, decoder = aux if not isinstance(aux, Variables) and len(aux) == 2 else (aux, ())
    if not isinstance(network, Variables):
        raise InputError(
            f"scenario.aux is a {type(aux).__name__}; it must be the Variables of join_head, or "
            "the pair of them and the decoder's Variables"
        )
    return _Known(*split_head(network), decoder)


def _on_features(clean: Array, head: Variables, scenario: Scenario) -> Scenario:
    """The scenario of stage 2."""
    train = Dataset(clean, scenario.train.label)
    return Scenario(train, train, scenario.index, head)


def _base(scenario: Scenario) -> Float[Array, "p h w c"]:
    return as_float(scenario.train.image[scenario.index])


def _lengths(x: Float[Array, "p h w c"]) -> Float[Array, " p"]:
    return jnp.sqrt(jnp.sum(x**2, axis=(1, 2, 3)))


def _check(inversion, decoder, feature_constraint, constraint) -> None:
    perturb.check_constraint(feature_constraint=feature_constraint, constraint=constraint)
    check.one_of(INVERSIONS, inversion=inversion)
    if (decoder is None) == (inversion == "decoder"):
        word = "needs one" if decoder is None else "has no use for one"
        raise InputError(f"decoder: inversion = {inversion!r} {word}")
    check.one_of(
        ("none", "range", "coordinate", "nonnegative"), feature_constraint=feature_constraint.kind
    )
    check.one_of(("none", "box", "linf"), constraint=constraint.kind)
