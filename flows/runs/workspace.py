"""Runs on disk: where they lie, what they are called, who is working on one."""

import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.config import RunConfig, checked, dump
from tasks.errors import RunError
from tasks.paths import is_there, shown, user_path
from tasks.store import Store, exclusive, is_locked, read_json, write_json

RUN_FILE = "run.json"
PLAN_FILE = "plan.json"
SEEN_FILE = "seen.json"
WORKER_LOG = "worker.log"
FORMAT = 1
MAX_NAME = 200
"""Characters; file systems take 255, of which names of temporary files made from it need some."""


class Run:
    """A run's directory: ``run.json`` (its configuration), ``plan.json`` (forced reruns), ``stages/``, ``scratch/``."""

    def __init__(self, root: Path, home: Path | None = None) -> None:
        # Wherever links lead: a run is the directory that holds its file, by whatever name it was reached.
        self.root = root.resolve()
        self.name = self.root.name
        self.home = self.root.parent.parent if home is None else home
        self.store = Store(self.root)

    def make_directory(self) -> None:
        """Make the run's directory if there is none; refuse one that is something else."""
        # Whoever asked for the lock first may have ended before there was more than half a file.
        known = ("lock", f".{RUN_FILE}.")
        others = self.root.exists() and any(not path.name.startswith(known) for path in self.root.iterdir())
        if others and not (self.root / RUN_FILE).exists():
            raise RunError(f"{self.root} is not a run: it has no {RUN_FILE}; choose another --name")
        self.root.mkdir(parents=True, exist_ok=True)

    @property
    def config(self) -> RunConfig:
        """The configuration that the run was last started with."""
        return checked(self._document()["config"], where=str(self.root / RUN_FILE))

    @property
    def created_at(self) -> float:
        return float(self._document()["created_at"])

    def set_config(self, config: RunConfig) -> None:
        """Make this the run's configuration; outputs of another one stay where they are."""
        document = (
            self._document() if (self.root / RUN_FILE).exists() else {"format": FORMAT, "created_at": time.time()}
        )
        write_json(self.root / RUN_FILE, {**document, "config": dump(config)})

    def _document(self) -> dict[str, Any]:
        document = read_json(self.root / RUN_FILE)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise RunError(f"{self.root / RUN_FILE} is not of this version's format; use the version that wrote it")
        return document

    @property
    def generations(self) -> dict[str, int]:
        """How often each stage's place was forced to run anew; part of its fingerprint."""
        return {key: int(value) for key, value in self._plan()["generations"].items()}

    @property
    def unfinished_rerun(self) -> list[str]:
        """The places that a rerun forced which did not come to its end: given again, it goes on."""
        return [str(key) for key in self._plan()["unfinished"]]

    def raise_generations(self, keys: Sequence[str]) -> None:
        """Force these places to run anew. On disk before anything executes: an interrupted rerun resumes."""
        generations = self.generations
        for key in keys:
            generations[key] = generations.get(key, 0) + 1
        self._write_plan(generations, unfinished=keys)

    def finish_rerun(self) -> None:
        """All that was forced has run: the next rerun begins anew, also where it forces the same."""
        if self.unfinished_rerun:
            self._write_plan(self.generations, unfinished=[])

    @property
    def seen(self) -> dict[str, Any]:
        """What its plan found outside of it when it was last begun."""
        seen = read_json(self.root / SEEN_FILE, default={})
        return seen if isinstance(seen, dict) else {}

    def remember(self, seen: Mapping[str, Any]) -> None:
        write_json(self.root / SEEN_FILE, dict(seen))

    def _plan(self) -> dict[str, Any]:
        plan = read_json(self.root / PLAN_FILE, default={"generations": {}, "unfinished": []})
        if not (isinstance(plan, dict) and isinstance(plan.get("generations"), dict) and "unfinished" in plan):
            raise RunError(f"{self.root / PLAN_FILE} does not hold the run's forced reruns; restore it from a backup")
        return plan

    def _write_plan(self, generations: Mapping[str, int], *, unfinished: Sequence[str]) -> None:
        write_json(self.root / PLAN_FILE, {"generations": dict(generations), "unfinished": sorted(unfinished)})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that works on this run. The kernel drops the lock of a process that dies."""
        with (self.root / "lock").open("a+") as stream:
            if not exclusive(stream):
                stream.seek(0)
                raise RunError(
                    f"run {self.name} is in progress in {stream.read().strip() or 'another process'}; "
                    "wait for it, or stop it first"
                )
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()} ({' '.join(sys.argv[:1] + sys.argv[1:4])})")
            stream.flush()
            try:
                yield
            finally:
                stream.truncate(0)

    def is_in_progress(self) -> bool:
        """Whether some process works on this run now."""
        return is_locked(self.root / "lock")

    def is_empty(self) -> bool:
        """Whether no stage has ever committed."""
        return not self.store.outputs()

    def remove(self) -> None:
        shutil.rmtree(self.root)


def require_name(name: str, *, option: str = "--name") -> None:
    """Refuse a name that would not be one directory."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RunError(f"{option} {name}: use letters, digits, '.', '_' and '-', and begin with a letter or digit")
    if len(name) > MAX_NAME:
        raise RunError(f"{option} {shown(name)}: longer than {MAX_NAME} characters; give a shorter name")


def named_run(home: Path, name: str) -> Run:
    """The run of this name, which may not exist yet."""
    require_name(name)
    return Run(home / "runs" / name, home)


def create_or_open(home: Path, name: str) -> Run:
    """The run of this name, made if it does not exist yet."""
    run = named_run(home, name)
    run.make_directory()
    return run


def find_run(home: Path, name: str | None) -> Run:
    """An existing run by name or directory; without one, the run that was worked on last."""
    if name is None:
        runs = list_runs(home)
        if not runs:
            raise RunError(f"{home} has no runs yet; start one with: rounds run quickstart")
        return runs[0]
    path = user_path(name, field="RUN")
    if path.name == name and is_there(home / "runs" / name / RUN_FILE):
        return Run(home / "runs" / name, home)
    if is_there(path / RUN_FILE):
        root = path.resolve()
        # A run that was put somewhere else, as a backup is, belongs to the home that is in use.
        return Run(root, None if root.parent.name == "runs" else home)
    if is_there(path):
        raise RunError(f"{name} is not a run's directory: it has no {RUN_FILE}; rounds list shows the runs")
    raise RunError(f"{name}: no run of that name in {home}; rounds list shows the runs")


def list_runs(home: Path) -> list[Run]:
    """All runs, the one worked on last first."""
    roots = {path.parent.resolve() for path in (home / "runs").glob(f"*/{RUN_FILE}")}
    return [Run(root, home) for root in sorted(roots, key=lambda root: -(root / RUN_FILE).stat().st_mtime)]
