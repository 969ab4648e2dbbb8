"""The entries of a targeted record, made of the results of its setups."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpoison.types import InputError
from jaxpoison.victims import Interval, interval, mcnemar, paired

__all__ = ["arm_entry", "comparisons", "mean_over_victims", "poison_entry"]

_RATES = {
    "final_accuracy": "accuracy",
    "peak_accuracy": "peak",
    "train_accuracy": "train",
    "success_rate": "success",
    "intended_probability": "intended",
    "true_probability": "true",
    "intended_loss": "intended_loss",
    "true_loss": "true_loss",
}
_LEARNED = {"success_over_epochs": "success_epochs"}
_VALUES = ("success", "intended", "true", "intended_loss", "true_loss", "accuracy")
_COMPARED = {"success_rate": 1, "intended_probability": 1, "true_probability": -1}


def arm_entry(
    results: Sequence[Mapping[str, Any]],
    name: str,
    arm: str,
    *,
    expect: str,
    victim: str,
    targets: Sequence[int],
) -> dict[str, Any]:
    """One entry of `arms`, as the docstring of `report.record` describes it.

    Args:
      results: of all setups, from `run_setup`.
      name: of the entry.
      arm: of the training set.
      expect: one line for the reader.
      victim: its name, "" where there is one.
      targets: how many each setup has.
    """
    parts = [one["arms"][name] for one in results]
    learned = arm != "clean"  # clean victims look at no setup's targets as they learn
    rates = {
        rate: interval([float(np.mean(part[values])) for part in parts])._asdict()
        for rate, values in (_RATES | (_LEARNED if learned else {})).items()
    }
    curves = ("curve", "intended_curve") if learned else ("curve",)
    confusion = np.sum([part["confusion"] for part in parts], axis=0)
    per_class = [r[i].item() / r.sum().item() if r.any() else None for i, r in enumerate(confusion)]
    hits = sum(round(num * sum(p["success"])) for num, p in zip(targets, parts, strict=True))
    trials = sum(num * len(p["success"]) for num, p in zip(targets, parts, strict=True))
    own = [one["poisons"].get(arm) for one in results]
    setups = [
        {"name": one["name"]}
        | {k: part[k] for k in _VALUES}
        | {"outer_loss": poison and poison["outer_loss"]}
        | {"poison": poison and {k: v for k, v in poison.items() if k != "outer_loss"}}
        for one, part, poison in zip(results, parts, own, strict=True)
    ]
    named = {"victim": victim} if victim else {}
    return (
        named
        | rates
        | {
            "success_count": {"hits": hits, "trials": trials},
            "per_class": per_class,
            "confusion": confusion.tolist(),
            **{k: np.mean([part[k] for part in parts], axis=0).tolist() for k in curves},
            "expect": expect,
            "poison": None if arm == "clean" else poison_entry(results, arm),
            "setups": setups,
        }
    )


def poison_entry(results: Sequence[Mapping[str, Any]], arm: str) -> dict[str, Any]:
    """{norm, eps, measured, psnr, ssim} of an arm: the largest change of all setups, means."""
    own = [one["poisons"][arm] for one in results]

    def mean(name: str) -> float | None:
        values = [one[name] for one in own if one[name] is not None]
        return float(np.mean(values)) if values else None

    measured = max(one["measured"] for one in own)
    same = {k: own[0][k] for k in ("norm", "eps")}
    return same | {"measured": measured, "psnr": mean("psnr"), "ssim": mean("ssim")}


def comparisons(arms: Mapping[str, dict[str, Any]], main: str) -> list[dict[str, Any]]:
    """Tests of the main arm against every other training set, victim by victim.

    Args:
      arms: entries of the record.
      main: the arm that the experiment is about.
    """
    found = []
    for victim in dict.fromkeys(entry.get("victim", "") for entry in arms.values()):
        own = {
            name.removeprefix(f"{victim}/") if victim else name: entry
            for name, entry in arms.items()
            if entry.get("victim", "") == victim
        }
        for other in own:
            if other != main:
                found += [
                    {"victim": victim, "a": main, "b": other} | row
                    for row in _compare(own[main], own[other])
                ]
    return found


def _compare(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for what, sign in _COMPARED.items():
        first, second = (np.asarray(x[what]["values"]) for x in (a, b))
        tests = paired(sign * first, sign * second)
        most = [np.array([np.mean(s["success"]) > 0.5 for s in x["setups"]]) for x in (a, b)]
        rows.append(
            {
                "what": what,
                "difference": interval(first - second)._asdict(),
                "sign_test_p": tests.sign_test_p,
                "wilcoxon_p": tests.wilcoxon_p,
                "mcnemar_p": mcnemar(*most) if what == "success_rate" else None,
                "n": tests.n,
            }
        )
    return rows


def mean_over_victims(record: Mapping[str, Any], arm: str, victims: Sequence[str]) -> Interval:
    """The success rate of an arm, in each setup the mean over several victims.

    The black-box score of the public benchmark is that of its two networks that the attacker does
    not have (Schwarzschild et al. 2021).

    Args:
      record: of a targeted run, as `targeted_job` returns it.
      arm: of the training set.
      victims: names, at least one.

    Returns: an interval over setups.
    Raises: InputError for no victim, or an arm or victim that the record does not have.
    """
    names = [f"{victim}/{arm}".removeprefix("/") for victim in victims]
    if not names:
        raise InputError("there are no victims; name at least one")
    for name in names:
        if name not in record["arms"]:
            raise InputError(f"the record has no {name!r}; it has {', '.join(record['arms'])}")
    rates = [record["arms"][name]["success_rate"]["values"] for name in names]
    return interval(np.mean(rates, axis=0))
