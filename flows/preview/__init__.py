"""What a run will find and take, before it is started."""

from flows.preview.disk import Disk
from flows.preview.examination import Preview, examine, propose
from flows.preview.first_look import look_first
from flows.preview.memory import StageMemory
from flows.preview.named import look_for_named, named_functions
from flows.preview.proposal import written
from flows.preview.workers import doubts_about_workers

__all__ = [
    "Disk",
    "Preview",
    "StageMemory",
    "doubts_about_workers",
    "examine",
    "look_first",
    "look_for_named",
    "named_functions",
    "propose",
    "written",
]
