"""How far people agree: with each other, with themselves, and with the score."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from flows.labels.annotations import Annotation
from flows.labels.queue import Queue

Answers = Mapping[str, Mapping[str, Annotation]]
"""The last answers by person and task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """What is known of one annotator's work; None where nothing can be said yet."""

    name: str
    answered: int
    skipped: int
    median_seconds: float | None
    with_others: float | None
    """Share of pairs of responses that both order, which both order alike: over all others."""
    with_repeats: float | None
    """The same, of this person's first and second answer to one task."""
    with_score: float | None
    """The same, of this person and the run's score."""
    first_place: float | None
    """How often the response that stood first was ranked best, in multiples of what chance gives."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preferred(ranks: Sequence[float]) -> Iterator[tuple[tuple[int, int], int]]:
    """Each pair of responses with 1 where the first of it is better, -1 where the second is, 0 for a tie."""
    for i, j in combinations(range(len(ranks)), 2):
        yield (i, j), (ranks[j] > ranks[i]) - (ranks[j] < ranks[i])


def krippendorff_alpha(units: Sequence[Sequence[float]]) -> float | None:
    """alpha = 1 - D_o / D_e, with the squared difference between two values of a unit; None where it is not defined.

    D_o is its mean within units, each weighted by its number of values, D_e that among all values of units with two and
    more. 1 is perfect agreement, 0 what chance gives. Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011,
    interval data.
    """
    pairable = [unit for unit in units if len(unit) > 1]
    values = [value for unit in pairable for value in unit]
    expected = squared_differences(values) / (len(values) - 1) if values else 0.0
    if expected == 0.0:
        return None
    return 1 - sum(squared_differences(unit) / (len(unit) - 1) for unit in pairable) / expected


def squared_differences(values: Sequence[float]) -> float:
    """The sum over all ordered pairs of values."""
    return 2 * (len(values) * sum(v * v for v in values) - sum(values) ** 2)


def alpha_of(queue: Queue, answers: Answers) -> float | None:
    """Krippendorff's alpha over all pairs of responses that two or more people have ordered: 1, 0 for a tie, or -1."""
    units: dict[tuple[str, tuple[int, int]], list[int]] = {}
    for _, task_id, answer in ranked(queue, answers):
        for pair, value in preferred(answer.ranks):
            units.setdefault((task_id, pair), []).append(value)
    return krippendorff_alpha(list(units.values()))


def ranked(queue: Queue, answers: Answers) -> Iterator[tuple[str, str, Annotation]]:
    """Person, task and answer, without what was skipped and without repeated questions."""
    for name, own in answers.items():
        for task_id, answer in own.items():
            if answer.ranks and task_id in queue.tasks and queue.tasks[task_id].repeats is None:
                yield name, task_id, answer


def people_of(queue: Queue, answers: Answers) -> list[Person]:
    """Each person who was invited or has answered."""
    names = sorted({*queue.people(), *answers})
    return [person_of(queue, answers, name) for name in names]


def person_of(queue: Queue, answers: Answers, name: str) -> Person:
    own = answers.get(name, {})
    given = [answer for answer in own.values() if answer.ranks]
    others: list[tuple[Sequence[float], Sequence[float]]] = []
    repeats: list[tuple[Sequence[float], Sequence[float]]] = []
    scores: list[tuple[Sequence[float], Sequence[float]]] = []
    firsts = chance = 0.0
    for answer in given:
        task = queue.tasks[answer.task_id]
        if task.repeats is not None:
            before = own.get(task.repeats)
            repeats += [(before.ranks, answer.ranks)] if before and before.ranks else []
            continue
        theirs = [given[task.task_id] for other, given in answers.items() if other != name and task.task_id in given]
        others += [(answer.ranks, other.ranks) for other in theirs if other.ranks]
        known = [score for score in task.scores if score is not None]
        scores += [(answer.ranks, [-score for score in known])] if len(known) == len(answer.ranks) else []
        best = [i for i, rank in enumerate(answer.ranks) if rank == 1]
        if len(best) < len(answer.ranks):
            firsts += answer.shown[0] in best
            chance += len(best) / len(answer.ranks)
    seconds = [answer.seconds for answer in given if answer.seconds > 0]
    return Person(
        name=name,
        answered=len(given),
        skipped=sum(bool(answer.skipped) for answer in own.values()),
        median_seconds=statistics.median(seconds) if seconds else None,
        with_others=agreement(others),
        with_repeats=agreement(repeats),
        with_score=agreement(scores),
        first_place=firsts / chance if chance else None,
    )


def agreement(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float | None:
    """Share of the pairs of responses that both rankings order, which they order alike."""
    alike = both = 0
    for one, other in pairs:
        for (_, mine), (_, theirs) in zip(preferred(one), preferred(other), strict=True):
            if mine and theirs:
                both += 1
                alike += mine == theirs
    return alike / both if both else None
