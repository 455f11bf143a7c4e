"""Answers of people, one file for each, to which lines are only ever added."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.labels.queue import Queue
from flows.labels.tasks import LabelTask, Prompt
from tasks.errors import ConfigError
from tasks.store import append_lines

LONGEST_NOTE = 10_000
MUCH = "much"


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """What one person said of one task. The last one to a task counts."""

    answer_id: str
    """Made where it was given, so that an answer that is sent twice is one."""
    queue: str
    run: str
    task_id: str
    annotator: str
    prompt: Prompt
    responses: tuple[str, ...]
    rollout_ids: tuple[str, ...]
    ranks: tuple[int, ...]
    """Of each response, 1 the best, ties share one; empty where the task was skipped."""
    margin: str = ""
    """``much`` where one of two responses is much better."""
    skipped: str = ""
    """Why it was skipped."""
    note: str = ""
    shown: tuple[int, ...]
    """The order in which the responses stood on the page."""
    seconds: float
    """For which the task was in view."""
    time: float


def annotation_of(queue: Queue, annotator: str, sent: Any) -> Annotation:
    """An answer as a page or a file sends it.

    Raises:
        ConfigError: it is no answer to a task of this queue.
    """
    if not isinstance(sent, Mapping):
        raise ConfigError("an answer is an object with task_id, answer_id, ranks and shown; send one")
    if sent.get("queue", queue.name) != queue.name:
        raise ConfigError(f"an answer to queue {sent['queue']!r} was sent to {queue.name}; open the link of that queue")
    task = queue.tasks.get(str(sent.get("task_id")))
    if task is None:
        raise ConfigError(f"task {sent.get('task_id')!r} is not in queue {queue.name}; load the page again")
    skipped = text_of(sent, "skipped")
    ranks = () if skipped else ranks_of(task, sent.get("ranks"))
    answer_id = text_of(sent, "answer_id")
    if not 8 <= len(answer_id) <= 64:
        raise ConfigError(f"answer_id {answer_id!r}: give 8 to 64 characters that no other answer has")
    seconds = sent.get("seconds", 0.0)
    is_time = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    return Annotation(
        answer_id=answer_id,
        queue=queue.name,
        run=str(queue.settings["run"]),
        task_id=task.task_id,
        annotator=annotator,
        prompt=task.prompt,
        responses=task.responses,
        rollout_ids=task.rollout_ids,
        ranks=ranks,
        margin=MUCH if sent.get("margin") == MUCH and len(set(ranks)) == 2 == len(ranks) else "",
        skipped=skipped,
        note=text_of(sent, "note"),
        shown=order_of(task, sent.get("shown")),
        seconds=max(0.0, float(seconds)) if is_time else 0.0,
        time=time.time(),
    )


def text_of(sent: Mapping[str, Any], name: str) -> str:
    value = sent.get(name) or ""
    if not isinstance(value, str) or len(value) > LONGEST_NOTE:
        raise ConfigError(f"{name} of task {sent.get('task_id')!r}: give a text of at most {LONGEST_NOTE:,} characters")
    return value


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def ranks_of(task: LabelTask, ranks: Any) -> tuple[int, ...]:
    """Ranks as they are stored: 1, then so many more as stand before."""
    number = len(task.responses)
    if not isinstance(ranks, list | tuple) or len(ranks) != number or not all(map(is_whole, ranks)):
        raise ConfigError(f"ranks of task {task.task_id}: give {number} whole numbers, 1 for the best response")
    return tuple(1 + sum(other < own for other in ranks) for own in ranks)


def order_of(task: LabelTask, shown: Any) -> tuple[int, ...]:
    number = len(task.responses)
    if not isinstance(shown, list | tuple) or not all(map(is_whole, shown)) or sorted(shown) != list(range(number)):
        raise ConfigError(f"shown of task {task.task_id}: give the numbers 0 to {number - 1} in the order on the page")
    return tuple(shown)


def save(queue: Queue, annotation: Annotation) -> bool:
    """Add an answer, which is on the disk when this returns; False where it is there already."""
    return bool(save_all(queue, [annotation]))


def save_all(queue: Queue, annotations: Sequence[Annotation]) -> int:
    """Add answers, and say how many were not there yet."""
    added = 0
    with queue.locked():
        for path, own in by_file(queue, annotations).items():
            known = {found.answer_id for found in read(path)}
            new = [annotation for annotation in own if annotation.answer_id not in known]
            if new:
                append_lines(path, [asdict(annotation) for annotation in new])
            added += len(new)
    return added


def by_file(queue: Queue, annotations: Sequence[Annotation]) -> dict[Path, list[Annotation]]:
    found: dict[Path, list[Annotation]] = {}
    for annotation in annotations:
        found.setdefault(file_of(queue, annotation.annotator), []).append(annotation)
    return found


def file_of(queue: Queue, annotator: str) -> Path:
    return queue.directory / "answers" / f"{annotator}.jsonl"


def read(path: Path) -> tuple[Annotation, ...]:
    """All answers of a file, in the order in which they came. A line that a crash broke off was never confirmed."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return ()
    return _read(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: Path, size: int, changed: int) -> tuple[Annotation, ...]:
    """A file in the state that size and time of change tell: lines are only added, so that another one is longer."""
    del size, changed
    found = []
    for line in path.read_text(errors="replace").split("\n"):
        try:
            row = json.loads(line)
            lists = {name: tuple(row[name]) for name in ("responses", "rollout_ids", "ranks", "shown")}
            found.append(Annotation(**{**row, **lists}))
        except (ValueError, TypeError, KeyError):
            continue
    return tuple(found)


def answers_of(queue: Queue, annotator: str) -> dict[str, Annotation]:
    """A person's last answer to each task, in the order in which tasks were first answered."""
    return {answer.task_id: answer for answer in read(file_of(queue, annotator))}


def all_answers(queue: Queue) -> dict[str, dict[str, Annotation]]:
    """The last answers of everybody, by person and task."""
    paths = sorted((queue.directory / "answers").glob("*.jsonl"))
    return {path.stem: answers_of(queue, path.stem) for path in paths}
