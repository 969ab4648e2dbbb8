"""result.json: what an experiment measured, in one shape for all of them.

    experiment, config, versions, device, date, seconds,
    arms = {name: {final_accuracy, peak_accuracy, train_accuracy, per_class, confusion, curve,
                   expect, poison, (targeted) success_rate, intended_probability,
                   (where they were asked for) probes = {name: accuracy on a further set},
                   (in a sweep) sweep = {of, option, value},
                   (several attack keys) craft_seeds, (several victims) victim}},
    poison = {norm, eps, measured, psnr, ssim} of the experiment's own attack,
    published = [{what, value, source}]

Accuracies and rates are {mean, low, high, values}: fractions, mean with a 95 % t-interval over
victim seeds. Seconds are named parts of the wall time, compiling apart.

An arm of a run with added points has besides `added` =

    {arm, player, follower, share (P / N), num_added, space, constraint {kind, eps} | null,
     labels_changed, drop (of the same seeds against the clean set),
     values {value_low, value_high, clean_low, clean_high} | null (of grey levels),
     (of several steps) outer_loss {first, last},
     (of an attack that cancels the gradient at target parameters)
        residual {first, last, steps, curve}, target_accuracy,
        distance (of the victims' parameters from the target) | null (of other parameters),
        reach {tau | null (no share is enough), reachable true | false | null (open), floor,
               conditions} | null (no linear head),
     (of TGDA) solve {residual {first, last, steps, curve}, iterations}: relative residual of its
        linear systems, mean number of iterations,
     (of a feature-targeted attack)
        feature_error {first, last, steps, curve} (over the steps, before rounding),
        inversion {residual_features, residual_images, feature_error, distance}: of the images as
           they are stored, see `hypergrad.InversionError`,
     (of several attack keys; all else here is of the first) craft_seeds {target_accuracy, residual,
        feature_error, inversion_residual_images and the like, distance: those that there are,
        intervals over keys, at the last step},
     (of the player's reference follower, where it has filters)
        filters {name: {removed, true_positive_rate, false_positive_rate, precision, auc,
                        final_accuracy | null (nothing was left),
                        (of several attack keys) craft_seeds {each of the rates and final_accuracy:
                                                              interval over keys | null}}}}

with the intervals of drop, distance and final_accuracy over victims. Of several attack keys all but
`craft_seeds` is of the first.

An entry DEFENSE/ATTACK of a defense matrix has besides

    defended = {attack, defense, kind (none, purifier, training), cached, seconds {purify, victims},
                psnr | null, ssim | null (of the purified images to the clean ones),
                residual | null (share of the poison's energy that a purifier left along it)}

where `cached` says that an earlier run with equal facts computed the cell, in the seconds given.
Its published values name their cell too: {attack, defense}.

The record of a targeted run has `comparisons` too. There values and intervals are over SETUPS, one
number for each (the mean over its victims and targets), as victims of one setup share poison and
target. Accuracies are taken without the targets of the setup, the curve with them. An arm, clean
too, has besides

    success_rate, intended_probability, true_probability   fractions of targets, probabilities
    intended_loss, true_loss                               cross-entropy of targets to both labels
    success_count = {hits, trials}                         over setups, victims and targets
    success_over_epochs, intended_curve                    mean over all epochs, and p(wanted) after
                                                           each; not of clean victims
    setups = [{name, success: [V], intended: [V], true: [V], intended_loss: [V], true_loss: [V],
               accuracy: [V], outer_loss: {first, last} | null, poison | null}]

where outer_loss is that of the best restart, null for an attack of one step; and

    comparisons = [{victim, a, b, what, difference, sign_test_p, wilcoxon_p, mcnemar_p | null, n}]

tests that arm a exceeds arm b in `what` (success_rate, intended_probability), or stays below it
(true_probability), setup by setup: `difference` is the interval of a - b. mcnemar_p is of setups in
which more than half of the victims are fooled. See `victims.paired`.
"""

import datetime
from collections.abc import Mapping
from typing import Any

from jaxpoison.data.manifest import device, versions
from jaxpoison.victims import Interval, Judgment

__all__ = ["arm", "device", "entry", "flat", "published", "record", "versions"]

FIELDS = {
    "experiment": str,
    "config": dict,
    "versions": dict,
    "device": dict,
    "date": str,
    "seconds": dict,
    "arms": dict,
    "published": list,
}
"""What a record has besides `poison`, which is null where the experiment has none."""


def record(
    experiment: str,
    config: dict[str, Any],
    *,
    seconds: dict[str, float],
    arms: dict[str, dict[str, Any]],
    poison: dict[str, Any] | None,
    published: list[dict[str, Any]],
    comparisons: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The whole record, ready for JSON; keys as in the module docstring, victim by victim."""
    victims = list(dict.fromkeys(one.get("victim") for one in arms.values()))
    arms = dict(sorted(arms.items(), key=lambda item: victims.index(item[1].get("victim"))))
    return {
        "experiment": experiment,
        "config": config,
        "versions": versions(),
        "device": device(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "arms": arms,
        "poison": poison,
        "published": published,
    } | ({} if comparisons is None else {"comparisons": comparisons})


def entry(arm: str, victim: str = "") -> str:
    """The key in `arms` of a training set and, where there are several, a victim."""
    return f"{victim}/{arm}" if victim else arm


def arm(
    judgment: Judgment,
    success_rate: Interval | None = None,
    intended_probability: Interval | None = None,
    *,
    expect: str,
    poison: dict[str, Any] | None = None,
    probes: Mapping[str, Interval] | None = None,
    sweep: dict[str, Any] | None = None,
    victim: str | None = None,
) -> dict[str, Any]:
    """One training set's entry in `arms`.

    Args:
      judgment: the victims trained on it.
      expect: one line on what a reader should expect to see, and why.
      poison: {norm, eps, measured, psnr, ssim}; None for clean data.
      success_rate: targeted attacks: share of targets classified as intended; label-specific ones:
        share of clean test images classified as the attacker's map of labels says.
      intended_probability: targeted attacks: mean probability of the intended class.
      probes: accuracy on further sets, by name.
      sweep: {of, option, value} of an arm in a sweep.
      victim: its name where an experiment has several; the entry is then called VICTIM/SET.
    """
    fields = {
        k: v._asdict() if isinstance(v, Interval) else v for k, v in judgment._asdict().items()
    }
    for name, value in (
        ("success_rate", success_rate),
        ("intended_probability", intended_probability),
    ):
        if value is not None:
            fields[name] = value._asdict()
    if probes:
        fields["probes"] = {name: value._asdict() for name, value in probes.items()}
    if sweep:
        fields["sweep"] = sweep
    named = {} if victim is None else {"victim": victim}
    return named | fields | {"expect": expect, "poison": poison}


def published(what: str, value: float, source: str) -> dict[str, Any]:
    """A number of somebody else's, to stand beside ours: a fraction, and where it was printed."""
    return {"what": what, "value": value, "source": source}


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one: {"recipe.epochs": 20}."""
    if not isinstance(value, dict):
        return {name: value}
    parts = (flat(v, f"{name}.{k}" if name else k) for k, v in value.items())
    return {k: v for part in parts for k, v in part.items()}
