"""What the attacker may change: budgets, projections, and perturbation spaces."""

from jaxpoison.perturb.at_clean import at_clean
from jaxpoison.perturb.budget import Budget
from jaxpoison.perturb.class_wise import class_wise
from jaxpoison.perturb.color import Colored, color_bound, color_map, colored, roughness
from jaxpoison.perturb.free_points import Constraint, Points, check_constraint, free_points
from jaxpoison.perturb.generated_points import generated_points
from jaxpoison.perturb.generator import generated, generator, moving
from jaxpoison.perturb.initial import normal, uniform, zero
from jaxpoison.perturb.per_sample import per_sample, poison
from jaxpoison.perturb.projections import (
    project,
    project_ball,
    project_l0,
    project_l2,
    project_linf,
)

__all__ = [
    "Budget",
    "Colored",
    "Constraint",
    "Points",
    "at_clean",
    "check_constraint",
    "class_wise",
    "color_bound",
    "color_map",
    "colored",
    "free_points",
    "generated",
    "generated_points",
    "generator",
    "moving",
    "normal",
    "per_sample",
    "poison",
    "project",
    "project_ball",
    "project_l0",
    "project_l2",
    "project_linf",
    "roughness",
    "uniform",
    "zero",
]
