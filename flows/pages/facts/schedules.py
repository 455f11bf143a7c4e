"""The schedules of the homes: when each runs next, and what it would do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.pages.site import Asked, Site
from tasks.errors import RunError

TIMEOUT_S = 60.0


def facts(site: Site, asked: Asked) -> dict[str, Any]:
    """All schedules, home by home."""
    del asked
    return {"homes": [{"home": str(home), **schedules_of(home)} for home in site.homes]}


def schedules_of(home: Path) -> dict[str, Any]:
    """What ``rounds schedule`` says. It asks Prefect's clock, whose import would stay in the memory of this server, so that
    the command is run in a process of its own; where there are no schedules, it is not asked."""
    if not any((home / "schedules").glob("*.json")):
        return {"schedules": [], "is_served": False}
    command = [
        sys.executable,
        "-c",
        "from flows.cli.main import main; main()",
        "--home",
        str(home),
        "schedule",
        "--json",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"{home}: rounds schedule did not answer in {TIMEOUT_S:g} s; try it in a terminal") from None
    if done.returncode != 0:
        raise RunError(done.stderr.strip().removeprefix("error: ") or f"rounds schedule ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
