"""Queues of tasks for people, each a directory below ``HOME/labels``: made once, then only answers are added."""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.labels.tasks import LabelTask
from tasks.config import Json
from tasks.errors import ConfigError, RunError
from tasks.store import flush, make_empty, read_json, wait_in_turn, write_json

LABELS = "labels"
QUEUE, TASKS, GUIDELINES, PEOPLE, CLOSED = "queue.json", "tasks.jsonl", "guidelines.md", "people.json", "closed.json"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
LONGEST_GUIDELINES = 200_000


@dataclass(frozen=True)
class Queue:
    """A queue that lies on disk."""

    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """How it was made: run, by, candidates, annotators per task, seed, time."""
        found: dict[str, Any] = read_json(self.directory / QUEUE)
        return found

    @property
    def annotators_per_task(self) -> int:
        return int(self.settings["annotators"])

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @cached_property
    def tasks(self) -> dict[str, LabelTask]:
        """By id, in the order in which they were chosen."""
        lines = (self.directory / TASKS).read_text().splitlines()
        found = [LabelTask.from_dict(json.loads(line)) for line in lines]
        return {task.task_id: task for task in found}

    @cached_property
    def guidelines(self) -> str:
        path = self.directory / GUIDELINES
        return path.read_text() if path.exists() else ""

    @property
    def closed(self) -> dict[str, Any] | None:
        """Into which file, and when; None while it is open."""
        found: dict[str, Any] | None = read_json(self.directory / CLOSED)
        return found

    def people(self) -> dict[str, str]:
        """Annotators, each with the token of their link."""
        found: dict[str, str] = read_json(self.directory / PEOPLE, default={})
        return found

    def invite(self, names: Sequence[str]) -> dict[str, str]:
        """The tokens of some annotators, made for those who have none yet.

        Raises:
            ConfigError: a name cannot be a file's.
        """
        for name in names:
            if NAME.fullmatch(name) is None:
                raise ConfigError(
                    f"annotator {name!r}: give a name of letters, digits, dots and dashes, 64 characters at most"
                )
        with self.locked():
            people = self.people()
            known = {name.lower(): name for name in people}
            for name in names:
                # On a file system that does not tell them apart, both would write into one file.
                if known.get(name.lower(), name) != name:
                    raise ConfigError(f"annotator {name!r}: there is a {known[name.lower()]!r}; give another name")
                if name not in people:
                    people[name] = secrets.token_urlsafe(18)
            write_secret(self.directory / PEOPLE, people)
        return {name: people[name] for name in names}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For this process alone, so that two servers of one home write one after the other."""
        with (self.directory / ".lock").open("a+") as stream:
            wait_in_turn(stream)
            yield


def make_queue(
    home: Path, name: str, tasks: Sequence[LabelTask], settings: dict[str, Any], *, guidelines: Path | None = None
) -> Queue:
    """Write a new queue, whole or not at all.

    Raises:
        ConfigError: the name is taken or cannot be a directory's, or the guidelines are no text.
    """
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"--name {name}: give a name of letters, digits, dots and dashes, 64 characters at most")
    directory = home / LABELS / name
    if directory.exists():
        raise ConfigError(f"--name {name}: there is a queue of that name; give another one")
    text = None if guidelines is None else guidelines_of(guidelines)
    scratch = home / LABELS / f".{name}.{os.getpid()}"
    make_empty(scratch)
    lines = [json.dumps(task.as_dict(), ensure_ascii=False) + "\n" for task in tasks]
    (scratch / TASKS).write_text("".join(lines))
    flush(scratch / TASKS)
    if text is not None:
        (scratch / GUIDELINES).write_text(text)
    write_json(scratch / QUEUE, {**settings, "tasks": len(tasks), "made": time.time()})
    try:
        scratch.rename(directory)
    except OSError as error:
        raise ConfigError(f"--name {name}: there is a queue of that name; give another one") from error
    flush(directory.parent)
    return Queue(directory)


def guidelines_of(path: Path) -> str:
    """The text of a Markdown file for annotators.

    Raises:
        ConfigError: it is not there, too long, or no text.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > LONGEST_GUIDELINES:
            raise ConfigError(f"--guidelines {path}: {len(raw):,} bytes; give at most {LONGEST_GUIDELINES:,}")
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--guidelines {path}: no text in UTF-8; give a Markdown file") from error
    except OSError as error:
        raise ConfigError(f"--guidelines {path} cannot be read ({error.strerror}); give a Markdown file") from error
    if "\0" in text:
        raise ConfigError(f"--guidelines {path}: no text, it has a zero byte; give a Markdown file")
    return text


def queues(home: Path) -> list[Queue]:
    """All queues of a home, the newest first."""
    found = [Queue(path.parent) for path in (home / LABELS).glob(f"*/{QUEUE}") if not path.parent.name.startswith(".")]
    return sorted(found, key=lambda queue: -float(queue.settings["made"]))


def find_queue(home: Path, name: str | None) -> Queue:
    """A queue by its name; without one, the newest.

    Raises:
        RunError: there is none.
    """
    if name is None:
        if not (found := queues(home)):
            raise RunError(f"{home / LABELS} has no queue yet; make one with: rounds label make")
        return found[0]
    if NAME.fullmatch(name) is None or not (home / LABELS / name / QUEUE).is_file():
        names = ", ".join(queue.name for queue in queues(home)) or "none"
        raise RunError(f"queue {name}: there is no such queue, or no more; there are: {names}")
    return Queue(home / LABELS / name)


def write_secret(path: Path, value: Json) -> None:
    """As ``write_json``, readable by its owner alone from the first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(path)
    flush(path.parent)
