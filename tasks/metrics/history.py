"""The metrics of a run, iteration by iteration, out of the manifests of its stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.metrics.combining import Part, combine

COUNTED = "health/warnings"
"""Counted anew for each iteration: what a stage of the round warned of would be a second value in the same place."""


def rows_of(
    parts: Mapping[tuple[int, int], Sequence[Part]],
) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """A row of metrics for each (round, iteration), in order, and what was measured once in each round, iteration 0."""
    rows = [
        {"round": round, "iteration": iteration, **combine(own)}
        for (round, iteration), own in sorted(parts.items())
        if iteration and own
    ]
    return rows, {round: combine(own) for (round, iteration), own in parts.items() if not iteration and own}


def through_rounds(
    rows: Sequence[Mapping[str, Any]], of_rounds: Mapping[int, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """The rows of all iterations; that of a round's last one also has what was measured once in the round."""
    found = [dict(row) for row in rows]
    last = {row["round"]: row for row in found}
    for number, own in of_rounds.items():
        if number in last:
            last[number] |= {name: value for name, value in own.items() if name != COUNTED}
    return found
