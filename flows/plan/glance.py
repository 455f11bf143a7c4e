"""What a plan of thousands of stages found when somebody last looked, so that who looks next need not follow every digest
from the first stage on. For looking alone: whoever executes or removes something makes the plan anew."""

import os
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from flows.config import RunConfig, dump
from flows.plan.calls import settings_digest
from flows.runs import Run
from flows.state import Externals
from tasks.config import StageConfig
from tasks.stages import STAGES
from tasks.store import MANIFEST, Manifest, Place, Ref, canonical_json, digest_text

FILE = "glance.json"
WORTH = 1000
"""So many stages have to be followed before what they led to is written down."""


class Entry(NamedTuple):
    """A stage whose output was found."""

    stage: str
    place: list[int | None]
    settings: str
    """Their digest."""
    directory: str
    """Relative to the run's."""
    manifest: list[int]
    """Bytes, and nanoseconds of its last change."""
    files: list[tuple[str, int, bool]]
    """Name, bytes, and whether it may be absent."""
    digest: str
    rows: int
    seconds: float
    metrics: dict[str, float]


class Glance:
    """The stages that were found before, in the order of the plan, for as long as nothing differs from then.

    An output is decided by its stage's settings, by what all stages of a run have in common, and by the outputs that it is
    made from. So where the stages before one are what they were, and their outputs are there, its output is what it was.
    """

    def __init__(self, run: Run, config: RunConfig, externals: Externals) -> None:
        self._root = run.root
        self._key = _key(run, config, externals)
        self._before = _read(run.root / FILE, self._key)
        self._now: list[Entry] = []
        self._is_as_before = True
        self._num_followed = 0

    def found(self, stage: str, place: Place, settings: StageConfig) -> Entry | None:
        """The next stage of the plan as it was found before; None from the first one on that differs."""
        if not self._is_as_before or len(self._now) == len(self._before):
            return None
        entry = Entry(*self._before[len(self._now)])
        wanted = (stage, _numbers(place), settings_digest(settings))
        if entry[:3] != wanted or not self._is_there(entry):
            self._is_as_before = False
            return None
        self._now.append(entry)
        return entry

    def note(self, stage: str, place: Place, settings: StageConfig, found: tuple[Ref, Manifest] | None) -> None:
        """Remember what the next stage led to, if it has an output."""
        self._is_as_before = False
        self._num_followed += 1
        if found is None:
            return
        ref, manifest = found
        self._now.append(
            Entry(
                stage=stage,
                place=_numbers(place),
                settings=settings_digest(settings),
                directory=os.path.relpath(ref.path, self._root),
                manifest=_size_and_time(f"{ref.path}/{MANIFEST}"),
                files=[(name, own["size"], name in manifest.recoverable) for name, own in manifest.files.items()],
                digest=ref.digest,
                rows=manifest.rows,
                seconds=manifest.seconds,
                metrics=dict(manifest.metrics),
            )
        )

    def keep(self) -> None:
        """Write down what was found, where that is worth it and may be written."""
        if self._num_followed < WORTH:
            return
        # Pages are made by several threads at once.
        temporary = self._root / f".{FILE}.{os.getpid()}-{threading.get_ident()}"
        # Names of files may be no text, which this cannot hold.
        with suppress(OSError, ValueError):
            temporary.write_bytes(to_json({"key": self._key, "stages": self._now}, inf_nan_mode="constants"))
            temporary.rename(self._root / FILE)

    def _is_there(self, entry: Entry) -> bool:
        """Whether the output is committed and has its files, as far as their sizes tell."""
        directory = f"{self._root}/{entry.directory}"
        try:
            if _size_and_time(f"{directory}/{MANIFEST}") != entry.manifest:
                return False
        except OSError:
            return False
        for name, size, may_be_absent in entry.files:
            try:
                if os.stat(f"{directory}/{name}").st_size != size:
                    return False
            except OSError:
                if not may_be_absent:
                    return False
        return True


def _key(run: Run, config: RunConfig, externals: Externals) -> str:
    """Of what is not in a stage's settings and decides what a plan finds; the code that makes plans is part of it."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] in ("flows", "tasks", "ppo_core")]
    files = [file for module in modules if (file := getattr(module, "__file__", None)) is not None]
    code = max(os.stat(file).st_mtime_ns for file in files)
    versions = {stage.name: stage.version for stage in STAGES}
    common: list[Any] = [versions, config.seed, dump(config.execution), run.generations, asdict(externals), code]
    return digest_text(canonical_json(common))


def _read(path: Path, key: str) -> list[Any]:
    """The stages of a file that was written under the same key; none where it is missing, damaged or of another key."""
    try:
        document = from_json(path.read_bytes())
        stages: list[Any] = document["stages"] if document["key"] == key else []
    except (OSError, ValueError, TypeError, KeyError):
        return []
    return stages


def _numbers(place: Place) -> list[int | None]:
    return [place.round, place.iteration, place.shard]


def _size_and_time(path: str) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]
