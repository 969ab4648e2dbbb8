"""Rules for the gradient of the outer loss: `Bilevel -> Hypergrad`, interchangeable."""

from jaxpoison.hypergrad import reachability
from jaxpoison.hypergrad.adaptation import adaptation
from jaxpoison.hypergrad.alignment import aligned
from jaxpoison.hypergrad.along_training import Surrogate, along_training
from jaxpoison.hypergrad.alternating import alternating
from jaxpoison.hypergrad.canceling import Canceling, canceling, opposing_labels
from jaxpoison.hypergrad.features import (
    FeatureDistances,
    feature_distances,
    feature_objective,
)
from jaxpoison.hypergrad.frozen import frozen, trajectory
from jaxpoison.hypergrad.game import clean_batch, generator_game
from jaxpoison.hypergrad.hidden import hidden
from jaxpoison.hypergrad.implicit import Implicit, implicit
from jaxpoison.hypergrad.inversion import InversionError, inversion_error
from jaxpoison.hypergrad.linear_solve import Solve, cg, hvp, neumann, normal_cg
from jaxpoison.hypergrad.matching import matching
from jaxpoison.hypergrad.minibatch import minibatches
from jaxpoison.hypergrad.moving_surrogate import Moving, moving_surrogate
from jaxpoison.hypergrad.one_step import one_step, through_step
from jaxpoison.hypergrad.problem import poisoned_training, rowwise_loss
from jaxpoison.hypergrad.surrogate import Aimed, at_surrogate, loss_at_surrogate
from jaxpoison.hypergrad.unrolled import unrolled
from jaxpoison.hypergrad.value_function import value_function

__all__ = [
    "Aimed",
    "Canceling",
    "FeatureDistances",
    "Implicit",
    "InversionError",
    "Moving",
    "Solve",
    "Surrogate",
    "adaptation",
    "aligned",
    "along_training",
    "alternating",
    "canceling",
    "at_surrogate",
    "cg",
    "clean_batch",
    "feature_distances",
    "feature_objective",
    "frozen",
    "generator_game",
    "hidden",
    "hvp",
    "implicit",
    "inversion_error",
    "loss_at_surrogate",
    "matching",
    "minibatches",
    "moving_surrogate",
    "neumann",
    "normal_cg",
    "one_step",
    "opposing_labels",
    "poisoned_training",
    "reachability",
    "rowwise_loss",
    "through_step",
    "trajectory",
    "unrolled",
    "value_function",
]
