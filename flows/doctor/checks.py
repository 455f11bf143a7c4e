"""Checks of a machine and a home, each with what it found and the next move."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from flows.addresses import DEFAULT_PORT, served_at
from flows.runs import list_runs
from tasks import environment
from tasks.errors import UserError
from tasks.store import exclusive

State = Literal["ok", "warning", "problem"]
PATIENCE_S, TORCH_PATIENCE_S = 3.0, 120.0
LOW_DISK_GB, LOW_MEMORY_GB = 5.0, 4.0
DISTRIBUTION = "rlhf-rounds"
TORCH = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"cuda": names, "mps": torch.backends.mps.is_available(), "threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    move: str = ""
    """What to do where it is not well."""


def examine(home: Path) -> list[Check]:
    """All checks, in the order in which a beginner meets what they are about."""
    checks: list[Callable[[], Iterator[Check]]] = [
        versions,
        lambda: disk(home),
        memory,
        devices,
        lambda: locks(home),
        lambda: ports(home),
        proxies,
        servers,
        lambda: databases(home),
        lambda: runs(home),
    ]
    return [found for check in checks for found in check()]


def versions() -> Iterator[Check]:
    """Whether each package is one of those that the suite has passed with."""
    wrong = []
    for text in requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append((requirement, "is not installed"))
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append((requirement, f"is {installed}, not {requirement.specifier}"))
    for requirement, what in wrong:
        move = f"pip install '{requirement.name}{requirement.specifier}'"
        yield Check(
            name=f"version of {requirement.name}", state="problem", found=f"{requirement.name} {what}", move=move
        )
    if not wrong:
        number = f"{version(DISTRIBUTION)} on Python {sys.version_info.major}.{sys.version_info.minor}"
        yield Check(name="versions", state="ok", found=f"rounds {number}, all packages within their ranges")


def disk(home: Path) -> Iterator[Check]:
    """The room where runs are written."""
    free = shutil.disk_usage(existing(home)).free / 1e9
    state: State = "ok" if free > LOW_DISK_GB else "warning"
    move = "" if state == "ok" else "make room, or choose another --home; rounds clean removes what is replaced"
    yield Check(name="disk", state=state, found=f"{free:,.1f} GB free for {home}", move=move)


def existing(path: Path) -> Path:
    """The directory, or the nearest above it that there is."""
    return next(place for place in (path, *path.parents) if place.exists())


def memory() -> Iterator[Check]:
    """Memory and cores, as far as the system tells them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, OSError):
        yield Check(name="memory", state="ok", found=f"{cores} cores; the system does not tell its memory")
        return
    state: State = "ok" if size > LOW_MEMORY_GB else "warning"
    move = "" if state == "ok" else "small models only; the quickstart takes 2 GB"
    yield Check(name="memory", state=state, found=f"{size:,.1f} GB, {cores} cores", move=move)


def devices() -> Iterator[Check]:
    """What torch computes on, asked in a process of its own: a driver may hang."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=TORCH_PATIENCE_S, check=False
        )
        found = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        yield Check(name="torch", state="problem", found="did not answer", move="look at the driver: nvidia-smi")
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        yield Check(name="torch", state="problem", found=f"cannot be imported: {last}", move="pip install torch anew")
    else:
        names = ", ".join(found["cuda"]) or ("Apple's GPU" if found["mps"] else "")
        on = names or f"the processor, {found['threads']} threads"
        yield Check(name="devices", state="ok", found=f"torch {version('torch')} computes on {on}")


def locks(home: Path) -> Iterator[Check]:
    """Whether the file system can lock a file and rename a directory, on which a run's safety rests."""
    try:
        with tempfile.TemporaryDirectory(dir=existing(home), prefix=".rounds-doctor-") as scratch:
            place = Path(scratch)
            with (place / "lock").open("a+") as stream:
                can_lock = exclusive(stream, patience_s=0.0)
            (place / "a").mkdir()
            (place / "a").rename(place / "b")
    except OSError as error:
        found = f"{existing(home)} cannot be written, locked or renamed in ({error.strerror})"
        yield Check(name="file system", state="problem", found=found, move="choose another --home, on a local disk")
        return
    if can_lock:
        yield Check(name="file system", state="ok", found="locks and renames work")
    else:
        move = "choose another --home, on a local disk"
        yield Check(name="file system", state="problem", found="a new file is locked already", move=move)


