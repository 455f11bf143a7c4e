"""What is told of a queue: how far it is, who works on it, and how far people agree."""

from typing import Any

from flows.labels.agreement import alpha_of, people_of, ranked
from flows.labels.annotations import all_answers
from flows.labels.queue import Queue


def summary_of(queue: Queue) -> dict[str, Any]:
    """A queue in a line."""
    answers = all_answers(queue)
    tasks = [task for task in queue.tasks.values() if task.repeats is None]
    given: dict[str, int] = {}
    for _, task_id, _ in ranked(queue, answers):
        given[task_id] = given.get(task_id, 0) + 1
    return {
        **queue.settings,
        "name": queue.name,
        "tasks": len(tasks),
        "answers": sum(given.values()),
        "wanted": len(tasks) * queue.annotators_per_task,
        "complete": sum(given.get(task.task_id, 0) >= queue.annotators_per_task for task in tasks),
        "people": len({*queue.people(), *answers}),
        "closed": queue.closed,
    }


def quality_of(queue: Queue) -> dict[str, Any]:
    """What is known of the work on a queue; links have the tokens of people, so that only the owner sees them."""
    answers = all_answers(queue)
    people = queue.people()
    return {
        **summary_of(queue),
        "alpha": alpha_of(queue, answers),
        "guidelines": queue.guidelines,
        "annotators": [
            {**person.as_dict(), "link": f"/label/{queue.name}?token={people[person.name]}"}
            if person.name in people
            else {**person.as_dict(), "link": None}
            for person in people_of(queue, answers)
        ],
        "skipped": [
            {"annotator": name, "task_id": task_id, "why": answer.skipped, "note": answer.note}
            for name, own in answers.items()
            for task_id, answer in own.items()
            if answer.skipped
        ],
        "notes": [
            {"annotator": name, "task_id": task_id, "note": answer.note}
            for name, own in answers.items()
            for task_id, answer in own.items()
            if answer.note and not answer.skipped
        ],
    }
