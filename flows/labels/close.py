"""From answers to preferences: the rankings of all people together, as ``prepare_data`` reads them."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.labels.agreement import agreement, ranked
from flows.labels.annotations import MUCH, Annotation, all_answers
from flows.labels.queue import CLOSED, Queue
from tasks.errors import ConfigError
from tasks.store import flush, write_json

SUFFIX = ".jsonl"


def close(queue: Queue, into: Path) -> dict[str, Any]:
    """Write the preferences of a queue into a new file, complete or not at all, and let the queue be answered no more.

    Raises:
        ConfigError: the queue is closed, nothing was answered, or the file exists or cannot be written.
    """
    if into.suffix != SUFFIX:
        raise ConfigError(f"--into {into}: preferences are written as JSON Lines; end the name in {SUFFIX}")
    with queue.locked():
        if (before := queue.closed) is not None:
            since = late_answers(queue, float(before["time"]))
            more = f", {since} answers came since then" if since else ""
            raise ConfigError(
                f"queue {queue.name} was closed into {before['into']} already{more}; make another queue to ask again"
            )
        rows = preferences_of(queue)
        if not rows:
            raise ConfigError(
                f"queue {queue.name}: nobody has put one response before another yet; rounds label status {queue.name} "
                "shows who was asked"
            )
        write_new(into, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), option="--into")
        told: dict[str, Any] = {"into": str(into.absolute()), "time": time.time(), "preferences": len(rows)}
        write_json(queue.directory / CLOSED, told)
    return told


def late_answers(queue: Queue, closed: float) -> int:
    return sum(answer.time > closed for own in all_answers(queue).values() for answer in own.values())


def preferences_of(queue: Queue) -> list[dict[str, Any]]:
    """A row for each task that somebody ranked: ``prompt, responses, ranks``, and who said so."""
    by_task: dict[str, list[Annotation]] = {}
    for _, task_id, answer in ranked(queue, all_answers(queue)):
        by_task.setdefault(task_id, []).append(answer)
    rows = [row_of(queue, task_id, by_task[task_id]) for task_id in queue.tasks if task_id in by_task]
    return [row for row in rows if len(set(row["ranks"])) > 1]


def row_of(queue: Queue, task_id: str, answers: Sequence[Annotation]) -> dict[str, Any]:
    task = queue.tasks[task_id]
    pairs = [(one.ranks, other.ranks) for i, one in enumerate(answers) for other in answers[i + 1 :]]
    return {
        "prompt": task.prompt,
        "responses": list(task.responses),
        "ranks": borda([answer.ranks for answer in answers]),
        "annotators": [answer.annotator for answer in answers],
        "agreement": agreement(pairs),
        "much_better": sum(answer.margin == MUCH for answer in answers),
        "notes": [answer.note for answer in answers if answer.note],
        "rollout_ids": list(task.rollout_ids),
        "queue": queue.name,
        "task_id": task_id,
    }


def borda(rankings: Sequence[Sequence[int]]) -> list[int]:
    """The ranks of several people's rankings together: of each response, how many others it is put before, a tie half,
    summed over people. Equal sums are a tie."""
    number = len(rankings[0])
    # Twice the points, so that they are whole and equal sums are equal.
    points = [
        sum(2 * (other > own[i]) + (other == own[i]) for own in rankings for j, other in enumerate(own) if j != i)
        for i in range(number)
    ]
    return [1 + sum(other > own for other in points) for own in points]


def write_new(path: Path, text: str, *, option: str) -> None:
    """Write a file under another name, which it gets when it is complete; one that exists stays as it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        flush(temporary)
        # A rename would replace a file that came in between.
        os.link(temporary, path)
        flush(path.parent)
    except FileExistsError as error:
        raise ConfigError(f"{option} {path} exists already; name another file") from error
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be written ({error.strerror}); name another file") from error
    finally:
        temporary.unlink(missing_ok=True)
