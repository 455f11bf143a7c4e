"""The metrics of a run, iteration by iteration, out of the manifests of its stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.metrics.combining import Part, combine


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
