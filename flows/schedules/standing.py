"""How things stand with each schedule: when it runs next, what it would do now, and what its run has come to."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.outcomes import overview
from flows.runs import RUN_FILE, named_run
from flows.schedules.arrivals import next_step
from flows.schedules.schedules import Schedule, list_schedules
from tasks.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One schedule, now."""

    name: str
    cron: str
    timezone: str
    directory: str
    config: Mapping[str, Any]
    next_time: str
    would: str
    """What it would do now: start, go on, add a round for files that it names, or nothing; or what is wrong."""
    is_ready: bool
    """Whether it could do so."""
    run_state: str
    """``not begun`` where there is no run yet."""


def standings(home: Path) -> list[Standing]:
    """All schedules of a home by name."""
    return [standing(home, schedule) for schedule in list_schedules(home)]


def standing(home: Path, schedule: Schedule) -> Standing:
    run = named_run(home, schedule.name)
    try:
        # As rounds serve does it: relative paths are those of the directory in which the schedule was made.
        with contextlib.chdir(schedule.directory):
            would, is_ready = next_step(run, schedule.checked_config()).what, True
    except (UserError, OSError) as error:
        would, is_ready = str(error), False
    return Standing(
        name=schedule.name,
        cron=schedule.cron,
        timezone=schedule.timezone,
        directory=schedule.directory,
        config=schedule.config,
        next_time=schedule.next_time(),
        would=would,
        is_ready=is_ready,
        run_state=overview(run).state if (run.root / RUN_FILE).exists() else "not begun",
    )
