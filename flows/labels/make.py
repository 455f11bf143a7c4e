"""A queue of what a run has written."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from flows.labels.choose import By, choose_tasks
from flows.labels.queue import Queue, make_queue, queues
from flows.query import LATEST, Span, select
from flows.runs import Run
from tasks.errors import ConfigError

MOST_CANDIDATES = 9
"""Letters on the page that are no other keys."""
EVERY = Span(0, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a queue is to be."""

    prompts: int = 100
    candidates: int = 4
    by: By = "uncertainty"
    annotators: int = 1
    """People who answer each task."""
    seed: int = 0
    data: str = "rollouts"
    rounds: Span = LATEST
    iterations: Span = EVERY

    def __post_init__(self) -> None:
        bounds = (
            ("--prompts", self.prompts, 1, 100_000),
            ("--candidates", self.candidates, 2, MOST_CANDIDATES),
            ("--annotators", self.annotators, 1, 100),
        )
        for option, value, low, high in bounds:
            if not low <= value <= high:
                raise ConfigError(f"{option} {value}: give a number from {low} to {high:,}")


def make_from_run(
    run: Run, wish: Wish, *, name: str | None = None, guidelines: Path | None = None
) -> tuple[Queue, str]:
    """A new queue of a run's rollouts, and a sentence about what it has less than was wished.

    Raises:
        UserError: there are no rollouts, no prompt with two different ones, or the name or the guidelines will not do.
    """
    selection = select(run, wish.data, rounds=wish.rounds, iterations=wish.iterations)
    tasks = choose_tasks(
        selection.data_set, prompts=wish.prompts, candidates=wish.candidates, by=wish.by, seed=wish.seed
    )
    asked = [task for task in tasks if task.repeats is None]
    settings = {
        "run": run.name,
        "by": wish.by,
        "candidates": wish.candidates,
        "annotators": wish.annotators,
        "seed": wish.seed,
    }
    queue = make_queue(run.home, name or free_name(run), tasks, settings, guidelines=guidelines)
    fewer = sum(len(task.responses) < wish.candidates for task in asked)
    told = [f"{len(asked)} of {wish.prompts} prompts have two different responses"] if len(asked) < wish.prompts else []
    told += [f"{fewer} of {len(asked)} tasks have fewer than {wish.candidates} candidates"] if fewer else []
    return queue, "; ".join(told)


def free_name(run: Run) -> str:
    """The run's name and a number that no queue has."""
    taken = {queue.name for queue in queues(run.home)}
    return next(name for number in count(1) if (name := f"{run.name[:50]}-{number}") not in taken)
