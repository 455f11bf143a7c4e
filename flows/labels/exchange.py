"""Tasks and answers in the JSON of other tools, there and back.

Label Studio: a ``Ranker`` over a ``List``, whose buckets are the ranks, so that ties are told. Argilla: a
``RankingQuestion`` in the records that ``dataset.records.to_json`` writes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.labels.annotations import Annotation, all_answers, annotation_of, save_all
from flows.labels.close import write_new
from flows.labels.queue import NAME, Queue
from flows.labels.tasks import LabelTask, Prompt
from tasks.errors import ConfigError, DataError
from tasks.store import digest_text

RANKING = "ranking"
"""What the question is called in both."""
Answers = Mapping[str, Annotation]
Given = tuple[str, str, list[int]]
"""Task, annotator and ranks."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a tool writes tasks with answers."""

    task: Callable[[LabelTask, Answers], dict[str, Any]]
    answers: Callable[[Any], Iterator[Given]]
    is_of: Callable[[Any], bool]


def write_file(queue: Queue, to: Path, name: str) -> int:
    """Write all tasks with the answers that there are; returns how many.

    Raises:
        ConfigError: there is no such format, or the file exists or cannot be written.
    """
    found = FORMATS.get(name)
    if found is None:
        raise ConfigError(f"--format {name}: not one of {', '.join(FORMATS)}")
    answers = all_answers(queue)
    tasks = [task for task in queue.tasks.values() if task.repeats is None]
    rows = [
        found.task(task, {who: own[task.task_id] for who, own in answers.items() if task.task_id in own})
        for task in tasks
    ]
    write_new(to, json.dumps(rows, ensure_ascii=False, indent=1) + "\n", option="--to")
    return len(rows)


def read_file(queue: Queue, path: Path) -> tuple[int, int]:
    """Add the answers of a file, all or none; returns how many are new, and how many were there.

    Raises:
        DataError: the file is none of these, or an answer fits no task.
    """
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name an exported file") from error
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error}); name a file that Label Studio or Argilla exported") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: no list of tasks; name a file that Label Studio or Argilla exported as JSON")
    known = next((own for own in FORMATS.values() if own.is_of(rows[0])), None)
    if known is None:
        names = ", ".join(sorted(rows[0]))
        raise DataError(f"{path}: task 1 has {names}, as neither Label Studio nor Argilla writes it; export it as JSON")
    annotations = []
    for number, row in enumerate(rows, 1):
        try:
            annotations += [annotation(queue, given) for given in known.answers(row)]
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = str(error) if isinstance(error, ConfigError) else f"its answers are not as exported ({error!r})"
            raise DataError(f"{path}: task {number}: {why}; export from this queue again, and import that") from error
    new = save_all(queue, annotations)
    return new, len(annotations) - new


def annotation(queue: Queue, given: Given) -> Annotation:
    task_id, annotator, ranks = given
    if NAME.fullmatch(annotator) is None:
        # What other tools call people has @ and the like in it.
        annotator = f"annotator-{digest_text(annotator)[:8]}"
    # The same answer of the same person is one, however often the file is read.
    answer_id = digest_text(f"{annotator} {task_id} {ranks}")[:32]
    shown = list(range(len(ranks)))
    return annotation_of(queue, annotator, {"task_id": task_id, "answer_id": answer_id, "ranks": ranks, "shown": shown})


def as_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def label_studio_task(task: LabelTask, answers: Answers) -> dict[str, Any]:
    items = [{"id": str(i), "title": f"Response {i + 1}", "body": text} for i, text in enumerate(task.responses)]
    annotations = []
    for who, answer in answers.items():
        result = []
        if answer.ranks:
            value = {"ranker": buckets_of(answer.ranks)}
            result = [{"from_name": RANKING, "to_name": "responses", "type": "ranker", "value": value}]
        annotations.append(
            {
                "completed_by": {"email": who},
                "was_cancelled": bool(answer.skipped),
                "lead_time": answer.seconds,
                "result": result,
            }
        )
    return {
        "data": {"task_id": task.task_id, "prompt": as_text(task.prompt), "items": items},
        "annotations": annotations,
    }


def buckets_of(ranks: Sequence[int]) -> dict[str, list[str]]:
    """The items of each rank."""
    return {str(rank): [str(i) for i, own in enumerate(ranks) if own == rank] for rank in sorted(set(ranks))}


def label_studio_answers(row: Mapping[str, Any]) -> Iterator[Given]:
    for found in row.get("annotations") or ():
        if found.get("was_cancelled"):
            continue
        who = found.get("completed_by")
        who = (who.get("email") or who.get("id")) if isinstance(who, dict) else who
        for result in found["result"]:
            if result.get("type") == "ranker":
                ranked = result["value"]["ranker"]
                groups = grouped(ranked) if isinstance(ranked, dict) else [[item] for item in ranked]
                yield row["data"]["task_id"], str(who), ranks_of_groups(groups, len(row["data"]["items"]))


def grouped(buckets: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
    """Buckets from the best to the worst: by their number, else, as a ranking without buckets, item by item."""
    if set(buckets) <= {"rank", RANKING, "_"}:
        return [[item] for items in buckets.values() for item in items]
    return [buckets[name] for name in sorted((name for name in buckets if name != "_"), key=int) if buckets[name]]


def ranks_of_groups(groups: Sequence[Sequence[str]], number: int) -> list[int]:
    found: dict[int, int] = {}
    for rank, group in enumerate(groups, 1):
        found.update(dict.fromkeys(map(int, group), rank))
    return [found[i] for i in range(number)]


def argilla_task(task: LabelTask, answers: Answers) -> dict[str, Any]:
    texts = {f"response-{i + 1}": text for i, text in enumerate(task.responses)}
    given = [
        {
            "value": [{"value": f"response-{i + 1}", "rank": rank} for i, rank in enumerate(answer.ranks)],
            "user_id": who,
            "status": "submitted",
        }
        for who, answer in answers.items()
        if answer.ranks
    ]
    return {
        "id": task.task_id,
        "fields": {"prompt": as_text(task.prompt), **texts},
        "metadata": {},
        "suggestions": {},
        "responses": {RANKING: given},
        "vectors": {},
    }


def argilla_answers(row: Mapping[str, Any]) -> Iterator[Given]:
    number = sum(name.startswith("response-") for name in row["fields"])
    for given in (row.get("responses") or {}).get(RANKING) or ():
        if given.get("status", "submitted") != "submitted":
            continue
        # Without ties it may be a list of names alone.
        ranked = [
            own if isinstance(own, dict) else {"value": own, "rank": at} for at, own in enumerate(given["value"], 1)
        ]
        ranks = {own["value"]: int(own["rank"]) for own in ranked}
        yield row["id"], str(given["user_id"]), [ranks[f"response-{i + 1}"] for i in range(number)]


FORMATS = {
    "label-studio": Format(label_studio_task, label_studio_answers, lambda row: "data" in row),
    "argilla": Format(argilla_task, argilla_answers, lambda row: "fields" in row),
}
