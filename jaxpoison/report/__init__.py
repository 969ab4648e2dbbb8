"""The main job and what it leaves: records, tables, pictures."""

from jaxpoison.report.added_arms import AddedArm, added_arm
from jaxpoison.report.added_config import AddedConfig, Player
from jaxpoison.report.added_images import AddedImageConfig
from jaxpoison.report.added_job import added_job
from jaxpoison.report.apply import Applied, apply_generator
from jaxpoison.report.arms import Arm, Point, Stored, arm, control, stored
from jaxpoison.report.command_line import command_line
from jaxpoison.report.derived import Derived, permuted, shares
from jaxpoison.report.feature_study import FeatureConfig, feature_study
from jaxpoison.report.generator_attacks import DeepConfuseConfig, GUEConfig
from jaxpoison.report.generator_config import GeneratorConfig
from jaxpoison.report.images import ImageConfig, PaperConfig
from jaxpoison.report.main_job import main_job, transfer_job
from jaxpoison.report.matrix_config import Attacker, MatrixConfig, PaperMatrixConfig
from jaxpoison.report.matrix_job import matrix_job
from jaxpoison.report.matrix_study import (
    AttackName,
    DefenseName,
    ZooSettings,
    usual_attackers,
    usual_defenses,
)
from jaxpoison.report.matrix_tables import published_cell
from jaxpoison.report.preparation import Robustness, Trainee
from jaxpoison.report.protections import Protection, purified_by, trained_with
from jaxpoison.report.record import published
from jaxpoison.report.study import Study
from jaxpoison.report.study_config import StudyConfig
from jaxpoison.report.sweeps import sweep
from jaxpoison.report.targeted_config import TargetedConfig
from jaxpoison.report.targeted_job import targeted_job
from jaxpoison.report.targeted_record import mean_over_victims

__all__ = [
    "AttackName",
    "Attacker",
    "DefenseName",
    "MatrixConfig",
    "PaperMatrixConfig",
    "Protection",
    "AddedArm",
    "AddedConfig",
    "AddedImageConfig",
    "Applied",
    "Arm",
    "DeepConfuseConfig",
    "FeatureConfig",
    "Derived",
    "GUEConfig",
    "GeneratorConfig",
    "ImageConfig",
    "PaperConfig",
    "Player",
    "Point",
    "Robustness",
    "Stored",
    "Study",
    "StudyConfig",
    "TargetedConfig",
    "Trainee",
    "ZooSettings",
    "added_arm",
    "added_job",
    "apply_generator",
    "arm",
    "command_line",
    "feature_study",
    "control",
    "main_job",
    "mean_over_victims",
    "permuted",
    "published",
    "shares",
    "stored",
    "sweep",
    "targeted_job",
    "transfer_job",
    "matrix_job",
    "published_cell",
    "purified_by",
    "trained_with",
    "usual_attackers",
    "usual_defenses",
]
