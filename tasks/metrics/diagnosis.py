"""What a run's numbers say against it: the ranges that the glossary (README.md beside it) calls healthy, as rules.

A rule is broken where a metric is out of its range by more than chance explains, ``Z`` standard errors of what was
measured. Nothing stops: limits that stop a stage are those of ``health``, and far wider. The functions are pure, so that
the report of a round, the live display and ``rounds status`` say the same of the same numbers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from tasks.metrics.rules import PER_ITERATION, PER_ROUND
from tasks.metrics.warnings import Row, RunWarning, Seen


def warnings_at(rows: Sequence[Row], of_round: Row) -> list[RunWarning]:
    """What the last of these iterations is ill with. The run's first and the last ``NEEDED`` are enough."""
    seen = Seen(rows=rows, of_round=of_round)
    return [found for rule in PER_ITERATION for found in rule.broken_by(seen)]


def warnings_of_round(number: int, of_round: Row, led_here: Sequence[Row] = ()) -> list[RunWarning]:
    """What was measured once in a round, by reward model and evaluation; ``led_here`` are its iterations."""
    seen = Seen(rows=(), of_round={**of_round, "round": number}, led_here=led_here)
    return [found for rule in PER_ROUND for found in rule.broken_by(seen)]


def diagnose(history: Sequence[Row], rounds: Mapping[int, Row]) -> list[RunWarning]:
    """All warnings of a run, each metric of a round once, by where it was first out of range.

    ``history`` has a row of metrics for each iteration, with its ``round`` and ``iteration``; ``rounds`` what was measured
    once in a round.
    """
    found: list[RunWarning] = []
    for number in sorted({*rounds, *(row["round"] for row in history)}):
        of_round = rounds.get(number, {})
        for position, row in enumerate(history):
            if row["round"] == number:
                found += warnings_at(history[: position + 1], of_round)
        found += warnings_of_round(number, of_round, [row for row in history if row["round"] == number])
    return once_each(found)


def once_each(found: Iterable[RunWarning]) -> list[RunWarning]:
    """The first of each metric in each round, with the number of times that it was seen."""
    first: dict[tuple[int, str], RunWarning] = {}
    times: dict[tuple[int, str], int] = {}
    for warning in found:
        key = (warning.round, warning.metric)
        first.setdefault(key, warning)
        times[key] = times.get(key, 0) + 1
    return [RunWarning(**{**asdict(warning), "times": times[key]}) for key, warning in first.items()]
