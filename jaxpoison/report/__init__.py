"""The main job and what it leaves: records, tables, pictures."""

from jaxpoison.report.command_line import command_line
from jaxpoison.report.images import ImageConfig
from jaxpoison.report.main_job import Arm, arm, main_job
from jaxpoison.report.record import published
from jaxpoison.report.study import Study, StudyConfig

__all__ = [
    "Arm",
    "ImageConfig",
    "Study",
    "StudyConfig",
    "arm",
    "command_line",
    "main_job",
    "published",
]
