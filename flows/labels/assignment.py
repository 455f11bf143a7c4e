"""Who is asked what next, and in which order responses stand: for each person another, and always the same."""

from collections.abc import Mapping

from flows.labels.annotations import Annotation
from flows.labels.queue import Queue
from flows.labels.tasks import LabelTask
from tasks.store import digest_text

BETWEEN_REPEATS = 10
"""Answers between a question and the same one again."""


def shown_order(queue: Queue, annotator: str, task: LabelTask) -> list[int]:
    """The responses of a task as they stand on this person's page."""
    return sorted(
        range(len(task.responses)),
        key=lambda i: digest_text(f"{queue.seed} shown {annotator} {task.task_id} {i}"),
    )


def next_tasks(
    queue: Queue,
    annotator: str,
    answers: Mapping[str, Mapping[str, Annotation]],
    *,
    number: int,
    held: frozenset[str] = frozenset(),
) -> list[LabelTask]:
    """What this person is asked next; ``held`` are those that they see now, or whose answers are on their way.

    A task that as many people have answered as are wanted is asked nobody else. One that is repeated comes ten answers
    after it was answered first, or when nothing else is left.
    """
    own = answers.get(annotator, {})
    counts: dict[str, int] = {}
    for other, given in answers.items():
        for task_id, answer in given.items():
            counts[task_id] = counts.get(task_id, 0) + (other != annotator and not answer.skipped)
    open_tasks = [task for task in queue.tasks.values() if task.task_id not in own and task.task_id not in held]
    first = [
        task
        for task in in_order(queue, annotator, open_tasks)
        if task.repeats is None and counts.get(task.task_id, 0) < queue.annotators_per_task
    ]
    ago = {task_id: len(own) - number for number, task_id in enumerate(own) if not own[task_id].skipped}
    repeats = [task for task in open_tasks if task.repeats in ago]
    due = [task for task in repeats if task.repeats and ago[task.repeats] > BETWEEN_REPEATS]
    later = [task for task in repeats if task not in due] if not first else []
    return [*due, *first, *later][:number]


def in_order(queue: Queue, annotator: str, tasks: list[LabelTask]) -> list[LabelTask]:
    return sorted(tasks, key=lambda task: digest_text(f"{queue.seed} asked {annotator} {task.task_id}"))
