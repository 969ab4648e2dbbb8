"""Defenses, each a factory: settings in; `Filter`, `Purifier` or `TrainingDefense` out."""

from jaxpoison.defenses.combined import augmented, compose
from jaxpoison.defenses.disentangling import (
    Terms,
    disentangle,
    disentangling_loss,
    gaussian_kld,
    perturbations,
    purified_images,
)
from jaxpoison.defenses.filter.deep_knn import deep_knn, knn_distance
from jaxpoison.defenses.filter.influence import influence
from jaxpoison.defenses.filter.largest_loss import largest_gradient, largest_loss
from jaxpoison.defenses.filter.norm_filter import norm_filter, range_filter
from jaxpoison.defenses.filter.random_filter import random_filter
from jaxpoison.defenses.filter.sever import (
    ENRON,
    REGRESSION,
    RELEASE,
    SeverSettings,
    sever,
)
from jaxpoison.defenses.filter.sphere import slab, sphere
from jaxpoison.defenses.fits import converged, trained
from jaxpoison.defenses.known import Known
from jaxpoison.defenses.leak import Leak, leak_probe
from jaxpoison.defenses.purified import chain, fit_purify, fixed
from jaxpoison.defenses.purify.dvae import DVAEInfo, DVAESettings, DVAEState, dvae
from jaxpoison.defenses.purify.jpeg import jpeg
from jaxpoison.defenses.purify.orthogonal_projection import lfu, orthogonal_projection
from jaxpoison.defenses.purify.smooth import bilateral, gaussian, gaussian_iss, mean, median
from jaxpoison.defenses.purify.squeeze import bit_depth, grayscale
from jaxpoison.defenses.screened import (
    Detection,
    detection,
    filtered,
    refilled,
    screen_and_score,
)
from jaxpoison.defenses.train.cutout import cutout
from jaxpoison.defenses.train.mixing import cutmix, mixup
from jaxpoison.defenses.train.randaugment import randaugment
from jaxpoison.defenses.train.ueraser import erasing, ueraser
from jaxpoison.victims.adversarial import adversarial, trades

__all__ = [
    "ENRON",
    "REGRESSION",
    "RELEASE",
    "DVAEInfo",
    "DVAESettings",
    "DVAEState",
    "Detection",
    "Known",
    "Leak",
    "SeverSettings",
    "Terms",
    "adversarial",
    "augmented",
    "bilateral",
    "bit_depth",
    "chain",
    "compose",
    "converged",
    "cutmix",
    "cutout",
    "deep_knn",
    "detection",
    "disentangle",
    "disentangling_loss",
    "dvae",
    "erasing",
    "filtered",
    "fit_purify",
    "fixed",
    "gaussian",
    "gaussian_iss",
    "gaussian_kld",
    "grayscale",
    "influence",
    "jpeg",
    "knn_distance",
    "largest_gradient",
    "largest_loss",
    "leak_probe",
    "lfu",
    "mean",
    "median",
    "mixup",
    "norm_filter",
    "orthogonal_projection",
    "perturbations",
    "purified_images",
    "randaugment",
    "random_filter",
    "range_filter",
    "refilled",
    "screen_and_score",
    "sever",
    "slab",
    "sphere",
    "trades",
    "trained",
    "ueraser",
]
