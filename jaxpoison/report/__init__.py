"""The main job and what it leaves: records, tables, pictures."""

from jaxpoison.report.command_line import command_line
from jaxpoison.report.record import published
from jaxpoison.report.study import Study, StudyConfig

__all__ = ["Study", "StudyConfig", "command_line", "published"]
