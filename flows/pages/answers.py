"""What annotators see and send: a page that asks one task after the other, and the answers that it sends.

The guard has told by the token whose request it is. What a page is given says nothing of scores and where responses come
from.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from flows.analysis.words import word_differences
from flows.labels import (
    Annotation,
    LabelTask,
    Queue,
    all_answers,
    annotation_of,
    answers_of,
    find_queue,
    next_tasks,
    save,
    shown_order,
)
from flows.pages.guard import ANSWERS
from flows.pages.rendering import render
from flows.text import printable_lines
from tasks.errors import ConfigError, RunError, UserError
from tasks.paths import os_error_sentence

AHEAD = 5
"""Tasks that a page has in hand, so that the next one is there at once, and without a connection some more."""
LARGEST_ANSWER = 1_000_000
NOT_KEPT = {"cache-control": "no-store"}
Told = Mapping[str, Any]


def annotator_routes(home: Path) -> list[Route]:
    """The pages of the queues of a home."""

    def route(path: str, answer: Callable[[Queue, str, Request, bytes], Response], method: str = "GET") -> Route:
        async def endpoint(request: Request) -> Response:
            body = await sent(request)
            if body is None:
                return JSONResponse({"error": f"an answer of over {LARGEST_ANSWER:,} bytes; shorten the note"}, 413)

            def make() -> Response:
                try:
                    queue = find_queue(home, request.path_params["queue"])
                    return answer(queue, request.scope["annotator"], request, body)
                except UserError as error:
                    return JSONResponse({"error": str(error)}, 404 if isinstance(error, RunError) else 400)
                except OSError as error:
                    # The page keeps the answer and sends it again.
                    return JSONResponse({"error": os_error_sentence(error)}, 503)

            return await run_in_threadpool(make)

        return Route(f"/{ANSWERS}/{{queue}}{path}", endpoint, methods=[method])

    return [
        route("", page),
        route("/tasks", more_tasks),
        route("/tasks/{task_id}", one_task),
        route("/answers", take_answer, "POST"),
    ]


async def sent(request: Request) -> bytes | None:
    """The body of a request; None where it is larger than any answer."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST_ANSWER:
            return None
        parts.append(part)
    return b"".join(parts)


def page(queue: Queue, annotator: str, request: Request, body: bytes) -> Response:
    """The page as it is opened: what this person is asked next, and what the others know of the queue already."""
    del request, body
    facts = {
        "queue": queue.name,
        "annotator": annotator,
        "is_closed": queue.closed is not None,
        **standing(queue, annotator, frozenset()),
    }
    guidelines = as_html(queue.guidelines)
    return HTMLResponse(render("label.html", {"facts": facts, "guidelines": guidelines}), headers=NOT_KEPT)


def as_html(markdown: str) -> Markup:
    """Markdown as HTML; markup in it is shown as it is written, and no link leads into a script."""
    return Markup(MarkdownIt("commonmark", {"html": False}).render(markdown))


def more_tasks(queue: Queue, annotator: str, request: Request, body: bytes) -> Response:
    """What comes after the tasks that the page has in hand."""
    del body
    held = frozenset(filter(None, request.query_params.get("held", "").split(",")))
    return JSONResponse(standing(queue, annotator, held), headers=NOT_KEPT)


def one_task(queue: Queue, annotator: str, request: Request, body: bytes) -> Response:
    """A task with this person's answer to it, to go back to."""
    del body
    task = queue.tasks.get(request.path_params["task_id"])
    if task is None:
        raise RunError(f"queue {queue.name} has no task {request.path_params['task_id']!r}; load the page again")
    answer = answers_of(queue, annotator).get(task.task_id)
    return JSONResponse(
        {**shown_task(queue, annotator, task), "answer": None if answer is None else earlier(answer)}, headers=NOT_KEPT
    )


def earlier(answer: Annotation) -> Told:
    return {"ranks": answer.ranks, "margin": answer.margin, "note": answer.note, "skipped": answer.skipped}


def take_answer(queue: Queue, annotator: str, request: Request, body: bytes) -> Response:
    """Save an answer; it is on the disk when this is answered."""
    del request
    try:
        given = json.loads(body)
    except ValueError:
        raise ConfigError("an answer is JSON, and this is none; load the page again") from None
    is_new = save(queue, annotation_of(queue, annotator, given))
    held = frozenset(map(str, given.get("held") or ()))
    told = {"saved": given["answer_id"], "is_new": is_new, **standing(queue, annotator, held)}
    if queue.closed is not None:
        late = "this queue is closed: your answer is kept, but the preferences were written without it"
        return JSONResponse({**told, "error": late}, 409, headers=NOT_KEPT)
    return JSONResponse(told, headers=NOT_KEPT)


def standing(queue: Queue, annotator: str, held: frozenset[str]) -> dict[str, Any]:
    """How far this person is, and the next tasks beside those on the page or on their way here."""
    answers = all_answers(queue)
    own = answers.get(annotator, {})
    left = next_tasks(queue, annotator, answers, number=len(queue.tasks), held=frozenset(held))
    waiting = [task for task in held if task not in own and task in queue.tasks]
    return {
        "answered": list(own),
        "left": len(left) + len(waiting),
        "tasks": [shown_task(queue, annotator, task) for task in left[:AHEAD]],
    }


def shown_task(queue: Queue, annotator: str, task: LabelTask) -> dict[str, Any]:
    """A task as the page shows it: no score, and nothing of where a response comes from."""
    order = shown_order(queue, annotator, task)
    texts = [printable_lines(task.responses[i]) for i in order]
    turns = task.prompt if isinstance(task.prompt, list) else [{"role": "", "content": task.prompt}]
    return {
        "task_id": task.task_id,
        "turns": [{"role": str(turn["role"]), "text": printable_lines(turn["content"])} for turn in turns],
        "shown": order,
        "cards": [
            {"text": text, "shared": shared_beginning(texts), "pieces": pieces_of(texts, i)}
            for i, text in enumerate(texts)
        ],
    }


def shared_beginning(texts: list[str]) -> int:
    """Characters that all texts begin with, up to the end of a word."""
    first, last = min(texts), max(texts)
    # What the first and the last in the order of the alphabet share, all between them share.
    end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    is_whole_word = all(len(text) == end or text[end].isspace() for text in texts)
    return end if is_whole_word else first.rfind(" ", 0, end) + 1


def pieces_of(texts: list[str], i: int) -> list[tuple[bool, str]]:
    """Pieces of a text, each with whether the first one has it too; those of the first are held against the second."""
    other = texts[1 if i == 0 else 0]
    return [(which == "same", text) for which, text in word_differences(other, texts[i]) if which != "a"]
