"""Schedules of a home: which configuration goes on by itself, and when. One JSON file each, below ``schedules/``.

They are kept here and not in Prefect alone, so that a server that is new, or lost its database, is told them again.
"""

import asyncio
import os
import zoneinfo
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.config import RunConfig, checked, dump
from flows.launch import prepared
from flows.runs import named_run, require_name
from flows.schedules.arrivals import limited_patterns, next_step
from tasks import environment
from tasks.config import Json
from tasks.errors import ConfigError, RunError
from tasks.store import exclusive, is_locked, read_json, write_json

FORMAT = 1
ZONES = "zoneinfo/"
NUM_CRON_FIELDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One schedule, which is also the name of the run that it goes on with."""

    name: str
    cron: str
    timezone: str
    directory: str
    """Where relative paths of the configuration, and modules that it names, are looked for."""
    config: Mapping[str, Any]

    def checked_config(self) -> RunConfig:
        return checked(self.config, where=f"schedule {self.name}")

    def next_time(self) -> str:
        """When it runs next, if it is served then and not paused."""
        found = next_date(self.cron, self.timezone)
        return "never" if found is None else f"{found:%Y-%m-%d %H:%M}"


def make_schedule(home: Path, name: str, config: RunConfig, *, cron: str, timezone: str | None) -> Schedule:
    """Check and store a schedule, in place of one of the same name."""
    require_name(name)
    require_cron(cron)
    if timezone is None:
        timezone = local_timezone()
    elif timezone not in zoneinfo.available_timezones():
        raise ConfigError(f"--timezone {timezone}: no such time zone; name one like Europe/Zurich or UTC")
    require_schedulable(home, name, config)
    schedule = Schedule(name=name, cron=cron, timezone=timezone, directory=str(Path.cwd()), config=dump(config))
    path = directory_of(home) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, **asdict(schedule)})
    return schedule


def require_cron(cron: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    try:
        # Prefect would take a sixth field for seconds, where others have them in the first.
        if len(cron.split()) != NUM_CRON_FIELDS and not cron.startswith("@"):
            raise ValueError("not five fields")
        CronSchedule(cron=cron)
        comes = next_date(cron, "UTC") is not None
    except ValueError as error:
        raise ConfigError(
            f"--cron {cron!r}: not understood; give minute, hour, day of the month, month and day of the week, for "
            "example '0 2 * * *' for two at night"
        ) from error
    if not comes:
        raise ConfigError(f"--cron {cron!r}: no day ever matches; give days that the months have")


def next_date(cron: str, timezone: str) -> datetime | None:
    """The next time that Prefect would schedule; None where there is none."""
    from prefect.server.schemas.schedules import CronSchedule

    try:
        found = asyncio.run(CronSchedule(cron=cron, timezone=timezone).get_dates(1))
    except ValueError:
        # Prefect's search gave up: the 30th of February.
        return None
    return found[0] if found else None


def require_schedulable(home: Path, name: str, config: RunConfig) -> None:
    """Find the mistakes now that the first scheduled run would find at night."""
    if infinite := paths_of(dump(config), "Infinity"):
        raise ConfigError(f"{infinite[0]}=inf: the forms of Prefect know no infinity; give a large number")
    if limited := limited_patterns(config.data):
        raise ConfigError(
            f"{limited[0]}: a limit counts over all files of a pattern, but a schedule reads each file when it arrives; "
            "leave out limit"
        )
    run = named_run(home, name)
    step = next_step(run, config)
    if step.config is not None:
        prepared(run, step.config)


def local_timezone() -> str:
    """The zone that this machine's clock shows, as cron itself takes it; UTC where that cannot be told."""
    linked = str(Path("/etc/localtime").resolve())
    names = [environment.timezone(), linked.partition(ZONES)[2]]
    return next((name for name in names if name and name in zoneinfo.available_timezones()), "UTC")


def paths_of(document: Json, value: Json, prefix: str = "") -> list[str]:
    """``a.b.c`` of each place in a document that holds this value."""
    if isinstance(document, Mapping | list):
        items = document.items() if isinstance(document, Mapping) else enumerate(document)
        return [path for key, inner in items for path in paths_of(inner, value, f"{prefix}{key}.")]
    return [prefix.rstrip(".")] if document == value else []


def directory_of(home: Path) -> Path:
    return home / "schedules"


def list_schedules(home: Path) -> list[Schedule]:
    """All schedules of a home by name."""
    return [read_schedule(path) for path in sorted(directory_of(home).glob("*.json"))]


def find_schedule(home: Path, name: str, *, option: str = "--name") -> Schedule:
    require_name(name, option=option)
    path = directory_of(home) / f"{name}.json"
    if not path.is_file():
        known = ", ".join(schedule.name for schedule in list_schedules(home)) or "none"
        raise RunError(f"{name}: no schedule of that name in {home}; it has {known}")
    return read_schedule(path)


def remove_schedule(home: Path, name: str) -> None:
    """Forget a schedule; its run stays."""
    find_schedule(home, name, option="--remove")
    os.unlink(directory_of(home) / f"{name}.json")


def read_schedule(path: Path) -> Schedule:
    document = read_json(path)
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise RunError(f"{path} is not of this version's format; use the version that wrote it, or schedule anew")
    return Schedule(**document)


@contextmanager
def served_alone(home: Path) -> Iterator[None]:
    """Be the only process that serves this home. The kernel drops the lock of a process that dies."""
    directory_of(home).mkdir(parents=True, exist_ok=True)
    with (directory_of(home) / "serve.lock").open("a+") as stream:
        if not exclusive(stream):
            stream.seek(0)
            raise RunError(f"{home} is served already, by process {stream.read().strip()}; stop that one first")
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def is_served(home: Path) -> bool:
    """Whether some process serves this home now."""
    return is_locked(directory_of(home) / "serve.lock")