def ports(home: Path) -> Iterator[Check]:
    """Whether the pages can be served where people look for them."""
    if (address := served_at(home)) is not None:
        yield Check(name="pages", state="ok", found=f"served at {address}")
        return
    with closing(socket.socket()) as probe:
        taken = probe.connect_ex(("127.0.0.1", DEFAULT_PORT)) == 0
    if taken:
        move = "name another: rounds ui --port 0 takes a free one"
        yield Check(name="pages", state="warning", found=f"port {DEFAULT_PORT} is taken by another program", move=move)
    else:
        yield Check(name="pages", state="ok", found=f"not served now; port {DEFAULT_PORT} is free")


def proxies() -> Iterator[Check]:
    """Proxies that programs here are told to use."""
    named = environment.proxies()
    if not named:
        yield Check(name="proxies", state="ok", found="none")
        return
    hidden = environment.hidden_proxies()
    found = ", ".join(f"{name}={without_password(value)}" for name, value in sorted({**named, **hidden}.items()))
    note = "" if not hidden else "; SOCKS proxies are kept from Prefect's client"
    yield Check(name="proxies", state="ok", found=f"{found}; servers of this machine are asked directly{note}")


def without_password(address: str) -> str:
    parts = urlsplit(address)
    return address.replace(f"{parts.netloc.rpartition('@')[0]}@", "") if "@" in parts.netloc else address


def servers() -> Iterator[Check]:
    """The servers that the environment names."""
    named = {"PREFECT_API_URL": environment.prefect_api_url(), "MLFLOW_TRACKING_URI": environment.mlflow_tracking_uri()}
    for name, address in named.items():
        if address is None:
            yield Check(name=name, state="ok", found="not set: the home's own is used")
            continue
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            yield Check(name=name, state="ok", found=f"{parts.scheme or 'a'} database or directory")
            continue
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), timeout=PATIENCE_S).close()
        except OSError as error:
            found = f"{parts.hostname}:{port} does not answer ({error.strerror or error})"
            yield Check(name=name, state="problem", found=found, move=f"start that server, or unset {name}")
        else:
            yield Check(name=name, state="ok", found=f"{parts.hostname}:{port} answers")


def databases(home: Path) -> Iterator[Check]:
    """The embedded databases, as SQLite finds them."""
    for path in (home / "mlflow" / "mlflow.db", home / "prefect" / "prefect.db"):
        if not path.exists():
            continue
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=PATIENCE_S)) as connection:
                (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            said = str(error)
        if said == "ok":
            yield Check(name=path.name, state="ok", found=f"{path.stat().st_size / 1e6:,.1f} MB, sound")
        else:
            move = "move it away: runs are whole without it, and publishing fills a new one"
            yield Check(name=path.name, state="problem", found=f"{path} is damaged ({said})", move=move)


def runs(home: Path) -> Iterator[Check]:
    """The runs of the home: how many, which are at work, which cannot be read."""
    found = list_runs(home)
    at_work = [run.name for run in found if run.is_in_progress()]
    for run in found:
        try:
            _ = run.config
        except UserError as error:
            yield Check(
                name=f"run {run.name}", state="warning", found=str(error), move="restore run.json from a backup"
            )
    busy = f"; at work: {', '.join(at_work)}" if at_work else ""
    yield Check(name="runs", state="ok", found=f"{len(found)} in {home}{busy}")
