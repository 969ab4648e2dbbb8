"""Defenses, each a factory named as its file: settings in, a `Filter` out; applied and judged."""

from jaxpoison.defenses.filter.largest_loss import largest_loss
from jaxpoison.defenses.filter.norm_filter import norm_filter, range_filter
from jaxpoison.defenses.filter.random_filter import random_filter
from jaxpoison.defenses.known import Known
from jaxpoison.defenses.screened import (
    Detection,
    detection,
    filtered,
    refilled,
    screen_and_score,
)

__all__ = [
    "Detection",
    "Known",
    "detection",
    "filtered",
    "largest_loss",
    "norm_filter",
    "random_filter",
    "range_filter",
    "refilled",
    "screen_and_score",
]
