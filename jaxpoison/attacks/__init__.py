"""Attacks, each a factory named as its file: settings in, `Attack` out."""

from jaxpoison.attacks.autoregression import ar_coefficients, ar_responses
from jaxpoison.attacks.bilevel import bilevel, closed_form
from jaxpoison.attacks.crafting import POLYTOPE_BENCHMARK, Crafting
from jaxpoison.attacks.generator_store import (
    GeneratorCard,
    TrainedGenerator,
    load_generator,
    poison_dataset,
    save_generator,
)
from jaxpoison.attacks.indiscriminate.feature_targeted import (
    FeatureTargetedInfo,
    FeatureTargetedState,
    feature_targeted,
    poisoned_features,
)
from jaxpoison.attacks.indiscriminate.gradient_canceling import (
    CANCELINGS,
    CancelingInfo,
    gradient_canceling,
)
from jaxpoison.attacks.indiscriminate.label_flip import label_flip
from jaxpoison.attacks.indiscriminate.random_points import random_points
from jaxpoison.attacks.indiscriminate.total_gradient import (
    TGDA,
    Stackelberg,
    TotalGradientInfo,
    total_gradient,
)
from jaxpoison.attacks.leader import pretrain_leader
from jaxpoison.attacks.parameter_corruption import (
    Corruption,
    parameter_corruption,
    scale_target,
)
from jaxpoison.attacks.selection import keep_best
from jaxpoison.attacks.targeted.bullseye_polytope import bullseye_polytope
from jaxpoison.attacks.targeted.convex_polytope import convex_polytope
from jaxpoison.attacks.targeted.feature_collision import (
    feature_collision,
    mean_feature_collision,
)
from jaxpoison.attacks.targeted.gradient_matching import gradient_matching
from jaxpoison.attacks.targeted.metapoison import MetaCrafting, metapoison
from jaxpoison.attacks.targeted.metapoison_at_surrogate import metapoison_at_surrogate
from jaxpoison.attacks.targeted.watermark import watermark
from jaxpoison.attacks.unlearnable.autoregressive import (
    autoregressive,
    load_ar_coefficients,
)
from jaxpoison.attacks.unlearnable.convolution import convolution
from jaxpoison.attacks.unlearnable.deepconfuse import deepconfuse
from jaxpoison.attacks.unlearnable.error_maximizing import error_maximizing
from jaxpoison.attacks.unlearnable.error_minimizing import (
    error_minimizing,
    frozen_error_minimizing,
)
from jaxpoison.attacks.unlearnable.gue import gue, gue_adv
from jaxpoison.attacks.unlearnable.hypocritical import hypocritical
from jaxpoison.attacks.unlearnable.lsp import lsp
from jaxpoison.attacks.unlearnable.one_pixel import one_pixel
from jaxpoison.attacks.unlearnable.random_noise import random_noise
from jaxpoison.attacks.unlearnable.robust_error_minimizing import robust_error_minimizing
from jaxpoison.attacks.unlearnable.self_ensemble import feature_alignment, self_ensemble
from jaxpoison.attacks.witches_brew import BREWS, Brew

__all__ = [
    "POLYTOPE_BENCHMARK",
    "BREWS",
    "Brew",
    "CANCELINGS",
    "CancelingInfo",
    "Corruption",
    "Crafting",
    "FeatureTargetedInfo",
    "FeatureTargetedState",
    "GeneratorCard",
    "MetaCrafting",
    "Stackelberg",
    "TGDA",
    "TotalGradientInfo",
    "TrainedGenerator",
    "ar_coefficients",
    "ar_responses",
    "autoregressive",
    "bilevel",
    "bullseye_polytope",
    "closed_form",
    "convex_polytope",
    "convolution",
    "deepconfuse",
    "error_maximizing",
    "error_minimizing",
    "frozen_error_minimizing",
    "feature_alignment",
    "feature_collision",
    "feature_targeted",
    "gradient_canceling",
    "gradient_matching",
    "gue",
    "gue_adv",
    "hypocritical",
    "keep_best",
    "label_flip",
    "load_ar_coefficients",
    "load_generator",
    "lsp",
    "mean_feature_collision",
    "metapoison",
    "metapoison_at_surrogate",
    "one_pixel",
    "parameter_corruption",
    "poison_dataset",
    "pretrain_leader",
    "poisoned_features",
    "random_noise",
    "random_points",
    "robust_error_minimizing",
    "save_generator",
    "scale_target",
    "self_ensemble",
    "total_gradient",
    "watermark",
]
