"""Queues of tasks for people, in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.terminal.tables import Column, Table, numbers
from flows.text import duration, number, printable


def queue_sentence(found: Mapping[str, Any]) -> str:
    """How far a queue is, and how far people agree."""
    told = (
        f"{found['name']}: {found['answers']:,} of {found['wanted']:,} answers to {found['tasks']:,} tasks of run "
        f"{printable(found['run'])}, {found['complete']:,} complete"
    )
    if found["alpha"] is not None:
        told += f"; Krippendorff's alpha {number(found['alpha'])}"
    if found["closed"] is not None:
        told += f"; closed into {printable(found['closed']['into'])}"
    return told


def annotators_table(people: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each annotator."""
    table = Table(
        columns=[
            Column(title="annotator"),
            *numbers("answers"),
            *numbers("skipped", drop=3),
            *numbers("seconds", drop=2),
            *numbers("with others"),
            *numbers("with oneself", drop=1),
            *numbers("with score", drop=1),
            *numbers("first place", drop=4),
        ]
    )
    for person in people:
        table.add_row(
            printable(person["name"]),
            person["answered"],
            person["skipped"],
            duration(person["median_seconds"]).removesuffix(" s"),
            number(person["with_others"]),
            number(person["with_repeats"]),
            number(person["with_score"]),
            number(person["first_place"]),
        )
    return table


def queues_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each queue."""
    table = Table(
        columns=[
            Column(title="queue"),
            Column(title="run", is_text=True, drop=1),
            Column(title="chosen by", drop=3),
            *numbers("tasks", "answers", "wanted"),
            *numbers("people", drop=2),
            Column(title="state"),
        ]
    )
    for queue in found:
        table.add_row(
            queue["name"],
            printable(queue["run"]),
            queue["by"],
            queue["tasks"],
            queue["answers"],
            queue["wanted"],
            queue["people"],
            "open" if queue["closed"] is None else "closed",
        )
    return table
